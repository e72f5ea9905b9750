"""GW103 says at once what isn't finite, where it began, and how the run was heading."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import pytest

from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.judge.rules.nonfinite import NonFiniteGradient
from lightning_gradwatch.record.finding import Action, CauseKind, NonFiniteGradientWarning, Severity
from lightning_gradwatch.record.step import LayerState

INF, NAN = float("inf"), float("nan")
BAD = LayerState.NON_FINITE


def judged(runs, *records, rule=None):
    """Feed records, given as keyword arguments of `measure`, one a step."""
    info = runs.stack(function="relu")
    made = [
        # The norm of the whole net is NaN where one layer's is.
        runs.measure(info, **{"step": place, "weight_rms": 0.5, "norm": NAN if "states" in given else 1.0, **given})
        for place, given in enumerate(records)
    ]
    return runs.feed(rule or NonFiniteGradient(), made, info)


def outputs(first):
    """Outputs of six sites that are infinite from the site of that index on."""
    return [1.0] * first + [INF] * (6 - first)


@pytest.mark.parametrize(
    "given",
    [
        {"loss": INF},
        {"loss": -INF},
        {"loss": NAN, "states": {"net.0": BAD}},
        {"states": {"net.4": BAD}},
        {"outputs": outputs(5)},
    ],
)
def test_is_an_error_at_once(runs, given):
    fed = judged(runs, {}, given)
    assert [len(told) for told in fed.told] == [0, 1]
    assert (fed.only.severity, fed.only.first_step) == (Severity.ERROR, 1)
    assert fed.evaluator.warning_for(fed.only) is NonFiniteGradientWarning
    assert np.isfinite([fed.only.value, fed.only.threshold]).all()
    assert judged(runs, given).only.first_step == 0


@pytest.mark.parametrize("loss", [NAN, -1.0, 0.0, 1e38])
def test_a_loss_that_isnt_known_or_is_odd_isnt_a_finding(runs, loss):
    """NaN is how a record says that the loss wasn't seen; in truth it shows in the gradients, or does no harm."""
    fed = judged(runs, {}, {"loss": loss}, {"loss": loss, "states": {"net.0": LayerState.ZERO}})
    assert not fed.findings
    assert fed.evaluator.unjudged == {}


def test_a_loss_that_was_never_known_isnt_named(runs):
    finding = judged(runs, {"loss": NAN}, {"loss": NAN, "states": {"net.0": BAD}}).only
    assert "loss is" not in finding.message
    assert "nan" in judged(runs, {"loss": 2.0}, {"loss": NAN, "states": {"net.0": BAD}}).only.message


class TestWhere:
    def test_the_first_site_in_the_forward_pass(self, runs):
        finding = judged(runs, {}, {"outputs": outputs(3), "states": {"net.0": BAD, "net.12": BAD}, "loss": NAN}).only
        assert finding.layers == ("net.7",)
        assert "began in the forward pass: the output of net.7" in finding.cause
        assert finding.value == 5  # two layers and three sites
        assert "the gradients of 2 of 7 layers" in finding.message
        assert "the outputs of 3 of 6 activations" in finding.message

    def test_the_layer_nearest_to_the_loss_in_the_backward_pass(self, runs):
        finding = judged(runs, {}, {"states": {"net.0": BAD, "net.2": BAD, "net.6": BAD}}).only
        assert finding.layers == ("net.6",)
        assert "began in the backward pass: net.6" in finding.cause

    def test_between_the_last_layer_and_the_loss(self, runs):
        finding = judged(runs, {}, {"loss": INF, "states": {"net.0": BAD}}).only
        assert finding.layers == ("net.12",)
        assert "began after net.12" in finding.cause

    def test_weights_that_hold_it_already(self, runs):
        everywhere = {f"net.{place}": BAD for place in range(0, 13, 2)}
        weights = {"net.0": NAN, "net.2": NAN, "net.4": NAN}
        finding = judged(
            runs, {}, {"states": everywhere, "outputs": outputs(0), "loss": NAN, "weight_rms": weights}
        ).only
        assert finding.layers == ("net.4",)
        assert "weights of net.4 hold NaN or infinity already" in finding.cause

    def test_later_records_show_the_ruins_and_change_nothing(self, runs):
        records = [{}, {"states": {"net.6": BAD}}]
        everywhere = {f"net.{place}": BAD for place in range(0, 13, 2)}
        after = {"states": everywhere, "outputs": INF, "loss": NAN, "weight_rms": NAN}
        first, last = judged(runs, *records).only, judged(runs, *records, after, after, {}).only
        assert (last.layers, last.cause, last.message, last.value) == (
            first.layers,
            first.cause,
            first.message,
            first.value,
        )
        assert (last.first_step, last.last_step) == (1, 3)

    def test_log_softmax_may_be_infinite(self, runs):
        info = runs.stack(function="log_softmax")
        fed = runs.feed(NonFiniteGradient(), [runs.measure(info, 0, outputs=INF)], info)
        assert not fed.findings
        bad = runs.measure(info, 0, outputs=INF, states={"net.0": BAD})
        assert runs.feed(NonFiniteGradient(), [bad], info).only.layers == ("net.0",)


