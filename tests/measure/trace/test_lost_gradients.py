"""Where a missing gradient is lost: at the operation that the program has there, by name, and in the module that calls it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import Probe
from lightning_gradwatch.measure.trace.lost_gradients import MOST_STEPS, MOST_TRIES
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerState, LostGradient


class Net(nn.Module):
    """A forward pass given as a function of the module and its input."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.run(self, x)


def linear(inputs=8, outputs=8, **settings):
    return nn.Linear(inputs, outputs, **settings)


def pair(run, **modules):
    """Two layers, a and b."""
    return Net(run, **{"a": linear(), "b": linear(), **modules})


def squares(net):
    return net(torch.randn(128, 8, generator=torch.Generator().manual_seed(1))).pow(2).mean()


def train(net, loss_of=squares, *, steps=3, after_backward=None, parameters=None):
    probe = Probe(net, torch.optim.SGD(net.parameters() if parameters is None else parameters, lr=0.01))
    for _ in range(steps):
        with probe:
            for parameter in net.parameters():
                parameter.grad = None
            loss_of(net).backward()
            if after_backward is not None:
                after_backward(net)
            probe._optimizers[0].step()
    return probe


def lost(*given, **settings):
    """What the last step's description says, by layer, in short."""
    info = train(*given, **settings).info
    return {
        layer.name: (layer.lost.kind, layer.lost.operation, layer.lost.module)
        for layer in info.layers
        if layer.lost is not None
    }


def attention(mask=None):
    def run(net, x):
        scores = net.q(x) @ net.k(x).transpose(-2, -1) / 8**0.5
        weights = (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1)
        return x + net.o(weights @ net.v(x))

    return Net(run, q=linear(), k=linear(), v=linear(), o=linear())


def one_position(net):
    return net(torch.randn(16, 1, 8)).pow(2).mean()


def without_graph(net, x):
    with torch.no_grad():
        h = net.a(x)
    return net.b(h)


def put_into(values):
    def run(net, x):
        filled = torch.zeros(len(x), 8)
        filled[:, :4] = values(net.a(x))
        return net.b(filled)

    return pair(run, a=linear(8, 4))


def zeros(*shape):
    return nn.Parameter(torch.zeros(*shape))


def drawn(*shape):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(0)))


def at_zero(layer):
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def beside(run, **modules):
    """A layer that learns, and beside it what is 0."""
    return Net(lambda net, x: net.a(x) + run(net, x), a=linear(), **modules)


ZERO_PAIRS = [
    ("two matrices", beside(lambda net, x: x @ net.p @ net.q, p=zeros(8, 2), q=zeros(2, 8)), {("p", "q")}),
    ("transposed", beside(lambda net, x: x @ net.p.T @ net.q.T, p=zeros(2, 8), q=zeros(8, 2)), {("p", "q")}),
    ("a weight of two", beside(lambda net, x: F.linear(x, net.q @ net.p), p=zeros(2, 8), q=zeros(8, 2)), {("p", "q")}),
    (
        "three",
        beside(lambda net, x: x @ net.p @ net.m @ net.q, p=zeros(8, 2), m=zeros(2, 2), q=zeros(2, 8)),
        {("p", "m", "q")},
    ),
    (
        "einsum",
        beside(lambda net, x: torch.einsum("bi,ir,ro->bo", x, net.p, net.q), p=zeros(8, 2), q=zeros(2, 8)),
        {("p", "q")},
    ),
    (
        "two layers",
        beside(lambda net, x: net.q(F.gelu(net.p(x))), p=at_zero(linear(8, 2)), q=at_zero(linear(2, 8))),
        {("p.weight", "q.weight")},
    ),
    (
        "a gate and what it gates",
        beside(lambda net, x: net.gate * net.q(F.relu(net.p(x))), gate=zeros(1), p=linear(), q=at_zero(linear())),
        {("q.weight", "gate")},
    ),
    ("two gates", beside(lambda net, x: net.g * net.h * net.p(x), g=zeros(1), h=zeros(1), p=linear()), {("g", "h")}),
    (
        "behind layers",
        beside(lambda net, x: net.b(x) @ net.p @ net.q, b=linear(), p=zeros(8, 2), q=zeros(2, 8)),
        {("p", "q")},
    ),
]


