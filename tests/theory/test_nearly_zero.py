"""Deep sigmoid nets, whose gradients fall below what a float32 norm can hold long before they are zero."""

import math

import numpy as np
import pytest
import torch
from theory.published import agrees, measure, percent
from torch import nn

from lightning_gradwatch import LayerState

pytestmark = pytest.mark.judges

WIDTH = 64


def sigmoid_net(depth, initialize=None):
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(depth)]
    for layer in layers:
        if initialize is not None:
            initialize(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*(module for layer in layers for module in (layer, nn.Sigmoid())), nn.Linear(WIDTH, 10))


def measure_classifier(depth):
    model = sigmoid_net(depth)
    targets = torch.randint(0, 10, (32,))
    return model, measure(model, torch.randn(32, WIDTH), lambda y: nn.functional.cross_entropy(y, targets))


@pytest.mark.parametrize("depth", [24, 40, 48, 50, 51, 52, 60])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_sigmoid_net_is_said_to_be_at_zero_only_where_every_entry_is(depth, seed):
    torch.manual_seed(seed)
    model, probe = measure_classifier(depth)
    modules = dict(model.named_modules())
    zeros = 0
    for column, layer in enumerate(probe.info.layers):
        module = modules[layer.name]
        entries = np.concatenate([p.grad.double().numpy().ravel() for p in (module.weight, module.bias)])
        norm, state = probe.record.metrics["grad_norm"][column], probe.record.layer_state[column]
        # One by one, and in float64: squares of 1e-43 are there.
        assert (state == LayerState.ZERO) == all(entry == 0.0 for entry in entries.tolist())
        assert (norm > 0) == bool(np.any(entries != 0.0))
        assert norm == pytest.approx(
            math.sqrt(math.fsum(entry * entry for entry in entries.tolist())), rel=1e-6, abs=0.0
        )
        assert state in (LayerState.OK, LayerState.ZERO)
        zeros += state == LayerState.ZERO
    assert zeros == 0 if depth <= 48 else zeros < depth
    assert zeros > 0 if depth == 60 else True


def test_the_first_of_48_layers_has_a_gradient_near_1e_43_that_is_not_zero():
    """Where a float32 norm reads 0.0 (case 1), case 2 is true."""
    model, probe = measure_classifier(48)
    first = probe.record.metrics["grad_norm"][0]
    assert 1e-45 < first < 1e-38
    assert model[0].weight.grad.norm() == 0.0
    assert probe.record.layer_state[0] == LayerState.OK


def test_the_signal_of_50_xavier_sigmoid_layers_never_grows_and_falls_by_more_than_a_quarter_a_layer():
    probe = measure(sigmoid_net(50, nn.init.xavier_normal_), torch.randn(64, WIDTH), lambda y: y.square().sum())
    signal = probe.record.metrics["signal_norm"]
    assert (signal[:-1] / signal[1:] < 0.3).all()
    assert signal[0] / signal[-1] < 0.25**49
    agrees("sigmoid, xavier, K = 50, width 64, gain a layer", (signal[0] / signal[-1]) ** (1 / 49), 0.236, percent(5))
    assert all(site.role == "hidden" for site in probe.info.sites)
