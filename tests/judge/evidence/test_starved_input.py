"""GW101 of a first layer that gets next to nothing, whatever lies between it and the loss."""

from __future__ import annotations

import pytest

from lightning_gradwatch.judge.rules.vanishing import VanishingGradient
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, LayerState, OptimizerInfo

STEPS = (0, 1, 2, 4, 8, 16, 32, 49, 64, 99)


def net(kind="LSTM"):
    """An embedding, something whose inside isn't seen, and a head without a hidden activation."""
    layers = (
        LayerInfo("emb", "Embedding", ((50, 16),), 800, weight=False),
        LayerInfo("inner", kind, ((64, 16), (64, 16)), 2048, weight=True),
        LayerInfo("head", "Linear", ((2, 16), (2,)), 34, weight=True),
    )
    return RunInfo(layers=layers, optimizers=(OptimizerInfo("Adam", {}, tuple(each.name for each in layers)),))


def fed(runs, info, ratio, loss=lambda step: 0.69 + 0.001 * (step % 3), steps=STEPS, **more):
    records = [
        runs.measure(info, step, grad_norm={"emb": ratio, "inner": 1.0, "head": 3.0}, loss=loss(step), **more)
        for step in steps
    ]
    return runs.feed(VanishingGradient(), records, info)


def test_it_is_told_with_what_lies_behind_it(runs):
    only = fed(runs, net(), 1e-19).only
    assert (only.code, only.severity, only.layers, only.first_step) == ("GW101", Severity.WARNING, ("emb",), 16)
    assert only.value == pytest.approx(1e-19 / 3)
    assert only.message.startswith(
        "emb, the first layer, gets 3.33e-20 of the gradient that others get (L2 norms), and inner,"
    )
    assert "pack_padded_sequence" in only.remedy.text
    assert only.remedy.actions[0].kind == "pack_sequences"


def test_of_what_is_no_recurrent_layer_nothing_is_guessed(runs):
    only = fed(runs, net("Mystery"), 1e-9).only
    assert "between emb and inner" in only.cause
    assert only.remedy.actions[0].kind == "trace_gradient"


@pytest.mark.parametrize(
    ("share", "loss", "update", "blamed"),
    [(2.0, 5.0, 1e-3, True), (2.0, 0.7, 0.8, True), (2.0, 0.7, 1e-3, False), (1e-9, 5.0, 1e-3, False)],
)
def test_what_the_first_layer_got_at_first_was_taken_away_by_steps_that_did_harm(runs, share, loss, update, blamed):
    info = net("Mystery")
    records = [
        runs.measure(
            info,
            step,
            grad_norm={"emb": 1e-9 if step else share, "inner": 1.0, "head": 4.0},
            loss=loss if step else 0.69,
            update_ratio=update,
        )
        for step in STEPS
    ]
    only = runs.feed(VanishingGradient(), records, info).only
    assert ("set_learning_rate" in [action.kind for action in only.remedy.actions]) is blamed
    assert ("At step 0 it got 0.5 of what others got: not the start" in only.cause) is blamed


@pytest.mark.parametrize("ratio", [1.0, 1e-3, 1e-5, 0.0])
def test_what_a_layers_own_scale_explains_is_quiet_and_exactly_zero_is_another_rules(runs, ratio):
    assert fed(runs, net(), ratio).findings == ()


def test_it_is_quiet_while_the_loss_falls_and_heals_when_it_does(runs):
    assert fed(runs, net(), 1e-19, loss=lambda step: 0.69 * 0.98**step).findings == ()
    late = (*STEPS, 149, 199, 249, 299)
    only = fed(runs, net(), 1e-19, loss=lambda step: 0.69 if step < 100 else 0.1, steps=late).only
    assert only.severity is Severity.INFO
    assert only.healed_step is not None


def test_a_frozen_first_layer_isnt_the_first(runs):
    info = net()
    records = [
        runs.measure(info, step, grad_norm={"emb": 0.0, "inner": 1.0, "head": 3.0}, states={"emb": LayerState.FROZEN})
        for step in STEPS
    ]
    assert runs.feed(VanishingGradient(), records, info).findings == ()


def test_it_is_told_too_where_the_signal_over_depth_is_fine_and_not_beside_one_that_vanishes(runs):
    info = runs.stack()
    first = info.layer_names[0]
    for signal, codes in ((runs.fading(info, 0.5), ["input"]), (runs.fading(info, 1e-9), ["signal"])):
        records = [
            runs.measure(info, step, signal_norm=signal, grad_norm={first: 1e-12}, loss=2.3 + 0.01 * (step % 3))
            for step in STEPS
        ]
        state = runs.feed(VanishingGradient(), records, info).evaluator.state_dict()
        assert list(state["rules"]["GW101"]["findings"]) == codes


def test_one_cause_is_one_finding_where_the_signal_comes_and_goes(runs):
    info = runs.stack()
    first = info.layer_names[0]
    fades = [1e-9] * 8 + [0.5] * 4
    records = [
        runs.measure(info, 10 + place, signal_norm=runs.fading(info, fade), grad_norm={first: 1e-12}, loss=2.3)
        for place, fade in enumerate(fades)
    ]
    state = runs.feed(VanishingGradient(), records, info).evaluator.state_dict()
    assert list(state["rules"]["GW101"]["findings"]) == ["signal"]