class TestZero:
    """The gradient is there, and exactly 0."""

    def test_softmax_over_one_key_in_each_block(self):
        found = lost(nn.Sequential(attention(), attention()), one_position)
        assert found == {
            f"{block}.{layer}": ("softmax-of-one", "softmax", str(block)) for block in range(2) for layer in "qk"
        }

    def test_fused_attention_over_one_key(self):
        def run(net, x):
            q, k, v = (part(x)[:, None] for part in (net.q, net.k, net.v))
            return net.o(F.scaled_dot_product_attention(q, k, v)[:, 0])

        net = Net(run, q=linear(), k=linear(), v=linear(), o=linear())
        assert set(lost(net, one_position).values()) <= {("softmax-of-one", "scaled_dot_product_attention", "")}

    def test_a_mask_that_leaves_one_key(self):
        found = lost(attention(torch.eye(4, dtype=torch.bool)), lambda net: net(torch.randn(16, 4, 8)).pow(2).mean())
        assert found == dict.fromkeys("qk", ("softmax-certain", "softmax", ""))

    @pytest.mark.parametrize(
        ("name", "net", "where"),
        [
            (
                "layer norm",
                pair(lambda net, x: net.b(net.n(net.a(x))), a=linear(8, 1), n=nn.LayerNorm(1), b=linear(1, 4)),
                "n",
            ),
            (
                "by hand",
                pair(lambda net, x: net.b((h := net.a(x)) - h.mean(1, keepdim=True)), a=linear(8, 1), b=linear(1, 4)),
                "",
            ),
        ],
    )
    def test_a_norm_of_one_value(self, name, net, where):
        del name
        ((kind, _, module),) = lost(net).values()
        assert (kind, module) == ("norm-of-one", where)

    @pytest.mark.parametrize("factor", [0, 0.0])
    def test_a_number_0_as_a_factor(self, factor):
        assert lost(pair(lambda net, x: net.a(x) + factor * net.b(x))) == {"b": ("times-zero", "mul", "")}

    def test_a_factor_of_0_that_is_not_learned(self):
        net = pair(
            lambda net, x: net.a(x) + net.gate * net.b(x), gate=nn.Parameter(torch.zeros(8), requires_grad=False)
        )
        assert lost(net) == {"b": ("zero-factor", "mul", "")}

    def test_weights_of_0_that_stay_so(self):
        net = Net(lambda net, x: net.a(x) + net.c(net.b(x)), a=linear(), b=linear(), c=linear())
        nn.init.zeros_(net.c.weight)
        held = [*net.a.parameters(), *net.b.parameters()]
        assert lost(net, parameters=held) == {"b": ("zero-weights", "linear", "c")}

    @pytest.mark.parametrize(("name", "net", "factors"), ZERO_PAIRS, ids=[name for name, *_ in ZERO_PAIRS])
    def test_factors_that_are_all_0_are_named_the_inputs_side_first(self, name, net, factors):
        del name
        found = [layer.lost for layer in train(net).info.layers if layer.lost is not None]
        assert {lost.kind for lost in found} == {"zero-factors"}
        assert {lost.factors for lost in found} == factors

    def test_of_two_factors_only_one_of_which_is_0_both_learn(self):
        net = Net(lambda net, x: net.a(x) + x @ net.p @ net.q, a=linear(), p=drawn(8, 2), q=zeros(2, 8))
        assert lost(net) == {}

    def test_a_factor_that_is_0_beside_zeros_from_elsewhere_is_no_pair(self):
        """No initialisation would help what is given zeros."""
        net = Net(lambda net, x: net.a(x) + (0.0 * x) @ net.p @ net.q, a=linear(), p=zeros(8, 2), q=zeros(2, 8))
        assert "zero-factors" not in {kind for kind, *_ in lost(net).values()}

    def test_a_factor_that_no_optimizer_holds_is_no_pair(self):
        net = Net(lambda net, x: net.a(x) + x @ net.p @ net.q, a=linear(), p=zeros(8, 2), q=zeros(2, 8))
        found = lost(net, parameters=[*net.a.parameters(), net.p])
        assert found["p"][0] != "zero-factors"

    def test_a_frozen_weight_of_the_same_module_gets_no_gradient_and_hides_nothing(self):
        class Adapted(nn.Linear):
            def __init__(self):
                super().__init__(8, 8)
                self.requires_grad_(False)
                self.p, self.q = zeros(8, 2), zeros(2, 8)

            def forward(self, x):
                return F.linear(x, self.weight, self.bias) + x @ self.p @ self.q

        found = [layer.lost for layer in train(nn.Sequential(Adapted(), Adapted())).info.layers]
        assert [place.factors for place in found] == [(f"{place}.p", f"{place}.q") for place in range(2)]

    def test_a_branch_that_starts_at_zero_is_not_looked_for(self):
        net = Net(lambda net, x: net.a(x) + net.c(net.b(x)), a=linear(), b=linear(), c=linear())
        nn.init.zeros_(net.c.weight)
        probe = train(net)
        assert probe._followed == 1
        assert all(layer.lost is None for layer in probe.info.layers)

    def test_zeros_as_input(self):
        net = pair(lambda net, x: net.a(x) + net.b(torch.zeros(len(x), 8)), b=linear(bias=False))
        assert lost(net) == {"b": ("zero-input", "linear", "b")}

    def test_padding_as_input(self):
        net = Net(
            lambda net, x: net.a(x) + net.e(torch.zeros(len(x), dtype=torch.long)),
            a=linear(),
            e=nn.Embedding(5, 8, padding_idx=0),
        )
        assert lost(net) == {"e": ("zero-input", "embedding", "e")}

    @pytest.mark.parametrize(
        ("kind", "operation", "run"),
        [
            ("clamped", "clamp", lambda h: h.clamp(50, 60)),
            ("rounded", "round", torch.round),
            ("masked", "where", lambda h: torch.where(torch.zeros(8, dtype=torch.bool), h, 1.0)),
            ("dropped", "dropout", lambda h: F.dropout(h, 1.0)),
            ("inactive", "relu", lambda h: F.relu(h - 100)),
            ("inactive", "hardtanh", lambda h: F.hardtanh(h - 100)),
        ],
    )
    def test_operations_that_let_nothing_back(self, kind, operation, run):
        assert lost(pair(lambda net, x: net.b(run(net.a(x))))) == {"a": (kind, operation, "")}

    def test_of_few_values_that_may_be_chance(self):
        few = lambda net: net(torch.randn(2, 8)).pow(2).mean()  # noqa: E731 - a loss
        assert lost(pair(lambda net, x: net.b(net.a(x).clamp(50, 60))), few) == {"a": ("few", "clamp", "")}

    def test_layers_far_before_the_operation(self):
        body = nn.Sequential(linear(), nn.Tanh(), linear(), nn.GELU(), linear())
        found = lost(Net(lambda net, x: net.b(net.body(x).round()), body=body, b=linear()))
        assert found == dict.fromkeys(("body.0", "body.2", "body.4"), ("rounded", "round", ""))

    def test_a_recurrent_net(self):
        net = Net(
            lambda net, x: net.b(net.l(x[:, None])[0][:, 0].round()), l=nn.LSTM(8, 8, batch_first=True), b=linear()
        )
        assert lost(net) == {"l": ("rounded", "round", "")}