class TestHeading:
    @pytest.mark.parametrize(
        "readings",
        [
            [{"norm": 1.0}, {"norm": 30.0}],
            [{"norm": 1.0, "loss": 2.0}, {"norm": 1.0, "loss": 1e5}],
            [{"norm": norm} for norm in (1.0, 2.0, 5.0, 8.0, 60.0)],
        ],
    )
    def test_growth_before_is_an_explosion(self, runs, readings):
        finding = judged(runs, *readings, {"states": {"net.0": BAD}, "loss": NAN}).only
        assert "The net exploded: the " in finding.cause
        assert f"at step {len(readings) - 1}." in finding.cause
        kinds = [action.kind for action in finding.remedy.actions]
        assert kinds == ["set_learning_rate", "clip_gradients"]

    def test_the_loss_of_the_step_itself_counts(self, runs):
        finding = judged(runs, {"loss": 0.5}, {"loss": 1.8e25, "states": {"net.0": BAD}}).only
        assert "the loss grew from 0.5 at step 0 to 1.8e25 at step 1" in finding.cause

    def test_weights_that_started_large_are_part_of_it(self, runs):
        finding = judged(runs, {"weight_rms": 2.0, "norm": 1.0}, {"norm": 1e6}, {"states": {"net.0": BAD}}).only
        initialize = finding.remedy.actions[0]
        assert initialize.targets == tuple(f"net.{place}" for place in range(0, 13, 2))
        assert dict(initialize.arguments)["method"] == "kaiming_normal_"

    def test_out_of_nothing_names_the_usual_operations(self, runs):
        finding = judged(runs, *[{}] * 5, {"states": {"net.0": BAD}}).only
        assert "out of nothing" in finding.cause
        assert "log(0)" in finding.cause

    def test_a_step_that_changed_weights_by_several_times_their_size_is_named(self, runs):
        """What it leads to is as large as that, and no operation is undefined."""
        info = runs.stack()
        bad = {"outputs": outputs(0), "loss": NAN}
        records = [runs.measure(info, 0, update_ratio=40.0, weight_rms=0.2), runs.measure(info, 1, **bad)]
        finding = runs.feed(NonFiniteGradient(), records, info).only
        assert "Step 0 changed weights by up to 40 times their size: the learning rate is too high." in finding.cause
        assert "log(0)" not in finding.cause + finding.remedy.text
        assert "undefined" not in finding.remedy.text
        assert {"set_learning_rate", "clip_gradients"} == {action.kind for action in finding.remedy.actions}
        # Long ago, or smaller: no reason.
        quiet = [runs.measure(info, step, update_ratio=1e-3, weight_rms=0.2) for step in range(1, 30)]
        late = runs.feed(NonFiniteGradient(), [records[0], *quiet, runs.measure(info, 30, **bad)], info).only
        small = runs.feed(NonFiniteGradient(), [quiet[0], runs.measure(info, 2, **bad)], info).only
        assert "log(0)" in late.cause
        assert "log(0)" in small.cause

    def test_steps_that_werent_measured_are_admitted(self, runs):
        finding = judged(runs, {}, {"step": 50, "states": {"net.0": BAD}}).only
        assert "Nothing had grown up to step 0; the 49 steps after it weren't measured" in finding.cause

    def test_the_first_step_points_to_the_data(self, runs):
        finding = judged(runs, {"loss": INF}).only
        assert "in the first measured step" in finding.cause
        assert finding.remedy.actions[0] == Action("normalize_inputs")

    def test_half_precision_is_widened(self, runs):
        info = runs.stack(precision="16-true")
        finding = runs.feed(NonFiniteGradient(), [runs.measure(info, 0, states={"net.0": BAD})], info).only
        assert finding.remedy.actions[0] == Action("set_precision", (), (("to", "bf16-mixed"),))


