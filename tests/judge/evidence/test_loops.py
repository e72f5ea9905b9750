"""GW101 and GW102 judge an unrolled loop from its first call to its last, as they judge a stack of layers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lightning_gradwatch.judge.rules.exploding import ExplodingGradient
from lightning_gradwatch.judge.rules.vanishing import VanishingGradient
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.record.step import SiteInfo

STEPS = range(10, 16)


def judged(runs, rule, attenuation, *, calls=8.0, itself=True, function="sigmoid", role="hidden", losses=None):
    """One hidden activation, called in a loop."""
    info = dataclasses.replace(
        runs.stack(depth=1, function=function),
        sites=(SiteInfo("cell", function, role, 8, predecessors=("cell",) if itself else ()),),
    )
    records = [
        dataclasses.replace(
            runs.measure(
                info, step, loss=(losses or {}).get(step, 2.3), norm=1.0, signal_norm=1.0, activation_gain=0.25
            ),
            loop_calls=np.array([calls]),
            loop_attenuation=np.array([attenuation]),
        )
        for step in STEPS
    ]
    return runs.feed(rule, records, info)


def test_a_loop_that_passes_less_than_a_quarter_back_is_told_in_the_third_measured_step(runs):
    fed = judged(runs, VanishingGradient(), 0.125**7)
    assert [len(told) for told in fed.told] == [0, 0, 1, 0, 0, 0]
    assert fed.confirming == [True, True, False, False, False, False]
    finding = fed.only
    assert (finding.code, finding.layers, finding.severity) == ("GW101", ("cell",), Severity.ERROR)
    assert (finding.value, finding.threshold) == (0.125**7, 3e-3)
    assert "cell is called 8 times, in a loop" in finding.message
    assert "a factor of 0.125 per call" in finding.message
    assert "nothing from what lies more than 2 calls back" in finding.message
    assert "Sigmoid passes back 0.25 of the signal, and the weights between two calls 0.5 of that" in finding.cause
    assert [action.kind for action in finding.remedy.actions] == ["replace_activation", "initialize"]


@pytest.mark.parametrize(
    ("case", "given", "fires"),
    [
        ("just below both", {"attenuation": 0.24**7}, True),
        ("a quarter a call and more: tanh as PyTorch starts it", {"attenuation": 0.26**7}, False),
        ("too short to take it below the threshold", {"attenuation": 0.2**3, "calls": 4.0}, False),
        ("calls that don't feed each other", {"attenuation": 0.1**7, "itself": False}, False),
        ("not hidden", {"attenuation": 0.1**7, "role": "gate"}, False),
        ("nothing left", {"attenuation": 0.0}, True),
        ("called once", {"attenuation": float("nan"), "calls": float("nan")}, False),
    ],
)
def test_when_it_vanishes(runs, case, given, fires):
    assert bool(judged(runs, VanishingGradient(), **given).findings) is fires, case


@pytest.mark.parametrize(("attenuation", "fires"), [(1.5**17, False), (1.5**18, True), (1e30, True), (np.inf, False)])
def test_when_it_explodes(runs, attenuation, fires):
    fed = judged(runs, ExplodingGradient(), attenuation, calls=19.0, function="relu")
    assert bool(fed.findings) is fires
    if fires:
        assert fed.only.layers == ("cell",)
        assert [action.kind for action in fed.only.remedy.actions] == ["initialize", "clip_gradients"]
        assert "Reported above 1e3 in all and 1.4 a call" in fed.only.message


def test_information_where_the_loss_still_falls(runs):
    losses = {10: 2.4, 11: 2.4, 12: 1.9, 13: 1.8, 14: 1.7, 15: 1.6}
    finding = judged(runs, VanishingGradient(), 0.1**7, losses=losses).only
    assert "The loss still falls" in finding.message
