"""Attenuation is what the signals along one path give, by autograd, in nets that change from step to step."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import nn

from lightning_gradwatch.judge.evidence.depth import read_depths
from lightning_gradwatch.measure.probe import Probe
from lightning_gradwatch.record.summaries import summaries

X = torch.randn(6, 4)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.act = nn.Linear(4, 4), nn.Softplus()


class Drawn(nn.Module):
    """Towers of blocks, each on a path drawn at random and with a loss of its own, and now and then a connection.

    Blocks are skipped, frozen and thawed from step to step, and some share their weights. The net keeps account of which
    sites each value has passed, and of z and a at each site.
    """

    def __init__(self, seed):
        super().__init__()
        self.draw = random.Random(seed)
        towers = self.draw.choice((1, 1, 2, 3))
        count = towers * self.draw.randrange(2, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(count))
        self.tower = [place % towers for place in range(count)]
        self.feeds = [self.draw_feeds(place) for place in range(count)]
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(towers))
        self.weights = [10 ** self.draw.uniform(-4, 0) for _ in range(towers)]
        for block in self.blocks[1:]:
            if self.draw.random() < 0.1:
                block.lin = self.blocks[0].lin
        self.skipped = set()
        self.order = list(range(count))

    def draw_feeds(self, place):
        own = [earlier for earlier in range(place) if self.tower[earlier] == self.tower[place]]
        if place and self.draw.random() < 0.1:
            return [self.draw.randrange(place)]
        return sorted(self.draw.sample(own, min(len(own), self.draw.choice((1, 1, 1, 2)))))

    def change(self):
        places = range(len(self.blocks))
        self.skipped = {place for place in places if self.draw.random() < 0.25}
        self.requires_grad_(True)
        for place in places:
            if self.draw.random() < 0.2:
                self.blocks[place].lin.requires_grad_(False)

    def forward(self, x):
        self.passed, self.taps = {}, {}
        values = {}
        for place, feeding in enumerate(self.feeds):
            value = sum([values[earlier] for earlier in feeding], torch.zeros(())) if feeding else x
            before = frozenset().union(*(self.passed[earlier] for earlier in feeding))
            if place not in self.skipped:
                block = self.blocks[place]
                z = block.lin(value)
                value = block.act(z)
                if value.requires_grad:
                    self.taps[f"blocks.{place}.act"] = (z, value)
                    before |= {f"blocks.{place}.act"}
            values[place] = value
            self.passed[place] = before
        loss = 0
        for head, (linear, weight) in enumerate(zip(self.heads, self.weights, strict=True)):
            own = [values[place] for place in values if self.tower[place] == head]
            loss = loss + weight * linear(sum(own)).square().mean()
        return loss

    def signals(self, x):
        """Return ‖δ‖ by site, by autograd."""
        loss = self(x)
        found = {}
        for name, (z, a) in self.taps.items():
            (upstream,) = torch.autograd.grad(loss, a, retain_graph=True, allow_unused=True)
            if upstream is not None:
                (delta,) = torch.autograd.grad(a, z, upstream, retain_graph=True)
                found[name] = delta.double().norm().item()
        return found


def precede(net):
    """Return the pairs of sites of which one's output reached the other in this pass."""
    return {
        (earlier, f"blocks.{place}.act")
        for place, passed in net.passed.items()
        if f"blocks.{place}.act" in passed
        for earlier in passed
        if earlier != f"blocks.{place}.act"
    }


def with_all_between(pairs):
    while True:
        more = pairs | {(one, three) for one, two in pairs for other, three in pairs if two == other}
        if more == pairs:
            return pairs
        pairs = more


