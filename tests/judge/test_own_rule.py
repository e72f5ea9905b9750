"""A rule of the user's own: it states thresholds, condition and words, and the rest is the base's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from written import make_info, make_record

from lightning_gradwatch import GradWatch, VanishingGradient, evaluate, read_run, register_rule
from lightning_gradwatch.cli.command import main
from lightning_gradwatch.judge import catalog
from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.judge.selection import resolve_rules, rules_from_settings, settings_of
from lightning_gradwatch.record.events.file import EventFile
from lightning_gradwatch.record.events.step_events import findings_event, step_event
from lightning_gradwatch.record.finding import CauseKind, GradWatchWarning, Remedy, Severity
from lightning_gradwatch.rules import Rule, Seen, Sentences, cant_judge


@dataclass(frozen=True, kw_only=True)
class Loud(Rule):
    """A layer's gradient is large.

    Why: for this test.

    Attributes:
        most: what is too much.
        patience: measured steps in a row that must agree.
        warm_up_steps: steps that aren't judged.
    """

    code: ClassVar[str] = "LAB001"
    name: ClassVar[str] = "loud-layer"

    most: float = 2.0
    patience: int = 3
    warm_up_steps: int = 2

    def check(self, record, info, state):
        del state
        rms = record.values("grad_rms", len(info.layers))
        if np.isnan(rms).all():
            return cant_judge("no gradient was measured")
        return Seen("layers", rms, rms > self.most, self.most)

    def words(self, found):
        return Sentences(f"It shouts: {found.worst}.", Remedy("Mute it."), f"{found.worst} has {found.value:g}.")


@pytest.fixture(autouse=True)
def nothing_stays_registered(monkeypatch):
    monkeypatch.setattr(catalog, "_registered", {})


def fed(runs, *readings, rule=None, start=0, **changes):
    """Feed readings, a number for all layers or one a name (1 elsewhere); None is a step without gradients."""
    info = runs.stack(depth=3)
    records = [
        runs.measure(info, step, **({} if rms is None else {"grad_rms": rms}), **changes)
        for step, rms in enumerate(readings, start)
    ]
    return runs.feed(rule or Loud(), records, info)


def test_it_is_told_once_after_the_warm_up_and_so_many_steps_in_a_row(runs):
    loud = {"net.2": 9.0, "net.4": 5.0}
    seen = fed(runs, *[loud] * 6)
    assert [len(told) for told in seen.told] == [0, 0, 0, 0, 1, 0]
    assert seen.confirming == [False, False, True, True, False, False]
    finding = seen.only
    assert (finding.code, finding.name, finding.severity) == ("LAB001", "loud-layer", Severity.WARNING)
    assert finding.layers == ("net.2", "net.4")
    assert (finding.first_step, finding.last_step, finding.value, finding.threshold) == (2, 5, 9.0, 2.0)
    assert (finding.cause, finding.message) == ("It shouts: net.2.", "net.2 has 9.")
    assert (finding.cause_kind, finding.consequence_of) == (CauseKind.UNKNOWN, "")


def test_each_layer_has_its_own_row_of_steps(runs):
    here, there = {"net.0": 9.0}, {"net.2": 9.0}
    assert fed(runs, here, there, here, there, here, there, here, there).findings == ()


def test_it_says_what_it_waits_for_and_what_it_lacks(runs):
    def says(*readings, **changes):
        return fed(runs, *readings, **changes).evaluator.unjudged.get("LAB001")

    assert says(9.0) == "not yet: the first 2 steps are warm-up"
    assert says(9.0, 9.0, 9.0) == "not yet: 3 measured steps in a row must agree"
    assert says(9.0, 9.0, 9.0, skipped=True) == "not yet: the optimizer step was skipped"
    assert says(None, None, None) == "can't judge: no gradient was measured"
    assert says(1.0, 1.0, 1.0) is None


def test_what_no_longer_holds_has_healed(runs):
    finding = fed(runs, *[9.0] * 5, 1.0, 1.0, 1.0).only
    assert (finding.severity, finding.healed_step) == (Severity.INFO, 7)
    assert finding.message.endswith("It has healed: it hasn't held in the last 3 measured steps.")
    assert fed(runs, *[9.0] * 5, 1.0, 1.0, 9.0).only.healed_step is None


def test_a_resumed_run_goes_on_with_it(runs):
    info = runs.stack(depth=3)
    records = [runs.measure(info, step, grad_rms=9.0) for step in range(5)]
    whole, first, second = (Evaluator([Loud()]) for _ in range(3))
    for record in records:
        whole.feed(record, info)
    for record in records[:4]:
        first.feed(record, info)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [finding.code for finding in second.feed(records[4], info)] == ["LAB001"]
    assert second.findings == whole.findings
    assert second.state_dict() == whole.state_dict()


def test_it_stands_behind_the_others_and_is_left_out_by_its_code():
    assert [rule.code for rule in resolve_rules([Loud(most=3.0)])][-2:] == ["GW601", "LAB001"]
    assert [rule.code for rule in resolve_rules([Loud()], ignore=["GW"])] == ["LAB001"]


def named(code, name="mine"):
    return dataclass(frozen=True, kw_only=True)(type("Mine", (Loud,), {"code": code, "name": name}))


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("GW999", "mine", "code 'GW999', and codes that begin with GW are this package's own"),
        ("GW101", "mine", "code 'GW101', and codes that begin with GW are this package's own"),
        ("GWX1", "mine", "code 'GWX1', and codes that begin with GW"),
        ("gw999", "mine", "code 'gw999', and codes that begin with GW"),
        ("lab001", "mine", "code 'lab001'; give it capitals and a number, such as LAB001"),
        ("LAB", "mine", "give it capitals and a number"),
        ("LAB 1", "mine", "give it capitals and a number"),
        (7, "mine", "code 7; give it capitals and a number"),
        ("LAB001", "Mine", "name 'Mine'; give it words in lower case"),
        ("LAB001", "dead-units", "name 'dead-units', which is that of GW201"),
    ],
)
def test_a_code_or_a_name_that_isnt_ones_own_is_refused_wherever_it_is_given(tmp_path, code, name, message):
    rule = named(code, name)
    info = make_info(2)
    with EventFile(tmp_path) as file:
        file.write(step_event(make_record(info, 0), info, describe=True, max_curves=0))
    for give in (
        lambda: GradWatch(rules=[rule()]),
        lambda: evaluate(read_run(tmp_path), rules=[rule()]),
        lambda: register_rule(rule),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            give()


def test_what_is_no_rule_or_has_thresholds_that_are_none_is_refused():
    class Forgotten(Rule):
        code, name = "LAB002", "forgotten"
        most: float = 2.0

    with pytest.raises(ValueError, match="isn't a dataclass, so most is no threshold"):
        GradWatch(rules=[Forgotten()])
    for wrong in (Loud(), int, "LAB001"):
        with pytest.raises(TypeError, match="is no subclass of Rule"):
            register_rule(wrong)


def test_what_is_derived_from_a_rule_of_the_package_keeps_its_code():
    class Milder(VanishingGradient):
        pass

    assert GradWatch(rules=[Milder()])._rules[0] == Milder()


def test_a_rule_without_condition_or_words_says_so(runs):
    @dataclass(frozen=True, kw_only=True)
    class Mute(Rule):
        code: ClassVar[str] = "LAB003"
        name: ClassVar[str] = "mute"

    with pytest.raises(NotImplementedError, match="Mute has no check"):
        fed(runs, 9.0, rule=Mute())


def test_its_warning_is_the_packages_unless_it_has_one():
    assert Loud.warning is GradWatchWarning


def stored(folder):
    """A run that was watched with the rule, and what it found."""
    info = make_info(3, rules=settings_of([*resolve_rules(), Loud(most=3.0)]))
    evaluator = Evaluator([*resolve_rules(), Loud(most=3.0)])
    with EventFile(folder) as file:
        for step in range(6):
            record = make_record(info, step, grad_rms=np.array([1.0, 9.0, 1.0]))
            evaluator.feed(record, info)
            file.write(step_event(record, info, describe=step == 0, max_curves=0))
        file.write(findings_event(evaluator.findings, step=5))
    return evaluator.findings


def test_a_stored_run_is_judged_by_it_again_where_it_is_known(tmp_path, capsys):
    live = stored(tmp_path)
    assert [finding.code for finding in live] == ["LAB001"]
    register_rule(Loud)
    assert rules_from_settings({"LAB001": {"most": 3.0}}) == (Loud(most=3.0),)
    assert evaluate(read_run(tmp_path)) == live
    assert main(["check", str(tmp_path), "--fail-on", "warning"]) == 1
    assert "loud-layer, warning since step 2" in capsys.readouterr().out
    assert main(["check", str(tmp_path), "--ignore", "LAB001"]) == 0
    capsys.readouterr()
    assert main(["explain", "LAB001"]) == 0
    assert "most (2.0): what is too much." in capsys.readouterr().out
    main(["rules"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("LAB001  loud-layer")


def test_a_stored_run_is_read_where_it_isnt_known_and_that_rule_cant_judge(tmp_path, capsys):
    live = stored(tmp_path)
    run = read_run(tmp_path)
    assert (run.findings, run.problems) == (live, ())
    assert evaluate(run) == ()
    assert main(["check", str(tmp_path), "--format", "json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["runs"]
    (said,) = (each for each in report["unjudged"] if each["code"] == "LAB001")
    assert said["reason"] == "can't judge: the package that has this rule isn't installed here"
    assert report["problems"] == [
        "the live run reported LAB001 loud-layer (warning) at net.2 in step 2 to 5, by a rule that isn't known here"
    ]


PACKAGE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
from lightning_gradwatch.rules import Rule, Seen, Sentences

@dataclass(frozen=True, kw_only=True)
class Loud(Rule):
    \"\"\"A layer's gradient is large.\"\"\"

    code: ClassVar[str] = "LAB001"
    name: ClassVar[str] = "loud-layer"
    most: float = 2.0
    warm_up_steps: int = 2

    def check(self, record, info, state):
        rms = record.values("grad_rms", len(info.layers))
        return Seen("layers", rms, rms > self.most, self.most)

    def words(self, found):
        from lightning_gradwatch import Remedy
        return Sentences("c", Remedy("r"), "m")
"""


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("lab_rules:Loud", "loud-layer, warning since step 2"),
        ("lab_rules:Quiet", "lab_rules:Quiet, which an installed package names for it, can't be used: AttributeError"),
        ("lab_rules:dataclass", "can't be used: TypeError: it is no subclass of Rule"),
        ("nowhere:Loud", "can't be used: ModuleNotFoundError"),
    ],
)
def test_an_installed_package_brings_rules_along(tmp_path, names, says):
    site, run = tmp_path / "site", tmp_path / "run"
    (site / "lab_rules-1.0.dist-info").mkdir(parents=True)
    (site / "lab_rules.py").write_text(PACKAGE, encoding="utf-8")
    (site / "lab_rules-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-rules\nVersion: 1.0\n")
    (site / "lab_rules-1.0.dist-info" / "entry_points.txt").write_text(
        f"[lightning_gradwatch.rules]\nLAB001 = {names}\n"
    )
    stored(run)
    path = os.pathsep.join((str(site), *filter(None, [os.environ.get("PYTHONPATH")])))
    done = subprocess.run(
        [sys.executable, "-m", "lightning_gradwatch", "check", str(run)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"},
    )
    assert says in " ".join(done.stdout.split()), done.stderr
    assert done.returncode == ("Loud" in names and "nowhere" not in names)
