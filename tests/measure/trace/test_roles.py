"""Roles of sites: hidden, gate or output."""

import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gradwatch.measure.probe import Probe

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


GATED = {
    "addcmul": lambda a, s: torch.addcmul(a, a, s),
    "addcdiv": lambda a, s: torch.addcdiv(a, a, s),
    "lerp": lambda a, s: torch.lerp(a, -a, s),
    "einsum": lambda a, s: torch.einsum("bi,bi->bi", a, s),
    "matmul": lambda a, s: (torch.diag_embed(s) @ a.unsqueeze(-1)).squeeze(-1),
    "bmm": lambda a, s: torch.bmm(a.unsqueeze(-1), s.unsqueeze(1))[..., 0],
    "quotient": lambda a, s: a / s,
    "pieces": lambda a, s: torch.cat(s.chunk(2, -1)[::-1], -1) * a,
    "mean": lambda a, s: s.mean(-1, keepdim=True) * a,
    "clamp": lambda a, s: s.clamp(0.01, 0.99) * a,
    "clip to a tensor": lambda a, s: torch.maximum(s, torch.full_like(s, 0.1)) * a,
    "dropout": lambda a, s: F.dropout(s, 0.1) * a,
    "dropout by hand": lambda a, s: s * (torch.rand_like(s) > 0.1) / 0.9 * a,
    "power": lambda a, s: s**2 * a,
    "normalised": lambda a, s: s / s.sum(-1, keepdim=True) * a,
    "cast": lambda a, s: s.double().to(a) * a,
    "slice": lambda a, s: s[:, :1].expand_as(a) * a,
    "cumulated": lambda a, s: s.cumsum(-1).flip(-1).roll(1, -1) * a,
    "rest": lambda a, s: (1 - s) * a,
    "without a gradient": lambda a, s: s.detach() * a,
}


@pytest.mark.parametrize("join", GATED.values(), ids=GATED)
@pytest.mark.parametrize("function", [torch.sigmoid, F.hardsigmoid])
def test_what_is_on_the_way_to_a_product_does_not_unmake_a_gate(measure, join, function):
    roles = measure(Net(lambda m, x: m.c(join(m.a(x), function(m.b(x))))), X).roles
    assert set(roles.values()) == {"gate"}


def experts(m, x):
    """Two experts, each let through by a part of one router's output."""
    shares = torch.sigmoid(m.a(x))
    shares = shares / shares.sum(-1, keepdim=True)
    return sum(shares[:, place : place + 1] * expert(x) for place, expert in enumerate((m.b, m.c)))


def routed(m, x):
    """Each sample to one expert."""
    shares = torch.sigmoid(m.a(x))
    out, best = torch.zeros_like(x), shares.detach().argmax(-1) % 2
    for place, expert in enumerate((m.b, m.c)):
        rows = (best == place).nonzero()[:, 0]
        out = out.index_add(0, rows, expert(x[rows]) * shares[rows, place, None])
    return out


def shared_lstm(m, x):
    """All three gates in one call."""
    h = c = x
    for _ in range(2):
        z = torch.cat([m.a(h), m.b(x)], 1)
        i, f, o = torch.sigmoid(torch.cat([z, m.c(x)], 1)).chunk(3, 1)
        c = f * c + i * m.d(x)
        h = o * torch.tanh(c)
    return h


def peepholes(m, x):
    c = x
    for _ in range(2):
        f = torch.sigmoid(m.a(x) + m.p * c)
        c = torch.addcmul(f * c, 1 - f, m.b(x))
    return m.c(c)


SUMS_OF_GATES = {
    "highway": lambda m, x, g: g(m.a(x)) * F.relu(m.b(x)) + (1 - g(m.a(x))) * m.c(x),
    "highway, the gate once": lambda m, x, g: (t := g(m.a(x))) * m.b(x) + (1 - t) * x,
    "highway, carried by a difference": lambda m, x, g: (h := m.c(x)) + g(m.a(x)) * (m.b(x) - h),
    "two gates of two paths": lambda m, x, g: g(m.a(x)) * m.b(x) + g(m.c(x)) * m.b(x + 1),
    "a sum of two gates": lambda m, x, g: (g(m.a(x)) + g(m.b(x))) * m.c(x),
    "a difference of two gates": lambda m, x, g: m.c(x) * (g(m.a(x)) - g(m.b(x))),
    "a mean of two gates": lambda m, x, g: torch.stack([g(m.a(x)), g(m.b(x))]).mean(0) * m.c(x),
    "the larger of two gates": lambda m, x, g: torch.maximum(g(m.a(x)), g(m.b(x))) * m.c(x),
    "one of two gates": lambda m, x, g: torch.where(x > 0, g(m.a(x)), g(m.b(x))) * m.c(x),
    "shares of two gates": lambda m, x, g: (s := g(m.a(x))) / (s + g(m.b(x))) * m.c(x),
    "two gates side by side": lambda m, x, g: torch.cat([g(m.a(x)), g(m.b(x))], -1)[:, 2:6] * m.c(x),
    "weighed and added": lambda m, x, g: (0.3 * g(m.a(x)) + 0.7 * g(m.b(x))).clamp(0.1, 0.9) * m.c(x),
    "added, and cut off": lambda m, x, g: (g(m.a(x)) + g(m.b(x))).clamp(max=1) * m.c(x),
    "added in place": lambda m, x, g: torch.zeros_like(x).add_(g(m.a(x))).add_(g(m.b(x))).mul(m.c(x)),
    "squeeze and excitation, twice": lambda m, x, g: (z := m.a(x)) * g(m.b(z).mean(0)) + z * g(m.c(z)),
}


