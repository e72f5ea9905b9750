"""GW302 says which steps are too large for the weights, and knows a layer that starts at 0 from one that is thrown about."""

from __future__ import annotations

import dataclasses

import pytest

from lightning_gradwatch.judge.rules.oversized import OversizedUpdate
from lightning_gradwatch.record.finding import Action, CauseKind, OversizedUpdateWarning, Severity
from lightning_gradwatch.record.step import LayerInfo

STEPS = (0, 1, 2, 3, 4, 24)
NAMES = tuple(f"net.{place}" for place in range(0, 13, 2))
DEFAULT = 24**-0.5
"""rms of PyTorch's default weights for the stack's fan-in of 8."""


def judged(runs, *readings, info=None, steps=STEPS, losses=None, weights=DEFAULT, rule=None):
    """Feed one reading of the update ratios a step; the last goes on."""
    info = info or runs.stack()
    records = [
        runs.measure(
            info,
            step,
            loss=2.3 if losses is None else losses[place],
            update_ratio=readings[min(place, len(readings) - 1)],
            weight_rms=weights,
        )
        for place, step in enumerate(steps)
    ]
    return runs.feed(rule or OversizedUpdate(), records, info)


def test_the_first_steps_count_and_are_told_from_step_24_on(runs):
    fed = judged(runs, 0.2)
    assert [len(told) for told in fed.told] == [0, 0, 0, 0, 0, 1]
    assert fed.confirming == [True] * 5 + [False]
    finding = fed.only
    assert (finding.severity, finding.first_step, finding.last_step) == (Severity.WARNING, 0, 24)
    assert (finding.layers, finding.value, finding.threshold) == (NAMES, pytest.approx(0.2), 0.1)
    assert fed.evaluator.warning_for(finding) is OversizedUpdateWarning


@pytest.mark.parametrize(("first", "kind"), [(1.4, "HIGH_LEARNING_RATE"), (3e4, "UNSCALED_TARGETS")])
def test_a_loss_that_steps_have_made_huge_says_nothing_of_the_targets(runs, first, kind):
    """The streak ends and begins anew, when the loss is far up: only the first one shows what the run was given."""
    losses = [first, 1.5, 2.0, 4e4, 4e4, 4e4, 4e4, 4e4]
    fed = judged(runs, 0.5, 0.5, 1e-3, 0.5, steps=(0, 1, 2, 3, 4, 5, 6, 24), losses=losses)
    assert fed.only.cause_kind is CauseKind[kind]


def test_two_steps_are_left_alone(runs):
    assert not judged(runs, 0.9, 0.6, 0.09).findings
    assert not judged(runs, 1.6, 0.6, 0.09, losses=[2.3, 7.4, 5.1, 2.9, 2.0, 1.2]).findings
    assert not judged(runs, *[1e-3] * 3, 0.2, 0.2, 1e-3, steps=range(30, 36)).findings


def test_the_factor_suits_the_usual_layer_unless_another_moves_far_more(runs):
    """Six layers change by 1, and one by 3, or by 40: at a quarter of what the largest asks for that one still learns."""

    def factor(largest):
        finding = judged(runs, [1.0] * 6 + [largest]).only
        return dict(finding.remedy.actions[0].arguments)["factor"]

    assert factor(3.0) == factor(1.0) == 0.009
    assert factor(40.0) == 9e-4


class TestAFirstStepThatReplacesTheNet:
    """It takes no second one to wreck it: the loss says by step 24 whether it did."""

    def test_it_is_told_for_as_long_as_the_net_has_not_learned(self, runs):
        steps = (*STEPS, 99, 100, 101, 102)
        fed = judged(runs, 0.01, 1.6, 0.01, losses=[2.3, 2.3, 90.0, 50.0, 9.0, 3.0, *[2.4] * 4], steps=steps)
        assert [len(told) for told in fed.told] == [0] * 5 + [1, 0, 0, 0, 0]
        finding = fed.only
        assert (finding.severity, finding.first_step, finding.last_step) == (Severity.ERROR, 1, 1)
        assert (finding.value, finding.threshold, finding.healed_step) == (pytest.approx(1.6), 1.0, None)
        assert "Reported above 1 in one of the first 24 steps." in finding.message

    def test_it_heals_when_the_net_learns_after_all(self, runs):
        steps = (*STEPS, 99, 100, 101, 102, 103)
        losses = [2.3, 9.0, 9.0, 5.0, 4.0, 3.0, 1.0, 0.5, 0.4, 0.3, 0.2]
        assert judged(runs, 1.6, 0.01, losses=losses, steps=steps).only.severity is Severity.INFO

    def test_a_few_layers_or_a_later_step_are_none(self, runs):
        few = {name: 1.6 if name in NAMES[:3] else 0.01 for name in NAMES}
        assert not judged(runs, few, 0.01).findings
        assert not judged(runs, 0.01, 1.6, 0.01, steps=(24, 25, 26, 27, 28, 29)).findings


