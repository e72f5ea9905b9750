"""GW201 and GW202 judge units of hidden activations, over full windows only."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import pytest

from lightning_gradwatch.judge.rules.dead import DeadUnits
from lightning_gradwatch.judge.rules.saturated import SaturatedUnits
from lightning_gradwatch.record.finding import DeadUnitsWarning, SaturatedUnitsWarning, Severity


def late_window(runs, info, fraction, gains, **given):
    """Records of a net whose window is full long after its first steps, which began with one gain and went on with another."""
    first, later = gains
    return [
        runs.measure(
            info,
            step,
            **{fraction: 1.0 if step > 60 else np.nan},
            activation_gain=later if step else first,
            **given,
        )
        for step in (0, 1, 2, 61, 62, 63)
    ]


def dead(runs, fractions, *, losses=None, **given):
    """`fractions`: for each record, net.3's; the others have no dead unit."""
    info = runs.stack(function="relu")
    losses = losses or [2.3] * len(fractions)
    records = [
        runs.measure(info, step, loss=loss, dead_fraction=[0.0, fraction, 0.0, 0.0, 0.0, 0.0], **given)
        for step, (fraction, loss) in enumerate(zip(fractions, losses, strict=True))
    ]
    return runs.feed(DeadUnits(), records, info)


@pytest.mark.parametrize(
    ("fraction", "severity", "threshold"),
    [
        (1.0, Severity.ERROR, 1.0),
        (0.999, Severity.WARNING, 0.9),
        (0.9, Severity.WARNING, 0.9),
        (0.89, Severity.INFO, 0.5),
        (0.5, Severity.INFO, 0.5),
    ],
)
def test_level_of_a_dead_fraction(runs, fraction, severity, threshold):
    fed = dead(runs, [fraction] * 3)
    assert [len(told) for told in fed.told] == [0, 0, 1]
    assert fed.confirming == [True, True, False]
    finding = fed.only
    assert (finding.severity, finding.value, finding.threshold) == (severity, fraction, threshold)
    assert finding.layers == ("net.3",)
    assert fed.evaluator.warning_for(finding) is DeadUnitsWarning


@pytest.mark.parametrize("fractions", [[0.49] * 9, [1.0, 1.0, 0.2, 1.0, 1.0, 0.2]])
def test_few_dead_units_or_a_short_spell_are_left_alone(runs, fractions):
    fed = dead(runs, fractions)
    assert not fed.findings
    assert not fed.evaluator.unjudged


RISING = [0.4, 0.42, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75]


def rising(runs, fractions=RISING, *, start=30, losses=None, norms=None):
    """Healthy until step `start`, from which on the fractions are of each step."""
    info = runs.stack(function="relu")
    steps = [*range(0, start, 3), *range(start, start + len(fractions))]
    shares = [fractions[0]] * (len(steps) - len(fractions)) + list(fractions)
    records = [
        runs.measure(
            info,
            step,
            loss=2.3 if losses is None else losses(step),
            norm=0.2 if norms is None else norms(step),
            dead_fraction=[0.0, share, 0.0, 0.0, 0.0, 0.0],
        )
        for step, share in zip(steps, shares, strict=True)
    ]
    return runs.feed(DeadUnits(), records, info)


class TestRisingUnderAStalledLoss:
    def test_is_a_warning(self, runs):
        assert rising(runs).only.severity == Severity.WARNING

    def test_level_is_information(self, runs):
        assert rising(runs, [0.5] * 8).only.severity == Severity.INFO

    def test_over_fewer_than_five_readings_is_information(self, runs):
        info = runs.stack(function="relu")
        for count, severity in ((4, Severity.INFO), (7, Severity.WARNING)):
            records = [
                runs.measure(info, step, dead_fraction=[0.0, 0.5 + 0.05 * (step - 30), 0.0, 0.0, 0.0, 0.0])
                for step in range(30, 30 + count)
            ]
            records = [runs.measure(info, step, dead_fraction=np.nan) for step in range(20, 30)] + records
            assert runs.feed(DeadUnits(), records, info).only.severity == severity

    def test_in_the_first_steps_is_information(self, runs):
        """A net that is thrown about by them lands by then."""
        assert rising(runs, start=12).only.severity == Severity.INFO

    @pytest.mark.parametrize(
        "loss",
        [lambda step: 2.3 * 0.98**step, lambda step: 2.3 if step < 5 else 1.8, lambda step: -1.0, lambda step: np.nan],
        ids=["falls", "has come down", "isn't positive", "isn't known"],
    )
    def test_the_loss_must_be_known_to_have_stalled_where_it_began(self, runs, loss):
        assert rising(runs, losses=loss).only.severity == Severity.INFO

    def test_a_gradient_that_grows_is_that_of_a_net_which_is_waking_up(self, runs):
        assert rising(runs, norms=lambda step: 0.2 * 1.02**step).only.severity == Severity.INFO
        assert rising(runs, norms=lambda step: 0.2 * 0.98**step).only.severity == Severity.WARNING

    def test_it_does_not_heal_by_rising_no_further(self, runs):
        assert rising(runs, [*RISING, *[0.75] * 9]).only.severity == Severity.WARNING
        fed = rising(runs, [*RISING, *[0.45] * 9])
        assert (fed.only.severity, fed.only.healed_step) == (Severity.INFO, 41)


