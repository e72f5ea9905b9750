"""What the forward pass hides is named where it is, with how many sites it stands for; and nothing else is."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import Probe
from lightning_gradwatch.record.step import NotCovered

WIDTH = 6


class Net(nn.Module):
    """Layers a, b, c around a forward pass of the test's own."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        for name, module in modules.items():
            setattr(self, name, module)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def covered(net, *, steps=1, shape=(4, WIDTH)):
    probe = Probe(net, torch.optim.SGD(net.parameters(), lr=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's, about what it deprecates
        for _ in range(steps):
            with probe:
                net(torch.randn(shape)).square().mean().backward()
    return probe


def entries(net, **settings):
    return [tuple(vars(entry).values()) for entry in covered(net, **settings).info.coverage]


def script(what):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(what)


def two(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(torch.relu(x) + 1.0)


SCRIPTED = script(two)


class Clamps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, grad):
        return grad


class Squashes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(y := torch.sigmoid(x))
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * y * (1 - y)


def test_what_is_seen_is_not_named():
    def forward(m, x):
        x = F.gelu(m.a(x)) + F.softsign(x) * torch.sigmoid(1.7 * x)
        x = 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3)))
        x = m.b(x) * torch.tanh(F.softplus(m.b(x)))
        x = F.rrelu(m.c(F.tanhshrink(x)), training=True)
        return F.log_softmax(F.hardtanh_(x), -1) + F.glu(torch.cat([x, x], -1)) + F.selu(x)

    assert entries(Net(forward)) == []


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "binary_cross_entropy_with_logits", "kl_div"])
def test_what_a_loss_computes_inside_is_no_activation(name):
    def forward(m, x):
        z, target = m.a(x), torch.full((4, WIDTH), 0.5)
        if name in {"cross_entropy", "nll_loss"}:
            return getattr(F, name)(z, torch.arange(4))
        return getattr(F, name)(z, target, **({"reduction": "batchmean"} if name == "kl_div" else {}))

    assert entries(Net(forward)) == []


def test_activations_of_a_scripted_function_are_counted():
    ((name, reason, sites),) = entries(Net(lambda m, x: m.b(SCRIPTED(m.a(x)))))
    assert (name, sites) == ("", 2)
    assert "scripted function" in reason
    assert "tanh" in reason
    assert "relu" in reason


def test_a_scripted_function_that_torch_has_optimized_is_still_told():
    """From the second call on its graph is one node."""
    ((name, reason, _),) = entries(Net(lambda m, x: SCRIPTED(m.c(SCRIPTED(m.b(SCRIPTED(m.a(x))))))))
    assert name == ""
    assert "scripted function" in reason


def test_a_scripted_module_is_named_with_its_functions():
    inner = script(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Sigmoid()))
    net = Net(lambda m, x: m.b(m.inner(torch.tanh(m.a(x)))), inner=inner)
    probe = covered(net)
    assert probe.info.coverage == (NotCovered("inner", "scripted: its activations aren't seen", 2),)
    assert (len(probe.info.sites), probe.info.known_sites) == (1, 3)


def test_a_custom_function_is_named():
    ((name, reason, sites),) = entries(Net(lambda m, x: m.b(Clamps.apply(m.a(x)))))
    assert (name, sites) == ("Clamps", 0)
    assert "custom autograd function" in reason


def test_an_activation_inside_a_custom_function_is_a_site_without_a_signal():
    probe = covered(Net(lambda m, x: m.b(Squashes.apply(m.a(x)))))
    assert [site.name for site in probe.info.sites] == [":sigmoid"]
    told = {entry.name: entry.reason for entry in probe.info.coverage}
    assert told[":sigmoid"] == "inside a custom autograd function: its signal isn't measured"
    assert told.keys() == {":sigmoid", "Squashes"}


def test_torch_functions_that_hold_an_activation_are_named_by_what_they_hold():
    found = entries(Net(lambda m, x: m.b(F.gumbel_softmax(m.a(x))) + m.c(x)))
    assert [(name, sites) for name, _, sites in found] == [(":gumbel_softmax", 1)]


def attention(m, x):
    q, k, v = m.a(x), m.b(x), m.c(x)
    return F.scaled_dot_product_attention(q, k, v) + F.scaled_dot_product_attention(v, k, q)


def test_two_fused_calls_of_one_module_are_one_entry_of_two_sites():
    ((name, reason, sites),) = entries(Net(attention), shape=(2, 3, WIDTH))
    assert (name, sites) == (":scaled_dot_product_attention", 2)
    assert "its softmax isn't seen" in reason


def test_a_metric_is_no_part_of_the_net():
    class Metric(nn.Module):
        def forward(self, logits):
            return logits.softmax(-1).amax()

    def forward(m, x):
        logits = m.b(torch.tanh(m.a(x)))
        with torch.no_grad():
            m.metric(logits)
            logits.sigmoid()
        torch.sigmoid(logits.detach())
        return logits

    probe = covered(Net(forward, metric=Metric()))
    assert [site.name for site in probe.info.sites] == [":tanh"]
    assert probe.info.coverage == ()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.act = nn.Linear(WIDTH, WIDTH), nn.ReLU()

    def forward(self, x):
        return torch.tanh(self.act(self.inner(x)))


