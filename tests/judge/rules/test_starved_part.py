"""GW106: parts with optimizers of their own against their own past, and factors that are all 0."""

from __future__ import annotations

import dataclasses
import math

import pytest

from lightning_gradwatch import Severity, StarvedPart
from lightning_gradwatch.record.step import OptimizerInfo, Wiring

STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 65, 66)
LAYERS = ("net.0", "net.2", "net.4", "net.6", "net.8", "net.10")
FIRST, SECOND = LAYERS[:3], LAYERS[3:]


@pytest.fixture
def info(runs):
    """Two optimizers, each with half of the layers."""
    halves = tuple(OptimizerInfo("Adam", {"lr": 1e-3}, layers=half) for half in (FIRST, SECOND))
    return dataclasses.replace(runs.stack(), optimizers=halves, wiring=())


def sinks(step, *, to=1e-4):
    """A gradient norm that has sunk by step 32."""
    return 1.0 if step < 16 else to


def level(step):
    del step
    return 1.0


def loss_that_rises(step):
    return -0.7 if step < 8 else -1e-3


def loss_that_falls(step):
    return 1.4 if step < 8 else 1e-3


def record(runs, info, step, *, norms=(sinks, level), losses=(loss_that_rises, loss_that_falls), **given):
    grad_norm = {name: norm(step) for half, norm in zip((FIRST, SECOND), norms, strict=True) for name in half}
    facts = {
        "optimizers": (0, 1),
        "learning_rates": (1e-3, 1e-3),
        "optimizer_losses": tuple(loss(step) for loss in losses),
        "loss": math.nan,
        **given,
    }
    return dataclasses.replace(runs.measure(info, step, grad_norm=grad_norm), **facts)


def judged(runs, info, *, steps=STEPS, **given):
    return runs.feed(StarvedPart(), [record(runs, info, step, **given) for step in steps], info)


