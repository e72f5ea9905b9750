"""Where no step was followed, the numbers say why a gradient is exactly 0: dead layers, underflow, derivatives that round to 0."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from judge.unreached import NONE, ZERO, judged, kinds, lost

from lightning_gradwatch.judge.rules.unreached import UnreachedLayer
from lightning_gradwatch.record.step import SiteInfo


def fading_to_zero(runs, info):
    """Weights that are too small, and a signal that ends at the first site."""
    metrics = runs.gains(info, 2**-0.5, 0.1)
    metrics["signal_norm"][0] = 0.0
    metrics["activation_gain"][0] = 0.0
    return metrics


def test_a_dead_layer(runs):
    finding = judged(
        runs,
        [{"net.0": ZERO, "net.2": ZERO}] * 3,
        dead_fraction=[0.0, 1.0, 0.0, 0.0, 0.0, 0.0],
        signal_norm=[0.0, 0.0, 1.0, 1.0, 1.0, 1.0],
    ).only
    assert finding.cause.startswith("Dead layer: each unit of ReLU at net.3 ")
    assert finding.remedy.actions[0].targets == ("net.3",)


@pytest.mark.parametrize("dead", [np.nan, 0.06])
def test_of_a_layer_that_is_silent_now_nothing_is_said_that_its_window_does_not(runs, dead):
    """Not full, or 6 % dead by it (GW201): a few samples may leave all units inactive."""
    share = {"inactive_share": [1.0, 0.5, 0.5, 0.5, 0.5, 0.5], "dead_fraction": [dead, 0.0, 0.0, 0.0, 0.0, 0.0]}
    assert judged(runs, [{"net.0": ZERO}] * 5, **share).findings == ()
    share["dead_fraction"][0] = 1.0
    assert judged(runs, [{"net.0": ZERO}] * 5, **share).only.cause.startswith("Dead layer: each unit of ReLU ")


def test_of_several_layers_each_is_called_what_its_window_says(runs):
    cause = judged(
        runs,
        [{"net.0": ZERO}] * 3,
        dead_fraction=[1.0, np.nan, 0.25, 0.0, 0.0, 0.0],
        inactive_share=[1.0, 1.0, 1.0, 0.5, 0.5, 0.5],
    ).only.cause
    dead, open_, silent = cause.index("at net.1 "), cause.index("at net.3 "), cause.index("at net.5 ")
    assert dead < cause.index("in every observation, so") < open_ < cause.index("once their window is full") < silent
    assert "no more than 25 %" in cause


def test_underflow(runs):
    info = runs.stack()
    signal = [0.0, 0.0, 1e-43, 1e-30, 1e-15, 1.0]
    finding = judged(runs, [{"net.0": ZERO, "net.2": ZERO}] * 3, info=info, signal_norm=signal).only
    assert finding.cause.startswith("Underflow of the number format")
    assert "1e-43 at net.5" in finding.cause


def test_a_signal_that_stops_at_once_is_no_underflow(runs):
    info = runs.stack()
    finding = judged(runs, [{"net.0": ZERO}] * 3, info=info, signal_norm=[0.0, 0.5, 1.0, 1.0, 1.0, 1.0]).only
    assert "neither a dead layer nor underflow" in finding.cause


def test_half_precision_underflows_earlier(runs):
    info = runs.stack(precision="16-mixed")
    finding = judged(runs, [{"net.0": ZERO}] * 3, info=info, signal_norm=[0.0, 1e-6, 1e-4, 0.1, 1.0, 1.0]).only
    assert "16-mixed (6e-8)" in finding.cause


def test_half_precision_whose_signal_is_level_asks_for_a_scaler(runs):
    info = runs.stack(function="relu", precision="16-mixed")
    zero = [{"net.0": ZERO}] * 3
    finding = judged(runs, zero, info=info, signal_norm=[0.0, 1e-7, 1e-7, 1e-7, 1e-7, 1e-7]).only
    assert kinds(finding) == ["use_gradient_scaler"]
    finding = judged(runs, zero, info=info, **fading_to_zero(runs, info)).only
    assert kinds(finding) == ["initialize", "use_gradient_scaler"]


@pytest.mark.parametrize(
    ("precision", "kind"),
    [("16-mixed", "use_gradient_scaler"), ("16-true", "set_precision"), ("32-true", "trace_gradient")],
)
def test_half_precision_in_which_nothing_is_left(runs, precision, kind):
    info = runs.stack(function="relu", precision=precision)
    everything = {f"net.{place}": ZERO for place in range(0, 13, 2)}
    finding = judged(runs, [everything] * 3, info=info, signal_norm=0.0).only
    assert kinds(finding) == [kind]
    assert kinds(judged(runs, [{"net.0": ZERO}] * 3, info=info).only) == ["trace_gradient"]


@pytest.mark.parametrize(
    ("precision", "operation", "kind"),
    [
        ("16-mixed", "other", "use_gradient_scaler"),
        ("16-true", "other", "set_precision"),
        ("32-true", "other", "trace_gradient"),
        ("16-mixed", "rounded", "trace_gradient"),
    ],
)
def test_what_a_function_makes_0_of_in_half_precision_is_too_small_for_it(runs, precision, operation, kind):
    """Unless its derivative is known to be 0."""
    everything = {f"net.{place}": ZERO for place in range(0, 13, 2)}
    place = operation, "cross_entropy", "net", ("train.py:3",)
    info = lost(runs.stack(function="relu", precision=precision), **dict.fromkeys(everything, place))
    finding = judged(runs, [everything] * 3, info=info, signal_norm=0.0).only
    assert kinds(finding) == [kind]


def test_a_scaler_that_is_there_isnt_recommended(runs):
    info = runs.stack(function="relu", precision="16-mixed")
    everything = {f"net.{place}": ZERO for place in range(0, 13, 2)}
    records = [
        dataclasses.replace(runs.measure(info, step, states=everything, signal_norm=0.0), gradient_scale=1024.0)
        for step in range(3)
    ]
    assert kinds(runs.feed(UnreachedLayer(), records, info).only) == ["trace_gradient"]


def test_underflow_mends_what_leads_up_to_it(runs):
    info = runs.stack(depth=8)
    metrics = runs.gains(info, 1e-10, 1.0)
    for values in metrics.values():
        values[:3] = np.nan
    metrics["signal_norm"][:3] = 0
    finding = judged(runs, [{"net.0": ZERO}] * 3, info=info, **metrics).only
    assert "below the smallest number of 32-true" in finding.cause
    assert "an activation passes back 1e-10 of the signal" in finding.cause
    assert kinds(finding) == ["replace_activation", "initialize"]


@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
def test_derivatives_that_round_to_zero(runs, function):
    info = runs.stack(function=function)
    finding = judged(
        runs,
        [{"net.0": ZERO}] * 3,
        info=info,
        inactive_share=[1.0, 0.1, 0.1, 0.1, 0.1, 0.1],
        saturated_fraction=[1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        signal_norm=1.0,
    ).only
    assert "so far out that the derivative rounds to 0" in finding.cause
    replaced = ["replace_activation"] if function == "sigmoid" else []
    assert kinds(finding) == [*replaced, "initialize", "normalize_inputs"]


def test_saturated_units_of_which_a_few_observations_are_not_flat(runs):
    """As of weights that steps have thrown far out: what passes is next to nothing at each of them, and 0 after all."""
    metrics = {"saturated_fraction": 1.0, "signal_norm": [0.0, 0.0, 1e-2, 0.1, 1.0, 1.0]}
    info = runs.stack(function="tanh")
    finding = judged(runs, [{"net.0": ZERO}] * 3, info=info, inactive_share=0.996, **metrics).only
    assert (
        "99.6 % or more of the observations of Tanh at net.1 … net.11 (6 activations) are on a flat side"
        in finding.cause
    )
    assert kinds(finding) == ["initialize", "normalize_inputs"]
    finding = judged(runs, [{"net.0": ZERO}] * 3, info=info, inactive_share=0.9, **metrics).only
    assert kinds(finding) == ["trace_gradient"]


def test_a_function_that_is_flat_in_the_middle(runs):
    info = runs.stack(function="tanhshrink")
    finding = judged(runs, [{"net.0": ZERO}] * 3, info=info, signal_norm=[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]).only
    assert finding.cause.startswith("The derivative of Tanhshrink, at net.1 … net.9 (5 activations), is 0 at 0")
    assert finding.remedy.actions[0].targets == ("net.1", "net.3", "net.5", "net.7", "net.9")


@pytest.mark.parametrize(
    ("outputs", "role", "found"), [(1, "output", True), (2, "output", False), (1, "hidden", False)]
)
def test_softmax_over_a_single_unit(runs, outputs, role, found):
    info = runs.stack(depth=2, function="relu")
    last = dataclasses.replace(info.layers[-1], shapes=((outputs, 8), (outputs,)))
    info = dataclasses.replace(
        info, layers=(*info.layers[:-1], last), sites=(*info.sites, SiteInfo("net.5", "softmax", role, 0))
    )
    finding = judged(runs, [{"net.0": ZERO, "net.2": ZERO, "net.4": ZERO}] * 3, info=info, signal_norm=0.0).only
    assert finding.cause.startswith("Softmax over a single unit: net.5 follows net.4") is found
    assert (kinds(finding) == ["replace_output"]) is found


def test_where_a_graph_is_cut_isnt_claimed_where_it_wasnt_followed(runs):
    finding = judged(runs, [{"net.0": NONE, "net.2": NONE}] * 3).only
    assert "net.4" not in finding.cause + finding.remedy.text
    assert finding.remedy.text.startswith("Look behind net.2 for detach(), .data,")


@pytest.mark.parametrize("before", [True, False])
def test_a_layer_that_had_a_gradient_was_killed(runs, before):
    states = [{}] * before + [{"net.0": ZERO}] * 3
    finding = judged(runs, states, dead_fraction=[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]).only
    assert ("It had a gradient before step 1," in finding.cause) is before
    assert ("set_learning_rate" in kinds(finding)) is before


def test_an_output_that_is_dead_blocks_as_well(runs):
    info = runs.stack(function="relu")
    output = dataclasses.replace(info.sites[-1], role="output")
    info = dataclasses.replace(info, sites=(*info.sites[:-1], output))
    inactive = [0.5] * 5 + [1.0]
    dead = [0.0] * 5 + [1.0]
    finding = judged(runs, [{"net.0": ZERO}] * 3, info=info, inactive_share=inactive, dead_fraction=dead).only
    assert finding.remedy.actions[0].targets == (output.name,)
