"""What holds for every rule, and how rules are chosen."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import subprocess
import sys

import pytest

from lightning_gradwatch.judge.catalog import DEFAULT_RULES, RULES
from lightning_gradwatch.judge.rule import Rule
from lightning_gradwatch.judge.rules.dead import DeadUnits
from lightning_gradwatch.judge.rules.saturated import SaturatedUnits
from lightning_gradwatch.judge.rules.unreached import UnreachedLayer
from lightning_gradwatch.judge.rules.vanishing import VanishingGradient
from lightning_gradwatch.judge.selection import resolve_rules, rules_from_settings, settings_of
from lightning_gradwatch.record.finding import GradWatchWarning, Severity
from lightning_gradwatch.record.step import LayerState, Wiring
from lightning_gradwatch.record.wording import number, percent
from lightning_gradwatch.tell.explain import explain_text
from lightning_gradwatch.tell.terminal import warning_text

WIRED = {
    "GW106": Wiring("zero-factors", ("net.0.lora_A",), "matmul", "forward (a.py:3)"),
    "GW501": Wiring("output-twice", ("net.11",), "cross_entropy", "training_step (a.py:3)"),
    "GW502": Wiring("stale-gradient", ("net.0",), "SGD", value=3.5),
    "GW503": Wiring("unregistered", ("net.layers",), value=1200),
    "GW504": Wiring("norm-of-one", ("net.1",), "layer_norm", value=1),
    "GW506": Wiring("evaluation-mode", ("",), "batch_norm"),
}
STEPS = (0, *range(10, 14), 24)
INFORM = {"GW105"}
"""Rules that never warn."""
LONGER = {
    **dict.fromkeys((*WIRED, *INFORM), (*STEPS, 49, 64)),
    "GW505": (*STEPS, 50, 55, 60),
    "GW601": (*STEPS, 999, 1000, 1001),
}
"""For rules that take their time."""
CLASSES = (2.3, 0.5, float("nan"), float("nan"))
FIRING = {
    "GW101": lambda runs, info, step: runs.measure(info, step, signal_norm=runs.fading(info, 1e-9)),
    "GW102": lambda runs, info, step: runs.measure(info, step, signal_norm=runs.fading(info, 1e6)),
    "GW103": lambda runs, info, step: runs.measure(info, step, states={"net.0": LayerState.NON_FINITE}),
    "GW104": lambda runs, info, step: runs.measure(info, step, states={"net.0": LayerState.ZERO}),
    "GW105": lambda runs, info, step: runs.measure(info, step, loss=5.0 if step == 12 else 2.3 - 0.1 * (step > 0)),
    "GW201": lambda runs, info, step: runs.measure(info, step, dead_fraction=1.0),
    "GW202": lambda runs, info, step: runs.measure(info, step, saturated_fraction=0.9),
    "GW301": lambda runs, info, step: runs.measure(info, step, update_ratio={"net.0": 1e-8}),
    "GW302": lambda runs, info, step: runs.measure(info, step, update_ratio=0.5),
    "GW303": lambda runs, info, step: dataclasses.replace(
        runs.measure(info, step, update_ratio=1e-6, norm=20.0), clip_factor=1e-4
    ),
    "GW304": lambda runs, info, step: runs.measure(info, step, weight_rms=0.2 if step < 10 else 0.02, grad_rms=1e-3),
    "GW401": lambda runs, info, step: runs.measure(info, step, signal_norm=runs.fading(info, 1e-12)),
    "GW505": lambda runs, info, step: runs.measure(info, step, loss=40.0, answer=CLASSES),
    "GW601": lambda runs, info, step: runs.measure(info, step, loss=2.31, answer=CLASSES),
    **dict.fromkeys(WIRED, lambda runs, info, step: runs.measure(info, step)),
}


OTHERWISE = {"GW601": ("2.31",)}
"""Numbers that say it better than the finding's own, which compares two of them."""


def net(rule, runs):
    info = runs.stack()
    if rule.code == "GW304":
        optimizers = (dataclasses.replace(info.optimizers[0], settings={"lr": 0.1, "weight_decay": 0.1}),)
        info = dataclasses.replace(info, optimizers=optimizers)
    return info


def fired(rule, runs):
    info = net(rule, runs)
    if rule.code in WIRED:
        info = dataclasses.replace(info, wiring=(WIRED[rule.code],))
    return runs.feed(rule(), [FIRING[rule.code](runs, info, step) for step in LONGER.get(rule.code, STEPS)], info)