@pytest.mark.parametrize("seed", range(60))
def test_it_is_that_of_the_signals_at_the_ends_of_a_path(seed):
    net = Drawn(seed)
    net.change()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    probe = Probe(net, optimizer)
    known = set()
    for step in range(5):
        if step:
            net.change()
        if not any(parameter.requires_grad for parameter in net.parameters()):
            continue
        optimizer.zero_grad()
        with probe:
            net(X).backward()
        known |= precede(net)
        expected = net.signals(X)
        record, info = probe.record, probe.info
        names = [site.name for site in info.sites]
        measured = dict(zip(names, record.metrics["signal_norm"].tolist(), strict=True))
        assert {name: norm for name, norm in measured.items() if not math.isnan(norm)} == pytest.approx(
            expected, rel=1e-5
        )
        depths = read_depths(record, info)
        changes = [0.0]
        for depth in depths if isinstance(depths, list) else ():
            path = [names[column] for column in depth.columns]
            assert depth.attenuation == pytest.approx(expected[path[0]] / expected[path[-1]], rel=1e-5)
            changes.append(math.log10(expected[path[0]] / expected[path[-1]]))
            # Each has reached the next in some step, directly or through others.
            closure = with_all_between(known)
            assert all(pair in closure for pair in itertools.pairwise(path)), path
        if isinstance(depths, list):
            worst = max(changes, key=abs)
            assert summaries(record, info)["gradwatch/log10_attenuation"] == pytest.approx(worst, rel=1e-4, abs=1e-5)


def stack(count, act=nn.Sigmoid):
    return nn.Sequential(*[each for _ in range(count) for each in (nn.Linear(4, 4), act())])


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = stack(6), stack(3, nn.Tanh)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))
        self.turned = False

    def forward(self, x):
        towers = [(self.a, self.heads[0], 1.0), (self.b, self.heads[1], 1e-8)]
        return sum(
            [
                weight * head(tower(x)).square().mean()
                for tower, head, weight in (towers[::-1] if self.turned else towers)
            ]
        )


def measured(model, *, steps=1, change=lambda step: None):
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.0))
    for step in range(steps):
        change(step)
        with probe:
            model(X).backward()
    return probe


def attenuation(probe):
    return 10 ** summaries(probe.record, probe.info)["gradwatch/log10_attenuation"]


def signals(probe):
    return dict(
        zip([site.name for site in probe.info.sites], probe.record.metrics["signal_norm"].tolist(), strict=True)
    )


@pytest.mark.parametrize("turned", [False, True])
def test_towers_are_compared_with_themselves_alone(turned):
    model = Towers()
    model.turned = turned
    probe = measured(model)
    found = signals(probe)
    depths = read_depths(probe.record, probe.info)
    assert {depth.ends(probe.info) for depth in depths} == {"a.1\na.11\n6", "b.1\nb.5\n3"}
    assert attenuation(probe) == pytest.approx(found["a.1"] / found["a.11"], rel=1e-6)


@pytest.mark.parametrize("thawed", [0, 2, 4])
def test_a_backbone_that_is_thawed_counts_from_its_first_layer_on(thawed):
    model = nn.Sequential(stack(6), nn.Linear(4, 1), nn.Flatten(0))

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return self.net(x).square().mean()

    def change(step):
        for layer in model[0][:8:2]:
            layer.requires_grad_(False)
        for layer in model[0][thawed:8:2]:
            layer.requires_grad_(step > 0)

    probe = measured(Loss(), steps=2, change=change)
    found = signals(probe)
    assert attenuation(probe) == pytest.approx(found[f"net.0.{thawed + 1}"] / found["net.0.11"], rel=1e-6)


class Checkpointed(nn.Module):
    """A chain of which the middle is recomputed, where the graph leads past its sites."""

    def __init__(self, *, reentrant):
        super().__init__()
        self.first, self.middle, self.last = stack(2), stack(2), stack(2)
        self.head = nn.Linear(4, 1)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.first(x)
        x = torch.utils.checkpoint.checkpoint(self.middle, x, use_reentrant=self.reentrant)
        return self.head(self.last(x)).square().mean()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_path_goes_on_behind_what_is_recomputed(reentrant):
    probe = measured(Checkpointed(reentrant=reentrant))
    found = signals(probe)
    assert attenuation(probe) == pytest.approx(found["first.1"] / found["last.3"], rel=1e-6)
    assert probe.info.site_names == ("first.1", "first.3", "middle.1", "middle.3", "last.1", "last.3")