def test_a_frozen_part_is_told_once():
    frozen = nn.Sequential(Block(), Block()).requires_grad_(requires_grad=False)
    probe = covered(Net(lambda m, x: m.b(F.relu(m.a(m.frozen(x)))), frozen=frozen), steps=2)
    (entry,) = probe.info.coverage
    assert (entry.name, entry.sites) == ("frozen", 4)
    assert "nothing before it is trained" in entry.reason


def test_a_part_run_without_gradients_is_told_once_though_it_could_be_trained():
    def forward(m, x):
        with torch.no_grad():
            x = m.teacher(x)
        return m.b(F.relu(m.a(x)))

    net = Net(forward, teacher=nn.Sequential(Block(), Block()))
    probe = Probe(net, torch.optim.SGD([*net.a.parameters(), *net.b.parameters(), *net.c.parameters()], lr=0.1))
    with probe:
        net(torch.randn(4, WIDTH)).sum().backward()
    (entry,) = [entry for entry in probe.info.coverage if entry.sites]
    assert (entry.name, entry.sites) == ("teacher", 4)


def test_what_is_trained_later_is_named_no_more():
    net = Net(lambda m, x: m.b(m.block(x)), block=Block())
    net.block.requires_grad_(requires_grad=False)
    probe = Probe(net, torch.optim.SGD(net.parameters(), lr=0.1))

    def step():
        with probe:
            net(torch.randn(4, WIDTH)).sum().backward()
        return {entry.name for entry in probe.info.coverage}

    assert step() == {"block"}
    net.block.requires_grad_(requires_grad=True)
    assert step() == set()
    assert [site.name for site in probe.info.sites] == ["block.act", "block:tanh"]
    net.block.requires_grad_(requires_grad=False)
    assert step() == set()


def test_a_site_is_named_until_a_signal_reaches_it():
    net = Net(lambda m, x: (m.b(F.relu(m.a(x))), torch.sigmoid(m.c(x))))
    probe = Probe(net, torch.optim.SGD(net.parameters(), lr=0.1))

    def step(both):
        with probe:
            out, other = net(torch.randn(4, WIDTH))
            (out.sum() + (other.sum() if both else 0)).backward()
        return [(entry.name, entry.reason) for entry in probe.info.coverage]

    assert step(both=False) == [(":sigmoid", "no backward pass goes through it")]
    assert step(both=True) == []
    assert step(both=False) == []


def test_a_module_that_is_not_called_is_named_until_it_is():
    net = Net(lambda m, x: m.b(m.act(m.a(x)) if m.on else F.relu(m.a(x))), act=nn.ReLU())
    net.on = False
    probe = Probe(net, torch.optim.SGD(net.parameters(), lr=0.1))
    for on, expected in ((False, [("act", "not called in a measured step", 1)]), (True, [])):
        net.on = on
        with probe:
            net(torch.randn(4, WIDTH)).sum().backward()
        assert [tuple(vars(entry).values()) for entry in probe.info.coverage] == expected


def test_a_module_that_is_not_called_is_named_beside_what_is_unseen_outside_of_any_module():
    net = Net(lambda m, x: m.b(F.relu(m.a(x))), act=nn.ReLU())
    probe = Probe(net, torch.optim.SGD(net.parameters(), lr=0.1))
    with probe:
        out = net(torch.randn(4, WIDTH))
        (out + torch.func.vmap(torch.tanh)(out)).sum().backward()
    names = {(entry.name, entry.reason.partition(" or ")[0]) for entry in probe.info.coverage}
    assert names == {("act", "not called in a measured step"), (":tanh", "inside vmap")}


@pytest.mark.parametrize(
    ("apply", "reason"),
    [
        (torch.func.vmap(F.relu), "inside vmap"),
        (lambda x: torch.func.jvp(torch.tanh, (x,), (x,))[0], "inside vmap or another function transform"),
        (lambda x: torch.tanh(x.to(torch.complex64)).real, "its argument is complex"),
        (
            lambda x: F.relu(torch.nested.nested_tensor_from_jagged(x, torch.tensor([0, 1, 4]))).values(),
            "nested tensor",
        ),
        (lambda x: F.relu(x.to_sparse()).to_dense(), "sparse tensor"),
    ],
    ids=["vmap", "jvp", "complex", "jagged", "sparse"],
)
def test_arguments_that_cannot_be_counted_are_named(apply, reason):
    ((name, told, sites),) = entries(Net(lambda m, x: m.b(apply(m.a(x)))))
    assert name in {":relu", ":tanh"}
    assert reason in told
    assert sites == 1
