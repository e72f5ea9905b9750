"""A net that tells its activation calls, and its gains by torch.autograd.grad and weights multiplied by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gradwatch.measure.probe import Probe

METRICS = ("activation_gain", "weight_gain")


NAN = pytest.approx(math.nan, nan_ok=True)


class Net(nn.Module):
    """A net whose forward is a function, which tells `tap` the argument and the output of each activation call."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 1)
        for name, module in modules.items():
            self.add_module(name, module)
        self.way = forward
        self.taps = None

    def tap(self, name, z, a):
        if self.taps is not None:
            self.taps.setdefault(name, []).append((z, a))
        return a

    def forward(self, x):
        return self.way(self, x)


def rms(array):
    return float(np.sqrt(np.mean(np.square(array))))


def norm(tensors):
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in tensors))


def in_place(model, *, on):
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = on


class Reference:
    """δ through each call alone, and dL/da, by `autograd.grad` in a run of its own that writes nothing in place."""

    def __init__(self, model, inputs, loss_of):
        self.delta, self.arriving = {}, {}
        written = any(getattr(module, "inplace", False) for module in model.modules())
        in_place(model, on=False)
        for x in inputs:
            model.taps = {}
            loss = loss_of(model(x)) / len(inputs)
            for name, calls in model.taps.items():
                for z, a in calls:
                    (upstream,) = torch.autograd.grad(loss, a, retain_graph=True)
                    (delta,) = torch.autograd.grad(a, z, upstream, retain_graph=True)
                    self.delta.setdefault(name, []).append(delta)
                    self.arriving.setdefault(name, []).append(upstream)
        model.taps = None
        in_place(model, on=written)

    def gains(self, name, start=None):
        """Return the activation gain of a site, and the weight gain of the segment that starts at another."""
        delta, arriving = norm(self.delta[name]), norm(self.arriving[name])
        weight = NAN if start is None else pytest.approx(norm(self.arriving[start]) / delta, rel=1e-6)
        return (pytest.approx(delta / arriving, rel=1e-6), weight)

    def ends(self, name, *, calls):
        """Return ‖δ‖ of the first and of the last of so many calls in each pass."""
        return norm(self.delta[name][::calls]), norm(self.delta[name][calls - 1 :: calls])


def squares(output):
    return output.square().sum()


def measure(model, *inputs, loss_of=squares, steps=1):
    """Return the gains by site, the references and the probe of the last of some steps that change no weight.

    A step has a micro-batch for each input, whose loss is divided by their number as Lightning does it.
    """
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.0))
    for _ in range(steps):
        with probe:
            for x in inputs:
                (loss_of(model(x)) / len(inputs)).backward()
    gains = zip(*(probe.record.metrics[metric] for metric in METRICS), strict=True)
    return (
        dict(zip([site.name for site in probe.info.sites], gains, strict=True)),
        Reference(model, inputs, loss_of),
        probe,
    )


def batch(size=16):
    return torch.randn(size, 8)


def predecessors(probe):
    return {site.name: site.predecessors for site in probe.info.sites}


def plain(m, x):
    x = m.tap("relu", z := m.a(x), F.relu(z))
    x = m.tap("tanh", z := m.b(x), torch.tanh(z))
    x = m.tap("sigmoid", z := m.c(x), torch.sigmoid(z))
    return m.head(x)
