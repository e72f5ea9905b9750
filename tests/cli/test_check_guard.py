"""One run that can't be judged takes nothing from the report on the others: each is judged behind a guard."""

import html
import json
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from written import make_info, make_record, write_run

from lightning_gradwatch import evaluate as evaluate_run
from lightning_gradwatch.cli import command
from lightning_gradwatch.cli.check import judge
from lightning_gradwatch.cli.settings import Settings
from lightning_gradwatch.judge.catalog import DEFAULT_RULES
from lightning_gradwatch.judge.evaluator import replay
from lightning_gradwatch.judge.rules.vanishing import VanishingGradient
from lightning_gradwatch.judge.run import Run, RunError, read_run
from lightning_gradwatch.record.reasons import CannotJudgeError, reason_of
from lightning_gradwatch.record.run_files import Problems
from lightning_gradwatch.record.run_info import series
from lightning_gradwatch.tell.formats import FORMATS, render
from lightning_gradwatch.tell.terminal import verdict_text

DIGITS = "1" + "0" * 400
ERRORS = {
    "OverflowError": (
        OverflowError("int too large to convert to float"),
        "a number in it is too large to calculate with",
    ),
    "math domain error": (
        ValueError("math domain error"),
        "a number in it is outside of the range that can be calculated with (ValueError: math domain error)",
    ),
    "ZeroDivisionError": (ZeroDivisionError("division by zero"), "a number in it is outside of the range"),
    "RecursionError": (RecursionError("maximum recursion depth exceeded"), "what it holds is nested too deeply"),
    "MemoryError": (MemoryError(), "it takes more memory than there is"),
}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Three runs; judging the one in the middle meets what the test asks for."""
    for name in ("first", "hostile", "last"):
        write_run(tmp_path / name, make_info(3 if name != "hostile" else 4), steps=range(12))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fails(monkeypatch):
    """Let a rule fail at the records of the hostile run."""

    def let(error):
        real = VanishingGradient.judge

        def fail(self, record, info, state):
            if len(info.layers) == 4 and record.step == 5:
                raise error
            return real(self, record, info, state)

        monkeypatch.setattr(VanishingGradient, "judge", fail)

    return let


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.parametrize("name", FORMATS)
def test_what_one_run_brings_about_is_its_verdict_alone(fails, capsys, case, name):
    error, said = ERRORS[case]
    fails(error)
    assert command.main(["check", "--no-config", "--format", name, "first", "hostile", "last"]) == 2
    out, err = capsys.readouterr()
    assert err == ""
    assert f"step 5: {said}" in html.unescape(" ".join(out.split()))
    if name == "json":
        told = json.loads(out)["runs"]
        assert [run["outcome"] for run in told] == ["healthy", "cannot-judge", "healthy"]
        assert [len(run["judged"]) > 3 for run in told] == [True, False, True]
    if name == "junit":
        suites = ET.fromstring(out)
        assert len(suites) == 3


def test_a_fault_of_ours_is_a_verdict_and_a_line_to_report(runs, fails, capsys):
    fails(TypeError("a bug"))
    assert command.main(["check", "--no-config", "first", "hostile", "last"]) == 2
    out, err = capsys.readouterr()
    assert "3 runs: 2 healthy, 1 can't be judged" in out
    assert "can't judge: hostile: its numbers can't be calculated with (TypeError: a bug)" in out
    assert err.startswith("gradwatch: internal error, please report it: TypeError: a bug (")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_a_verdict_that_cannot_be_told_is_replaced_by_why(runs, monkeypatch, capsys, name):
    real = verdict_text if name == "text" else render

    def tell(verdicts, *args, **kwargs):
        if any(
            verdict.path == "hostile" and not verdict.failure
            for verdict in ([verdicts] if name == "text" else verdicts)
        ):
            raise OverflowError("too large")
        return real(verdicts, *args, **kwargs)

    monkeypatch.setattr(command, "verdict_text" if name == "text" else "render", tell)
    assert command.main(["check", "--no-config", "--format", name, "first", "hostile", "last"]) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert "hostile: a number in it is too large to calculate with" in out
    assert "first" in out
    assert "last" in out


def test_evaluate_raises_an_error_of_a_run_with_a_sentence(runs, fails):
    fails(OverflowError("x"))
    with pytest.raises(RunError, match="hostile: step 5: a number in it is too large to calculate with"):
        evaluate_run(read_run("hostile"))
    with pytest.raises(CannotJudgeError):
        replay(read_run("hostile").records, read_run("hostile").infos, DEFAULT_RULES)


def test_evaluate_says_that_stored_rules_cannot_be_used(runs):
    run = read_run("first")
    for rules in ({"GW101": {"ratio": 7}}, {"GW101": {"ratio": "x"}}, {"GW101": {"ratio": []}}):
        changed = replace(run, info=replace(run.info, rules=rules))
        with pytest.raises(RunError, match="the rules stored in the run can't be used: "):
            evaluate_run(changed)


@pytest.mark.parametrize("error", [entry[0] for entry in ERRORS.values()], ids=ERRORS)
def test_reading_raises_an_error_of_a_run_whatever_it_meets(runs, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr("lightning_gradwatch.judge.run.read_files", fail)
    with pytest.raises(RunError, match="first can't be read: "):
        read_run("first")
    monkeypatch.setattr(
        "lightning_gradwatch.judge.run.read_files", lambda *args: (_ for _ in ()).throw(OSError(5, "I/O error"))
    )
    with pytest.raises(RunError, match="first can't be read: I/O error"):
        read_run("first")


def test_a_comparison_that_fails_is_a_verdict(runs, monkeypatch, capsys):
    def fail(*args):
        raise OverflowError("x")

    monkeypatch.setattr("lightning_gradwatch.cli.check.compare_runs", fail)
    assert command.main(["compare", "--no-config", "first", "last"]) == 2
    assert "not comparable with first: a number in it is too large" in " ".join(capsys.readouterr().out.split())


def test_a_baseline_that_cannot_be_judged_is_a_verdict(runs, fails, capsys):
    fails(MemoryError())
    assert command.main(["check", "--no-config", "--baseline", "hostile", "first"]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "the baseline can't be read: step 5: it takes more memory than there is" in said


@pytest.mark.parametrize("number", [DIGITS, "-" + DIGITS, "1" * 5000, "0x" + "f" * 4000])
@pytest.mark.parametrize("place", ["--set", "environment", "file"])
def test_a_huge_number_in_a_setting_is_a_usage_error(runs, monkeypatch, capsys, number, place):
    arguments = ["--no-config", "--set", f"GW302.ratio={number}"]
    if place == "environment":
        monkeypatch.setenv("GRADWATCH_SET", f"GW302.ratio={number}")
        arguments = ["--no-config"]
    if place == "file":
        (runs / "gradwatch.toml").write_text(f"[rules.GW302]\nratio = {number}\n")
        arguments = []
    assert command.main(["check", "first", *arguments]) == 2
    out, err = capsys.readouterr()
    assert "internal error" not in err
    assert ("gradwatch.toml" if place == "file" else "GW302.ratio") in (out + err)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000,
        "format = 0x" + "f" * 5000,
        "x" * 100_000 + " = 1",
        'fail-on = "' + "x" * 100_000 + '"',
        f'[[ignore-layers]]\nrules = ["GW1"]\nlayers = ["{"x" * 5000}"]\nreason = "y"',
        f'[[ignore-layers]]\nrules = ["GW1"]\nlayers = ["x"]\nreason = "{"y" * 5000}"',
    ],
)
def test_a_hostile_file_of_settings_is_a_usage_error(runs, capsys, text):
    (runs / "gradwatch.toml").write_text(text)
    assert command.main(["check", "first"]) == 2
    err = capsys.readouterr().err
    assert "internal error" not in err
    assert "gradwatch.toml" in err
    assert len(err) < 2000


@pytest.mark.parametrize(("field", "bits"), [("ratio", 1200), ("warm_up_steps", 60), ("warm_up_steps", 20_000)])
def test_a_threshold_that_a_float_cannot_hold_is_refused(field, bits):
    with pytest.raises(ValueError, match=f"VanishingGradient\\({field}=.{{1,40}}\\): {field} must be"):
        VanishingGradient(**{field: 1 << bits})


def test_columns_that_nearly_all_steps_lack_are_not_laid_out():
    """A small file can describe a million layers once, and have a thousand steps of another net."""
    small, large = make_info(2), make_info(3000)
    records = [make_record(small, step) for step in range(3000)]
    run = Run(path="x", info=large, infos={small.layout: small, large.layout: large}, records=records)
    with pytest.raises(RunError, match="x: 3,000 steps with 6,000 values of grad_norm in all have 3,000 columns"):
        run.series("grad_norm")
    steps, values = series(records, run.infos, "grad_norm", small.names("grad_norm"))
    assert values.shape == (len(steps), 2)
    assert np.isfinite(values).all()


def test_reasons_are_sentences():
    assert reason_of(CannotJudgeError("so it is")) == "so it is"
    assert reason_of(KeyError("x")) == "its numbers can't be calculated with (KeyError: 'x')"
    assert len(reason_of(ValueError("x" * 10_000))) < 400


def test_a_run_that_cannot_be_opened_is_a_verdict(tmp_path):
    verdict = judge(str(tmp_path / ("x" * 5000)), Settings())
    assert verdict.exit_code == 2
    assert verdict.failure


def test_a_code_that_is_none_is_shown_by_its_beginning(capsys):
    assert command.main(["explain", "x" * 100_000]) == 2
    assert len(capsys.readouterr().err) < 1000


def test_a_long_text_in_a_damaged_event_is_shown_by_its_beginning():
    problems = Problems()
    problems.tell("x" * 1_000_000)
    assert len(problems.sentences[0]) < 600
