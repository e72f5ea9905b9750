"""A site is its place, not its size: what has another size with each batch is one site, whose units aren't counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import Probe
from lightning_gradwatch.measure.coverage import VARIES


class Attention(nn.Module):
    """ReLU attention, whose weights are [batch, positions, positions]."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.f, self.o = (nn.Linear(8, out) for out in (8, 8, 8, 1))

    def forward(self, x):
        weights = F.relu(self.q(x) @ self.k(x).transpose(1, 2)) / x.shape[1]
        return self.o(F.relu(self.f(weights @ x)))


def watched(net, inputs, forward=None):
    probe = Probe(net, torch.optim.SGD(net.parameters(), lr=0.01), observations=64, batch_elements=1)
    records = []
    for x in inputs:
        with probe:
            (forward or net)(x).square().mean().backward()
            probe._optimizers[0].step()
        records.append(probe.record)
    return probe, records


def test_weights_of_attention_are_one_site_whatever_the_length():
    net = Attention()
    nn.init.constant_(net.f.bias, -1e3)  # so the site behind is dead
    probe, records = watched(net, [torch.randn(2, length, 8) for length in range(30, 50)])
    assert [site.name for site in probe.info.sites] == [":relu", ":relu#2"]
    assert [site.units for site in probe.info.sites] == [0, 8]
    assert [(entry.name, entry.reason) for entry in probe.info.coverage] == [(":relu", VARIES)]
    assert np.isnan(records[-1].metrics["dead_fraction"][0])
    assert records[-1].metrics["dead_fraction"][1] == 1
    assert len(probe.windows.state_dict()) <= 2


@pytest.mark.parametrize("dead", [0, 3, 12])
def test_a_net_that_is_grown_is_counted_by_its_new_units(dead):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    probe, _ = watched(net, torch.randn(4, 64, 4))
    net[0], net[2] = nn.Linear(4, 12), nn.Linear(12, 1)
    with torch.no_grad():
        net[0].bias[:dead] = -1e3
        net[0].bias[dead:] = 3.0
    probe.trained_by([torch.optim.SGD(net.parameters(), lr=1e-6)])
    for x in torch.randn(4, 64, 4):
        with probe:
            net(x).square().mean().backward()
            probe._optimizers[0].step()
    (site,) = probe.info.sites
    assert (site.name, site.units) == ("1", 12)
    assert probe.info.coverage == ()
    assert probe.record.metrics["dead_fraction"][0] == dead / 12


def test_sizes_that_differ_within_a_step_are_not_added_up():
    net = Attention()

    def forward(x):
        return torch.cat([net(x[:, :5]).flatten(), net(x).flatten()])

    probe, records = watched(net, torch.randn(5, 2, 8, 8), forward)
    assert [site.units for site in probe.info.sites] == [0, 8]
    assert [(entry.name, entry.reason) for entry in probe.info.coverage] == [(":relu", VARIES)]
    for record in records:
        assert np.isnan(record.metrics["dead_fraction"][0])
        assert np.isnan(record.metrics["inactive_share"][0])
        assert 0 < record.metrics["inactive_share"][1] < 1
        assert record.metrics["signal_norm"][0] > 0
