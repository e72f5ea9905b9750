"""Walks over a graph end, whatever it looks like, and say when they had to stop."""

import itertools
import operator
import os
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_gradwatch.measure.model import autograd_graph
from lightning_gradwatch.measure.model.autograd_graph import Walk

BITS = {"nothing": 0, "union": operator.or_}


@dataclass(eq=False)
class Vertex:
    name: int
    edges: list = field(default_factory=list)


class Leaf(Vertex):
    pass


@st.composite
def graphs(draw):
    """Any graph: with cycles, with nodes that lead to themselves, with edges to nothing."""
    size = draw(st.integers(1, 12))
    vertices = [Vertex(name) for name in range(size)]
    for vertex in vertices:
        vertex.edges = [
            (vertices[place] if place < size else None, 0) for place in draw(st.lists(st.integers(0, size), max_size=5))
        ]
    return vertices


def reachable(start):
    """By fixed point instead of by walking."""
    found = {start}
    while True:
        more = found | {after for each in found for after, _ in each.edges if after is not None}
        if more == found:
            return found
        found = more


def following_counted(visits):
    def following(vertex):
        visits.append(vertex)
        return vertex.edges

    return following


@given(graphs())
def test_each_node_is_entered_once(vertices):
    visits = []
    walk = Walk()
    assert set(walk.each(vertices[:1], following_counted(visits))) == reachable(vertices[0])
    assert len(visits) == len(reachable(vertices[0]))
    assert walk.whole


@given(graphs())
def test_gathering_enters_each_node_once_and_finds_all_where_there_is_no_circle(vertices):
    visits = []
    gathered = {}
    walk = Walk()
    for vertex in vertices:
        walk.gather(
            vertex,
            gathered,
            following=following_counted(visits),
            leaf=Leaf,
            **BITS,
            finish=lambda each, found: found | 1 << each.name,
        )
    assert len(visits) == len(vertices)
    assert walk.whole
    for vertex in vertices:
        inside = reachable(vertex)
        assert not gathered[vertex] & ~sum(1 << each.name for each in inside)
        # Without a circle, that is where nothing that a node leads to leads back to it.
        if all(each not in reachable(after) for each in inside for after, _ in each.edges if after is not None):
            assert gathered[vertex] == sum(1 << each.name for each in inside)


def chain(length):
    vertices = [Vertex(name) for name in range(length)]
    for vertex, after in itertools.pairwise(vertices):
        vertex.edges = [(after, 0)]
    return vertices


@pytest.mark.parametrize("most", [1, 5, 8])
def test_walks_stop_at_their_bound_and_say_so(most):
    start = chain(10)[0]
    visits = []
    walk = Walk(most)
    assert len(list(walk.each([start], following_counted(visits)))) == most
    assert not walk.whole
    visits.clear()
    walk = Walk(most)
    walk.gather(start, {}, following=following_counted(visits), leaf=Leaf, **BITS, finish=lambda _, found: found)
    assert len(visits) == most + 1
    assert not walk.whole


def test_leaves_are_not_looked_at():
    leaf = Leaf(5)
    seen = []
    root = Vertex(0, [(leaf, 0)])
    Walk().gather(
        root,
        {},
        following=lambda each: seen.append(each) or each.edges,
        leaf=Leaf,
        **BITS,
        finish=lambda _, found: found,
    )
    assert seen == [root]


def test_a_graph_that_is_too_large_leaves_its_connections_out_and_says_so(measure, monkeypatch):
    monkeypatch.setattr(autograd_graph.Walk.__init__, "__defaults__", (4,))
    net = nn.Sequential(*[each for _ in range(4) for each in (nn.Linear(4, 4), nn.Tanh())], nn.Linear(4, 1))
    result = measure(net, torch.randn(8, 4))
    assert all(site.predecessors == () for site in result.sites.values())
    assert all(site.weight_gain != site.weight_gain for site in result.sites.values())
    assert all(site.signal > 0 for site in result.sites.values())
    assert autograd_graph.TOO_LARGE in [note.reason for note in result.info.coverage]


BODIES = {
    "x.mul_(x.sigmoid())": "return x.mul_(x.sigmoid())",
    "x *= x.sigmoid()": "x *= x.sigmoid(); return x",
    "in-place GELU": "return x.mul_(0.5 * (1 + torch.erf(x / 2**0.5)))",
    "in-place tanh form": "return x.mul_(0.5 * (1 + torch.tanh(0.8 * x)))",
    "mark_dirty": "return Dirty.apply(x)",
    "mark_dirty on a view": "y = x.clone(); Dirty.apply(y[:, :2]); return y",
    "mark_dirty twice": "y = Dirty.apply(x * 1); return y + Dirty.apply(y * 1)",
}
PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
import torch
from torch import nn
from torch.nn import functional as F
from lightning_gradwatch.measure.probe import Probe


class Dirty(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        F.leaky_relu_(x, 0.1)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        (output,) = ctx.saved_tensors
        return torch.where(output < 0, gradient * 0.1, gradient)


def train(body, probed):
    torch.manual_seed(0)
    names = {"torch": torch, "Dirty": Dirty}
    exec("def forward(self, x): " + body, names)
    Act = type("Act", (nn.Module,), {"forward": names["forward"]})
    net = nn.Sequential(nn.Linear(4, 4), Act(), nn.Linear(4, 4), Act(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    probe = Probe(net, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        if probed:
            with probe:
                net(torch.randn(8, 4)).square().mean().backward()
                optimizer.step()
        else:
            net(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
    return [parameter.detach() for parameter in net.parameters()]


for name, body in BODIES.items():
    print(name, flush=True)
    assert all(map(torch.equal, train(body, False), train(body, True))), name
"""


def test_a_step_ends_where_a_call_changes_its_argument():
    """In a process of its own, of limited time: one that never ends would take the suite with it."""
    program = f"BODIES = {BODIES!r}\n{PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
