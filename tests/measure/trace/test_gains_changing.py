"""Gains of nets that change from step to step, of parts that run again, and of functions in place on views."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from measure.by_hand import METRICS, NAN, Net, Reference, batch, measure, predecessors, squares
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch.measure.probe import Probe


class Depth(nn.Module):
    """Blocks of which any may be left out, or have a shortcut from further back."""

    def __init__(self, trunk):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"one": nn.Linear(8, 8), "two": nn.Linear(8, 8)}) for _ in range(4))
        self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 1)
        self.trunk, self.kept, self.taps = trunk, (True,) * 4, None
        self.back = False

    def forward(self, x):
        stem = x = self.tap("first", z := self.first(x), F.relu(z))
        for index, (block, kept) in enumerate(zip(self.blocks, self.kept, strict=True)):
            if not kept:
                continue
            inner = self.tap(f"inner{index}", z := block["one"](x), F.elu(z))
            source = stem if self.back and index == 3 else inner
            z = block["two"](source) + 0 * inner + x
            x = self.tap(f"outer{index}", z, F.relu(z)) if self.trunk else z
        return self.head(x)

    tap = Net.tap


def test_blocks_that_are_left_out_at_random_give_no_wrong_gain():
    torch.manual_seed(0)
    model = Depth(trunk=True)
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.0))
    seen = {}
    for kept in [(1, 1, 1, 1), (1, 0, 1, 1), (0, 0, 1, 0), (0, 1, 0, 1), (1, 1, 1, 1)]:
        model.kept = kept
        x = batch()
        with probe:
            model(x).square().sum().backward()
        reference = Reference(model, [x], squares)
        columns = {site.name: place for place, site in enumerate(probe.info.sites)}
        activation, weight = (probe.record.metrics[metric] for metric in METRICS)
        # The site of a block: `:elu`, `:elu#2`, … and `:relu#2`, `:relu#3`, … behind the first.
        names = {"first": ":relu"} | {f"outer{i}": f":relu#{i + 2}" for i in range(4)}
        trunk = ["first", *(f"outer{index}" for index in range(4) if kept[index])]
        assert activation[columns[":relu"]] == reference.gains("first")[0]
        for before, name in itertools.pairwise(trunk):
            column = columns[names[name]]
            assert (activation[column], weight[column]) == reference.gains(name, before), (kept, name)
            seen.setdefault(names[name], set()).add(names[before])
        for index in range(4):
            if not kept[index]:
                assert math.isnan(weight[columns[names[f"outer{index}"]]])
        assert probe.record.layout == probe.info.layout
    # The description has them all, in the order of the columns.
    for name, before in seen.items():
        found = predecessors(probe)[name]
        assert before <= set(found)
        assert list(found) == sorted(found, key=columns.get)


def test_a_shortcut_that_comes_and_goes_between_the_same_calls_is_noticed():
    torch.manual_seed(0)
    model = Depth(trunk=True)
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.0))
    found = []
    for back in (False, True, False):
        model.back = back
        x = batch()
        with probe:
            model(x).square().sum().backward()
        reference = Reference(model, [x], squares)
        weight = dict(zip(predecessors(probe), probe.record.metrics["weight_gain"], strict=True))
        found.append(weight[":relu#2"])
        assert weight[":relu#2"] == (NAN if back else reference.gains("outer0", "first")[1])
    assert math.isnan(found[1])
    assert not math.isnan(found[2])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_right_gain_or_none(reentrant):
    def block(m, x):
        x = m.tap("tanh", z := m.b(x), torch.tanh(z))
        return m.tap("elu", z := m.c(x), F.elu(z))

    def forward(m, x):
        x = m.tap("relu", z := m.a(x), F.relu(z))
        x = block(m, x) if m.taps is not None else checkpoint(lambda x: block(m, x), x, use_reentrant=reentrant)
        return m.head(m.tap("sigmoid", z := m.d(x), torch.sigmoid(z)))

    gains, reference, probe = measure(Net(forward), batch())
    expected = {
        ":relu": reference.gains("relu"),
        ":tanh": reference.gains("tanh", "relu"),
        ":elu": reference.gains("elu", "tanh"),
        ":sigmoid": reference.gains("sigmoid", "elu"),
    }
    if reentrant:
        # The block's own graph is made in the backward pass, so nobody knows who feeds the sigmoid.
        expected |= {":tanh": (NAN, NAN), ":elu": (NAN, NAN), ":sigmoid": reference.gains("sigmoid")}
        assert set(predecessors(probe).values()) == {()}
    assert {name: gains[name] for name in expected} == expected


def test_what_feeds_a_reentrant_checkpoint_starts_no_segment():
    def forward(m, x):
        x = m.tap("relu", z := m.a(x), F.relu(z))
        side = checkpoint(lambda x: torch.tanh(m.b(x)), x, use_reentrant=True)
        return m.head(m.tap("elu", z := m.c(x), F.elu(z))) + m.head(side)

    model = Net(forward)
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.0))
    with probe:
        model(batch()).square().sum().backward()
    assert predecessors(probe)[":elu"] == (":relu",)
    place = list(predecessors(probe)).index(":elu")
    assert probe.record.metrics["activation_gain"][place] > 0
    assert math.isnan(probe.record.metrics["weight_gain"][place])


@pytest.mark.parametrize(
    ("view", "back"),
    [
        (lambda z: z, lambda a: a),
        (lambda z: z.mT, lambda a: a.mT),
        (lambda z: z.reshape(-1, 2, 8), lambda a: a.reshape(4, 3, 8)),
    ],
    ids=["itself", "transposed", "reshaped"],
)
def test_in_place_on_a_view_of_all_of_a_tensor(view, back):
    """As a linear layer's output of more than two dimensions is one."""

    def forward(m, x):
        x = m.tap("tanh", z := m.a(x), torch.tanh(z))
        x = back(m.tap("relu", z := view(m.b(x)), m.relu(z)))
        return m.head(m.tap("sigmoid", z := m.c(x), torch.sigmoid(z)))

    model = Net(forward, relu=nn.ReLU(inplace=True))
    gains, reference, probe = measure(model, torch.randn(4, 3, 8))
    assert predecessors(probe) == {":tanh": (), "relu": (":tanh",), ":sigmoid": ("relu",)}
    assert gains == {
        ":tanh": reference.gains("tanh"),
        "relu": reference.gains("relu", "tanh"),
        ":sigmoid": reference.gains("sigmoid", "relu"),
    }
    assert probe.info.coverage == ()


@pytest.mark.parametrize("view", [lambda z: z[:, :4], lambda z: z[2]])
def test_in_place_on_a_part_of_a_tensor_hides_who_feeds_whom(view):
    def forward(m, x):
        z = m.b(torch.tanh(m.a(x))) * 1.0
        torch.relu_(view(z))
        return m.head(torch.sigmoid(m.c(z)))

    gains, _, probe = measure(Net(forward), batch())
    assert predecessors(probe)[":sigmoid"] == ()
    assert math.isnan(gains[":sigmoid"][1])
