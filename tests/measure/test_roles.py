"""Roles of sites: hidden, gate or output."""

import torch
import torch.nn.functional as F
from torch import nn

X = torch.randn(8, 4)


class Net(nn.Module):
    def __init__(self, forward, **modules):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        for name, module in modules.items():
            self.add_module(name, module)
        self.way = forward

    def forward(self, x):
        return self.way(self, x)


def test_what_feeds_a_parameterised_layer_is_hidden_and_the_last_is_output(measure):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1), nn.Sigmoid())
    assert measure(model, X).roles == {"1": "hidden", "3": "hidden", "5": "output"}


def test_any_parameter_makes_what_feeds_it_hidden(measure):
    for last in (nn.LayerNorm(4), nn.PReLU(), nn.BatchNorm1d(4)):
        model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), last)
        assert measure(model, X).roles["1"] == "hidden"
    model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.LayerNorm(4, elementwise_affine=False))
    assert measure(model, X).roles["1"] == "output"


def test_two_heads_have_an_output_each(measure):
    def forward(m, x):
        h = F.relu(m.a(x))
        return torch.sigmoid(m.b(h)), torch.tanh(m.c(h))

    result = measure(Net(forward), X, loss=lambda heads: heads[0].sum() + heads[1].sum())
    assert result.roles == {":relu": "hidden", ":sigmoid": "output", ":tanh": "output"}


def test_an_auxiliary_head_leaves_the_trunk_hidden(measure):
    def forward(m, x):
        h = torch.tanh(m.a(x))
        return torch.sigmoid(m.b(h)), m.c(F.relu(h))

    result = measure(Net(forward), X, loss=lambda heads: heads[0].mean() + heads[1].square().mean())
    assert result.roles == {":tanh": "hidden", ":sigmoid": "output", ":relu": "hidden"}


def test_a_squeeze_and_excitation_gate_is_a_gate(measure):
    class SE(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

        def forward(self, x):
            s = F.relu(self.down(x.mean((2, 3), keepdim=True)))
            return x * torch.sigmoid(self.up(s))

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), SE(), nn.Conv2d(4, 1, 3))
    roles = measure(model, torch.randn(2, 3, 9, 9)).roles
    assert roles == {"1": "hidden", "2:relu": "hidden", "2:sigmoid": "gate"}


def test_linear_squeeze_and_excitation_with_a_view_before_the_product_is_a_gate(measure):
    def forward(m, x):
        z = m.conv(x)
        gate = m.act(m.a(z.mean((2, 3)))).view(len(x), 4, 1, 1)
        return m.last(z * gate.expand_as(z))

    model = Net(forward, conv=nn.Conv2d(3, 4, 3), act=nn.Sigmoid(), last=nn.Conv2d(4, 1, 1))
    assert measure(model, torch.randn(2, 3, 9, 9)).roles == {"act": "gate"}
    model.act = nn.Hardsigmoid()
    assert measure(model, torch.randn(2, 3, 9, 9)).roles == {"act": "gate"}


def lstm(m, x):
    h = c = torch.zeros(len(x), 4)
    for _ in range(3):
        i, f, g, o = m.lstm(torch.cat([x, h], 1)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return m.a(h)


def test_the_gates_of_an_lstm_written_by_hand_are_gates(measure):
    result = measure(Net(lstm, lstm=nn.Linear(8, 16)), X, observations=24)
    assert [site.function for site in result.sites.values()] == ["sigmoid", "sigmoid", "tanh", "sigmoid", "tanh"]
    assert set(result.roles.values()) == {"gate"}
    assert {site.fill for site in result.sites.values()} == {1.0}


def gru(m, x):
    h = torch.zeros(len(x), 4)
    for _ in range(3):
        both = torch.cat([x, h], 1)
        r, u = torch.sigmoid(m.r(both)), torch.sigmoid(m.u(both))
        n = torch.tanh(m.a(x) + r * m.b(h))
        h = (1 - u) * n + u * h
    return m.c(h)


def test_the_gates_of_a_gru_written_by_hand_are_gates(measure):
    result = measure(Net(gru, r=nn.Linear(8, 4), u=nn.Linear(8, 4)), X)
    assert result.roles[":sigmoid"] == result.roles[":sigmoid#2"] == "gate"


def test_gated_linear_units_are_gates(measure):
    assert measure(Net(lambda m, x: m.g(F.glu(m.a(x))), g=nn.Linear(2, 1)), X).roles == {":glu": "gate"}
    assert measure(Net(lambda m, x: m.c(m.a(x) * torch.sigmoid(m.b(x)))), X).roles == {":sigmoid": "gate"}


def test_a_swish_of_another_tensor_is_no_gate(measure):
    roles = measure(Net(lambda m, x: m.c(F.silu(m.a(x)) * m.b(x))), X).roles
    assert roles == {":silu": "hidden"}


def test_x_times_sigmoid_of_x_is_no_gate(measure):
    def forward(m, x):
        z = m.a(x)
        return m.c(z * torch.sigmoid(z))

    result = measure(Net(forward), X)
    assert result.roles == {":silu": "hidden"}


def test_dropout_and_constants_after_a_sigmoid_make_no_gate(measure):
    for after in (
        lambda a: F.dropout(a, 0.5),
        lambda a: a * torch.tensor(2.0),
        lambda a: a * 2.0,
        lambda a: 2.0 * a / 3.0,
    ):
        assert measure(Net(lambda m, x, after=after: m.b(after(torch.sigmoid(m.a(x))))), X).roles == {
            ":sigmoid": "hidden"
        }


def test_an_output_scaled_by_a_parameter_or_a_constant_is_no_gate(measure):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

        def forward(self, x):
            return torch.tanh(self.lin(x)) * self.scale

    assert measure(Scaled(), X).roles == {":tanh": "hidden"}  # the scale is a parameterised layer
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    assert measure(Net(lambda m, x: 2.5 * m.net(x), net=model), X).roles == {"net.1": "output"}


def test_a_loss_that_multiplies_the_heads_is_told_from_a_gate_by_where_it_stands(measure):
    """The policy's probability times an advantage without gradient is still a product: a gate, never judged as hidden."""
    advantage = torch.randn(8, 4)
    roles = measure(Net(lambda m, x: torch.sigmoid(m.a(x))), X, loss=lambda p: (p * advantage).mean()).roles
    assert roles[":sigmoid"] in ("gate", "output")


def test_a_relu_times_another_tensor_stays_hidden(measure):
    assert measure(Net(lambda m, x: m.c(F.relu(m.a(x)) * m.b(x))), X).roles == {":relu": "hidden"}


def test_roles_stay_what_the_first_pass_showed(measure):
    result = measure(Net(lstm, lstm=nn.Linear(8, 16)), X, steps=3)
    assert set(result.roles.values()) == {"gate"}
    assert len(result.sites) == 5


def test_a_positive_scale_is_a_gate(measure):
    """As the step of a state space model, or the deviation of a sampled latent: small is where it is meant to start."""

    def forward(m, x):
        return m.c(torch.tanh(m.a(x) + F.softplus(m.b(x)) * x.cos()))

    assert measure(Net(forward), X).roles == {":softplus": "gate", ":tanh": "hidden"}
    assert measure(Net(lambda m, x: m.c(F.softplus(m.b(x)))), X).roles == {":softplus": "hidden"}