class TestAMissingWarmUp:
    def test_it_is_named_where_the_first_steps_are_the_largest(self, runs):
        finding = judged(runs, 0.5, info=runs.stack(optimizers=("Adam",), planned_steps=3000)).only
        assert [cause.kind for cause in finding.causes] == [CauseKind.HIGH_LEARNING_RATE, CauseKind.MISSING_WARM_UP]
        (action,) = (each for each in finding.remedy.actions if each.kind == "warm_up")
        assert dict(action.arguments) == {"steps": 300}
        assert "and warm it up over 300 steps" in finding.remedy.text

    @pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
    def test_it_is_not_where_steps_follow_the_gradient_or_the_rate_rises(self, runs, optimizer):
        info = runs.stack(optimizers=(optimizer,))
        rates = [0.1] * 6 if optimizer == "SGD" else [0.1, 0.2, 0.3, 0.4, 0.5, 2.4]
        records = [
            runs.measure(info, step, update_ratio=0.5, weight_rms=DEFAULT, rates=(rate,))
            for step, rate in zip(STEPS, rates, strict=True)
        ]
        finding = runs.feed(OversizedUpdate(), records, info).only
        assert [cause.kind for cause in finding.causes] == [CauseKind.HIGH_LEARNING_RATE]


STRANDED = [2.3, 3.4, 3.2, 2.9, 2.6, 2.4]


class TestStepsThatBecameSmaller:
    """As under Adam, whose first steps are the largest: the loss says what they did."""

    READINGS = (1.6, 0.6, 0.3, 0.15, 0.01)

    def test_a_net_that_lands_on_its_feet_is_left_alone(self, runs):
        fed = judged(runs, *self.READINGS, losses=[2.3, 7.4, 5.1, 2.9, 2.0, 1.2])
        assert not fed.findings
        assert fed.confirming[-1] is False

    def test_one_that_does_not_is_told_with_the_worst_of_its_steps(self, runs):
        finding = judged(runs, *self.READINGS, losses=STRANDED).only
        assert (finding.severity, finding.first_step, finding.last_step) == (Severity.WARNING, 0, 3)
        assert (finding.value, finding.layers) == (pytest.approx(0.3), NAMES)

    def test_it_is_told_at_once_where_the_loss_is_ten_times_its_start(self, runs):
        fed = judged(runs, *self.READINGS, losses=[2.3, 5.0, 23.1, 3.9, 2.6, 2.4])
        assert [len(told) for told in fed.told] == [0, 0, 1, 0, 0, 0]
        assert not any(fed.confirming[2:])
        fed = judged(runs, *self.READINGS, losses=[2.3, 5.0, 22.9, 3.9, 2.6, 2.4])
        assert [len(told) for told in fed.told] == [0, 0, 0, 0, 0, 1]

    def test_or_is_no_number_any_more(self, runs):
        fed = judged(runs, *self.READINGS, losses=[2.3, 2.2, 2.1, float("nan"), 2.6, 2.4])
        assert [len(told) for told in fed.told] == [0, 0, 0, 1, 0, 0]

    def test_it_heals_when_the_loss_comes_down_to_half_its_start(self, runs):
        steps = (*STEPS, 25, 26, 27)
        losses = [*STRANDED[:5], 2.3, 2.2, 0.2, 0.1]
        fed = judged(runs, *self.READINGS, losses=losses, steps=steps)
        assert [len(told) for told in fed.told] == [0] * 5 + [1, 0, 0, 0]
        assert fed.only.healed_step is None
        fed = judged(runs, *self.READINGS, losses=[*losses, 0.1], steps=(*steps, 28))
        assert (fed.only.severity, fed.only.healed_step) == (Severity.INFO, 28)
        assert "It has healed: the loss has come down to 9 % of where it began." in fed.only.message

    def test_it_is_decided_once(self, runs):
        """A loss that rises again later has other reasons."""
        losses = [2.3, 7.4, 5.1, 2.9, 2.0, 1.2, *[3.0] * 6]
        assert not judged(runs, *self.READINGS, losses=losses, steps=(*STEPS, *range(25, 31))).findings


def test_later_three_measured_steps_are_enough(runs):
    fed = judged(runs, *[1e-3] * 3, 0.2, steps=range(24, 30))
    assert [len(told) for told in fed.told] == [0] * 5 + [1]


@pytest.mark.parametrize(
    ("ratio", "severity"), [(0.09, None), (0.11, Severity.WARNING), (0.99, Severity.WARNING), (1.1, Severity.ERROR)]
)
def test_ten_times_the_threshold_is_an_error(runs, ratio, severity):
    found = judged(runs, ratio).findings
    assert [finding.severity for finding in found] == ([] if severity is None else [severity])


def test_a_few_layers_are_information_unless_they_are_replaced_whole(runs):
    few = {name: 0.2 if name in NAMES[:3] else 1e-3 for name in NAMES}
    half = {name: 0.2 if name in NAMES[:4] else 1e-3 for name in NAMES}
    whole = {name: 1.2 if name == "net.12" else 1e-3 for name in NAMES}
    assert judged(runs, few).only.severity == Severity.INFO
    assert judged(runs, half).only.severity == Severity.WARNING
    finding = judged(runs, whole).only
    assert (finding.severity, finding.layers) == (Severity.ERROR, ("net.12",))


