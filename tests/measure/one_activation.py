"""A net of one activation between two layers, and measured steps of it: what tries functions that are written by hand."""

from __future__ import annotations

import torch
from torch import nn

from lightning_gradwatch.measure.probe import Probe


class Net(nn.Module):
    def __init__(self, act, *, outputs, last):
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, outputs)
        self.act = act
        self.ends = last

    def forward(self, x):
        self.z = self.first(x)
        self.a = self.act(self.z)
        return self.last(self.a) if self.ends else self.a


def measured(act, *, spread, far, outputs, steps=1, loss=lambda y: y.square().mean(), last=True):
    """Return the net, the probe and the input; z is `spread` times as wide as usual, its first unit `far` below 0, the second above."""
    torch.manual_seed(0)
    model = Net(act, outputs=outputs, last=last)
    with torch.no_grad():
        model.first.weight.mul_(spread)
        model.first.bias[0], model.first.bias[1] = -far, far
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    probe = Probe(model, optimizer, observations=1, batch_elements=1)
    x = torch.randn(64, 6)
    for _ in range(steps):
        optimizer.zero_grad()
        with probe:
            loss(model(x)).backward()
            optimizer.step()
    return model, probe, x
