"""The ring of the last measured steps: what jumps, where it began, how many steps it asks for."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.judge.evidence.first_bad_step import RecentSteps
from lightning_gradwatch.judge.rules.loss_spike import LossSpike
from lightning_gradwatch.judge.rules.nonfinite import NonFiniteGradient
from lightning_gradwatch.judge.rules.oversized import OversizedUpdate
from lightning_gradwatch.record.checkpoint import StateError
from lightning_gradwatch.record.step import LayerState

pytestmark = pytest.mark.judges

USUAL = {"loss": 1.0, "norm": 1.0, "grad_norm": 1.0, "weight_rms": 0.2, "update_ratio": 1e-3, "outputs": 0.5}


def watched(runs, steps, *, info=None, recent=None, **changed):
    """Feed steps that are alike but for what `changed` says of one: a function of the step, by name."""
    info = info or runs.stack(depth=3)
    recent = recent or RecentSteps()
    for step in steps:
        values = {name: changed[name](step) if name in changed else value for name, value in USUAL.items()}
        extra = {name: change(step) for name, change in changed.items() if name not in USUAL}
        recent.note(runs.measure(info, step, **values, **extra), info)
    return recent, info


def at(step, value, usual):
    return lambda now: value if now == step else usual


def after(step, value, usual):
    return lambda now: value if now >= step else usual


class TestWhereItBegan:
    def test_a_layer_whose_weights_were_changed_is_named_before_what_follows_from_it(self, runs):
        recent, info = watched(
            runs,
            range(13),
            weight_rms=after(12, {"net.4": 2.0, **dict.fromkeys(("net.0", "net.2", "net.6"), 0.2)}, 0.2),
            outputs=at(12, [0.5, 0.5, 5.0], 0.5),
            loss=at(12, 9.0, 1.0),
            norm=at(12, 100.0, 1.0),
            grad_norm=at(12, 50.0, 1.0),
        )
        begun = recent.onset(12, info)
        assert (begun.layer, begun.metric, begun.before, begun.after) == ("net.4", "weight_rms", 0.2, 2.0)
        assert (begun.last_good_step, begun.step, begun.exact) == (11, 12, True)

    def test_it_began_where_something_left_its_range_and_stayed_out_until_the_jump_shows(self, runs):
        recent, info = watched(
            runs,
            range(16),
            update_ratio=after(12, 0.3, 1e-3),
            rates=after(12, (10.0,), (0.1,)),
            loss=after(15, 9.0, 1.0),
        )
        begun = recent.onset(13, info)
        assert (begun.layer, begun.metric, begun.step, begun.last_good_step) == ("net.0", "update_ratio", 12, 11)
        assert (begun.learning_rate, begun.learning_rate_before) == (10.0, 0.1)

    def test_what_came_back_before_the_jump_isnt_where_it_began(self, runs):
        recent, info = watched(runs, range(16), update_ratio=at(10, 0.3, 1e-3), loss=after(15, 9.0, 1.0))
        begun = recent.onset(15, info)
        assert (begun.layer, begun.metric, begun.step) == ("", "loss", 15)
        assert begun.sentence.startswith("The loss alone left its own range, at step 15 (batch 0), ")

    def test_of_gradients_the_one_nearest_to_the_loss_is_first(self, runs):
        gradients = {"net.0": 30.0, "net.2": 40.0, "net.4": 20.0, "net.6": 1.0}
        recent, info = watched(runs, range(13), grad_norm=at(12, gradients, 1.0), norm=at(12, 50.0, 1.0))
        assert recent.onset(12, info).layer == "net.4"

    def test_of_outputs_the_first_along_the_path_is_named_by_the_layer_that_feeds_it(self, runs):
        info = runs.stack(depth=3)
        fed = tuple(
            dataclasses.replace(layer, feeds=site.name) for layer, site in zip(info.layers, info.sites, strict=False)
        )
        info = dataclasses.replace(info, layers=(*fed, info.layers[-1]))
        recent, _ = watched(runs, range(13), info=info, outputs=at(12, [0.5, 5.0, 9.0], 0.5), loss=at(12, 9.0, 1.0))
        begun = recent.onset(12, info)
        assert (begun.layer, begun.site, begun.metric) == ("net.2", "net.3", "forward_rms")

    def test_nan_is_out_of_every_range_also_with_no_step_before_it(self, runs):
        broken = dict.fromkeys(("net.0", "net.2", "net.4", "net.6"), LayerState.NON_FINITE)
        for first in (0, 1, 12):
            recent, info = watched(
                runs,
                range(first + 1),
                grad_norm=at(first, math.nan, 1.0),
                norm=at(first, math.nan, 1.0),
                loss=at(first, math.nan, 1.0),
                states=at(first, broken, None),
            )
            begun = recent.onset(first, info)
            assert (begun.layer, begun.metric, begun.after) == ("net.6", "grad_norm", None)
            assert (begun.step, begun.last_good_step) == (first, first - 1 if first else None)

    @pytest.mark.parametrize(
        "changed",
        [
            {"loss": lambda step: 2.0 ** -min(step, 900), "norm": lambda step: 2.0 ** -min(step, 900)},
            {"norm": lambda step: 1.02**step},
            {"update_ratio": lambda step: 1e-5 * (step + 1)},
            {"loss": lambda step: -0.1 * step},
            {"loss": at(100, 0.0, 1.0), "norm": at(100, 1e-9, 1.0), "grad_norm": at(100, 1e-9, 1.0)},
            {"norm": lambda step: 1.0 + 4.0 * (step % 7 == 0)},
            {"loss": lambda step: 1.0 + 0.5 * (step % 3)},
            {"norm": lambda step: float("nan")},
            {"loss": lambda step: float("nan")},
            {"loss": lambda step: 5.0 if step < 100 else 5.0 + 0.8},
            {"grad_norm": lambda step: {"net.0": 1e-3 if step % 2 else 1.0}},
            {"weight_rms": lambda step: 0.2 * 1.001**step},
            {
                "loss": lambda step: 3.0 - 2.9 * (step > 5) + 0.3 * (step == 200),
                "norm": lambda step: 5.0 if step < 5 else 0.01 + 0.5 * (step == 200),
            },
        ],
    )
    def test_what_a_healthy_run_does_is_no_sign(self, runs, changed):
        recent, info = watched(runs, range(300), **changed)
        assert not any(recent.wants(step) for step in range(400))
        assert recent.onset(299, info) is None

    def test_optimizers_that_take_turns_are_each_compared_with_their_own(self, runs):
        info = runs.stack(depth=3, optimizers=("Adam", "Adam"))
        recent = RecentSteps()
        for step in range(100):
            one = step % 2
            record = runs.measure(info, step, loss=1.0 + 50 * one, norm=1.0 + 500 * one, grad_norm=1.0 + 500 * one)
            recent.note(dataclasses.replace(record, optimizers=(one,)), info)
        assert not recent.wants(100)

    def test_layers_that_come_up_in_mid_run_are_matched_by_name(self, runs):
        recent, _ = watched(runs, range(10), info=runs.stack(depth=2))
        recent, info = watched(
            runs,
            range(10, 12),
            info=runs.stack(depth=3),
            recent=recent,
            loss=at(11, 9.0, 1.0),
            update_ratio=at(11, {"net.0": 1e-3, "net.2": 0.5, "net.4": 1e-3, "net.6": 1e-3}, 1e-3),
        )
        begun = recent.onset(11, info)
        assert (begun.layer, begun.metric, begun.before) == ("net.2", "update_ratio", 1e-3)


class TestTheStepsThatFollow:
    def test_are_the_64_after_a_sign(self, runs):
        recent, _ = watched(runs, range(0, 210, 10), loss=at(200, 9.0, 1.0))
        assert [step for step in range(1000) if step > 200 and recent.wants(step)] == [*range(201, 265)]

    def test_of_signs_again_and_again_are_192_or_one_step_of_200(self, runs):
        info = runs.stack(depth=3)
        recent, asked = RecentSteps(), []
        for step in range(60_000):
            asked += [step] if recent.wants(step) else []
            if step % 20 == 0 or recent.wants(step):
                loss = 50.0 if step % 500 == 0 else 1.0
                recent.note(runs.measure(info, step, loss=loss, norm=1.0), info)
        assert len(asked) == 256  # 300 are allowed, in pieces of 64
        assert len([step for step in asked if step < 38_400]) == 192

    def test_are_no_more_for_a_jump_that_goes_on(self, runs):
        recent, _ = watched(runs, range(300), loss=after(100, 9.0, 1.0))
        assert [step for step in range(101, 500) if recent.wants(step)] == [*range(101, 165)]


class TestAcrossACheckpoint:
    def test_it_goes_on_as_if_nothing_had_happened(self, runs):
        loss = {"loss": lambda step: 9.0 if step in {40, 90} else 1.0, "update_ratio": at(90, 0.5, 1e-3)}
        for cut in (0, 1, 39, 40, 41, 42, 43, 44, 90, 91, 99):
            whole, info = watched(runs, range(100), **loss)
            first, _ = watched(runs, range(cut), info=info, **loss)
            second = RecentSteps.from_plain(json.loads(json.dumps(first.plain())))
            watched(runs, range(cut, 100), info=info, recent=second, **loss)
            assert second.plain() == whole.plain()
            assert second.onset(90, info) == whole.onset(90, info)

    def test_it_holds_no_more_numbers_than_so_many(self, runs):
        info = runs.stack(depth=6000)
        recent, _ = watched(runs, range(30), info=info)
        held = sum(len(values) for _, each in recent.plain()["ring"] for values in each["values"].values())
        assert held <= 400_000

    @pytest.mark.parametrize(
        "damage",
        [
            {"ring": 3},
            {"ring": [[7, {}]]},
            {"layouts": [[[3], []]]},
            {"start": [[]]},
            {"start": [["x"], []]},
            {"sign": {"step": 3}},
            {"until": -1},
            {"granted": "many"},
            {"more": 1},
        ],
        ids=str,
    )
    def test_what_makes_no_sense_is_refused(self, runs, damage):
        recent, _ = watched(runs, range(10))
        with pytest.raises(StateError):
            RecentSteps.from_plain({**recent.plain(), **damage})

    def test_a_state_of_an_earlier_release_has_none(self, runs):
        info = runs.stack()
        evaluator = Evaluator([LossSpike(), NonFiniteGradient()])
        evaluator.feed(runs.measure(info, 0), info)
        state = evaluator.state_dict()
        del state["recent"]
        second = Evaluator([LossSpike(), NonFiniteGradient()])
        second.load_state_dict(state)
        assert not second.wants(1)


def test_a_finding_keeps_saying_where_it_began(runs):
    """Later records show another range; what is told stays what the first ones showed."""
    info = runs.stack(depth=3)
    changes = {"update_ratio": after(30, 0.5, 1e-3), "loss": lambda step: 1.0 if step < 31 else 20.0}
    evaluator = Evaluator([OversizedUpdate()])
    said = []
    for step in range(200):
        values = {name: changes[name](step) if name in changes else value for name, value in USUAL.items()}
        evaluator.feed(runs.measure(info, step, **values), info)
        said += [each.first_bad for each in evaluator.findings]
    assert len(said) == 168
    assert len(set(said)) == 1
    assert (said[0].layer, said[0].metric, said[0].step) == ("net.0", "update_ratio", 30)


def test_what_was_so_long_before_a_jump_doesnt_begin_with_it(runs):
    """Steps that are too large from step 0 on have no good step before them."""
    info = runs.stack(depth=3)
    evaluator = Evaluator([OversizedUpdate()])
    for step in range(60):
        loss = 30.0 if step == 50 else 5.0
        evaluator.feed(runs.measure(info, step, **{**USUAL, "update_ratio": 0.5, "loss": loss}), info)
    (finding,) = evaluator.findings
    assert finding.first_step == 0
    assert finding.first_bad is None


def test_the_numbers_are_the_records_own_to_the_bit(runs):
    rng = np.random.default_rng(0)
    info = runs.stack(depth=3)
    table = 1e-3 * np.exp(0.1 * rng.normal(size=(13, 4)))
    table[12, 2] = 0.4
    recent = RecentSteps()
    for step, row in enumerate(table):
        recent.note(
            runs.measure(info, step, **{**USUAL, "update_ratio": row, "loss": 9.0 if step == 12 else 1.0}), info
        )
    begun = recent.onset(12, info)
    assert (begun.layer, begun.before, begun.after) == ("net.4", table[11, 2], table[12, 2])
