"""The fading is split up between functions and weights as their gains say, or not at all."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch import Probe
from lightning_gradwatch.judge.evidence.attribution import attribute
from lightning_gradwatch.judge.readings import hidden_values

ROOT = math.sqrt(2)


def attributed(runs, info, metrics):
    record = runs.measure(info, 20, **metrics)
    norms = hidden_values(record, info, "signal_norm")
    return attribute(record, info, np.flatnonzero(norms >= 0))


@pytest.mark.parametrize(
    ("function", "activation", "weight", "functions_share"),
    [
        ("sigmoid", 0.235, 1.0, 1.0),
        ("tanh", 1.0, 0.577, 0.0),
        ("relu", 1 / ROOT, 0.577, 0.0),  # half the units pass nothing: that is no loss
        ("relu", 1 / ROOT, ROOT / 10, 0.0),
        ("sigmoid", 0.25, 0.25, 0.5),
        ("tanh", 0.1, 0.01, 1 / 3),
        ("relu", 0.1 / ROOT, 0.1 * ROOT, 0.5),
        ("sigmoid", 0.1, 2.0, math.log(0.1) / math.log(0.2)),  # the weights make up for a part
    ],
)
def test_each_takes_its_share_of_the_logarithm(runs, function, activation, weight, functions_share):
    info = runs.stack(function=function)
    found = attributed(runs, info, runs.gains(info, activation, weight))
    (part,) = found.parts
    assert part.share == pytest.approx(functions_share, abs=1e-12)
    assert part.share + found.weight_share == pytest.approx(1)
    assert (found.gain, found.weight_gain) == (pytest.approx(activation), pytest.approx(weight))
    assert part.columns == (0, 1, 2, 3, 4)  # nothing comes back through the last one's function on the way between them


def test_functions_are_told_apart(runs):
    info = runs.stack(depth=7)
    sites = tuple(
        dataclasses.replace(site, function="relu") if place % 2 else site for place, site in enumerate(info.sites)
    )
    info = dataclasses.replace(info, sites=sites)
    own = [0.2, 1 / ROOT] * 3 + [0.2]
    found = attributed(runs, info, runs.gains(info, own, [1.0, 1.0, ROOT, 1.0, ROOT, 1.0, ROOT]))
    assert [(part.function.module, part.columns) for part in found.parts] == [
        ("Sigmoid", (0, 2, 4)),
        ("ReLU", (1, 3, 5)),
    ]
    assert [part.share for part in found.parts] == [pytest.approx(1), pytest.approx(0, abs=1e-12)]
    assert found.asked_gain == pytest.approx(2**0.25)


def test_means_are_geometric(runs):
    info = runs.stack(depth=4)
    found = attributed(runs, info, runs.gains(info, [0.1, 0.2, 0.4, 1e9], [7.0, 0.5, 1.0, 2.0]))
    assert (found.gain, found.weight_gain) == (pytest.approx(0.2), pytest.approx(1))


def test_where_no_signal_starts_nothing_is_said(runs):
    info = runs.stack()
    metrics = runs.gains(info, 0.2, 1.0)
    metrics["signal_norm"] = [1e-300, *[0.0] * 5]
    assert attributed(runs, info, metrics) is None


@pytest.mark.parametrize("lacking", ["activation_gain", "weight_gain", "predecessors"])
def test_without_gains_nothing_is_said(runs, lacking):
    info = runs.stack()
    metrics = runs.gains(info, 0.2, 1.0)
    metrics.pop(lacking, None)
    if lacking == "predecessors":  # a run of an older release
        info = dataclasses.replace(info, sites=tuple(dataclasses.replace(site, predecessors=()) for site in info.sites))
    assert attributed(runs, info, metrics) is None


def test_gains_that_dont_account_for_the_fading_say_nothing(runs):
    info = runs.stack()
    metrics = runs.gains(info, 0.2, 1.0)
    assert attributed(runs, info, metrics) is not None
    metrics["signal_norm"] = np.geomspace(1e-12, 1.0, 6)
    assert attributed(runs, info, metrics) is None


def test_a_signal_that_grows_isnt_split_up(runs):
    info = runs.stack()
    assert attributed(runs, info, runs.gains(info, 0.5, 4.0)) is None


def test_a_signal_that_ends_is_split_up_as_far_as_it_goes(runs):
    info = runs.stack(depth=8)
    metrics = runs.gains(info, 0.2, 0.9)
    for values in metrics.values():
        values[:4] = np.nan
    metrics["signal_norm"][:4] = 0.0
    metrics["activation_gain"][3] = 0.0
    found = attributed(runs, info, metrics)
    assert found.parts[0].columns == (4, 5, 6)
    assert found.gain * found.weight_gain == pytest.approx(0.18)


def test_an_end_that_nothing_leads_up_to_isnt_explained(runs):
    """A dead layer in a net that is level elsewhere."""
    info = runs.stack(depth=8)
    metrics = runs.gains(info, 0.9, 1.0)
    for values in metrics.values():
        values[:4] = np.nan
    metrics["signal_norm"][:4] = 0.0
    assert attributed(runs, info, metrics) is None


def test_branches_go_by_their_segments(runs):
    """Sites 1 and 3 are inside blocks: the trunk is 0, 2, 4, and its weight gains are the segments'."""
    info = runs.stack(depth=5, function="relu")
    names = [site.name for site in info.sites]
    feeds = [(), (0,), (0, 1), (2,), (2, 3)]
    info = dataclasses.replace(
        info,
        sites=tuple(
            dataclasses.replace(site, predecessors=tuple(names[place] for place in fed))
            for site, fed in zip(info.sites, feeds, strict=True)
        ),
    )
    found = attributed(
        runs,
        info,
        {
            "activation_gain": [0.5, 1e-9, 0.5, 1e-9, 0.5],
            "weight_gain": [np.nan, np.nan, 0.2, np.nan, 0.2],
            "signal_norm": [0.01, 1e-9, 0.1, 1e-9, 1.0],
        },
    )
    assert found.parts[0].columns == (0, 2)
    assert found.gain * found.weight_gain == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("function", "start", "activation", "weight"),
    [(nn.Sigmoid, nn.init.xavier_normal_, 0.235, 0.996), (nn.Tanh, None, 0.986, 0.577)],
    ids=["sigmoid, Xavier", "tanh, PyTorch's default"],
)
def test_a_real_net_has_the_published_gains(function, start, activation, weight):
    layers = [layer for _ in range(20) for layer in (nn.Linear(128, 128), function())]
    net = nn.Sequential(*layers, nn.Linear(128, 10))
    for layer in net:
        if start and isinstance(layer, nn.Linear):
            start(layer.weight)
            nn.init.zeros_(layer.bias)
    with Probe(net, torch.optim.SGD(net.parameters(), 0.0)) as probe:
        nn.functional.cross_entropy(net(torch.randn(64, 128)), torch.randint(10, (64,))).backward()
    signal = probe.record.metrics["signal_norm"]
    found = attribute(probe.record, probe.info, np.arange(20))
    assert found.gain == pytest.approx(activation, rel=0.03)
    assert found.weight_gain == pytest.approx(weight, rel=0.03)
    assert (found.gain * found.weight_gain) ** 19 == pytest.approx(signal[0] / signal[-1], rel=1e-6)


def test_a_signal_that_ends_before_the_last_site_is_not_split_up(runs):
    """As underflow can make it: then there is nothing that the gains could account for."""
    info = runs.stack()
    metrics = runs.gains(info, 0.2, 1.0)
    metrics["signal_norm"] = np.array([1e-300, 0.1, 0.2, 0.3, 0.4, 0.0])
    assert attributed(runs, info, metrics) is None