class TestHealing:
    def test_three_full_windows_with_fewer_dead_units(self, runs):
        fed = dead(runs, [*[1.0] * 3, 0.7, 1.0, *[0.3] * 2])
        assert fed.only.severity == Severity.ERROR
        fed = dead(runs, [*[1.0] * 3, 0.7, 1.0, *[0.3] * 3])
        assert (fed.only.severity, fed.only.last_step, fed.only.healed_step) == (Severity.INFO, 4, 7)
        assert "It has healed: no more than 30 % of the units of an activation are dead." in fed.only.message

    def test_an_error_that_is_information_now_says_so(self, runs):
        finding = dead(runs, [*[1.0] * 3, *[0.7] * 9]).only
        assert (finding.severity, finding.value, finding.first_step) == (Severity.INFO, 0.7, 0)

    def test_windows_that_are_not_full_heal_nothing(self, runs):
        assert dead(runs, [*[1.0] * 3, *[np.nan] * 9]).only.severity == Severity.ERROR

    def test_saturation_likewise(self, runs):
        assert saturated(runs, [1.0, 1.0, 1.0, 0.2, 0.2, 1.0, 0.2, 0.2]).only.severity == Severity.WARNING
        finding = saturated(runs, [1.0, 1.0, 1.0, 0.2, 0.2, 1.0, 0.2, 0.2, 0.2]).only
        assert (finding.severity, finding.healed_step) == (Severity.INFO, 18)


def test_information_that_becomes_a_warning_is_told_and_growing_worse_from_there_is_not(runs):
    fed = dead(runs, [0.6] * 3 + [0.95] * 3 + [1.0] * 3)
    assert [told[0].severity for told in fed.told if told] == [Severity.INFO, Severity.WARNING]
    assert (fed.only.severity, fed.only.value) == (Severity.ERROR, 1.0)
    assert "Nothing before such a layer gets a gradient through it." in fed.only.cause


def test_a_window_that_isnt_full_is_not_yet_judged(runs):
    info = runs.stack(function="relu")
    fed = runs.feed(DeadUnits(), [runs.measure(info, 0, dead_fraction=np.nan, fill=0.25)], info)
    assert fed.evaluator.unjudged == {"GW201": "not yet: the fullest window of a hidden activation is 25 % full"}


RULES = {
    DeadUnits(): ("relu", "dead_fraction"),
    SaturatedUnits(): ("tanh", "saturated_fraction"),
}


def with_fills(runs, rule, fills, *, functions=None, start=10):
    """Feed records of a net of three sites in which nothing is wrong, by how full their windows are."""
    function, metric = RULES[rule]
    info = runs.stack(depth=3, function=function)
    sites = tuple(
        dataclasses.replace(site, function=other)
        for site, other in zip(info.sites, functions or [function] * 3, strict=True)
    )
    info = dataclasses.replace(info, sites=sites)
    records = []
    for step, fill in enumerate(fills, start=start):
        row = np.array(fill, dtype=np.float64)
        record = runs.measure(info, step, **{metric: np.where(row < 1, np.nan, 0.0)})
        records.append(dataclasses.replace(record, window_fill=row))
    return runs.feed(rule, records, info).evaluator.unjudged.get(rule.code, "")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
