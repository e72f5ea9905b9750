"""Gains beside what the graph hides, random graphs, and passes that leave nothing behind."""

from __future__ import annotations

import gc
import math
import random
import weakref

import pytest
import torch
import torch.nn.functional as F
from measure.by_hand import Net, batch, measure, predecessors
from torch import nn

from lightning_gradwatch.measure.probe import Probe
from lightning_gradwatch.measure.trace.connections import hides_a_function
from lightning_gradwatch.record.activations import ROWS


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Squashed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.sigmoid(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * y * (1 - y)


def test_a_users_own_function_is_followed_unless_it_hides_an_activation():
    def forward(m, x, own):
        x = m.tap("relu", z := m.a(x), F.relu(z))
        return m.head(m.tap("tanh", z := m.c(own.apply(m.b(x))), torch.tanh(z)))

    gains, reference, probe = measure(Net(lambda m, x: forward(m, x, Doubled)), batch())
    assert predecessors(probe) == {":relu": (), ":tanh": (":relu",)}
    assert gains[":tanh"] == reference.gains("tanh", "relu")
    gains, _, probe = measure(Net(lambda m, x: forward(m, x, Squashed)), batch())
    assert predecessors(probe)[":tanh"] == ()
    assert math.isnan(gains[":tanh"][1])


def test_activations_out_of_sight_are_not_the_weights_gain():
    def forward(m, x):
        x = m.tap("relu", z := m.a(x), F.relu(z))
        x, _ = m.rnn(x)
        x = m.tap("tanh", z := m.b(x), torch.tanh(z))
        return m.head(m.tap("elu", z := m.c(x), F.elu(z)))

    for rnn in (nn.LSTM(8, 8), nn.GRU(8, 8), nn.RNN(8, 8)):
        gains, reference, probe = measure(Net(forward, rnn=rnn), batch())
        assert predecessors(probe) == {":relu": (), ":tanh": (":relu",), ":elu": (":tanh",)}
        assert gains == {
            ":relu": reference.gains("relu"),
            ":tanh": reference.gains("tanh"),
            ":elu": reference.gains("elu", "tanh"),
        }


@pytest.mark.parametrize("row", [row for row in ROWS if hasattr(F, row.name)], ids=lambda row: row.name)
def test_the_node_of_every_function_is_known_as_such(row):
    z = torch.randn(4, 8, requires_grad=True) * 1.0
    extra = {
        "threshold": (0.1, 2.0),
        "softmax": (-1,),
        "softmin": (-1,),
        "log_softmax": (-1,),
        "prelu": (torch.ones(1),),
    }
    node = getattr(F, row.name)(z, *extra.get(row.name, ())).grad_fn
    # Softsign is made of arithmetic; tanhshrink subtracts a tanh.
    kinds = {type(each) for each in (node, *(edge for edge, _ in node.next_functions))}
    assert any(map(hides_a_function, kinds)) or row.name == "softsign"
    plain = (F.linear(z, z), F.conv1d(z[None], torch.ones(3, 4, 1)), F.layer_norm(z, (8,)))
    assert not any(hides_a_function(type(each.grad_fn)) for each in plain)


def test_random_graphs_of_sites():
    """Predecessors by construction, norms by autograd; where a weight gain is given, all of it has come from there."""
    measured = 0
    for _ in range(25):
        count = random.randrange(2, 7)
        feeds = [
            {early for early in range(late) if early == late - 1 or random.random() < 0.25} for late in range(count)
        ]
        exits = {count - 1} | {site for site in range(count) if random.random() < 0.1}
        layers = nn.ModuleList(nn.ModuleList(nn.Linear(8, 8) for _ in range(count + 1)) for _ in range(count))

        def forward(m, x, feeds=feeds, exits=exits):
            outputs = []
            for site, feeding in enumerate(feeds):
                z = sum((m.layers[site][early](outputs[early]) for early in feeding), m.layers[site][-1](x))
                outputs.append(m.tap(site, z, m.acts[site](z)))
            return m.head(sum(outputs[site] for site in exits))

        model = Net(forward, layers=layers, acts=nn.ModuleList(nn.Tanh() for _ in range(count)))
        gains, reference, probe = measure(model, batch())
        names = [f"acts.{site}" for site in range(count)]
        assert predecessors(probe) == {
            name: tuple(names[early] for early in sorted(feeds[site])) for site, name in enumerate(names)
        }
        starts = probe.info.segment_starts
        for site, name in enumerate(names):
            activation, weight = gains[name]
            start = starts[site]
            assert activation == reference.gains(site)[0]
            if not math.isnan(weight):
                measured += 1
                assert weight == reference.gains(site, start)[1]
            fed = [late for late in range(count) if site - 1 in feeds[late]]
            if feeds[site] == {site - 1} and fed == [site] and site - 1 not in exits:
                assert start == site - 1
                assert not math.isnan(weight)
    assert measured > 20


def test_no_tensor_of_the_graph_outlives_the_pass():
    alive = []

    def forward(m, x):
        z = m.a(x)
        a = torch.tanh(z)
        unused = F.relu(m.d(a))
        b = F.relu(m.b(a) + z)
        alive[:] = [weakref.ref(tensor) for tensor in (z, a, b, unused)]
        return m.head(b)

    model = Net(forward)
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.1))
    gc.collect()
    gc.disable()
    try:
        with probe:
            loss = model(batch()).sum()
            loss.backward()
            del loss
            assert [reference() for reference in alive] == [None] * 4
        with pytest.raises(ZeroDivisionError), probe:
            model(batch()).sum() / (1 // 0)
        assert [reference() for reference in alive] == [None] * 4
    finally:
        gc.enable()