@pytest.mark.parametrize("function", [torch.sigmoid, F.hardsigmoid, torch.tanh])
@pytest.mark.parametrize("name", SUMS_OF_GATES)
def test_gates_that_are_added_up_are_gates(measure, name, function):
    way = SUMS_OF_GATES[name]
    roles = measure(Net(lambda m, x: m.c(way(m, x, function))), X).roles
    gates = {role for site, role in roles.items() if "relu" not in site}
    assert gates == {"gate"}
    assert all(role == "hidden" for site, role in roles.items() if "relu" in site)


@pytest.mark.parametrize("way", [experts, routed, shared_lstm, peepholes])
def test_what_is_written_by_hand_of_gates_has_gates(measure, way):
    model = Net(lambda m, x: m.c(way(m, x)), d=nn.Linear(4, 4))
    model.p = nn.Parameter(torch.ones(4))
    assert set(measure(model, X).roles.values()) == {"gate"}


HIDDEN = {
    "mask": lambda a, s, m: s * torch.ones(len(s), 1),
    "dropout by hand": lambda a, s, m: s * (torch.rand_like(s) > 0.1) / 0.9,
    "residual": lambda a, s, m: a + s,
    "residual and a product": lambda a, s, m: (a + s) * a,
    "concatenated": lambda a, s, m: torch.cat([a, s], -1)[:, 2:6] * a,
    "parameter": lambda a, s, m: s * m.c.bias,
    "function of a parameter": lambda a, s, m: s * (m.c.bias.exp() + 1),
    "weights": lambda a, s, m: s @ m.c.weight.T,
    "einsum with weights": lambda a, s, m: torch.einsum("bi,oi->bo", s, m.c.weight),
    "interpolated by a number": lambda a, s, m: torch.lerp(a, s, 0.1),
    "square": lambda a, s, m: s * s,
    "norm by hand": lambda a, s, m: (s - s.mean(-1, keepdim=True)) * torch.rsqrt(s.var(-1, keepdim=True) + 1e-5),
    "unit norm": lambda a, s, m: s / s.norm(dim=-1, keepdim=True),
    "divided": lambda a, s, m: s / (1 + a.square()),
    "larger": lambda a, s, m: torch.maximum(a, s),
    "distance": lambda a, s, m: (a - s).square(),
    "sum of two": lambda a, s, m: s + torch.tanh(a),
    "distance of two": lambda a, s, m: (d := s - torch.tanh(a)) * d,
    "share of two": lambda a, s, m: s / (s + torch.sigmoid(a) + 2.0),
}


