"""What the theory tests share: one measured step, and a reading beside the published number.

Each comparison prints a line of a table: ``python -m pytest -n 0 -rP tests/theory | grep '^published'`` shows them all.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from lightning_gradwatch import Probe


class Tolerance(NamedTuple):
    """How far a reading may lie from the published number."""

    text: str
    lowest: Callable[[float], float]
    highest: Callable[[float], float]


def percent(share):
    return Tolerance(f"±{share:g} %", lambda value: value * (1 - share / 100), lambda value: value * (1 + share / 100))


def points(share):
    return Tolerance(f"±{share:g} points", lambda value: value - share / 100, lambda value: value + share / 100)


def factor(by, up_to=None):
    """Between `by` and `up_to` times the published number; of one argument, that many times more or less."""
    low, high = (1 / by, by) if up_to is None else (by, up_to)
    text = f"factor {by:g}" if up_to is None else f"x{by:g} to x{up_to:g}"
    return Tolerance(text, lambda value: value * low, lambda value: value * high)


EXACT = Tolerance("exactly", lambda value: value, lambda value: value)
BY_HAND = Tolerance("1e-9", lambda value: value * (1 - 1e-9), lambda value: value * (1 + 1e-9))
"""For float64 nets, against the same product in Python's floats."""


def show(what, reading, published, allowed):
    """Print a line of the table and return it."""
    line = f"published | {what} | {reading:.5g} | {published:.5g} | {allowed}"
    print(line)  # noqa: T201 - the table
    return line


def agrees(what, reading, published, tolerance):
    """Print the comparison and hold it."""
    line = show(what, reading, published, tolerance.text)
    assert tolerance.lowest(published) <= reading <= tolerance.highest(published), line


def measure(model, x, loss, *, learning_rate=0.1, **window):
    """Return the probe of one step of plain SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    with Probe(model, optimizer, **window) as probe:
        loss(model(x)).backward()
        optimizer.step()
    return probe


def random_upstream(y):
    """A loss whose gradient with respect to the output is standard normal noise."""
    return (y * torch.randn_like(y)).sum()


def by_name(probe, metric):
    return dict(zip(probe.info.names(metric), probe.record.metrics[metric].tolist(), strict=True))


def gain_a_layer(build, *, batch=16, input_std=1.0):
    """Return the signal's factor a layer on its way back, over the sites of a net of one width.

    The slope of the logarithm of the signal over depth, the first three and the last two sites left out, where the
    forward pass or the random upstream gradient hasn't settled; the geometric mean over five seeds.
    """
    slopes = []
    for seed in range(5):
        torch.manual_seed(seed)
        model = build()
        x = input_std * torch.randn(batch, model[0].in_features)
        logs = np.log(measure(model, x, random_upstream).record.metrics["signal_norm"])[3:-2]
        slopes.append(-np.polyfit(np.arange(len(logs)), logs, 1)[0])
    return math.exp(float(np.mean(slopes)))


def stack(activation, initialize=None, *, width=256, depth=30, bias=False, norm=None):
    """Return linear layers of one width, each with its activation function; `initialize` fills a layer, None: torch's."""
    modules = []
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=bias)
        if initialize is not None:
            initialize(linear)
        modules += [linear, activation()] if norm is None else [linear, norm(width), activation()]
    return nn.Sequential(*modules)


def he(linear):
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")


def xavier(linear):
    nn.init.xavier_normal_(linear.weight)