def healthy(runs, info, step):
    return runs.measure(
        info,
        step,
        signal_norm=runs.fading(info, 0.5),
        dead_fraction=0.3,
        saturated_fraction=0.1,
        grad_rms=1e-3,
        weight_rms=0.2,
        update_ratio=1e-3,
        loss=2.2,
        answer=CLASSES,
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
class TestEveryRule:
    def test_has_a_code_a_name_and_a_warning(self, rule):
        assert re.fullmatch(r"GW[1-9]\d\d", rule.code)
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", rule.name)
        assert issubclass(rule.warning, GradWatchWarning)
        assert rule.warning is not GradWatchWarning

    def test_is_a_frozen_dataclass_of_thresholds_with_defaults(self, rule):
        with pytest.raises(dataclasses.FrozenInstanceError):
            rule().code_ = 1
        assert all(entry.default is not dataclasses.MISSING and entry.kw_only for entry in dataclasses.fields(rule))

    def test_says_what_why_and_what_to_do_and_explains_each_threshold(self, rule):
        text = inspect.getdoc(rule)
        assert all(part in text for part in ("\nWhat: ", "\nWhy: ", "\nWhat to do: "))
        assert ("\nAttributes:\n" in text) is bool(dataclasses.fields(rule))
        for entry in dataclasses.fields(rule):
            assert f"    {entry.name}: " in text
        page = explain_text(rule)
        assert page.startswith(f"{rule.code} {rule.name}\n")
        assert all(f"  {entry.name} ({entry.default!r}): " in page for entry in dataclasses.fields(rule))
        assert max(map(len, page.splitlines())) <= 80

    def test_has_a_firing_and_a_quiet_case(self, rule, runs):
        info, steps = net(rule, runs), LONGER.get(rule.code, STEPS)
        fed = fired(rule, runs)
        assert fed.only.code == rule.code
        assert fed.only.name == rule.name
        assert (fed.only.severity >= Severity.WARNING) is (rule.code not in INFORM)
        quiet = runs.feed(rule(), [healthy(runs, info, step) for step in steps], info)
        assert quiet.findings == ()
        assert quiet.evaluator.unjudged == {}

    def test_a_person_reads_what_where_and_the_number_first_then_what_to_do_and_why(self, rule, runs):
        finding, info = fired(rule, runs).only, net(rule, runs)
        lines = warning_text(finding, width=100).splitlines()
        assert len(lines) <= 12
        assert max(map(len, lines)) <= 100
        labels = [line.split()[0] for line in lines if re.match(r"  [a-z]", line) and line[9:11] == "  "]
        assert labels == ["do", "why", "rule", "more"]
        assert "…\n" not in "\n".join(lines)  # nothing was cut
        headline = finding.headline
        assert " ".join(lines).replace("   ", " ").startswith(f"{rule.code} ")
        assert " ".join(" ".join(lines).split()).startswith(f"{rule.code} {headline}. do ")
        assert not headline.endswith(".")
        assert (
            headline[0].isupper() or headline[0].isdigit() or headline.startswith((*info.layer_names, *info.site_names))
        )
        everywhere = set(finding.layers) >= set(info.weight_names) or finding.layers == ("",)
        assert everywhere or any(name in headline for name in (*finding.layers, *info.site_names))
        shown = {number(finding.value), percent(finding.value), *OTHERWISE.get(rule.code, ())}
        assert not rule.numbered or any(re.search(rf"(?<![\w.]){re.escape(each)}(?![\w%])", headline) for each in shown)

    def test_says_nothing_twice(self, rule, runs):
        finding = fired(rule, runs).only
        texts = f"{finding.headline}. {finding.cause} {finding.evidence} {finding.remedy.text}"
        said = re.split(r"(?<=[.;:]) ", texts)
        assert len(set(said)) == len(said)
        assert finding.message == " ".join(part for part in (f"{finding.headline}.", finding.evidence) if part)

    def test_its_settings_survive_json(self, rule):
        (back,) = rules_from_settings(json.loads(json.dumps(settings_of([rule()]))))
        assert back == rule()

    def test_says_why_where_its_input_is_missing(self, rule, runs):
        info = dataclasses.replace(runs.stack(), sites=(), layers=())
        fed = runs.feed(rule(), [runs.measure(info, step, loss=float("nan")) for step in STEPS], info)
        assert re.match(r"(can't judge|not yet): \w", fed.evaluator.unjudged[rule.code])


def test_codes_and_names_are_unique_and_sorted():
    codes = [rule.code for rule in RULES]
    assert codes == sorted(set(codes))
    assert len({rule.name for rule in RULES}) == len(RULES)


class TestSelection:
    def test_defaults(self):
        assert resolve_rules() == DEFAULT_RULES

    def test_a_rule_takes_the_place_of_the_default(self):
        mine = VanishingGradient(ratio=1e-2, min_grad_rms=1e-7)
        assert resolve_rules([mine]) == (mine, *DEFAULT_RULES[1:])

    @pytest.mark.parametrize(
        ("ignore", "left"),
        [
            (("GW1", "GW4", "GW5"), ["GW201", "GW202", "GW301", "GW302", "GW303", "GW304", "GW601"]),
            (["GW202", "GW3", "GW4", "GW50", "GW6"], ["GW101", "GW102", "GW103", "GW104", "GW105", "GW106", "GW201"]),
            (("gw101", "GW102", "GW2", "GW3", "GW4", "GW5", "GW6"), ["GW103", "GW104", "GW105", "GW106"]),
            (("GW",), []),
        ],
    )
    def test_ignore_is_by_prefix(self, ignore, left):
        assert [rule.code for rule in resolve_rules(ignore=ignore)] == left

    @pytest.mark.parametrize(
        ("rules", "ignore", "error", "message"),
        [
            (
                (),
                ("GW9",),
                ValueError,
                "ignore: no rule's code starts with 'GW9', nor is one called so; the nearest is GW",
            ),
            ((), ("",), ValueError, "ignore: an entry is empty"),
            ((), "GW101", TypeError, r"must be a sequence of codes: ignore=\('GW101',\)"),
            ((), (101,), TypeError, "it has 101"),
            ((DeadUnits(), DeadUnits(warn=0.8)), (), ValueError, r"rules\[1\] is a second DeadUnits \(GW201\)"),
            ((DeadUnits,), (), TypeError, r"rules\[0\] is the class DeadUnits; give an instance: DeadUnits\(\)"),
            (("GW101",), (), TypeError, r"rules\[0\] must be a rule, .* it is 'GW101'"),
            (DeadUnits(), (), TypeError, r"must be a sequence: rules=\[DeadUnits\(\.\.\.\)\]"),
            ((DeadUnits(),), ("GW2",), ValueError, r"rules has DeadUnits \(GW201\) and ignore has 'GW2'"),
        ],
    )
    def test_a_mistake_is_named_with_its_fix(self, rules, ignore, error, message):
        with pytest.raises(error, match=message):
            resolve_rules(rules, ignore)

    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (
                lambda: VanishingGradient(ratio=2.0),
                r"VanishingGradient\(ratio=2.0\): ratio must be between 0 and 1 or None",
            ),
            (lambda: VanishingGradient(ratio=0.0), "ratio must be between 0 and 1"),
            (lambda: VanishingGradient(gain=float("nan")), r"gain=nan\): gain must be between 0 and 1$"),
            (lambda: VanishingGradient(min_grad_rms=-1e-7), "min_grad_rms must be a number above 0 or None"),
            (lambda: VanishingGradient(min_grad_rms="1e-7"), "min_grad_rms='1e-7'"),
            (lambda: VanishingGradient(patience=0), "patience must be a whole number of at least 1"),
            (lambda: VanishingGradient(warm_up_steps=1.5), "warm_up_steps must be a whole number of at least 0"),
            (lambda: UnreachedLayer(patience=True), "patience must be a whole number"),
            (lambda: DeadUnits(warn=0.4), r"DeadUnits\(inform=0.5, warn=0.4, error=1.0\): must rise"),
            (lambda: DeadUnits(observations=0), "observations must be a whole number of at least 1"),
            (lambda: SaturatedUnits(fraction=50), "fraction must be between 0 and 1"),
        ],
    )
    def test_a_threshold_out_of_range_is_refused(self, build, message):
        with pytest.raises(ValueError, match=message):
            build()

    def test_a_rule_of_the_users_own_joins_in(self):
        class Mine(Rule):
            code, name, warning = "XY001", "mine", GradWatchWarning

            def judge(self, record, info, state):
                raise NotImplementedError

        assert resolve_rules([Mine()])[-1].code == "XY001"
        assert len(resolve_rules([Mine()], ignore=["GW"])) == 1

    def test_settings_of_a_newer_release_are_left_out(self):
        settings = {**settings_of(DEFAULT_RULES), "GW999": {"x": 1}}
        settings["GW101"]["new_field"] = 3
        assert rules_from_settings(settings) == DEFAULT_RULES

    def test_settings_out_of_range_are_refused(self):
        with pytest.raises(ValueError, match=r"GW101|VanishingGradient\(ratio=7\)"):
            rules_from_settings({"GW101": {"ratio": 7}})


@pytest.mark.parametrize(
    ("module", "light"),
    [("lightning_gradwatch.rules", True), ("lightning_gradwatch.cli.command", True), ("torch", False)],
)
def test_judging_is_light(module, light):
    """The third case shows that this test can fail."""
    code = f"import sys, {module}; sys.exit(any(n in sys.modules for n in ('torch', 'pytorch_lightning', 'lightning', 'tensorboard')))"
    assert (subprocess.run([sys.executable, "-c", code], check=False).returncode == 0) is light
