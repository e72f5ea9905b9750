"""Which half of a layer takes the signal away: activation gain and weight gain in 30 layers of width 128."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch.probe import Probe

WIDTH, DEPTH, SEEDS = 128, 30, 5


def scaled(weight):
    return nn.init.normal_(weight, std=4 / math.sqrt(WIDTH))


def measured(act, init, seed):
    """Return signal, activation gain and weight gain by layer, of Gaussian inputs and a random upstream gradient."""
    torch.manual_seed(seed)
    layers = []
    for _ in range(DEPTH):
        layer = nn.Linear(WIDTH, WIDTH, bias=False)
        if init is not None:
            init(layer.weight)
        layers += [layer, act()]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, WIDTH, bias=False))
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.0))
    upstream = torch.randn(64, WIDTH)
    with probe:
        (model(torch.randn(64, WIDTH)) * upstream).sum().backward()
    return [probe.record.metrics[name] for name in ("signal_norm", "activation_gain", "weight_gain")]


def mean(gains):
    return math.exp(np.mean([np.log(each[3:-2]) for each in gains]))


@pytest.mark.parametrize(
    ("act", "init", "activation", "weight"),
    [
        (nn.Sigmoid, nn.init.xavier_normal_, 0.235, 0.996),  # the function is to blame
        (nn.Tanh, None, 0.986, 0.577),  # the initialisation is to blame
        (nn.Tanh, nn.init.xavier_normal_, 0.949, 0.991),
        (nn.Sigmoid, scaled, 0.157, 3.956),
    ],
    ids=["sigmoid-xavier", "tanh-default", "tanh-xavier", "sigmoid-4"],
)
def test_the_gains_say_which_half_is_to_blame(act, init, activation, weight):
    runs = [measured(act, init, seed) for seed in range(SEEDS)]
    assert mean([gains for _, gains, _ in runs]) == pytest.approx(activation, rel=0.03)
    assert mean([gains for _, _, gains in runs]) == pytest.approx(weight, rel=0.03)


@pytest.mark.parametrize("act", [nn.Sigmoid, nn.Tanh, nn.ReLU, nn.GELU])
def test_in_a_chain_the_product_of_all_gains_is_the_attenuation(act):
    signal, activation, weight = measured(act, nn.init.kaiming_normal_, 0)
    assert math.isnan(weight[0])
    product = np.prod(activation[:-1]) * np.prod(weight[1:])
    assert product == pytest.approx(signal[0] / signal[-1], rel=1e-6)
