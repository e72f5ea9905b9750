"""What chance does to a net at initialisation: the share that is born dead, and how far the gradients of alike nets spread."""

import math

import numpy as np
import pytest
import torch
from theory.published import agrees, factor, points, random_upstream, stack
from torch import nn

from lightning_gradwatch import LayerState, Probe

pytestmark = pytest.mark.judges


class SideBySide(nn.Module):
    """Nets of one kind that see the same input: many initialisations in one measured step."""

    def __init__(self, nets):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x):
        return torch.stack([net(x) for net in self.nets])


def records(model, x, *, steps, weight_std, **window):
    """Yield the record of each of many steps, all weights drawn anew before it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, optimizer, **window)
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(std=weight_std)
        with probe:
            random_upstream(model(x)).backward()
            optimizer.step()
        yield probe.record


@pytest.mark.slow
@pytest.mark.parametrize(("width", "depth"), [(2, 3), (3, 5), (4, 10)])
def test_narrow_deep_relu_nets_are_born_dead_as_often_as_published(width, depth):
    """Lu et al. 2019: for one input and symmetric weights, a layer of N units is all dead with 2^-N, if none before it is."""
    nets, together = 2000, 50
    model = SideBySide([stack(nn.ReLU, width=width, depth=depth) for _ in range(together)])
    # A window of just this step: one input, as often as the shortest window takes it.
    x = torch.randn(1, width).expand(16, width)
    dead = 0
    for record in records(model, x, steps=nets // together, weight_std=1.0, observations=16, batch_elements=16):
        born_dead = (record.metrics["dead_fraction"].reshape(together, depth) == 1.0).any(axis=1)
        states = record.layer_state.reshape(together, depth)
        assert (born_dead == (states == LayerState.ZERO).all(axis=1)).all()
        dead += np.count_nonzero(born_dead)
    published = 1 - (1 - 2.0**-width) ** depth
    agrees(f"born dead, {depth} layers of {width} ReLUs", dead / nets, published, points(2))


@pytest.mark.slow
def test_the_spread_of_the_signal_grows_with_the_sum_of_the_reciprocal_widths():
    """Hanin 2018: the variance of ln ‖g‖² over He-initialised ReLU nets is about 5 β, β = Σ 1 / n.

    The error bar of ln(‖δ first‖ / ‖δ last‖) of one net is half its root.
    """
    for width, steps_back in ((32, 3), (32, 6), (64, 12), (32, 12)):
        together = 20
        model = SideBySide([stack(nn.ReLU, width=width, depth=steps_back + 1) for _ in range(together)])
        logs = []
        for record in records(model, torch.randn(1, width), steps=50, weight_std=math.sqrt(2 / width)):
            signal = record.metrics["signal_norm"].reshape(together, steps_back + 1)
            logs += (2 * np.log(signal[:, 0] / signal[:, -1])).tolist()
        beta = steps_back / width
        what = f"{steps_back} ReLU layers of {width}, β = {beta:.3g}: variance of ln ‖δ‖²"
        agrees(what, np.var(logs, ddof=1), 5 * beta, factor(1, 1.4))
