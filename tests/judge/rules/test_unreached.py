"""GW104 says which layers no gradient reaches, and why."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import pytest
from judge.unreached import NONE, ZERO, judged, lost

from lightning_gradwatch.judge.rules.unreached import UnreachedLayer
from lightning_gradwatch.record.finding import Severity, UnreachedLayerWarning
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, LayerState, OptimizerInfo

FROZEN, UNMEASURED = LayerState.FROZEN, LayerState.UNMEASURED


@pytest.mark.parametrize("state", [NONE, ZERO])
def test_fires_at_the_third_measured_step_without_warm_up(runs, state):
    fed = judged(runs, [{"net.0": state}] * 4)
    assert [len(told) for told in fed.told] == [0, 0, 1, 0]
    assert fed.confirming == [True, True, False, False]
    finding = fed.only
    assert (finding.severity, finding.layers) == (Severity.ERROR, ("net.0",))
    assert (finding.first_step, finding.last_step, finding.value, finding.threshold) == (0, 3, 4.0, 3.0)
    assert fed.evaluator.warning_for(finding) is UnreachedLayerWarning


@pytest.mark.parametrize(
    "states",
    [
        [{"net.0": ZERO}, {}, {}, {}],
        [{"net.0": ZERO}, {"net.0": ZERO}, {}, {"net.0": ZERO}, {"net.0": ZERO}, {}],
        [{"net.0": FROZEN}] * 5,
        [{"net.0": UNMEASURED}] * 5,
        [{"net.0": ZERO}, {"net.0": ZERO}, {"net.0": FROZEN}, {"net.0": ZERO}],
    ],
    ids=["zero-init head", "two nested", "frozen", "another optimizer's", "frozen in between"],
)
def test_healthy_layers_are_left_alone(runs, states):
    fed = judged(runs, states)
    assert not fed.findings
    assert not fed.evaluator.unjudged


def test_steps_that_didnt_measure_the_layer_neither_count_nor_reset(runs):
    zero, other = {"net.0": ZERO}, {"net.0": UNMEASURED}
    fed = judged(runs, [zero, other, zero, other, zero])
    assert [len(told) for told in fed.told] == [0, 0, 0, 0, 1]


def test_a_skipped_step_doesnt_count(runs):
    info = runs.stack()
    record = runs.measure(info, 0, states={"net.0": ZERO})
    assert not runs.feed(UnreachedLayer(), [dataclasses.replace(record, skipped=True)] * 5, info).findings


def test_a_rate_of_zero_keeps_what_starts_at_zero(runs):
    """In a rate warm-up that starts at 0 a zero-init head can't leave 0 yet."""
    assert not judged(runs, [{"net.0": ZERO}] * 6, rates=(0.0,)).findings
    assert judged(runs, [{"net.0": ZERO}] * 6, rates=(1e-12,)).findings
    assert judged(runs, [{"net.0": ZERO}] * 6, rates=()).findings


def test_the_rate_is_that_of_the_optimizer_that_holds_the_layer(runs):
    info = runs.stack()
    names = [layer.name for layer in info.layers]
    info = dataclasses.replace(
        info, optimizers=(OptimizerInfo("SGD", {}, (names[0],)), OptimizerInfo("SGD", {}, tuple(names[1:])))
    )
    both = {"net.0": ZERO, "net.6": ZERO}
    assert judged(runs, [both] * 3, info=info, rates=(0.0, 0.1)).only.layers == ("net.6",)


def test_a_loss_of_zero_has_nothing_to_teach(runs):
    assert not judged(runs, [{f"net.{place}": ZERO for place in range(0, 13, 2)}] * 5, loss=0.0).findings


def test_neighbours_share_a_finding_that_grows(runs):
    few, more = {"net.2": ZERO}, {"net.0": ZERO, "net.2": ZERO, "net.4": ZERO}
    fed = judged(runs, [few] * 3 + [more] * 3)
    assert [len(told) for told in fed.told] == [0, 0, 1, 0, 0, 0]
    assert fed.only.layers == ("net.0", "net.2", "net.4")
    assert fed.only.first_step == 0


def test_what_was_cut_off_in_two_places_is_two_findings_until_the_gap_closes(runs):
    """Where the way of the gradient wasn't followed."""
    apart = {"net.0": NONE, "net.4": NONE}
    fed = judged(runs, [apart] * 3)
    assert [finding.layers for finding in fed.findings] == [("net.0",), ("net.4",)]
    fed = judged(runs, [apart] * 3 + [{**apart, "net.2": NONE}] * 3)
    assert fed.only.layers == ("net.0", "net.2", "net.4")
    assert sum(len(told) for told in fed.told) == 2


def test_zeros_are_one_finding_wherever_they_are(runs):
    """What the step's sites say of one, they say of all."""
    assert judged(runs, [{"net.0": ZERO, "net.4": ZERO}] * 3).only.layers == ("net.0", "net.4")


