"""Layers and sites stand along the data's path, whatever came late: against nets that keep their own account of it."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch.measure.probe import Probe

X = torch.randn(6, 4)


class Drawn(nn.Module):
    """Blocks on a path drawn at random, with branches; each is skipped or not, frozen or not, from step to step.

    Each value is told along with the blocks that it has passed, so that the net knows which of them precede which.
    """

    def __init__(self, count, seed):
        super().__init__()
        self.draw = random.Random(seed)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(count))
        for block in self.blocks[3:]:  # some have the weights of one before
            if self.draw.random() < 0.15:
                block.weight, block.bias = (parameter for parameter in self.blocks[0].parameters())
        self.feeds = [
            sorted(self.draw.sample(range(place), min(place, self.draw.choice((0, 1, 1, 1, 2)))))
            for place in range(count)
        ]
        self.skipped, self.frozen = set(), set()
        self.first_uses: list[tuple[str, frozenset[str]]] = []

    def name(self, place):
        """Return the layer of a block, which another block may share."""
        weight = self.blocks[place].weight
        return next(f"blocks.{other}" for other, block in enumerate(self.blocks) if block.weight is weight)

    def change(self):
        count = len(self.blocks)
        self.skipped = {place for place in range(count) if self.draw.random() < 0.4}
        self.frozen = {place for place in range(count) if self.draw.random() < 0.3}
        for block in self.blocks:
            block.requires_grad_(True)
        for place in self.frozen:
            self.blocks[place].requires_grad_(False)

    def forward(self, x):
        self.first_uses = []
        seen = set()
        values = []
        for place, feeding in enumerate(self.feeds):
            value = x
            passed = frozenset()
            for earlier in feeding:
                value = value + values[earlier][0]
                passed |= values[earlier][1]
            if place not in self.skipped:
                name = self.name(place)
                value = F.softplus(self.blocks[place](value))
                if not value.requires_grad:  # no graph leads to it
                    passed = frozenset()
                    values.append((value, passed))
                    continue
                if name not in seen:
                    seen.add(name)
                    self.first_uses.append((name, passed))
                passed |= {name}
            values.append((value, passed))
        return sum(value.sum() for value, _ in values)


def behind(name, precede):
    """Return all that some pairs put behind a name, itself included."""
    found = {name}
    while True:
        more = found | {later for earlier, later in precede if earlier in found}
        if more == found:
            return found
        found = more


@pytest.mark.parametrize("seed", range(60))
def test_layers_stand_behind_those_that_their_data_has_passed(seed):
    net = Drawn(random.Random(seed).randrange(3, 12), seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    net.change()
    probe = Probe(net, optimizer)
    precede = set()
    for step in range(6):
        if step:
            net.change()
        optimizer.zero_grad()
        with probe:
            loss = net(X)
            if loss.requires_grad:
                loss.backward()
        for name, passed in net.first_uses:
            precede |= {(earlier, name) for earlier in passed if earlier != name}
        names = [layer.name for layer in probe.info.layers]
        column = {name: place for place, name in enumerate(names)}
        for earlier, later in precede:
            # One that is shared may come first in one step and last in another.
            if {earlier, later} <= column.keys() and earlier not in behind(later, precede):
                assert column[earlier] < column[later], (earlier, later, names)
        column = {site.name: place for place, site in enumerate(probe.info.sites)}
        feeding = {(name, site.name) for site in probe.info.sites for name in site.predecessors}
        for earlier, later in feeding:
            if earlier not in behind(later, feeding):
                assert column[earlier] < column[later], probe.info.sites
        assert {layer.feeds for layer in probe.info.layers} <= {"", *column}


def measured(model, *, change=lambda step: None, steps=2, x=X, probe=None):
    """Measure a few steps, each after a change; return the probe."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probe = probe or Probe(model, optimizer)
    for step in range(steps):
        change(step)
        optimizer.zero_grad()
        with probe:
            model(x).square().sum().backward()
    return probe


