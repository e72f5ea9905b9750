"""The first measured step names, orders and describes everything, in work that is in proportion to the net."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lines import lines_run
from torch import nn

import lightning_gradwatch
from lightning_gradwatch.measure.probe import Probe

OURS = str(Path(lightning_gradwatch.__file__).parent)


class Stack(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(count))
        self.act = nn.ReLU()

    def forward(self, x):
        for layer in self.layers:
            x = self.activate(layer(x))
        return x


class Functional(Stack):
    def activate(self, x):
        return F.relu(x)


class Shared(Stack):
    def activate(self, x):
        return self.act(x)


class Wide(Functional):
    """A stem, branches side by side, and a head."""

    def forward(self, x):
        stem, *branches = self.layers
        x = self.activate(stem(x))
        return self.activate(sum([self.activate(branch(x)) for branch in branches]))


class Residual(Functional):
    def forward(self, x):
        for layer in self.layers:
            x = x + self.activate(layer(x))
        return x


class Modules(nn.Sequential):
    def __init__(self, count):
        super().__init__(*[each for _ in range(count) for each in (nn.Linear(2, 2), nn.ReLU())])


def work(net, count):
    """Return the lines of ours that each of two measured steps runs."""
    model = net(count)
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.0))
    x = torch.randn(3, 2)

    def step():
        with probe:
            model(x).sum().backward()
        assert len(probe.info.layers) == count

    return [lines_run(step, within=OURS) for _ in range(2)]


@pytest.mark.parametrize("net", [Functional, Shared, Wide, Modules])
def test_the_first_step_is_linear_and_less_than_three_times_as_much_as_the_second(net):
    (few, _), (many, again) = work(net, 40), work(net, 160)
    assert many < 4.3 * few
    assert many < 3 * again


def test_later_steps_are_linear_along_a_residual_stream_too():
    """Each site of it is fed by all before, so that telling that once takes more."""
    (_, few), (_, many) = work(Residual, 40), work(Residual, 160)
    assert many < 4.3 * few