class TestFewSamples:
    """A gradient of exactly 0 through a ReLU says nothing before a window does."""

    SILENT: ClassVar = [1.0, 0.5, 0.5, 0.5, 0.5, 0.5]

    def fed(self, runs, dead, *, function="relu", **given):
        return judged(
            runs,
            [{"net.0": ZERO}] * 9,
            info=runs.stack(function=function),
            inactive_share=self.SILENT,
            dead_fraction=dead,
            **given,
        )

    @pytest.mark.parametrize("dead", [np.nan, [0.75, 0.0, 0.0, 0.0, 0.0, 0.0]], ids=["not full", "not dead"])
    def test_units_that_few_samples_leave_inactive(self, runs, dead):
        fed = self.fed(runs, dead)
        assert not fed.findings
        assert sum(fed.confirming) == 2

    def test_a_full_window_of_dead_units(self, runs):
        finding = self.fed(runs, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]).only
        assert (finding.severity, finding.first_step) == (Severity.ERROR, 0)

    def test_derivatives_that_round_to_zero_in_few_samples(self, runs):
        assert not self.fed(runs, np.nan, function="sigmoid").findings
        assert self.fed(runs, 0.0, function="sigmoid", saturated_fraction=[1.0, *[0.0] * 5]).findings

    def test_an_operation_that_was_given_few_values_is_told_after_many_steps(self, runs):
        info = lost(runs.stack(), **{"net.0": ("few", "clamp", "net")})
        assert not judged(runs, [{"net.0": ZERO}] * 31, info=info).findings
        finding = judged(runs, [{"net.0": ZERO}] * 32, info=info).only
        assert "arrives at clamp()" in finding.cause


def test_a_frozen_layer_doesnt_part_its_neighbours(runs):
    assert judged(runs, [{"net.0": ZERO, "net.2": FROZEN, "net.4": ZERO}] * 3).only.layers == ("net.0", "net.4")


def test_a_missing_and_a_zero_gradient_have_different_causes(runs):
    fed = judged(runs, [{"net.0": NONE, "net.2": ZERO}] * 3)
    assert [finding.layers for finding in fed.findings] == [("net.0",), ("net.2",)]
    assert "the graph is cut behind it, or the loss leaves it out" in fed.findings[0].cause
    assert fed.findings[0].remedy.actions[0].kind == "reconnect_graph"


@pytest.mark.parametrize(
    ("used", "state", "severity"),
    [
        (False, NONE, Severity.INFO),
        (False, ZERO, Severity.INFO),
        (None, NONE, Severity.INFO),
        (None, ZERO, Severity.ERROR),
        (True, NONE, Severity.ERROR),
    ],
)
def test_a_layer_that_isnt_used_is_information(runs, used, state, severity):
    layer = LayerInfo("spare", "Linear", ((2, 2),), 4, weight=True, used=used)
    assert judged(runs, [{"spare": state}] * 3, info=RunInfo(layers=(layer,))).only.severity == severity


def test_a_layer_appended_in_mid_run_keeps_the_others_count(runs):
    before = runs.stack(depth=2)
    after = dataclasses.replace(before, layers=(*before.layers, LayerInfo("late", "Linear", ((2, 2),), 4, weight=True)))
    evaluator = runs.feed(UnreachedLayer(), [runs.measure(before, s, states={"net.2": ZERO}) for s in (0, 1)], before)
    told = evaluator.evaluator.feed(runs.measure(after, 2, states={"net.2": ZERO, "late": ZERO}), after)
    assert [finding.layers for finding in told] == [("net.2",)]


def test_a_layer_that_a_step_left_out_doesnt_part_its_neighbours(runs):
    states = {"net.0": ZERO, "net.2": LayerState.UNUSED, "net.4": ZERO}
    assert judged(runs, [states] * 3).only.layers == ("net.0", "net.4")


def test_cant_judge_without_a_measured_layer(runs):
    fed = judged(runs, [{f"net.{place}": UNMEASURED for place in range(0, 13, 2)}])
    assert fed.evaluator.unjudged == {"GW104": "not yet: no trainable layer was measured"}


@pytest.mark.parametrize(("count", "found"), [(100, 100), (101, 1)])
def test_more_root_causes_than_anyone_reads_share_a_finding(runs, count, found):
    """A file can describe a hundred thousand layers of which every other has no gradient."""
    info = runs.stack(depth=2 * count)
    fed = judged(runs, [{f"net.{4 * place}": NONE for place in range(count)}] * 4, info=info)
    assert len(fed.findings) == found
    assert sum(len(finding.layers) for finding in fed.findings) == count


def test_more_root_causes_are_still_told_apart_by_kind(runs):
    info = runs.stack(depth=800)
    states = {f"net.{4 * place}": (ZERO, NONE)[place % 2] for place in range(400)}
    fed = judged(runs, [states] * 4, info=info)
    assert sorted(len(finding.layers) for finding in fed.findings) == [200, 200]
    assert len({finding.cause for finding in fed.findings}) == 2