class TestWindowsThatArentFull:
    def test_a_rule_has_judged_once_each_window_was_full(self, runs, rule):
        unread = "not yet: the window of net.5 is 28 % full (1 of 3 hidden activations)"
        assert with_fills(runs, rule, [[1, 1, 0.28]]) == unread
        assert with_fills(runs, rule, [[1, 1, 0.1]] * 9 + [[1, 1, 0.28]]) == unread
        assert with_fills(runs, rule, [[1, 1, 0.28], [1, 1, 1]]) == ""
        assert with_fills(runs, rule, [[1, 0.5, 0.28], [1, 1, 0.9]]) == "not yet: the window of net.5 is 90 % full (1 of 3 hidden activations)"  # fmt: skip
        assert with_fills(runs, rule, [[1, 0.5, 0.28]]) == "not yet: the window of net.3, net.5 is 28 % full (2 of 3 hidden activations)"  # fmt: skip

    def test_they_needn_t_be_full_at_the_same_time(self, runs, rule):
        assert with_fills(runs, rule, [[1, 1, 0.28], [1, 0.5, 1]]) == ""

    def test_a_window_in_doubt_for_long_is_judged_no_more(self, runs, rule):
        """For up to three records in a row, what was read before still stands."""
        doubt = [[1, 0.4, 1]]
        assert with_fills(runs, rule, [[1, 1, 1], *doubt * 2]) == ""
        lapsed = "can't judge: units of net.3 fell silent, and what was seen since fills 40 % of a window (1 of 3 hidden activations)"
        assert with_fills(runs, rule, [[1, 1, 1], *doubt * 3]) == lapsed
        assert with_fills(runs, rule, [[1, 1, 1], *doubt * 9]) == lapsed
        assert with_fills(runs, rule, [[1, 1, 1], *doubt * 9, [1, 1, 1]]) == ""
        assert with_fills(runs, rule, [[1, 1, 1], *doubt * 2, [1, 1, 1], *doubt * 2]) == ""
        assert with_fills(runs, rule, [[1, 1, 1], *[[0.4, 0.4, 0.4]] * 3]).startswith("can't judge: units of net.1, net.3, net.5 fell silent")  # fmt: skip

    def test_functions_that_the_rule_has_no_say_about_don_t_count(self, runs, rule):
        other = {"relu": "gelu", "tanh": "relu"}[RULES[rule][0]]
        own = RULES[rule][0]
        assert with_fills(runs, rule, [[1, 1, 0.28]], functions=[own, own, other]) == ""
        assert "net.5" in with_fills(runs, rule, [[1, 1, 0.28]], functions=[other, own, own])

    def test_a_finding_elsewhere_stands(self, runs, rule):
        function, metric = RULES[rule]
        info = runs.stack(depth=3, function=function)
        fill = np.array([1, 1, 0.28])
        records = [
            dataclasses.replace(runs.measure(info, step, **{metric: [1.0, 0.0, np.nan]}), window_fill=fill)
            for step in range(10, 14)
        ]
        fed = runs.feed(rule, records, info)
        assert fed.only.layers == ("net.1",)
        assert "the window of net.5 is 28 % full" in fed.evaluator.unjudged[rule.code]


@pytest.mark.parametrize(("rule", "metric"), [(DeadUnits(), "dead_fraction"), (SaturatedUnits(), "saturated_fraction")])
def test_gates_and_outputs_are_left_out(runs, rule, metric):
    info = runs.stack(depth=2)
    gate, output = (
        dataclasses.replace(site, role=role) for site, role in zip(info.sites, ("gate", "output"), strict=True)
    )
    info = dataclasses.replace(info, sites=(gate, output))
    fed = runs.feed(rule, [runs.measure(info, step, **{metric: 1.0}) for step in range(10, 20)], info)
    assert not fed.findings
    assert fed.evaluator.unjudged == {rule.code: "can't judge: the run has no hidden activation"}


def test_confirming_stops_for_a_value_that_dances_around_its_threshold(runs):
    """Else every step would be measured for the whole run."""
    fed = dead(runs, [0.95, 0.95, 0.1] * 100)
    assert not fed.findings
    assert sum(fed.confirming) == 32
    assert not any(fed.confirming[60:])


def saturated(runs, rows, *, start=10, info=None):
    info = info or runs.stack()
    records = [runs.measure(info, start + place, saturated_fraction=row) for place, row in enumerate(rows)]
    return runs.feed(SaturatedUnits(), records, info)


def test_saturation_fires_for_all_affected_sites_in_one_finding(runs):
    row = {"net.1": 0.5, "net.3": 0.49, "net.5": 1.0, "net.7": 0.0, "net.9": 0.0, "net.11": 0.0}
    fed = saturated(runs, [row] * 4)
    assert [len(told) for told in fed.told] == [0, 0, 1, 0]
    finding = fed.only
    assert (finding.severity, finding.layers) == (Severity.WARNING, ("net.1", "net.5"))
    assert (finding.value, finding.threshold, finding.first_step, finding.last_step) == (1.0, 0.5, 10, 13)
    assert fed.evaluator.warning_for(finding) is SaturatedUnitsWarning


