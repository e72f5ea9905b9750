"""What the rules take for granted about weights at the start, measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch.judge.evidence.initial_weights import log_passed
from lightning_gradwatch.record.step import SiteInfo

DEPTH, WIDTH, SEEDS = 12, 128, 3
FUNCTIONS = {
    "ReLU": (nn.ReLU, 2),
    "LeakyReLU": (nn.LeakyReLU, 2),
    "ELU": (nn.ELU, 2),
    "GELU": (nn.GELU, 2),
    "Mish": (nn.Mish, 2),
    "SiLU": (nn.SiLU, 2),
    "Hardswish": (nn.Hardswish, 2),
    "Softplus": (nn.Softplus, 2),
    "SELU": (nn.SELU, 1),
    "Tanh": (nn.Tanh, 1),
    "Hardtanh": (nn.Hardtanh, 1),
    "Softsign": (nn.Softsign, 1),
    "Sigmoid": (nn.Sigmoid, 1),
    "Hardsigmoid": (nn.Hardsigmoid, 1),
}


def passed(function, variance):
    """Return the share of the signal that a layer passes back: slope of the log norm of δ, by autograd."""
    slopes = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        x, signals = torch.randn(64, WIDTH), []
        for _ in range(DEPTH):
            z = x @ (torch.randn(WIDTH, WIDTH) * (variance / WIDTH) ** 0.5)
            z = z.requires_grad_() if not z.requires_grad else z
            z.retain_grad()
            signals.append(z)
            x = function()(z)
        x.backward(torch.randn_like(x))
        logs = [z.grad.norm().log().item() for z in signals[2:-1]]
        slopes.append(-np.polyfit(range(len(logs)), logs, 1)[0])
    return float(np.exp(np.mean(slopes)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_functions_pass_back_by_weights_that_suit_them(name):
    """The table is of depth 16 and width 256; what isn't in it passes nearly all."""
    function, variance = FUNCTIONS[name]
    sites = [SiteInfo("first", name.lower(), "hidden", 8), SiteInfo("last", name.lower(), "hidden", 8)]
    expected = np.exp(log_passed(sites))
    measured = passed(function, variance)
    assert measured == pytest.approx(expected, rel=0.06) or measured > expected == 1