class TestStartsSmall:
    def test_is_measured_by_what_the_default_initialisation_gives(self, runs):
        """LoRA's B after k steps of Adam from 0 is k learning rates large: its ratio is 1/k, and harmless."""
        assert not judged(runs, 1.0, 0.5, 0.33, 0.25, 0.2, 0.11, weights=[k * 1e-3 for k in range(1, 8)]).findings
        assert not judged(runs, 0.5, weights=0.19 * DEFAULT).findings
        assert judged(runs, 0.5, weights=0.21 * DEFAULT).only.value == pytest.approx(0.105)

    def test_larger_weights_are_measured_by_themselves(self, runs):
        assert not judged(runs, 0.09, weights=50 * DEFAULT).findings

    def test_without_a_fan_in_the_plain_ratio_counts(self, runs):
        info = runs.stack()
        layers = tuple(dataclasses.replace(layer, kind="ConvTranspose2d") for layer in info.layers)
        assert judged(runs, 0.2, info=dataclasses.replace(info, layers=layers), weights=1e-6).findings

    def test_a_table_of_positions_adds_up_over_its_last_axis(self):
        table = LayerInfo("pos", "Parameter", ((1, 197, 768),), 197 * 768, weight=True)
        assert table.fan_in == 768


class TestLoss:
    def test_below_its_start_and_falling_makes_it_information(self, runs):
        losses = [2.36, 2.92, 2.3, 2.45, 2.32, 2.2]
        assert judged(runs, 0.2, losses=losses).only.severity == Severity.INFO

    def test_falling_from_where_the_first_steps_threw_it_does_not(self, runs):
        losses = [2.64, 5.6, 4.1, 3.86, 2.94, 2.7]
        finding = judged(runs, 0.2, losses=losses).only
        assert finding.severity == Severity.WARNING
        assert "The loss is above its start." in finding.message

    def test_clearly_below_its_start_it_need_not_fall_any_more(self, runs):
        for latest, severity in ((1.83, Severity.INFO), (1.85, Severity.WARNING)):
            losses = [2.3, 2.2, 1.8, 1.8, 1.8, latest]
            assert judged(runs, 0.2, losses=losses).only.severity == severity

    def test_well_below_its_start_makes_it_information_even_where_it_has_stalled(self, runs):
        steps = range(40)
        losses = [2.4] * 4 + [0.6, 0.5] * 18
        readings = [1e-3] * 30 + [0.2]
        assert judged(runs, *readings, steps=steps, losses=losses).only.severity == Severity.INFO

    def test_converged_is_silent(self, runs):
        losses = [2.3] * 3 + [1e-3] * 17
        assert not judged(runs, *[1e-3] * 8, 0.2, steps=range(20), losses=losses).findings


def test_the_remedy_aims_at_the_usual_size_of_the_first_step(runs):
    """1.6 of the weights in step 0, where a hundredth is usual. Later ratios are of weights it has made."""
    finding = judged(runs, 1.6, 0.6, 0.33, 0.22, 0.16, weights=2 * DEFAULT).only
    assert finding.remedy.actions[0] == Action("set_learning_rate", (), (("factor", 3e-3),))
    assert judged(runs, 0.12).only.remedy.actions[0].arguments == (("factor", 0.08),)
    assert judged(runs, 1e30).only.remedy.actions[0].arguments == (("factor", 1e-6),)


def test_cant_judge_without_an_update(runs):
    info = runs.stack()
    fed = runs.feed(OversizedUpdate(), [runs.measure(info, 20)], info)
    assert fed.evaluator.unjudged == {"GW302": "not yet: no update of a weight layer was measured"}


def test_a_skipped_step_counts_for_nothing(runs):
    info = runs.stack()
    records = [runs.measure(info, step, update_ratio=0.5, skipped=True) for step in STEPS]
    assert not runs.feed(OversizedUpdate(), records, info).findings


def test_the_rate_is_that_of_the_layers_that_move_too_far(runs):
    """A head that is trained at 10 behind a backbone at 1e-5, in two groups of one optimizer."""
    info = runs.stack(optimizers=("AdamW",))
    (optimizer,) = info.optimizers
    rates = tuple(1.0 if name in NAMES[3:] else 1e-6 for name in NAMES)
    info = dataclasses.replace(info, optimizers=(dataclasses.replace(optimizer, rates=rates),))
    moved = {name: 0.27 if name in NAMES[3:] else 1e-5 for name in NAMES}
    records = [
        runs.measure(info, step, update_ratio=moved, weight_rms=DEFAULT, rates=(10.0,), loss=2.3 * 3**place)
        for place, step in enumerate(STEPS)
    ]
    finding = runs.feed(OversizedUpdate(), records, info).only
    assert "The learning rate of net.6 … net.12 (4 layers) (10) is too high" in finding.cause
    assert "(that of the other layers, 1e-5, can stay)" in finding.remedy.text
    assert finding.remedy.actions[0] == Action("set_learning_rate", NAMES[3:], (("factor", 0.01),))
