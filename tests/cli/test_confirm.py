"""What the live run reported and what is left of it can't confirm is no all-clear."""

from dataclasses import replace

import numpy as np
import pytest
from written import make_info, make_record

from lightning_gradwatch.cli import command
from lightning_gradwatch.cli.check import judge
from lightning_gradwatch.cli.settings import Settings, Threshold
from lightning_gradwatch.judge.catalog import DEFAULT_RULES
from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.judge.run import evaluate, read_run
from lightning_gradwatch.judge.verdict import IgnoredLayers
from lightning_gradwatch.record.events.file import EventFile
from lightning_gradwatch.record.events.step_events import findings_event, step_event
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.tell.formats import FORMATS, render
from lightning_gradwatch.version import __version__

ILL = 4
INFO = make_info(2)


def watch(folder, *, steps=range(8), ill=ILL, lost=(ILL,), info=INFO, live=None, told=None, end=True):
    """Write what a live run writes; the records of the lost steps are damaged in the file."""
    live = live or Evaluator(DEFAULT_RULES)
    with EventFile(folder) as file:
        places = {}
        for place, step in enumerate(steps):
            state = np.full(2, 5 if step == ill else 1, np.uint8)
            record = make_record(info, step, layer_state=state)
            live.feed(record, info)
            places[step] = file.path.stat().st_size
            file.write(step_event(record, info, describe=place == 0, max_curves=0))
        if end:
            file.write(findings_event(live.findings if told is None else told, step=steps[-1]))
    data = bytearray(file.path.read_bytes())
    for step in lost:
        data[data.index(b'"loss"', places[step])] ^= 1
    file.path.write_bytes(data)
    return live


SAID = "the live run reported GW103 non-finite (error) at net.2 in step 4, which what is left of it can't confirm"


def test_a_finding_whose_records_are_damaged_is_no_all_clear(tmp_path, capsys):
    watch(tmp_path)
    run = read_run(tmp_path)
    assert [finding.code for finding in run.findings] == ["GW103"]
    assert evaluate(run) == ()
    verdict = judge(str(tmp_path), Settings())
    assert (verdict.exit_code, verdict.failure) == (2, SAID)
    for name in FORMATS:
        assert "the live run reported GW103" in " ".join(render([verdict], name).split())
    assert command.main(["check", "--no-config", str(tmp_path)]) == 2
    assert "can't judge: the live run reported GW103" in " ".join(capsys.readouterr().out.split())


def test_a_finding_that_what_is_left_confirms_is_the_verdict(tmp_path):
    watch(tmp_path, lost=(1,))
    verdict = judge(str(tmp_path), Settings())
    assert verdict.exit_code == 1
    assert [finding.code for finding in verdict.findings] == ["GW103"]


def test_damage_without_a_report_is_told_and_no_more(tmp_path):
    watch(tmp_path, ill=None, lost=(3,))
    verdict = judge(str(tmp_path), Settings())
    assert (verdict.exit_code, verdict.failure, len(verdict.problems)) == (0, "", 1)


def test_a_worse_finding_than_what_is_left_shows_is_not_confirmed(tmp_path):
    live = watch(tmp_path / "whole", lost=())
    (found,) = live.findings
    mild = replace(found, severity=Severity.WARNING)
    for told, exit_code in ((mild, 1), (found, 1)):
        watch(tmp_path / told.severity.label, lost=(1,), told=(told,))
        assert judge(str(tmp_path / told.severity.label), Settings()).exit_code == exit_code
    watch(tmp_path / "less", told=(replace(found, severity=Severity.INFO),))
    verdict = judge(str(tmp_path / "less"), Settings())
    assert verdict.exit_code == 0
    assert verdict.problems[-1] == (
        "the live run reported GW103 non-finite (info) at net.2 in step 4, which its records here don't show"
    )


@pytest.mark.parametrize(
    ("settings", "exit_code"),
    [
        ({}, 2),
        ({"fail_on": Severity.ERROR}, 2),
        ({"ignore": ("GW103",)}, 0),
        ({"select": ("GW104",)}, 0),
        ({"select": ("GW103", "GW104")}, 2),
        ({"thresholds": {"GW103": {"skipped_steps": Threshold(5, "--set")}}}, 0),
        ({"ignore_layers": (IgnoredLayers(rule="GW1", pattern="net.*", reason="x"),)}, 0),
        ({"ignore_layers": (IgnoredLayers(rule="GW1", pattern="net.0", reason="x"),)}, 2),
    ],
)
def test_only_what_is_asked_for_is_missed(tmp_path, settings, exit_code):
    watch(tmp_path)
    assert judge(str(tmp_path), Settings(**settings)).exit_code == exit_code


def test_what_was_before_a_run_that_goes_on_elsewhere_is_told_and_no_fault_of_its_records(tmp_path):
    """A fit from a checkpoint carries its findings along, into a folder that has other steps."""
    live = watch(tmp_path / "first", lost=())
    watch(tmp_path / "second", steps=range(8, 16), lost=(), live=live)
    verdict = judge(str(tmp_path / "second"), Settings())
    assert verdict.exit_code == 0
    assert verdict.problems == (
        "the live run reported GW103 non-finite (error) at net.2 in step 4, which its records here don't show",
    )
    watch(tmp_path / "damaged", steps=range(8, 16), lost=(9,), live=live)
    assert judge(str(tmp_path / "damaged"), Settings()).exit_code == 2


def test_a_report_in_the_midst_of_sound_records_is_not_confirmed(tmp_path):
    """No damage is seen, and yet by construction these records can't have been all."""
    live = watch(tmp_path / "ill", lost=())
    watch(tmp_path / "run", ill=None, lost=(), told=live.findings)
    assert judge(str(tmp_path / "run"), Settings()).exit_code == 2


@pytest.mark.parametrize(("version", "exit_code"), [(__version__, 2), ("0.0.1", 0)])
def test_another_release_may_have_judged_otherwise(tmp_path, version, exit_code):
    live = watch(tmp_path / "ill", lost=())
    info = replace(INFO, versions={"lightning-gradwatch": version})
    watch(tmp_path / "run", ill=None, lost=(), told=live.findings, info=info)
    assert judge(str(tmp_path / "run"), Settings()).exit_code == exit_code


def test_what_an_earlier_fit_reported_is_missed_where_its_records_are_damaged(tmp_path):
    """The second fit in the folder starts afresh, and reports nothing."""
    watch(tmp_path / "sound", lost=())
    watch(tmp_path / "sound", steps=range(8, 16), lost=())
    assert judge(str(tmp_path / "sound"), Settings()).exit_code == 1
    watch(tmp_path / "run")
    watch(tmp_path / "run", steps=range(8, 16), ill=None, lost=())
    assert read_run(tmp_path / "run").findings == ()
    assert judge(str(tmp_path / "run"), Settings()).failure == SAID


def test_what_an_earlier_fit_reported_of_steps_that_were_done_again_is_past(tmp_path):
    watch(tmp_path)
    watch(tmp_path, steps=range(2, 12), ill=None, lost=(7,))
    assert judge(str(tmp_path), Settings()).exit_code == 0


def test_many_findings_that_are_missed_are_counted(tmp_path):
    (found,) = watch(tmp_path / "ill", lost=()).findings
    watch(tmp_path / "run", told=[replace(found, layers=(f"net.{place}",)) for place in range(10)])
    failure = judge(str(tmp_path / "run"), Settings()).failure
    assert failure.count("GW103") == 3
    assert failure.endswith(", and 7 findings more, which what is left of it can't confirm")
