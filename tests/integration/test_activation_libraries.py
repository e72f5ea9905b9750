"""All activation functions of torch.nn, transformers and timm, as they are: right by autograd in float64, or named in coverage."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gradwatch import Probe

pytestmark = pytest.mark.filterwarnings("ignore")

FLAT = 1 / math.cosh(2.0) ** 2
NN = [name for name in nn.modules.activation.__all__ if name != "MultiheadAttention"]
ARGUMENTS = {"Threshold": (0.1, 0.2), "Softmax": (-1,), "Softmin": (-1,), "LogSoftmax": (-1,)}
WHOLE = ("softmax", "softmin", "log_softmax", "glu")
"""Whose units are told by no derivative of one entry."""
UNBOUNDED = ("leaky_relu", "prelu", "rrelu")
"""Whose less steep side isn't bounded."""


def of_timm():
    """Return what the files of timm's activation layers hold; the package itself wants torchvision."""
    found = importlib.util.find_spec("timm")
    if found is None:
        return {}
    made = {}
    for file in ("activations", "activations_me"):
        spec = importlib.util.spec_from_file_location(file, f"{found.submodule_search_locations[0]}/layers/{file}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, value in vars(module).items():
            own = getattr(value, "__module__", "") == module.__name__
            if own and inspect.isclass(value) and issubclass(value, nn.Module):
                made[f"{file}.{name}"] = value()
            elif own and inspect.isfunction(value) and not name.endswith(("fwd", "bwd", "forward", "backward")):
                made[f"{file}.{name}"] = value
    return made


TIMM = of_timm()


class Net(nn.Module):
    def __init__(self, act, rank):
        super().__init__()
        self.first = nn.Conv2d(6, 12, 1) if rank == 4 else nn.Linear(6, 12)
        self.act, self.last = act, nn.LazyLinear(5)

    def forward(self, x):
        self.z = self.first(x)
        self.a = self.act(self.z.clone())
        return self.last(self.a.flatten(1))


def slopes(act, z):
    """Return the derivative of each entry's own output by it; None for a function of several."""
    z = z.detach().requires_grad_()
    (slope,) = torch.autograd.grad(act(z).sum(), z)
    return slope.detach().abs()


def flat(act, z):
    """Return where a function is flat: its derivative 0, or below the share of the largest up to the outer end of that side."""
    line = torch.linspace(-40, 40, 800_001, dtype=torch.float64)
    rows = line.view(-1, 1).repeat(1, 12) if any(True for _ in getattr(act, "parameters", list)()) else line
    steep = slopes(act, rows).reshape(len(line), -1)[:, 0]
    steep = (steep >= FLAT * steep.max()).nonzero()[:, 0]
    left, right = line[steep[0]], line[steep[-1]]
    return (slopes(act, z) == 0) | (z < left) | (z > right)


def judged(name, act):
    """Measure a net of it for two steps, and compare with the net in float64."""
    torch.manual_seed(0)
    rank = 4 if name == "Softmax2d" else 2
    model, x = Net(act, rank), torch.randn(32, 6, *(2, 2)[: rank - 2])
    model(x)
    with torch.no_grad():
        model.first.weight.mul_(4)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    probe = Probe(model, optimizer, observations=1, batch_elements=1)
    for _ in range(2):
        optimizer.zero_grad()
        with probe:
            model(x).square().mean().backward()
            optimizer.step()
    info, record = probe.info, probe.record
    named = {entry.name for entry in info.coverage}
    if isinstance(act, nn.Identity) or name == "linear":
        assert (info.sites, info.coverage) == ((), ())
        return
    assert info.sites or info.coverage
    if not info.sites:
        return
    site, inner = info.sites[0], [site.function for site in info.sites]
    assert site.role in ("hidden", "gate")
    reference = copy.deepcopy(act).double().eval() if isinstance(act, nn.Module) else act
    model.double()
    z = model.first(x.double()).detach().requires_grad_()
    (expected,) = torch.autograd.grad(model.last(reference(z * 1.0).flatten(1)).square().mean(), z)
    signal = record.metrics["signal_norm"][0]
    if np.isnan(signal):
        assert site.name in named
    elif site.function != "rrelu":  # of which each call draws its slopes
        assert signal == pytest.approx(expected.norm().item(), rel=1e-4)
    own = getattr(F, site.function, None)
    if name in ("relu2", "sqrtsoftplus"):  # what they do behind it is arithmetic on a site's output
        reference = own
    if len(inner) == 1 and site.function != "rrelu":
        rms = reference(z.detach() * 1.0).square().mean().sqrt().item()
        assert record.forward_rms[0] == pytest.approx(rms, rel=1e-5)
    if site.function in WHOLE:
        assert site.units == (6 if site.function == "glu" else 0)
        return
    assert site.units == 12
    off = (flat(reference, z) if site.function not in UNBOUNDED else slopes(reference, z) == 0).double()
    assert record.metrics["inactive_share"][0] == pytest.approx(off.mean().item(), abs=1e-9)
    dead = (slopes(reference, z) == 0).all(0).double().mean().item()
    assert record.metrics["dead_fraction"][0] == pytest.approx(dead)


@pytest.mark.parametrize("name", NN)
def test_of_torch(name):
    judged(name, getattr(nn, name)(*ARGUMENTS.get(name, ())))


def test_of_transformers():
    activations = pytest.importorskip("transformers.activations", reason="transformers isn't installed")
    assert len(activations.ACT2CLS) > 20
    for name in activations.ACT2CLS:
        judged(name, activations.ACT2FN[name])


@pytest.mark.skipif(not TIMM, reason="timm isn't installed")
@pytest.mark.parametrize("name", TIMM)
def test_of_timm(name):
    judged(name, TIMM[name])