@pytest.mark.parametrize("join", HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("function", [torch.sigmoid, torch.tanh])
def test_what_multiplies_nothing_that_learns_through_it_is_no_gate(measure, join, function):
    roles = measure(Net(lambda m, x: m.c(join(m.a(x), function(m.b(x)), m))), X).roles
    assert set(roles.values()) == {"hidden"}


def test_states_that_attention_adds_up_are_no_gates(measure):
    """Neither what is stacked over a loop nor what a product adds up: a feature that is looked at isn't a switch."""

    def forward(m, x):
        h = torch.zeros(len(x), 4)
        states = []
        for _ in range(3):
            h = torch.tanh(m.a(x) + m.b(h))
            states.append(h)
        all_of_them = torch.stack(states, 1)
        weights = m.c(all_of_them).softmax(1)
        return m.c((weights * all_of_them).sum(1) + (weights.transpose(1, 2) @ all_of_them).mean(1))

    assert measure(Net(forward), X).roles[":tanh"] == "hidden"
    similar = measure(Net(lambda m, x: m.c(torch.tanh(m.a(x)) @ torch.tanh(m.b(x)).T)[:, :4], c=nn.Linear(8, 4)), X)
    assert set(similar.roles.values()) == {"hidden"}


class Weights(nn.Module):
    def __init__(self, weight, *, buffers=()):
        super().__init__()
        self.w, self.b, self.m = (nn.Parameter(torch.randn(*size)) for size in ((4, 4), (4,), (4, 4)))
        self.weight = weight
        for name in buffers:
            self.register_buffer(name, (torch.rand(4, 4) > 0.3).float())

    def forward(self, x):
        return F.linear(x, self.weight(self), self.b)


OF_WEIGHTS = {
    "mask": lambda m: m.w * torch.sigmoid(m.m),
    "tanh": lambda m: torch.tanh(m.w),
    "tanh of a scaled weight": lambda m: torch.tanh(m.w * 2.0 + 1),
    "positive": lambda m: F.softplus(m.w - 5),
    "relu": lambda m: F.relu(m.w.T).T,
    "softmax": lambda m: m.w.softmax(-1),
    "low rank": lambda m: torch.tanh(m.w @ m.m),
    "pruned": lambda m: torch.tanh(m.w * m.keep),
    "a single number": lambda m: m.w * torch.sigmoid(m.b.sum() * torch.tensor(2.0)),
    "in place": lambda m: (m.w * 1).sigmoid_(),
}


@pytest.mark.parametrize("weight", OF_WEIGHTS.values(), ids=OF_WEIGHTS)
def test_activation_functions_of_parameters_are_no_sites(measure, weight):
    model = nn.Sequential(*(each for _ in range(3) for each in (Weights(weight, buffers=["keep"]), nn.Tanh())))
    result = measure(model, X)
    assert result.roles == {"1": "hidden", "3": "hidden", "5": "output"}
    assert [site.predecessors for site in result.sites.values()] == [(), ("1",), ("3",)]
    assert math.isnan(result.sites["1"].weight_gain)
    assert result.sites["3"].weight_gain > 0
    assert list(result.layers) == ["0", "2", "4"]
    assert result.info.coverage == ()


def test_activations_that_follow_layers_are_sites_also_where_their_input_is_learned(measure):
    """Learned queries, a latent code: what a layer is given is data, whoever made it."""

    class Latent(nn.Module):
        def __init__(self):
            super().__init__()
            self.code = nn.Parameter(torch.randn(8, 4))
            self.net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
            self.last = nn.Conv1d(4, 4, 1)
            self.conv = nn.Conv1d(1, 4, 1)

        def forward(self):
            return self.last(torch.relu(self.conv(self.code[:, None]))).sum() + self.net(self.code).sum()

    assert measure(Latent()).roles == {":relu": "hidden", "net.2": "hidden", "net.4": "output"}


def test_a_frozen_layer_is_a_layer(measure):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2))
    model[4].requires_grad_(False)
    assert measure(model, X).roles == {"1": "hidden", "3": "hidden"}


class Early(nn.Module):
    """One whose first steps end early: their loss is on the features."""

    def __init__(self, last):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.last = last
        self.steps = 0

    def forward(self, x):
        self.steps += 1
        h = torch.sigmoid(self.a(x))
        return h if self.steps == 1 else self.last(self, x, h)


def test_a_role_is_corrected_when_a_later_pass_shows_more(measure):
    hidden = Early(lambda m, x, h: m.c(torch.tanh(m.b(h))))
    assert measure(hidden, X, steps=1).roles == {":sigmoid": "output"}
    result = measure(hidden, X, steps=2)
    assert result.roles == {":sigmoid": "hidden", ":tanh": "hidden"}
    past_another = Early(lambda m, x, h: m.c(F.relu(h.square() - 0.2)))
    assert measure(past_another, X, steps=2).roles == {":sigmoid": "hidden", ":relu": "hidden"}
    gate = Early(lambda m, x, h: m.c(m.b(x) * h))
    assert measure(gate, X, steps=2).roles == {":sigmoid": "gate"}
    # What was seen once stays so.
    gate.steps = 0
    assert measure(gate, X, steps=1).roles == {":sigmoid": "output"}
    alone = Early(lambda m, x, h: h)
    assert measure(alone, X, steps=3).roles == {":sigmoid": "output"}


@pytest.mark.parametrize("function", [Tensor.backward, torch.autograd.backward])
def test_what_a_second_loss_is_led_on_from_a_graph_that_was_kept(function):
    """An encoder's own loss comes first: what it made feeds the decoder all the same."""
    torch.manual_seed(0)
    encoder, decoder = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    model = nn.Sequential(encoder, decoder, nn.Linear(4, 1))
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with probe:
        h = encoder(X)
        function(h.square().mean(), retain_graph=True)
        model[2](decoder(h)).square().mean().backward()
        probe._optimizers[0].step()
    assert {site.name: (site.role, site.predecessors) for site in probe.info.sites} == {
        "0.1": ("hidden", ()),
        "1.1": ("hidden", ("0.1",)),
    }
    assert [layer.name for layer in probe.info.layers] == ["0.0", "1.0", "2"]


class Held(torch.autograd.Function):
    """A step of a graph that can be seen to go."""

    @staticmethod
    def forward(ctx, x):
        ctx.held = Held.latest = Early(None)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_a_graph_that_was_kept_is_let_go_when_the_next_pass_ends():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 1))
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with probe:
        loss = model[2](Held.apply(model[:2](X))).sum()
        kept = weakref.ref(Held.latest)
        Held.latest = None
        loss.backward(retain_graph=True)
        del loss
        assert kept() is not None
        model(X).sum().backward()
        assert kept() is None
        probe._optimizers[0].step()


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
