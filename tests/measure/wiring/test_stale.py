"""Gradients that an optimizer has stepped by and that nobody empties before the next ones are added to them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import Probe

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 4


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def test_how_much_was_left_is_what_the_gradients_say():
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    probe, grads = Probe(net, optimizer), []
    for _ in range(2):
        with probe:
            F.cross_entropy(net(X), Y).backward()
            optimizer.step()
        grads.append(torch.cat([each.grad.flatten() for each in net.parameters()]).double().clone())
    (fact,) = probe.info.wiring
    left, new = grads[0].norm(), (grads[1] - grads[0]).norm()
    assert fact.kind == "stale-gradient"
    assert fact.operation == "SGD"
    assert fact.value == pytest.approx(float(left / new), rel=1e-5)
    assert fact.names == ("0", "2")


@pytest.mark.parametrize("before", [True, False], ids=["before the pass", "after the step"])
@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.Adam, partial(torch.optim.SGD, momentum=0.9)], ids=["Adam", "SGD"])
def test_emptied_ones_are_quiet(kind, to_none, before):
    net = mlp()
    optimizer = kind(net.parameters(), lr=0.1)
    probe = Probe(net, optimizer)
    for _ in range(3):
        with probe:
            if before:
                optimizer.zero_grad(set_to_none=to_none)
            F.cross_entropy(net(X), Y).backward()
            optimizer.step()
            if not before:
                optimizer.zero_grad(set_to_none=to_none)
    assert probe.info.wiring == ()


def test_adding_up_over_passes_is_quiet():
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    probe = Probe(net, optimizer)
    for _ in range(3):
        with probe:
            for part in range(4):
                F.cross_entropy(net(X[4 * part :][:4]), Y[4 * part :][:4]).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert probe.info.wiring == ()


@pytest.mark.parametrize("emptied", [True, False])
@pytest.mark.parametrize("to_none", [True, False])
def test_a_gan_is_quiet_where_each_optimizer_empties_its_own(emptied, to_none):
    net = nn.ModuleDict({"g": nn.Linear(3, 6), "d": nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))})
    of_g, of_d = (torch.optim.SGD(net[each].parameters(), lr=0.01) for each in "gd")
    probe, z = Probe(net, [of_g, of_d]), X[:, :3]
    for _ in range(3):
        with probe:
            if emptied:
                of_d.zero_grad(set_to_none=to_none)
            made = net["g"](z)  # not detached: this fills the generator's gradients too
            (F.softplus(net["d"](made)).mean() + F.softplus(-net["d"](X)).mean()).backward()
            of_d.step()
            if emptied:
                of_g.zero_grad(set_to_none=to_none)
            F.softplus(-net["d"](net["g"](z))).mean().backward()
            of_g.step()
    assert {fact.kind for fact in probe.info.wiring} == (set() if emptied else {"stale-gradient"})


def test_one_that_is_never_emptied_is_told_of_beside_one_that_is():
    net = nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Linear(6, 4)})
    of_a, of_b = (torch.optim.SGD(net[each].parameters(), lr=0.01) for each in "ab")
    probe = Probe(net, [of_a, of_b])
    for _ in range(3):
        with probe:
            of_a.zero_grad()
            F.cross_entropy(net["a"](X) + net["b"](X), Y).backward()
            of_a.step()
            of_b.step()
    (fact,) = probe.info.wiring
    assert fact.names == ("b",)
