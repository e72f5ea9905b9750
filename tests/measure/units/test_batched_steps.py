"""Measured steps of a deep net of narrow layers, whose tensors are measured many at once from the second step on."""

import warnings
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gradwatch.measure import faults
from lightning_gradwatch.measure.probe import Probe
from lightning_gradwatch.measure.units import batched_reductions
from lightning_gradwatch.measure.units.batched_reductions import BatchedReductions


class Deep(nn.Module):
    """A net of many narrow layers, with functions of none, one and two regions, one of them in place."""

    def __init__(self, depth=8):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4 * depth))

    def forward(self, x):
        functions = (torch.sigmoid, F.relu6, F.leaky_relu, lambda z: F.relu(z, inplace=True))
        for place, layer in enumerate(self.layers):
            x = functions[place % 4](layer(x) * 2)
        return x


def train(watched, *, steps=5, micro_batches=2, fresh=False):
    torch.manual_seed(0)
    model = Deep()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, optimizer, observations=64, batch_elements=8) if watched else None
    records = []
    for _ in range(steps):
        if fresh:
            probe._instruments = replace(
                probe._instruments, staging=BatchedReductions()
            )  # as in a first step: each tensor alone
        with probe or nullcontext():
            for _ in range(micro_batches):
                model(torch.randn(5, 6)).square().mean().backward()
            optimizer.step()
        if watched:
            records.append(probe.record)
        optimizer.zero_grad()
    return records, [parameter.detach().clone() for parameter in model.parameters()]


def test_a_step_reads_the_same_either_way_and_trains_the_same_as_none(monkeypatch):
    rows, measure = [], batched_reductions.l2_norms_of_rows
    monkeypatch.setattr(batched_reductions, "l2_norms_of_rows", lambda stack: rows.append(len(stack)) or measure(stack))
    together, weights = train(watched=True)
    # Output, delta and dL/da of 32 sites in two micro-batches, in all steps but the first.
    assert sum(rows) == 4 * 2 * 3 * 32
    alone, _ = train(watched=True, fresh=True)
    assert sum(rows) == 4 * 2 * 3 * 32
    _, plain = train(watched=False)
    assert all(torch.equal(*pair) for pair in zip(weights, plain, strict=True))
    assert any(record.metrics["dead_fraction"].any() for record in together)
    for one, other in zip(together, alone, strict=True):
        for name in one.metrics:
            exact = name in ("dead_fraction", "saturated_fraction", "inactive_share")
            np.testing.assert_allclose(one.metrics[name], other.metrics[name], rtol=0 if exact else 1e-9)
        np.testing.assert_allclose(one.forward_rms, other.forward_rms, rtol=1e-12)


@pytest.mark.parametrize("times", [1, 1000], ids=["once", "always"])
def test_a_fault_in_measuring_them_switches_the_activations_off_and_no_number_is_wrong(times, monkeypatch):
    """Whichever part it happens in, as in a hook of the backward pass, when a stack is full."""
    monkeypatch.setattr(faults, "RAISE", False)
    measure, left = batched_reductions.l2_norms_of_rows, times

    def fail(stack):
        nonlocal left
        left -= 1
        if left >= 0:
            raise ArithmeticError("no")
        return measure(stack)

    monkeypatch.setattr(batched_reductions, "_STACK", 30 * 40)
    monkeypatch.setattr(batched_reductions, "l2_norms_of_rows", fail)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records, weights = train(watched=True)
    assert "switched its activations off after an internal error (ArithmeticError: no)" in str(caught[-1].message)
    _, plain = train(watched=False)
    assert all(torch.equal(*pair) for pair in zip(weights, plain, strict=True))
    # The first step needs no stack; from the second on there is nothing of the sites.
    assert np.isfinite(records[0].forward_rms).all()
    for record in records[1:]:
        for vector in (record.forward_rms, record.metrics["dead_fraction"], record.metrics["signal_norm"]):
            assert np.isnan(vector).all()
        assert np.isfinite(record.metrics["grad_norm"]).all()
