"""What each of several optimizers steps for: the losses that were propagated back since another one had stepped."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_gradwatch import Probe

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


class Pair:
    """Two nets with an optimizer each, and what a step of both is."""

    def __init__(self):
        self.net = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
        self.optimizers = [torch.optim.SGD(part.parameters(), lr=0.01) for part in self.net.values()]
        self.probe = Probe(self.net, self.optimizers)
        self.losses = [0.0, 0.0]

    def loss(self, index, factor=1.0):
        loss = factor * self.net["ab"[index]](X).square().mean()
        self.losses[index] += float(loss.detach())
        return loss

    def step(self, index, passes=1):
        self.optimizers[index].zero_grad()
        for _ in range(passes):
            self.loss(index).backward()
        self.optimizers[index].step()


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return Pair()


def test_each_has_its_own(pair):
    with pair.probe:
        pair.step(0)
        pair.step(1)
    assert pair.probe.record.optimizer_losses == pytest.approx(pair.losses)


def test_those_of_several_passes_add_up(pair):
    with pair.probe:
        pair.step(1, passes=3)
        pair.step(0, passes=2)
    assert pair.probe.record.optimizer_losses == pytest.approx(pair.losses)


def test_one_that_did_not_step_has_none(pair):
    with pair.probe:
        pair.step(1)
    first, second = pair.probe.record.optimizer_losses
    assert math.isnan(first)
    assert second == pytest.approx(pair.losses[1])


def test_of_several_steps_of_one_the_first_counts(pair):
    with pair.probe:
        pair.step(1)
        told = [*pair.losses]
        pair.step(1)
        pair.step(0)
    assert pair.probe.record.optimizer_losses == pytest.approx((pair.losses[0], told[1]))


def test_what_is_propagated_back_before_any_steps_is_not_told_apart(pair):
    with pair.probe:
        for index in range(2):
            pair.loss(index).backward()
        for optimizer in pair.optimizers:
            optimizer.step()
    assert all(map(math.isnan, pair.probe.record.optimizer_losses))


def test_a_single_optimizer_has_no_such_number():
    net = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with Probe(net, optimizer) as probe:
        net(X).square().mean().backward()
        optimizer.step()
    assert probe.record.optimizer_losses == ()
