"""Gains under odd backward passes: penalties, two losses, user's hooks, denormal and infinite numbers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from measure.by_hand import METRICS, NAN, Net, batch, measure, plain, predecessors

from lightning_gradwatch.measure.probe import Probe


def test_a_gradient_penalty_adds_to_no_gain_that_it_does_not_belong_to():
    def forward(m, x):
        x = m.tap("tanh", z := m.a(x), torch.tanh(z))
        return m.head(m.tap("softplus", z := m.b(x), F.softplus(z)))

    model = Net(forward)
    x = batch().requires_grad_()

    def penalized(output):
        (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        return output.square().sum() + 10 * slope.square().sum()

    gains, reference, _ = measure(model, x, loss_of=penalized)
    assert gains[":tanh"] == reference.gains("tanh")
    # The penalty reaches z, and the tanh, past the softplus too.
    assert all(map(math.isnan, gains[":softplus"]))


def test_two_backward_passes_leave_what_they_share_without_gains():
    def forward(m, x):
        shared = torch.tanh(m.a(x))
        return m.head(F.relu(m.b(shared))), m.head(F.gelu(m.c(F.elu(m.d(shared)))))

    model = Net(forward)
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.0))
    with probe:
        one, two = model(batch())
        one.sum().backward(retain_graph=True)
        two.sum().backward()
    found = {
        name: tuple(probe.record.metrics[metric][place] for metric in METRICS)
        for place, name in enumerate(predecessors(probe))
    }
    assert found[":tanh"] == (NAN, NAN)
    assert found[":relu"][0] > 0
    # The second loss isn't known when the first one's graph is looked at.
    assert all(math.isnan(weight) for _, weight in found.values())


def test_a_gradient_is_as_it_was_before_a_hook_of_the_user_wrote_into_it():
    def forward(m, x):
        x = m.tap("tanh", z := m.a(x), torch.tanh(z))
        z = m.b(x)
        if m.taps is None:
            z.register_hook(lambda gradient: gradient.mul_(3.0))
        x = m.tap("relu", z, F.relu(z))
        return m.head(m.tap("elu", z := m.c(x), F.elu(z)))

    gains, reference, _ = measure(Net(forward), batch())
    assert gains[":tanh"] == reference.gains("tanh")
    assert gains[":elu"] == reference.gains("elu", "relu")
    # Between the two the hook is at work.
    activation, weight = gains[":relu"]
    assert (activation, weight / 3) == reference.gains("relu", "tanh")


def test_no_gain_where_nothing_arrives():
    def forward(m, x):
        x = torch.tanh(m.a(x))
        return m.head(F.relu(m.b(x) - 100.0))

    gains, _, _ = measure(Net(forward), batch())
    # Every unit of the ReLU is dead: what arrives passes on nothing, and of nothing there is no share.
    assert gains[":relu"][0] == 0.0
    assert math.isnan(gains[":relu"][1])
    assert math.isnan(gains[":tanh"][0])


def test_gains_of_denormal_signals():
    gains, reference, _ = measure(Net(plain).double(), batch().double(), loss_of=lambda y: y.sum())
    tiny, _, probe = measure(Net(plain), batch(), loss_of=lambda y: y.sum() * 1e-36)
    assert 0 < probe.record.metrics["signal_norm"][-1] < 1e-34
    assert 0.1 < tiny[":sigmoid"][0] <= 0.25 + 1e-3
    assert gains[":sigmoid"] == reference.gains("sigmoid", "tanh")


def test_an_output_with_nan_or_infinity_has_an_infinite_rms():
    def forward(m, x):
        x = torch.tanh(m.a(x))
        x = F.relu(m.b(x) + m.poison)
        return m.head(torch.sigmoid(m.c(x)))

    for value in (math.nan, math.inf):
        model = Net(forward)
        model.poison = torch.zeros(8)
        model.poison[3] = value
        _, _, probe = measure(model, batch())
        tanh, relu, sigmoid = probe.record.forward_rms
        assert 0 < tanh < 1
        assert relu == math.inf
        assert sigmoid == (math.inf if math.isnan(value) or not math.isfinite(sigmoid) else sigmoid)


def test_an_rms_beyond_float32_is_no_infinity():
    model = Net(lambda m, x: m.head(F.relu(m.a(x)) * 1e-60)).double()
    with torch.no_grad():
        model.a.weight.mul_(1e50)
    _, _, probe = measure(model, batch().double())
    assert probe.record.forward_rms[0] == torch.finfo(torch.float32).max