def layers(probe):
    return [layer.name for layer in probe.info.layers]


def sites(probe):
    return [site.name for site in probe.info.sites]


def stack(count):
    return nn.Sequential(*[each for _ in range(count) for each in (nn.Linear(4, 4), nn.Tanh())], nn.Linear(4, 1))


def test_a_backbone_that_is_thawed_comes_before_its_head():
    model = stack(4)

    def change(step):
        model[:5].requires_grad_(step > 0)

    probe = measured(model, change=change)
    assert layers(probe) == ["0", "2", "4", "6", "8"]
    assert sites(probe) == ["1", "3", "5", "7"]
    assert [layer.feeds for layer in probe.info.layers] == ["1", "3", "5", "7", ""]
    assert [site.predecessors for site in probe.info.sites] == [(), ("1",), ("3",), ("5",)]


def test_layers_without_a_site_between_them_are_ordered_too():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)])
    late = [model[1], model[2], model[0]]

    def change(step):
        for layer in late[step:]:
            layer.requires_grad_(False)
        for layer in late[:step]:
            layer.requires_grad_(True)

    assert layers(measured(model, change=change, steps=4)) == ["0", "1", "2", "3", "4"]


def test_an_embedding_that_is_thawed_comes_first():
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 1))
    model[:2].requires_grad_(False)
    probe = measured(model, change=lambda step: model[:2].requires_grad_(step > 0), x=torch.arange(5))
    assert layers(probe) == ["0", "1", "2", "4"]


class Dropped(nn.Module):
    """Layers that are left out of a step, as LayerDrop does, in residual blocks or in a chain."""

    def __init__(self, *, residual, reentrant=None):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()) for _ in range(4))
        self.head = nn.Linear(4, 1)
        self.residual, self.reentrant = residual, reentrant
        self.out = set()

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        for place, block in enumerate(self.blocks):
            if place not in self.out:
                y = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
                x = x + y if self.residual else y
        return self.head(x)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("out", [{0, 2}, {1, 2, 3}, {0, 1, 2}])
def test_a_layer_that_is_dropped_at_first_takes_its_place_later(out, residual, reentrant):
    """Under a reentrant checkpoint the graph doesn't show it, but the order of use does."""
    model = Dropped(residual=residual, reentrant=reentrant)
    ways = [out, {0, 1, 2, 3} - out, set()]

    def change(step):
        model.out = ways[step]

    probe = measured(model, change=change, steps=3)
    assert layers(probe) == ["stem", *(f"blocks.{block}.{place}" for block in range(4) for place in (0, 1)), "head"]
    assert sites(probe) == [":tanh", *(f"blocks.{block}.2" for block in range(4))]


class Towers(nn.Module):
    """Two stacks side by side, in the order that is asked for."""

    def __init__(self):
        super().__init__()
        self.a, self.b = stack(2), stack(2)
        self.order = "ab"

    def forward(self, x):
        return sum([getattr(self, name)(x) for name in self.order])


@pytest.mark.parametrize("orders", [("ab", "ba", "ab"), ("b", "ab"), ("b", "a", "ba")])
def test_towers_stand_one_after_the_other_in_the_order_of_first_use(orders):
    model = Towers()

    def change(step):
        model.order = orders[step]

    probe = measured(model, change=change, steps=len(orders))
    first, second = ("a", "b") if orders[0][0] == "a" else ("b", "a")
    assert layers(probe) == [f"{tower}.{place}" for tower in (first, second) for place in (0, 2, 4)]
    assert sites(probe) == [f"{tower}.{place}" for tower in (first, second) for place in (1, 3)]


def test_a_layer_that_is_thawed_in_one_tower_stays_in_it():
    model = Towers()

    def change(step):
        model.a[0].requires_grad_(step > 0)

    assert layers(measured(model, change=change)) == [f"{tower}.{place}" for tower in "ab" for place in (0, 2, 4)]


