"""A forward pass that another thread runs isn't seen, and is named."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from lightning_gradwatch.measure.probe import Probe

OUT_OF_SIGHT = "used out of sight, as where another thread runs it"


class Branches(nn.Module):
    """Two branches, each run by a thread, and a head."""

    def __init__(self, pool=None):
        super().__init__()
        self.a = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
        self.b = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8))
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(8, 1))
        self.pool = pool

    def forward(self, x):
        if self.pool is None:
            return self.head(self.a(x) + self.b(x))
        a, b = [each.result() for each in [self.pool.submit(self.a, x), self.pool.submit(self.b, x)]]
        return self.head(a + b)


def measured(model, steps=2):
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(steps):
        with probe:
            model(torch.randn(6, 4)).square().mean().backward()
            probe._optimizers[0].step()
        probe._optimizers[0].zero_grad()
    return probe


@pytest.mark.parametrize("warm", [0, 500])
def test_what_another_thread_runs_is_in_the_coverage(warm):
    """Whatever numbers autograd gives there, which are each thread's own."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: [torch.ones(1, requires_grad=True) * 2 for _ in range(warm)], range(2)))
        probe = measured(Branches(pool))
    coverage = {each.name: each for each in probe.info.coverage}
    assert {name for name, each in coverage.items() if each.reason.startswith(OUT_OF_SIGHT)} == {
        "a.0",
        "a.2",
        "b.0",
        "b.2",
    }
    assert coverage[""].reason.endswith("or another thread: relu, tanh") or coverage[""].reason.endswith("tanh, relu")
    assert coverage[""].sites == 2
    assert {"a.1", "b.1"} <= coverage.keys()
    assert [site.name for site in probe.info.sites] == ["head.0"]


def test_what_this_thread_runs_is_not():
    assert measured(Branches()).info.coverage == ()


def test_a_thread_beside_the_training_changes_nothing():
    with ThreadPoolExecutor(1) as pool:

        class Model(Branches):
            def forward(self, x):
                beside = pool.submit(lambda: torch.randn(4, 4).relu().sum())
                y = super().forward(x)
                beside.result()
                return y

        assert measured(Model()).info.coverage == ()
