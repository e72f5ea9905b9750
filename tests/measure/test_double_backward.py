"""A loss that holds a gradient: the signal is right, or absent."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gradwatch.measure.probe import Probe

EXACT = [torch.relu, F.leaky_relu, F.relu6, F.hardtanh, torch.sigmoid, torch.tanh, F.softshrink]
ABSENT = [
    F.softplus,
    F.gelu,
    F.silu,
    F.mish,
    F.elu,
    F.selu,
    F.celu,
    F.logsigmoid,
    F.softsign,
    F.hardswish,
    F.tanhshrink,
]
BY_HAND = [lambda z: z * torch.sigmoid(z), lambda z: 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))]
SOFTMAX = [lambda z: z.softmax(-1), lambda z: z.log_softmax(-1)]


def run(layers, x, function, *, create_graph):
    """Return a loss that holds the slope at the input, and z at two sites."""
    h, zs = x, []
    for layer in layers[:2]:
        zs.append(layer(h))
        h = function(zs[-1])
    y = layers[2](h)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=create_graph, retain_graph=True)
    return y.square().mean() + slope.square().sum(), zs


def measured(function, *, create_graph=True):
    """Return the signal at two sites, as measured and as autograd has the whole of it."""
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)])
    x = torch.randn(16, 4, requires_grad=True)
    whole = [each.norm().item() for each in torch.autograd.grad(*run(layers, x, function, create_graph=create_graph))]
    probe = Probe(layers, torch.optim.SGD(layers.parameters(), lr=0.0))
    with probe:
        run(layers, x, function, create_graph=create_graph)[0].backward()
        probe._optimizers[0].step()
    return probe, probe.record.metrics["signal_norm"].tolist(), whole


@pytest.mark.parametrize("function", EXACT + SOFTMAX)
def test_the_signal_of_what_is_differentiated_by_its_output_is_all_there(function):
    _, signal, whole = measured(function)
    assert signal == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("function", ABSENT + BY_HAND)
def test_where_a_part_of_it_goes_another_way_there_is_none(function):
    probe, signal, _ = measured(function)
    assert all(map(math.isnan, signal))
    assert len([each for each in probe.info.coverage if "can't be told" in each.reason]) == 2


@pytest.mark.parametrize("function", ABSENT[:4] + BY_HAND)
def test_a_gradient_that_is_a_number_only_changes_nothing(function):
    _, signal, whole = measured(function, create_graph=False)
    assert signal == pytest.approx(whole, rel=1e-4)


def loop(net, take):
    probe = Probe(net, torch.optim.SGD(net.parameters(), lr=0.1))
    with probe:
        take(net, net(torch.randn(8, 4)).square().mean())
        probe._optimizers[0].step()
    return probe


def by_grad(net, loss):
    for parameter, gradient in zip(net.parameters(), torch.autograd.grad(loss, [*net.parameters()]), strict=True):
        parameter.grad = gradient


def test_a_loop_that_takes_its_gradients_by_autograd_grad_is_named():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    probe = loop(net, by_grad)
    assert [(each.name, each.sites) for each in probe.info.coverage if "autograd.grad" in each.reason] == [("", 1)]
    assert math.isnan(probe.record.loss)
    assert probe.record.global_grad_norm > 0
    assert loop(net, lambda net, loss: loss.backward()).info.coverage == ()


def test_a_penalty_on_gradients_of_weights_is_no_such_loop():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    def penalised(net, loss):
        gradients = torch.autograd.grad(loss, [*net.parameters()], create_graph=True)
        (loss + sum(each.square().sum() for each in gradients)).backward()

    assert not [each for each in loop(net, penalised).info.coverage if "autograd.grad" in each.reason]
