"""How many inputs a unit adds up, in layers that hold their weight in another form, against the plain layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, weight_norm

from lightning_gradwatch.measure.probe import Probe


class Conv1D(nn.Module):
    """As transformers has it for GPT-2: the matrix is [inputs, outputs]."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT


def own(net, name="weight"):
    parametrize.register_parametrization(net, name, Symmetric())
    return net


def described(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Probe(net, optimizer) as probe:
        optimizer.step()
    return probe.info.layers


LAYERS = {
    "Conv1D": (lambda: Conv1D(12, 5), 5, "Conv1D"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(5, 12)), 5, "Linear"),
    "weight norm of a convolution": (lambda: parametrizations.weight_norm(nn.Conv2d(5, 12, 3)), 45, "Conv2d"),
    "weight norm of a transposed one": (
        lambda: parametrizations.weight_norm(nn.ConvTranspose2d(5, 12, 3)),
        math.nan,
        "ConvTranspose2d",
    ),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(5, 12)), 5, "Linear"),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(5, 5)), 5, "Linear"),
    "one's own": (lambda: own(nn.Linear(5, 5)), 5, "Linear"),
    "a single input": (lambda: nn.Linear(1, 12), 1, "Linear"),
    "a single input, normalised": (lambda: parametrizations.weight_norm(nn.Linear(1, 12)), 1, "Linear"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(("make", "fan_in", "kind"), LAYERS.values(), ids=LAYERS)
def test_fan_in(make, fan_in, kind):
    layer = make()
    net = nn.Sequential(layer)
    (known,) = [each for each in described(net) if each.shapes and any(len(shape) > 1 for shape in each.shapes)]
    assert known.fan_in == pytest.approx(fan_in, nan_ok=True)
    assert known.kind == kind
    assert known.weight


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_fan_in_of_weight_norm_in_its_old_form():
    net = nn.Sequential(weight_norm(nn.Linear(5, 12)))
    assert [layer.fan_in for layer in described(net)] == [5]


def test_a_parametrized_embedding_is_no_weight_layer():
    net = nn.Sequential(parametrizations.weight_norm(nn.Embedding(7, 4)))
    assert [(layer.kind, layer.weight) for layer in described(net)] == [("Embedding", False)]


def test_units_of_a_conv1d_are_its_outputs():
    net = nn.Sequential(Conv1D(12, 5), nn.ReLU(), Conv1D(3, 12))
    probe = Probe(net, torch.optim.SGD(net.parameters(), lr=0.1))
    with probe:
        net(torch.randn(4, 5)).sum().backward()
        probe._optimizers[0].step()
    assert [site.features for site in probe._sites.ordered] == [12]
