"""Gains and predecessors of sites that a pass calls more than once, and of gates."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from measure.by_hand import Net, batch, measure, plain, predecessors
from torch import nn


def test_an_unrolled_loop_has_an_activation_gain_and_feeds_itself():
    def forward(m, x):
        x = m.tap("relu", z := m.a(x), F.relu(z))
        h = torch.zeros(len(x), 8)
        for _ in range(4):
            h = m.tap("tanh", z := m.b(x) + m.c(h), torch.tanh(z))
        return m.head(h)

    gains, reference, probe = measure(Net(forward), batch(), batch())
    assert predecessors(probe) == {":relu": (), ":tanh": (":relu", ":tanh")}
    # All that arrives at the ReLU has come from the loop.
    assert gains == {":relu": reference.gains("relu"), ":tanh": reference.gains("tanh", "relu")}


def test_what_is_left_of_the_signal_over_an_unrolled_loop():
    """δ of the first call over that of the last, by autograd; two micro-batches add up as norms do."""

    def forward(m, x):
        h = torch.zeros(len(x), 8)
        for _ in range(5):
            h = m.tap("tanh", z := m.b(x) + m.c(h), torch.tanh(z))
        return m.head(F.relu(m.a(h)))

    _, reference, probe = measure(Net(forward), batch(), batch())
    first, last = reference.ends("tanh", calls=5)
    record = probe.record
    names = [site.name for site in probe.info.sites]
    assert names == [":tanh", ":relu"]
    assert record.loop_calls.tolist() == pytest.approx([5, math.nan], nan_ok=True)
    assert record.loop_attenuation.tolist() == pytest.approx([first / last, math.nan], nan_ok=True, rel=1e-5)


def test_no_loop_no_numbers():
    def forward(m, x):
        return m.head(torch.tanh(m.b(F.relu(m.a(x)))))

    _, _, probe = measure(Net(forward), batch())
    assert probe.record.loop_calls.shape == probe.record.loop_attenuation.shape == (0,)


def test_a_loop_over_two_sites():
    def forward(m, x):
        for _ in range(3):
            x = m.tap("relu", z := m.a(x), F.relu(z))
            x = m.tap("tanh", z := m.b(x), torch.tanh(z))
        return m.head(x)

    gains, reference, probe = measure(Net(forward), batch())
    assert predecessors(probe) == {":relu": (":tanh",), ":tanh": (":relu",)}
    # The ReLU's calls are fed by the input, or by the tanh: there is no one gain. The tanh's are alike.
    assert gains == {":relu": reference.gains("relu"), ":tanh": reference.gains("tanh", "relu")}


def test_one_module_at_several_places():
    act = nn.Tanh()

    def forward(m, x):
        x = m.tap("first", z := m.a(x), m.act(z))
        x = m.tap("second", z := m.b(x), m.act(z))
        return m.head(m.tap("third", z := m.c(x), m.act(z)))

    gains, reference, _ = measure(Net(forward, act=act), batch())
    assert gains == {
        "act@a": reference.gains("first"),
        "act@b": reference.gains("second", "first"),
        "act@c": reference.gains("third", "second"),
    }


def test_two_inputs_through_one_net():
    def forward(m, x):
        outputs = [plain(m, part) for part in (x, 2 * x)]
        return outputs[0] - outputs[1]

    gains, reference, _ = measure(Net(forward), batch())
    assert gains[":tanh"] == reference.gains("tanh", "relu")
    assert gains[":sigmoid"] == reference.gains("sigmoid", "tanh")


def test_a_gate():
    def forward(m, x):
        x = m.tap("relu", z := m.a(x), F.relu(z))
        gate = m.tap("sigmoid", z := m.b(x), torch.sigmoid(z))
        return m.head(m.tap("tanh", z := m.d(m.c(x) * gate), torch.tanh(z)))

    gains, reference, probe = measure(Net(forward), batch())
    assert predecessors(probe)[":tanh"] == (":relu", ":sigmoid")
    assert gains[":sigmoid"] == reference.gains("sigmoid")
    assert gains[":tanh"] == reference.gains("tanh", "relu")


def test_what_is_detached_feeds_nothing():
    def forward(m, x):
        x = m.tap("relu", z := m.a(x), F.relu(z))
        return m.head(torch.tanh(m.b(x.detach()))) + m.head(x)

    gains, reference, probe = measure(Net(forward), batch())
    assert predecessors(probe) == {":relu": (), ":tanh": ()}
    assert gains[":relu"] == reference.gains("relu")
    assert math.isnan(gains[":tanh"][1])
