"""What is known of each layer's learning rate when a run is described."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from lightning_gradwatch import Probe
from lightning_gradwatch.record.run_info import RunInfo


def described(*groups, kind=torch.optim.SGD, **settings):
    """Describe a net of three layers whose parameters are in groups, each given as layers and a rate."""
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = kind(
        [{"params": [p for place in layers for p in net[place].parameters()], "lr": rate} for layers, rate in groups],
        **settings,
    )
    with Probe(net, optimizer) as probe:
        net(torch.ones(4, 2)).sum().backward()
        optimizer.step()
    return probe.info


def test_each_layer_has_its_groups_rate_over_the_largest():
    info = described(((0,), 1e-4), ((3, 2), 1e-2))
    (optimizer,) = info.optimizers
    assert dict(zip(optimizer.layers, optimizer.rates, strict=True)) == {
        "0": pytest.approx(1e-2),
        "3": 1.0,
        "2": 1.0,
    }
    assert info.layer_rates.tolist() == [[pytest.approx(1e-2), 1.0, 1.0]]


def test_alike_rates_are_left_out():
    assert described(((0, 2, 3), 0.1)).optimizers[0].rates == ()
    assert described(((0,), 0.0), ((2, 3), 0.0)).optimizers[0].rates == ()
    assert described(((0, 2), 0.1)).layer_rates.tolist()[0][:2] == [1.0, 1.0]


def test_a_group_at_rest_is_zero():
    assert described(((0,), 0.0), ((2, 3), 0.1), kind=torch.optim.Adam).optimizers[0].rates == (0.0, 1.0, 1.0)


def test_a_layer_in_several_groups_has_the_largest():
    net = nn.Sequential(nn.Linear(2, 2))
    optimizer = torch.optim.SGD([{"params": [net[0].weight], "lr": 0.1}, {"params": [net[0].bias], "lr": 0.2}])
    with Probe(net, optimizer) as probe:
        net(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert probe.info.optimizers[0].rates == ()


def test_rates_survive_a_file():
    info = described(((0,), 1e-4), ((3, 2), 1e-2))
    assert RunInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