def test_saturation_in_warm_up_or_for_two_steps_is_left_alone(runs):
    assert not saturated(runs, [1.0] * 10, start=0).findings
    assert not saturated(runs, [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]).findings


def test_relu_has_nothing_to_saturate(runs):
    fed = saturated(runs, [np.nan], info=runs.stack(function="relu"))
    assert fed.evaluator.unjudged == {
        "GW202": "can't judge: no hidden activation whose window is full can be saturated (relu)"
    }


def kinds(finding):
    return {action.kind: dict(action.arguments) for action in finding.remedy.actions}


class TestWhyDead:
    def test_from_the_start(self, runs):
        finding = dead(runs, [0.95] * 3).only
        assert "units have been dead since the first full window" in finding.cause
        assert kinds(finding) == {
            "replace_activation": {"with": "LeakyReLU"},
            "initialize": {"method": "kaiming_normal_", "bias": 0.0},
        }

    def test_later(self, runs):
        finding = dead(runs, [0.1] + [0.95] * 3).only
        assert "At first they weren't there: most likely a step that was too large" in finding.cause
        assert kinds(finding)["set_learning_rate"] == {"factor": 0.1}

    @pytest.mark.parametrize(("passed", "thrown"), [(0.6, True), (0.5, False), (0.0, False), (np.nan, False)])
    def test_what_was_alive_before_the_window_was_full_was_killed_by_a_step(self, runs, passed, thrown):
        """Batches of 4: the first full window comes after the step. A ReLU at its start passes back 0.71 of the signal."""
        info = runs.stack(function="relu")
        records = late_window(runs, info, "dead_fraction", (passed, 0.0))
        finding = runs.feed(DeadUnits(), records, info).only
        assert ("At first they weren't there: most likely a step that was too large" in finding.cause) is thrown
        assert ("set_learning_rate" in kinds(finding), "initialize" in kinds(finding)) == (thrown, not thrown)
        # Where the first steps fill the window, it says so itself.
        early = [runs.measure(info, step, dead_fraction=1.0, activation_gain=passed) for step in range(3)]
        assert "since the first full window" in runs.feed(DeadUnits(), early, info).only.cause
        # A run that goes on shows no start.
        late = [runs.measure(info, 500 + record.step, dead_fraction=1.0, activation_gain=0.7) for record in records]
        assert "since the first full window" in runs.feed(DeadUnits(), late, info).only.cause

    def test_a_window_that_fills_later_than_another_shows_no_step_that_threw_its_units(self, runs):
        """Sites fill their windows at steps of their own: that the second is well at first says nothing of the first."""
        info = runs.stack(function="hardtanh")
        second, both = [np.nan, 0.0, *[np.nan] * 4], [1.0, 0.0, *[np.nan] * 4]
        records = [runs.measure(info, step, dead_fraction=row) for step, row in enumerate([second, both, both, both])]
        finding = runs.feed(DeadUnits(), records, info).only
        assert "units have been dead since the first full window" in finding.cause
        assert list(kinds(finding)) == ["replace_activation", "initialize", "normalize_inputs"]

    def test_by_targets_that_make_the_steps_large(self, runs):
        """The loss is in the millions while the net's own numbers are about 1: no rate is at fault."""
        info = runs.stack(function="relu")
        metrics = {"dead_fraction": 0.95, "update_ratio": 20.0}
        records = [runs.measure(info, step, loss=1e6, **metrics) for step in range(3)]
        finding = runs.feed(DeadUnits(), records, info).only
        assert "changed the weights by 20 times their size: the loss is so large" in finding.cause
        assert "targets that aren't scaled" in finding.cause
        assert list(kinds(finding)) == ["replace_activation", "normalize_targets"]
        # What steps have made of the loss is no fault of the targets.
        records = [runs.measure(info, step, loss=1e6 if step else 2.3, **metrics) for step in range(4)]
        assert "the learning rate is too high" in runs.feed(DeadUnits(), records, info).only.cause
        # Adam's steps have the same size whatever the loss.
        info = runs.stack(function="relu", optimizers=("Adam",))
        finding = runs.feed(DeadUnits(), [runs.measure(info, 0, loss=1e6, **metrics) for _ in range(3)], info).only
        assert list(kinds(finding)) == ["replace_activation", "set_learning_rate"]

    @pytest.mark.parametrize(
        ("update", "factor"), [(0.09, None), (0.11, 0.09), (1.0, 0.009), (1.7, 0.006), (500.0, 2e-5), (np.nan, None)]
    )
    def test_by_steps_that_were_too_large(self, runs, update, factor):
        """The rate is lowered to where a step changes the weights by a hundredth of themselves."""
        finding = dead(runs, [0.95] * 3, update_ratio=update).only
        assert kinds(finding).get("set_learning_rate", {}).get("factor") == factor
        assert ("the learning rate is too high" in finding.cause) is (factor is not None)

    def test_a_single_layer_that_moves_a_lot_is_no_cause(self, runs):
        ratios = {"net.4": 50.0} | {f"net.{place}": 1e-3 for place in (0, 2, 6, 8, 10, 12)}
        assert "set_learning_rate" not in kinds(dead(runs, [0.95] * 3, update_ratio=ratios).only)

    def test_inputs_far_out_on_both_sides(self, runs):
        info = runs.stack(function="hardtanh")
        records = [runs.measure(info, step, dead_fraction=[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]) for step in range(3)]
        assert "normalize_inputs" in kinds(runs.feed(DeadUnits(), records, info).only)
        assert "normalize_inputs" not in kinds(dead(runs, [0.95] * 3).only)


