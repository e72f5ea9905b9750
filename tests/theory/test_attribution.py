"""Which half of a layer takes the signal away, its activation function or its weights: 30 layers of width 128."""

import math

import numpy as np
import pytest
import torch
from theory.published import agrees, measure, percent, random_upstream, stack, xavier
from torch import nn

pytestmark = pytest.mark.judges

WIDTH = 128


def four_over_root_n(linear):
    nn.init.normal_(linear.weight, std=4 / math.sqrt(WIDTH))


def gains(activation, initialize, seed):
    """Return signal, activation gain and weight gain by layer, for Gaussian inputs and a random upstream gradient."""
    torch.manual_seed(seed)
    model = stack(activation, initialize, width=WIDTH).append(nn.Linear(WIDTH, WIDTH, bias=False))
    metrics = measure(model, torch.randn(64, WIDTH), random_upstream).record.metrics
    return [metrics[name] for name in ("signal_norm", "activation_gain", "weight_gain")]


@pytest.mark.parametrize(
    ("what", "activation", "initialize", "by_activation", "by_weights"),
    [
        ("sigmoid, xavier (the function is to blame)", nn.Sigmoid, xavier, 0.235, 0.996),
        ("tanh, torch's weights (they are to blame)", nn.Tanh, None, 0.986, 0.577),
        ("tanh, xavier", nn.Tanh, xavier, 0.949, 0.991),
        ("sigmoid, 4/√n", nn.Sigmoid, four_over_root_n, 0.157, 3.956),
    ],
)
def test_the_gains_say_which_half_is_to_blame(what, activation, initialize, by_activation, by_weights):
    runs = [gains(activation, initialize, seed) for seed in range(5)]
    by_layer = np.log([run[1:] for run in runs])[:, :, 3:-2]
    reading = np.exp(by_layer.mean(axis=(0, 2)))
    agrees(f"{what}, activation gain", reading[0], by_activation, percent(3))
    agrees(f"{what}, weight gain", reading[1], by_weights, percent(3))


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh, nn.ReLU, nn.GELU])
def test_in_a_chain_the_product_of_all_gains_is_the_attenuation(activation):
    signal, by_activation, by_weights = gains(activation, lambda layer: nn.init.kaiming_normal_(layer.weight), 0)
    assert math.isnan(by_weights[0])
    product = np.prod(by_activation[:-1]) * np.prod(by_weights[1:])
    assert product == pytest.approx(signal[0] / signal[-1], rel=1e-6)