class TestParts:
    def test_a_part_whose_gradient_sinks_while_its_loss_gets_worse(self, runs, info):
        finding = judged(runs, info).only
        assert (finding.severity, finding.layers, finding.first_step) == (Severity.WARNING, FIRST, 32)
        assert finding.value == pytest.approx(1e-4)
        assert finding.threshold == 1e-2
        assert finding.cause.startswith("Optimizer 1 (Adam) has won")
        assert "optimizer 0 (Adam) trains, has sunk to 0.0001 of its highest" in finding.message
        assert "from -0.7 to -0.001. The loss of optimizer 1 (Adam) has gone from 1.4 to 0.001." in finding.message
        action, *_ = finding.remedy.actions
        assert (action.kind, action.targets, dict(action.arguments)) == ("set_learning_rate", SECOND, {"factor": 0.1})

    def test_a_winner_that_steps_further_even_when_held_back_is_caught_up_with(self, runs, info):
        finding = judged(runs, info, learning_rates=(1e-3, 4e-2)).only
        assert [(action.targets, dict(action.arguments)) for action in finding.remedy.actions] == [
            (SECOND, {"factor": 0.1}),
            (FIRST, {"factor": pytest.approx(4.0)}),
        ]

    def test_of_optimizers_that_take_turns_by_batch_the_next_turn_is_waited_for(self, runs, info):
        """Steps 64 on would be measured one by one: the even ones are the one's, the odd ones the other's."""
        steps = (0, 1, 2, 3, 4, 5, 8, 9, 32, 33, 64, 65, 66, 67, 68, 69)
        rates = ((1e-3, math.nan), (math.nan, 4e-2))
        turns = [
            record(runs, info, step, optimizers=(step % 2,), norms=(sinks, level), learning_rates=rates[step % 2])
            for step in steps
        ]
        got = runs.feed(StarvedPart(), turns, info)
        assert got.only.layers == FIRST
        first = next(place for place, asked in enumerate(got.confirming) if asked)
        settled = next(place for place, told in enumerate(got.told) if told)
        assert all(got.confirming[first:settled])
        assert [dict(action.arguments)["factor"] for action in got.only.remedy.actions] == [0.1, pytest.approx(4.0)]

    def test_the_winners_own_gradient_may_sink_with_it(self, runs, info):
        assert judged(runs, info, norms=(sinks, sinks)).only.layers == FIRST

    def test_of_one_that_wins_nothing_it_says_that_the_loss_is_flat(self, runs, info):
        assert "is flat there" in judged(runs, info, losses=(loss_that_rises, level)).only.cause

    @pytest.mark.parametrize(
        ("name", "given"),
        [
            ("in balance", {"norms": (level, level)}),
            ("both converge", {"norms": (sinks, sinks), "losses": (loss_that_falls, loss_that_falls)}),
            ("one converges before the other", {"losses": (loss_that_falls, level)}),
            ("its loss stands", {"losses": (level, loss_that_falls)}),
            ("its loss rises by next to nothing", {"losses": (lambda step: 1 + 1e-3 * step / 66, level)}),
            ("all collapse at once", {"norms": (sinks, sinks), "losses": (loss_that_rises, loss_that_rises)}),
            ("it sinks a little", {"norms": (lambda step: sinks(step, to=0.05), level)}),
            ("its rate is 0", {"learning_rates": (0.0, 1e-3)}),
        ],
    )
    def test_is_silent(self, runs, info, name, given):
        del name
        assert judged(runs, info, **given).findings == ()

    def test_one_that_no_longer_steps_is_left_alone(self, runs, info):
        records = [
            record(runs, info, step, **({} if step < 16 else {"optimizers": (1,), "optimizer_losses": (math.nan, 1.0)}))
            for step in STEPS
        ]
        assert runs.feed(StarvedPart(), records, info).findings == ()

    def test_optimizers_that_take_turns(self, runs, info):
        def turn(step):
            mine = step % 2
            return {
                "optimizers": (mine,),
                "optimizer_losses": tuple(
                    loss(step) if place == mine else math.nan
                    for place, loss in enumerate((loss_that_rises, loss_that_falls))
                ),
                "learning_rates": tuple(1e-3 if place == mine else math.nan for place in range(2)),
            }

        steps = (0, 1, 2, 3, 4, 5, 16, 17, *range(32, 48))
        records = [record(runs, info, step, **turn(step)) for step in steps]
        assert runs.feed(StarvedPart(), records, info).only.layers == FIRST

    def test_what_has_no_weight_layer_is_left_alone(self, runs, info):
        """As a temperature, or a multiplier of a constraint, whose gradient goes when it has done its work."""
        layers = tuple(
            dataclasses.replace(layer, weight=False) if layer.name in FIRST else layer for layer in info.layers
        )
        assert judged(runs, dataclasses.replace(info, layers=layers)).findings == ()

    def test_layers_that_several_optimizers_hold_are_no_part(self, runs, info):
        both = tuple(dataclasses.replace(each, layers=LAYERS) for each in info.optimizers)
        assert judged(runs, dataclasses.replace(info, optimizers=both)).findings == ()

    def test_has_healed_when_the_gradient_is_back(self, runs, info):
        fed = judged(runs, info, steps=STEPS)
        for step in range(67, 74):
            fed.evaluator.feed(record(runs, info, step, norms=(level, level)), info)
        assert fed.evaluator.findings[0].healed_step is not None

    def test_cant_judge_losses_that_are_not_told_apart(self, runs, info):
        unknown = lambda _: math.nan  # noqa: E731 - a loss
        fed = judged(runs, info, losses=(unknown, unknown))
        assert "before one of them steps" in fed.evaluator.unjudged["GW106"]

    def test_cant_judge_a_run_of_an_older_release(self, runs, info):
        fed = judged(runs, info, optimizer_losses=())
        assert "the release that recorded the run" in fed.evaluator.unjudged["GW106"]

    @pytest.mark.parametrize("given", [{"ratio": 0}, {"ratio": 2.0}, {"patience": 0}])
    def test_refuses_what_is_no_threshold(self, given):
        with pytest.raises(ValueError, match="must be"):
            StarvedPart(**given)


class TestFactors:
    FACTS = (
        Wiring("zero-factors", ("net.0.a", "net.2.a"), "matmul", "forward (a.py:3)"),
        Wiring("zero-factors-kept", ("net.0.b", "net.2.b"), "matmul", "forward (a.py:3)"),
    )

    def test_are_named_with_what_to_initialise(self, runs):
        info = dataclasses.replace(runs.stack(), wiring=self.FACTS)
        finding = runs.feed(StarvedPart(), [runs.measure(info, step) for step in STEPS], info).only
        assert (finding.severity, finding.layers) == (Severity.WARNING, ("net.0.a", "net.2.a"))
        assert (
            "net.0.a, net.2.a can't learn: exactly 0, and multiplied (matmul(), in forward (a.py:3))" in finding.message
        )
        action, *_ = finding.remedy.actions
        assert (action.kind, action.targets) == ("initialize", ("net.0.a", "net.2.a"))

    def test_are_information_where_the_net_learns_all_the_same(self, runs):
        info = dataclasses.replace(runs.stack(), wiring=self.FACTS)
        records = [runs.measure(info, step, loss=2.0 / (1 + step)) for step in STEPS]
        assert runs.feed(StarvedPart(), records, info).only.severity is Severity.INFO