class TestThrownAway:
    """It arrives, and isn't there when the optimizer steps."""

    @pytest.mark.parametrize("how", ["none", "zero", "hook"])
    def test_discarded(self, how):
        net = nn.Sequential(linear(), nn.Tanh(), linear())

        def throw(net):
            for parameter in net[2].parameters():
                if how == "none":
                    parameter.grad = None
                elif how == "zero":
                    parameter.grad.zero_()

        if how == "hook":
            for parameter in net[2].parameters():
                parameter.register_hook(lambda gradient: 0 * gradient)
        assert lost(net, after_backward=throw) == {"2": ("discarded", "", "")}

    def test_it_is_forgotten_when_the_layer_has_a_gradient_again(self):
        net = nn.Sequential(linear(), nn.Tanh(), linear())
        step = iter(range(10))

        def throw(net):
            if next(step) < 4:
                net[2].weight.grad = net[2].bias.grad = None

        assert lost(net, after_backward=throw, steps=4) == {"2": ("discarded", "", "")}
        step = iter(range(10))
        probe = train(net, after_backward=throw, steps=5)
        assert probe.info.layers[1].lost is None
        assert probe.record.layout == probe.info.layout


class TestNone:
    """No gradient comes back."""

    @pytest.mark.parametrize(
        ("operation", "module", "net"),
        [
            ("detach", "", pair(lambda net, x: net.b(net.a(x).detach()))),
            ("data", "", pair(lambda net, x: net.b(net.a(x).data))),
            ("no_grad", "a", pair(without_graph)),
            ("argmax", "", pair(lambda net, x: net.b(net.a(x).argmax(1)), b=nn.Embedding(8, 4))),
            ("tolist", "", pair(lambda net, x: net.b(torch.tensor(net.a(x).tolist())))),
            ("detach", "", pair(lambda net, x: net.b(torch.from_numpy(net.a(x).detach().numpy())))),
            ("detach", "", put_into(torch.Tensor.detach)),
            ("detach", "", pair(lambda net, x: net.b(F.linear(x, net.a.weight.detach(), net.a.bias.detach())))),
            (
                "detach",
                "inner",
                pair(
                    lambda net, x: net.b(net.inner(x)),
                    inner=Net(lambda inner, x: inner.c(x).detach(), c=linear()),
                    a=nn.Identity(),
                ),
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_where_the_graph_is_cut(self, operation, module, net):
        assert set(lost(net).values()) == {("cut", operation, module)}

    def test_a_number_that_comes_back_into_the_loss(self):
        net = pair(None)
        x = torch.randn(16, 8)
        found = lost(net, lambda net: net.b(x).pow(2).mean() + net.a(x).pow(2).mean().item())
        assert found == {"a": ("cut", "item", "")}

    def test_what_only_python_reads(self):
        net = pair(None)
        x = torch.randn(16, 8)
        logged = []

        def loss(net):
            logged.append(net.a(x).mean().item())
            return net.b(x).pow(2).mean()

        assert lost(net, loss) == {"a": ("escaped", "item", "")}

    def test_what_the_loss_leaves_out(self):
        side = nn.Sequential(linear(), nn.ReLU(), linear())
        found = lost(Net(lambda net, x: (net.side(x).exp(), net.main(x))[1], side=side, main=linear()))
        assert found == dict.fromkeys(("side.0", "side.2"), ("left-out", "", ""))

    def test_nothing_is_said_where_something_ran_out_of_sight(self):
        class Hidden(torch.autograd.Function):
            @staticmethod
            def forward(context, x):
                return torch.from_numpy(2 * x.detach().numpy())

            @staticmethod
            def backward(context, gradient):
                return 2 * gradient

        assert lost(pair(lambda net, x: (net.a(x), Hidden.apply(net.b(x)).sin())[1])) == {}

    def test_a_layer_that_is_put_into_another_tensor_has_one(self):
        assert lost(put_into(lambda h: h)) == {}


class TestCost:
    def test_a_net_whose_layers_have_gradients_is_never_followed(self):
        assert train(nn.Sequential(linear(), nn.ReLU(), linear()), steps=5)._followed == 0

    def test_a_layer_is_followed_a_few_times_and_a_run_a_few_more(self):
        class Odd(torch.autograd.Function):
            @staticmethod
            def forward(context, x):
                return x.clone()

            @staticmethod
            def backward(context, gradient):
                return None

        net = pair(lambda net, x: net.b(Odd.apply(net.a(x)) + x))
        probe = train(net, steps=MOST_TRIES + 4)
        assert probe._followed <= MOST_TRIES
        layer = probe._layers.ordered[0]
        probe._followed = MOST_STEPS
        layer.followed, layer.lost, layer.lacks = 0, None, True
        assert probe._suspects() == ()

    def test_following_changes_no_number_and_leaves_nothing(self):
        def run(watched):
            torch.manual_seed(0)
            net = nn.Sequential(attention(), linear())
            optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
            probe = Probe(net, optimizer)
            for step in range(6):
                x = torch.randn(16, 1, 8, generator=torch.Generator().manual_seed(step))
                if watched:
                    with probe:
                        optimizer.zero_grad()
                        net(x).pow(2).mean().backward()
                        optimizer.step()
                else:
                    optimizer.zero_grad()
                    net(x).pow(2).mean().backward()
                    optimizer.step()
            assert not watched or probe._followed == 1
            return net

        watched, alone = run(watched=True), run(watched=False)
        for mine, other in zip(watched.parameters(), alone.parameters(), strict=True):
            assert torch.equal(mine, other)
            assert mine.__dict__ == other.__dict__ == {}
        copy.deepcopy(watched)

    def test_after_an_exception_no_hook_is_left(self):
        net = nn.Sequential(attention(), linear())
        probe = train(net, one_position, steps=1)
        trails = []

        def step():
            with probe:
                trails.append(probe._meter.trail)
                one_position(net).backward()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            step()
        (trail,) = trails
        assert not trail._handles
        assert not trail._leaves
        assert not trail._reached


def line_after(marker):
    lines = Path(__file__).read_text("utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 2) if line.strip() == f"# {marker}")


class TestTheLine:
    """What no module of the net calls is found by its line in the program, not by a word for the net as a whole."""

    def test_of_a_call_that_the_loop_makes_itself(self):
        def loss(net):
            # cut here
            return net.b(net.a(torch.ones(4, 8)).detach()).sum()

        info = train(pair(None), loss).info
        assert info.layers[0].lost.lines == (f"loss (test_lost_gradients.py:{line_after('cut here')})",)

    def test_of_each_call_that_cuts_a_way_to_a_loss(self):
        """As in a GAN, one of which is meant: the discriminator's."""

        def losses(net):
            fake = net.a(torch.ones(4, 8))
            # its own
            own = net.b(fake.detach()).pow(2).sum()
            # by mistake
            fake = fake.detach()
            return own + net.b(fake).sum()

        info = train(pair(None), losses).info
        numbers = [line_after("its own"), line_after("by mistake")]
        assert info.layers[0].lost.lines == tuple(f"losses (test_lost_gradients.py:{number})" for number in numbers)

    def test_isnt_that_of_a_module_whose_code_is_torchs(self):
        net = nn.Sequential(linear(8, 1), nn.Softmax(dim=-1), linear(1, 8))
        (lost,) = (layer.lost for layer in train(net).info.layers if layer.lost is not None)
        assert (lost, lost.lines) == (LostGradient("softmax-of-one", "softmax", "1"), ())


def test_it_survives_json_and_an_older_description_has_none():
    net = nn.Sequential(attention(), linear())
    info = train(net, one_position).info
    assert any(layer.lost == LostGradient("softmax-of-one", "softmax", "0") for layer in info.layers)
    data = json.loads(json.dumps(info.to_dict()))
    assert RunInfo.from_dict(data) == info
    assert [layer.lost and layer.lost.lines for layer in RunInfo.from_dict(data).layers] == [
        layer.lost and layer.lost.lines for layer in info.layers
    ]
    assert RunInfo.from_dict(data).layout == info.layout
    for layer in data["layers"]:
        del layer["lost"]
    assert all(layer.lost is None for layer in RunInfo.from_dict(data).layers)


def test_the_state_of_the_layers_is_what_it_was():
    probe = train(nn.Sequential(attention(), linear()), one_position)
    states = dict(zip(probe.info.layer_names, probe.record.layer_state.tolist(), strict=True))
    assert states["0.q"] == states["0.k"] == LayerState.ZERO
    assert states["0.v"] == LayerState.OK