class Shared(nn.Module):
    """One layer on both sides of another, which comes late."""

    def __init__(self):
        super().__init__()
        self.a, self.shared, self.between, self.c = (nn.Linear(4, 4) for _ in range(4))
        self.late = False

    def forward(self, x):
        x = torch.tanh(self.shared(torch.tanh(self.a(x))))
        if self.late:
            x = torch.tanh(self.between(x))
        return self.c(torch.tanh(self.shared(x)))


def test_a_layer_between_two_uses_of_another_comes_before_what_follows_the_second():
    model = Shared()

    def change(step):
        model.late = step > 0

    assert layers(measured(model, change=change)) == ["a", "shared", "between", "c"]


def test_a_loop_over_layers_keeps_the_order_of_use_and_lets_one_in():
    a, b, c = (nn.Linear(4, 4) for _ in range(3))

    class Looped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.head = a, b, c, nn.Linear(4, 1)
            self.late = False

        def forward(self, x):
            for _ in range(3):
                x = torch.tanh(self.a(x))
                x = torch.tanh(self.b(x)) if self.late else x
                x = torch.tanh(self.c(x))
            return self.head(x)

    model = Looped()

    def change(step):
        model.late = step > 0

    assert layers(measured(model, change=change)) == ["a", "b", "c", "head"]


def test_a_weight_and_a_bias_of_two_modules_are_both_on_the_path():
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 1)
            self.weight, self.bias = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
            self.bias.weight.requires_grad_(False)

        def forward(self, x):
            x = F.linear(torch.tanh(self.first(x)), self.weight.weight, self.bias.bias)
            return self.last(torch.tanh(x))

    model = Split()

    def change(step):
        model.weight.requires_grad_(step > 0)
        model.bias.bias.requires_grad_(step > 0)

    assert layers(measured(model, change=change)) == ["first", "weight", "bias", "last"]


def test_an_activation_with_a_weight_comes_late():
    model = nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 1))

    def change(step):
        model[:2].requires_grad_(step > 0)

    probe = measured(model, change=change)
    assert layers(probe) == ["0", "1", "2", "3", "4"]
    assert [layer.feeds for layer in probe.info.layers] == ["1", "1", "3", "3", ""]


def test_a_frozen_layer_between_two_tells_their_sites_apart():
    """Both are called in one line, and would be one looped site if what is frozen were no layer."""

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return x

    model = Loop()

    def change(step):
        model.layers[1].requires_grad_(step > 0)

    probe = measured(model, change=change)
    assert sites(probe) == [":tanh", ":tanh#2", ":tanh#3"]
    assert layers(probe) == [f"layers.{place}" for place in range(3)]


def test_what_only_runs_without_a_graph_is_ordered_by_use():
    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.teacher, self.b = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            with torch.no_grad():
                target = self.teacher(x)
            return self.b(torch.tanh(self.a(x))) - target

    assert layers(measured(Teacher(), steps=1)) == ["teacher", "a", "b"]


def test_a_graph_that_is_too_large_leaves_the_order_of_use(monkeypatch):
    from lightning_gradwatch.measure.model import autograd_graph  # noqa: PLC0415 - to be patched

    monkeypatch.setattr(autograd_graph.Walk.__init__, "__defaults__", (4,))
    model = stack(3)
    probe = measured(model, change=lambda step: model[:2].requires_grad_(step > 0))
    assert layers(probe) == ["0", "2", "4", "6"]
    assert all(layer.feeds == "" for layer in probe.info.layers)


def test_the_order_is_the_same_however_it_came_about():
    """All at once, layer by layer from the end, and from the front."""
    found = []
    for ways in ([range(4)], [range(step, 4) for step in (3, 2, 1, 0)], [range(step) for step in (1, 2, 3, 4)]):
        model = stack(3)

        def change(step, model=model, ways=ways):
            for place in range(4):
                model[2 * place].requires_grad_(place in ways[step])

        probe = measured(model, change=change, steps=len(ways))
        found.append((layers(probe), sites(probe), [layer.feeds for layer in probe.info.layers]))
    assert found[0] == found[1] == found[2]