SKIPPED = {"skipped": True, "states": {"net.0": BAD}}


class TestSkipped:
    def test_is_no_finding_and_asks_for_the_next_step(self, runs):
        fed = judged(runs, *[SKIPPED] * 19)
        assert not fed.findings
        assert fed.confirming == [True] * 19
        assert "gradient scaler" in fed.evaluator.unjudged["GW103"]

    def test_twenty_in_a_row_are(self, runs):
        """2^16 is halved at each skip: after 16 the gradients aren't scaled any more."""
        fed = judged(runs, *[SKIPPED] * 22)
        finding = fed.only
        assert (finding.severity, finding.first_step, finding.value) == (Severity.ERROR, 0, 22)
        assert finding.remedy.actions == (Action("set_precision", (), (("to", "bf16-mixed"),)),)
        assert sum(map(len, fed.told)) == 1

    def test_a_scale_that_is_still_high_may_yet_come_down(self, runs):
        info = runs.stack()
        record = runs.measure(info, 0, skipped=True, states={"net.0": BAD})
        records = [
            type(record)(**{**vars(record), "step": step, "gradient_scale": 2.0 ** (40 - step)}) for step in range(42)
        ]
        fed = runs.feed(NonFiniteGradient(), records, info)
        assert [len(told) for told in fed.told] == [0] * 40 + [1, 0]

    def test_a_step_between_begins_anew(self, runs):
        assert not judged(runs, *[SKIPPED] * 19, {}, *[SKIPPED] * 19).findings


def test_cant_judge_where_nothing_was_measured(runs):
    info = runs.stack()
    evaluator = Evaluator([NonFiniteGradient()])
    record = runs.measure(info, 0, states={f"net.{place}": LayerState.UNMEASURED for place in range(0, 13, 2)})
    evaluator.feed(record, info)
    assert evaluator.unjudged == {"GW103": "not yet: no layer was measured"}


class TestAForwardPassThatOverflows:
    """Under a gradient scaler: the loss isn't a number before there is a gradient, whatever the scale."""

    BROKEN: ClassVar = {"skipped": True, "states": {"net.0": BAD}, "loss": NAN}

    def test_is_told_at_the_third_measured_step_with_the_first_activation(self, runs):
        broken = {**self.BROKEN, "outputs": [200.0, 900.0, 3000.0, INF, INF, INF]}
        fed = judged(runs, broken, {}, broken, {}, {}, broken, {})
        assert [len(told) for told in fed.told] == [0, 0, 0, 0, 0, 1, 0]
        finding = fed.only
        assert (finding.severity, finding.first_step, finding.last_step) == (Severity.ERROR, 0, 6)
        assert finding.layers == ("net.7",)
        assert "the output of net.7 is the first that isn't finite" in finding.cause
        assert "The largest activation before that is net.5, whose outputs have an rms of 3e3." in finding.cause
        assert finding.remedy.actions == (Action("set_precision", (), (("to", "bf16-mixed"),)),)

    def test_behind_the_last_activation_it_says_so(self, runs):
        finding = judged(runs, {}, *[self.BROKEN] * 3).only
        assert "so it begins behind net.11" in finding.cause

    def test_gradients_that_overflow_alone_are_the_scalers_business(self, runs):
        assert not judged(runs, {}, *[SKIPPED] * 5).findings

    def test_a_loss_that_the_scale_alone_makes_infinite_is_too(self, runs):
        assert not judged(runs, {}, *[{**self.BROKEN, "loss": INF}] * 5).findings
        assert judged(runs, {}, *[{**self.BROKEN, "loss": INF, "outputs": outputs(2)}] * 5).findings

    def test_nor_is_a_loss_that_was_never_known(self, runs):
        assert not judged(runs, *[self.BROKEN] * 5).findings

    def test_an_odd_batch_now_and_then_does_no_harm(self, runs):
        rare = [self.BROKEN, *[{}] * 25]
        assert not judged(runs, {}, *rare * 4).findings

    def test_what_follows_is_not_told_anew(self, runs):
        ruin = {"states": {f"net.{place}": BAD for place in range(0, 13, 2)}, "loss": NAN}
        finding = judged(runs, {}, *[self.BROKEN] * 3, ruin).only
        assert finding.first_step == 1