class TestWhySaturated:
    FIRST: ClassVar = {"net.1": 0.9, "net.3": 0.1, "net.5": 0.1, "net.7": 0.1, "net.9": 0.1, "net.11": 0.1}
    THIRD: ClassVar = {**FIRST, "net.1": 0.1, "net.5": 0.9}

    def finding(self, runs, row, *, function="tanh", before=(), **metrics):
        info = runs.stack(function=function)
        rows = [*before, row, row, row]
        records = [
            runs.measure(info, 10 + place, saturated_fraction=each, **metrics) for place, each in enumerate(rows)
        ]
        return runs.feed(SaturatedUnits(), records, info).only

    @pytest.mark.parametrize(
        ("row", "weight", "said", "scaled"),
        [
            ("THIRD", 1.0, "the weights aren't to blame (what lies before them passes back 1 of the signal", False),
            ("THIRD", 1.9, "so biases far from 0 are", False),
            ("THIRD", 2.1, "the weights are too large, what lies before them passes back 2.1", False),
            ("FIRST", np.nan, "inputs that aren't scaled", True),
            ("THIRD", np.nan, "inputs that aren't scaled", False),
        ],
    )
    def test_weights_biases_or_inputs(self, runs, row, weight, said, scaled):
        finding = self.finding(runs, getattr(self, row), weight_gain=weight)
        assert said in finding.cause
        assert kinds(finding)["initialize"] == {"method": "xavier_normal_", "bias": 0.0}
        assert ("normalize_inputs" in kinds(finding)) is scaled
        assert "set_learning_rate" not in kinds(finding)

    def test_later_or_by_steps_that_were_too_large(self, runs):
        finding = self.finding(runs, self.THIRD, before=(dict.fromkeys(self.FIRST, 0.0),))
        assert "At first they weren't there" in finding.cause
        assert kinds(finding)["set_learning_rate"] == {"factor": 0.1}
        finding = self.finding(runs, self.THIRD, update_ratio=2.0)
        assert "changed the weights by 2 times their size" in finding.cause
        assert kinds(finding)["set_learning_rate"] == {"factor": 0.005}

    @pytest.mark.parametrize(("passed", "thrown"), [(0.2, True), (0.1, False)])
    def test_what_passed_the_signal_at_first_was_thrown_before_the_window_was_full(self, runs, passed, thrown):
        """Sigmoid passes back at most 0.25."""
        info = runs.stack(function="sigmoid")
        records = late_window(runs, info, "saturated_fraction", (passed, 1e-3), weight_gain=9.0)
        finding = runs.feed(SaturatedUnits(), records, info).only
        assert ("At first they weren't there" in finding.cause) is thrown
        assert ("set_learning_rate" in kinds(finding), "initialize" in kinds(finding)) == (thrown, not thrown)
        # Six of them pass back too little at any rate.
        assert kinds(finding)["replace_activation"] == {"with": "ReLU"}

    def test_two_that_were_thrown_need_no_other_function(self, runs):
        info = runs.stack(function="sigmoid", depth=2)
        records = [runs.measure(info, step, saturated_fraction=1.0 if step > 60 else 0.0) for step in (8, 61, 62, 63)]
        finding = runs.feed(SaturatedUnits(), records, info).only
        assert list(kinds(finding)) == ["set_learning_rate"]

    def test_a_function_without_a_good_start_is_replaced_everywhere(self, runs):
        finding = self.finding(runs, self.THIRD, function="sigmoid")
        (replaced, started) = finding.remedy.actions
        assert replaced.targets == tuple(self.FIRST)
        assert dict(started.arguments)["method"] == "kaiming_normal_"
