"""Small tensors wait for the end of the pass; what is written into meanwhile must never give a wrong number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch import Probe
from lightning_gradwatch.measure import batched
from lightning_gradwatch.measure.counting import count, count_many
from lightning_gradwatch.measure.functions import ACTIVATIONS
from lightning_gradwatch.measure.identify import identify


class Writes(nn.Module):
    """Writes into the output, or the argument, of its activation, from the step on that it is told."""

    def __init__(self, where):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)
        self.where, self.writes = where, False

    def forward(self, x):
        z = self.first(x)
        a = nn.functional.gelu(z) if self.where == "output" else nn.functional.relu(z)
        if self.writes:
            (a if self.where == "output" else z).mul_(3.0)
        return self.second(a)


def steps(model, count_of_steps, writes_from):
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    probe = Probe(model, optimizer, observations=16, batch_elements=1)
    torch.manual_seed(1)
    for index in range(count_of_steps):
        model.writes = index >= writes_from
        with probe:
            optimizer.zero_grad()
            model(torch.randn(16, 8)).square().sum().backward()
            optimizer.step()
        yield probe.record


@pytest.mark.parametrize("where", ["output", "argument"])
def test_a_tensor_written_into_later_is_absent_once_and_right_from_then_on(where):
    torch.manual_seed(0)
    found = [record.metrics["inactive_share"][0] for record in steps(Writes(where), 5, writes_from=2)]
    torch.manual_seed(0)
    expected = [record.metrics["inactive_share"][0] for record in steps(Writes("nowhere"), 5, writes_from=2)]
    assert [math.isnan(share) for share in found] == [False, False, True, False, False]
    if where == "argument":
        assert found[:2] == expected[:2]


@pytest.mark.parametrize("where", ["output", "argument"])
def test_a_site_that_is_written_into_from_the_start_is_measured_at_each_step(where):
    torch.manual_seed(0)
    records = list(steps(Writes(where), 4, writes_from=0))
    assert not any(np.isnan(record.metrics["inactive_share"]).any() for record in records)
    assert not any(np.isnan(record.forward_rms).any() for record in records)


def numbers(small, monkeypatch):
    monkeypatch.setattr(batched, "_SMALL", small)
    torch.manual_seed(0)
    functions = (nn.ReLU(), nn.Tanh(), nn.Hardtanh(), nn.GELU(), nn.Softmax(dim=1))
    layers = [layer for function in functions for layer in (nn.Linear(8, 8), function)]
    model = nn.Sequential(*layers, nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = Probe(model, optimizer, observations=32, batch_elements=1)
    for _ in range(3):
        with probe:
            optimizer.zero_grad()
            (model(torch.randn(32, 8) * 4) ** 2).sum().backward()
            optimizer.step()
    return np.concatenate([probe.record.forward_rms, *probe.record.metrics.values()])


def test_batched_numbers_equal_those_taken_at_once(monkeypatch):
    together, at_once = numbers(32_768, monkeypatch), numbers(0, monkeypatch)
    np.testing.assert_allclose(together, at_once, rtol=1e-12)
    assert np.isfinite(together).sum() > 30


@pytest.mark.parametrize(
    ("shape", "axis"), [((), 0), ((5,), 0), ((3, 4), 1), ((3, 4), 0), ((2, 4, 3), 1), ((2, 3, 4, 2), 2)]
)
@pytest.mark.parametrize("row", [row for row in ACTIVATIONS if row.name != "threshold"], ids=lambda row: row.name)
def test_many_calls_are_counted_as_each_of_them_is(row, shape, axis):
    function = getattr(nn.functional, row.name)
    torch.manual_seed(0)
    zs = [torch.randn(shape) * 4 for _ in range(3)]
    extra = (
        {"dim": -1}
        if row.name in ("softmax", "log_softmax")
        else {"weight": torch.ones(1)}
        if row.name == "prelu"
        else {}
    )
    calls = [identify(function, (z,), extra) for z in zs]
    if row.name == "glu" and (not shape or shape[-1] % 2):
        assert calls == [None] * 3
        return
    many = count_many(calls[0].zones, torch.stack(zs), axis)
    single = [count(call, call.z, axis) for call in calls]
    if many is None:
        assert single == [None] * 3
        return
    for left, right in zip(many, single, strict=True):
        assert (left.units, left.observations) == (right.units, right.observations)
        for name in ("inactive", "saturated", "either"):
            a, b = getattr(left, name), getattr(right, name)
            assert (a is None and b is None) or torch.equal(a, b)