def test_a_scale_that_has_sunk_below_one_is_told(runs):
    info = runs.stack(function="relu")
    scales = [4.0, 2.0, 1.0, 0.5, 0.25, 0.25]
    records = [
        dataclasses.replace(runs.measure(info, step, weight_rms=0.5, norm=1.0), gradient_scale=scale)
        for step, scale in enumerate(scales)
    ]
    finding = runs.feed(NonFiniteGradient(), records, info).only
    assert (finding.first_step, finding.last_step, finding.value) == (3, 5, 3)
    assert finding.message.startswith("The gradient scale has sunk to 0.25, which is below 1 since step 3")
    small = [dataclasses.replace(record, gradient_scale=0.25) for record in records]
    assert not runs.feed(NonFiniteGradient(), small, info).findings


def scaled(runs, info, step, scale, *, overflows=False):
    """A record under a gradient scale; of a step whose forward pass overflows, if it does."""
    states = {layer.name: LayerState.NON_FINITE for layer in info.layers} if overflows else {}
    record = runs.measure(info, step, weight_rms=0.5, norm=1.0, states=states, loss=float("nan") if overflows else 1.0)
    return dataclasses.replace(record, gradient_scale=scale, skipped=overflows)


class TestHalvings:
    """Each halving of the scale is a step that was left out, between two measured steps as well."""

    def test_three_of_them_ask_for_the_next_steps_and_one_overflow_is_enough_then(self, runs):
        info = runs.stack(function="relu")
        records = [scaled(runs, info, step, 2.0**16) for step in (0, 1, 16, 32)]
        records.append(scaled(runs, info, 49, 2.0**13))
        fed = runs.feed(NonFiniteGradient(), records, info)
        assert not fed.findings
        assert fed.evaluator.confirming
        records += [scaled(runs, info, 50, 2.0**13), scaled(runs, info, 51, 2.0**13, overflows=True)]
        finding = runs.feed(NonFiniteGradient(), records, info).only
        assert (finding.first_step, finding.value) == (51, 3)

    def test_with_outputs_near_the_largest_number_nobody_has_to_see_one_overflow(self, runs):
        info = runs.stack(function="relu")
        large = np.linspace(100.0, 6000.0, len(info.sites))
        records = [scaled(runs, info, step, 2.0**16) for step in (0, 1, 16, 32)]
        records.append(dataclasses.replace(scaled(runs, info, 49, 2.0**13), forward_rms=large))
        fed = runs.feed(NonFiniteGradient(), records, info)
        assert (fed.only.severity, fed.only.first_step, fed.only.value) == (Severity.WARNING, 49, 3)
        assert fed.only.layers == (info.site_names[-1],)
        assert fed.only.cause_kind is CauseKind.NUMBER_FORMAT
        assert "to 8,192, while the outputs of net.11 are within a factor of 10.9 of float16" in fed.only.headline
        assert fed.evaluator.confirming
        broken = [scaled(runs, info, step, 2.0**13, overflows=True) for step in (50, 51, 52)]
        finding = runs.feed(NonFiniteGradient(), [*records, *broken], info).only
        assert (finding.severity, finding.first_step) == (Severity.ERROR, 49)
        calm = [dataclasses.replace(scaled(runs, info, step, 2.0**13), forward_rms=large) for step in range(50, 150)]
        healed = runs.feed(NonFiniteGradient(), [*records, *calm], info).only
        assert (healed.severity, healed.healed_step) == (Severity.INFO, 97)

    def test_a_scaler_that_comes_down_at_the_start_is_as_it_should_be(self, runs):
        info = runs.stack(function="relu")
        records = [scaled(runs, info, step, 2.0 ** (16 - step)) for step in range(9)]
        records += [scaled(runs, info, step, 2.0**8) for step in (16, 32, 49)]
        fed = runs.feed(NonFiniteGradient(), records, info)
        assert not fed.findings
        assert not fed.evaluator.confirming

    def test_one_or_two_are_odd_batches(self, runs):
        info = runs.stack(function="relu")
        records = [scaled(runs, info, step, 2.0**16) for step in (0, 1, 16, 32)]
        records += [scaled(runs, info, 49, 2.0**14), scaled(runs, info, 50, 2.0**14, overflows=True)]
        fed = runs.feed(NonFiniteGradient(), records, info)
        assert not fed.findings
