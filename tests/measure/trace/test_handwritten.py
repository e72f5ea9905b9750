"""Activation functions written by hand: one site each, judged as torch's own function of the same z."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gradwatch.measure.probe import Probe

ROOT = math.sqrt(2.0 / math.pi)


class NewGELU(nn.Module):
    """As in transformers, GPT-2's."""

    def forward(self, input):  # noqa: A002
        return 0.5 * input * (1.0 + torch.tanh(ROOT * (input + 0.044715 * torch.pow(input, 3.0))))


class FastGELU(nn.Module):
    def forward(self, input):  # noqa: A002
        return 0.5 * input * (1.0 + torch.tanh(input * 0.7978845608 * (1.0 + 0.044715 * input * input)))


class Erf(nn.Module):
    def forward(self, x):
        return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


# Name: what is written, the function it computes, torch's own of z.
WRITTEN = {
    "x * sigmoid(x)": (lambda x: x * torch.sigmoid(x), "silu", F.silu),
    "sigmoid(x) * x": (lambda x: torch.sigmoid(x) * x, "silu", F.silu),
    "x.mul(x.sigmoid())": (lambda x: x.mul(x.sigmoid()), "silu", F.silu),
    "Swish": (Swish(), "silu", F.silu),
    "QuickGELU": (lambda x: x * torch.sigmoid(1.702 * x), "silu", lambda x: F.silu(1.702 * x) / 1.702),
    "tanh form": (lambda x: 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * x**3))), "gelu", lambda x: F.gelu(x, approximate="tanh")),
    "tanh form, constants last": (lambda x: x * (torch.tanh(ROOT * (x + 0.044715 * x * x * x)) + 1) * 0.5, "gelu", lambda x: F.gelu(x, approximate="tanh")),
    "NewGELU": (NewGELU(), "gelu", lambda x: F.gelu(x, approximate="tanh")),
    "FastGELU": (FastGELU(), "gelu", lambda x: F.gelu(x, approximate="tanh")),
    "erf form": (lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2, "gelu", F.gelu),
    "Erf": (Erf(), "gelu", F.gelu),
    "x * tanh(softplus(x))": (lambda x: x * torch.tanh(F.softplus(x)), "mish", F.mish),
    "x.mul_(x.sigmoid())": (lambda x: x.mul_(x.sigmoid()), "silu", F.silu),
    "x *= x.sigmoid()": (lambda x: x.__imul__(x.sigmoid()), "silu", F.silu),
    "x.mul_(sigmoid(c x))": (lambda x: x.mul_(torch.sigmoid(1.702 * x)), "silu", lambda x: F.silu(1.702 * x) / 1.702),
    "c x in place": (lambda x: x * torch.sigmoid(x.clone().mul_(1.702)), "silu", lambda x: F.silu(1.702 * x) / 1.702),
    "erf form in place": (lambda x: x.mul_(0.5 * (1 + torch.erf(x / math.sqrt(2)))), "gelu", F.gelu),
    "erf form, constant last in place": (lambda x: (x * (1 + torch.erf(x / math.sqrt(2)))).div_(2), "gelu", F.gelu),
    "erf form, constant amid": (lambda x: x * (0.5 + 0.5 * torch.erf(x / math.sqrt(2))), "gelu", F.gelu),
    "hard swish": (lambda x: x * F.relu6(x + 3) / 6, "hardswish", F.hardswish),
    "erf form, its constant in two": (lambda x: x * (1 + torch.erf(x / math.sqrt(2))) * math.sqrt(0.5) * math.sqrt(0.5), "gelu", F.gelu),
    "hard swish, constant first": (lambda x: x / 6 * F.relu6(x + 3), "hardswish", F.hardswish),
    "hard swish, constant inside": (lambda x: x * (F.relu6(x + 3) * (1 / 6)), "hardswish", F.hardswish),
    "hard swish of hardtanh": (lambda x: x * F.hardtanh(x + 3, 0.0, 6.0) / 6.0, "hardswish", F.hardswish),
    "hard swish in place": (lambda x: x.mul_(F.relu6(x + 3.0).div_(6.0)), "hardswish", F.hardswish),
    "hard sigmoid": (lambda x: F.relu6(x + 3) / 6, "hardsigmoid", F.hardsigmoid),
    "hard sigmoid, constant first": (lambda x: (1 / 6) * F.relu6(3 + x), "hardsigmoid", F.hardsigmoid),
    "hard sigmoid of hardtanh": (lambda x: F.hardtanh(x + 3, 0.0, 6.0).mul(1 / 6), "hardsigmoid", F.hardsigmoid),
    "hard sigmoid of clamp in place": (lambda x: x.add_(3.0).clamp_(0.0, 6.0).div_(6.0), "hardsigmoid", F.hardsigmoid),
    "hard swish of a hard sigmoid": (lambda x: x * (F.relu6(x + 3) / 6), "hardswish", F.hardswish),
    "x * hardsigmoid(x)": (lambda x: x * F.hardsigmoid(x), "hardswish", F.hardswish),
    "erf_ of a copy": (lambda x: x * (0.5 * (1 + (x / math.sqrt(2)).erf_())), "gelu", F.gelu),
    "x * tanh(logaddexp(x, 0))": (lambda x: x * torch.tanh(torch.logaddexp(x, torch.zeros_like(x))), "mish", F.mish),
    "x * tanh(log1p(exp(x)))": (lambda x: x * torch.tanh(torch.log1p(torch.exp(x))), "mish", F.mish),
    "tanh(softplus(2 x)) * x": (lambda x: torch.tanh(F.softplus(2 * x)) * x, "mish", lambda x: F.mish(2 * x) / 2),
    "x * Normal.cdf(x)": (lambda x: x * torch.distributions.Normal(0.0, 1.0).cdf(x), "gelu", F.gelu),
    "tanh_ of a copy": (lambda x: x * F.softplus(x).tanh_(), "mish", F.mish),
}  # fmt: skip


class Net(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 1)
        self.act = act

    def forward(self, x):
        self.z = self.first(x)
        self.kept = self.z.detach().clone()
        return self.last(self.act(self.z))


def run(act, x, steps, weights):
    torch.manual_seed(0)
    model = Net(act).double()
    with torch.no_grad():
        model.first.weight.mul_(weights)
        model.first.bias.sub_(3 * torch.arange(12) % 7)
        model.first.bias[:3] -= 60
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    probe = Probe(model, optimizer, observations=1, batch_elements=1)
    for step in range(steps):
        optimizer.zero_grad()
        with probe:
            loss = model(x).square().sum()
            expected = torch.tensor(math.nan)
            if step == steps - 1 and torch.equal(model.z, model.kept):  # not changed in place
                (expected,) = torch.autograd.grad(loss, model.z, retain_graph=True)
            loss.backward()
            optimizer.step()
    return probe, model.kept, expected.norm().item()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_function_written_out_is_one_site_counted_as_torchs_own(name, steps):
    act, function, own = WRITTEN[name]
    torch.manual_seed(1)
    x = torch.randn(50, 6).double()
    probe, z, delta = run(act, x, steps, 4.0)
    other, z_too, own_delta = run(own, x, steps, 4.0)
    assert torch.allclose(z, z_too, rtol=1e-9)
    (site,) = probe.info.sites
    assert (site.function, site.role, site.units) == (function, "hidden", 12)
    assert site.name == ("act" if isinstance(act, nn.Module) else f":{function}")
    for metric in ("dead_fraction", "saturated_fraction", "inactive_share"):
        assert np.array_equal(probe.record.metrics[metric], other.record.metrics[metric], equal_nan=True), metric
    assert 0.1 < probe.record.metrics["inactive_share"][0] < 0.9
    assert probe.record.metrics["saturated_fraction"][0] > 0 or function in ("hardswish", "hardsigmoid")
    assert probe.record.metrics["signal_norm"][0] == pytest.approx(own_delta, rel=1e-6)
    if not math.isnan(delta):
        assert delta == pytest.approx(own_delta, rel=1e-7)  # as exact as the constants of torch's own
    assert probe.record.forward_rms[0] == pytest.approx(own(z).square().mean().sqrt().item(), rel=1e-6)
    assert probe.record.metrics["activation_gain"] == pytest.approx(other.record.metrics["activation_gain"], rel=1e-6)
    assert probe.record.window_fill[0] == 1.0


@pytest.mark.parametrize("name", ["x * sigmoid(x)", "NewGELU", "Erf", "x * tanh(softplus(x))"])
def test_no_observation_is_counted_twice(name):
    _, z, _ = run(WRITTEN[name][0], torch.randn(50, 6).double(), 1, 1.0)
    for steps in (1, 2):
        torch.manual_seed(0)
        probe = Probe(model := Net(WRITTEN[name][0]), optimizer := torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(steps):
            with probe:
                model(torch.randn(50, 6)).sum().backward()
                optimizer.step()
        assert probe.record.window_fill.tolist() == [steps * len(z) / 256]


def test_a_shared_module_written_by_hand_is_a_site_a_place(measure):
    swish = Swish()
    model = nn.Sequential(nn.Linear(3, 4), swish, nn.Linear(4, 5), swish, nn.Linear(5, 1))
    result = measure(model, torch.randn(9, 3), steps=2)
    assert {name: (site.function, site.units) for name, site in result.sites.items()} == {
        "1@0": ("silu", 4),
        "1@2": ("silu", 5),
    }


def test_torchs_own_functions_beside_keep_their_names(measure):
    model = nn.Sequential(
        nn.Linear(3, 4), NewGELU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Softplus(), nn.Linear(4, 1)
    )
    result = measure(model, torch.randn(9, 3), steps=2)
    assert [site.function for site in result.sites.values()] == ["gelu", "tanh", "softplus"]


def test_a_sigmoid_of_another_tensor_is_no_swish(measure):
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 1)

        def forward(self, x):
            return self.c(self.a(x) * torch.sigmoid(self.b(x)))

    result = measure(Gate(), torch.randn(9, 3), steps=2)
    assert [(site.function, site.role) for site in result.sites.values()] == [("sigmoid", "gate")]


@pytest.mark.parametrize(
    "way", [lambda z: 1 + torch.tanh(z), lambda z: torch.sigmoid(z) + z.roll(1, 0), lambda z: torch.tanh(z) * 0.5]
)
def test_a_sum_with_something_else_is_no_function_of_its_own(measure, way):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Linear(3, 4), nn.Linear(4, 1)

        def forward(self, x):
            return self.c(way(self.a(x)))

    result = measure(Plain(), torch.randn(9, 3))
    assert [site.function in ("tanh", "sigmoid") for site in result.sites.values()] == [True]


def test_a_hand_written_function_in_a_loop_adds_its_calls_up(measure):
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.out = nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x):
            self.all = []
            for _ in range(3):
                self.all.append(self.lin(x))
                x = self.all[-1] * torch.sigmoid(self.all[-1])
            return self.out(x)

    model = Loop()
    with torch.no_grad():
        model.lin.weight.mul_(10)
    for steps in (1, 2):
        result = measure(model, torch.randn(20, 4), steps=steps, observations=60)
        assert (result.site.function, result.site.fill) == ("silu", 1.0)
        z = torch.cat(model.all).detach().numpy()
        assert result.site.inactive_share == pytest.approx(np.mean(z < -3.298184345921125), abs=1e-12)


@pytest.mark.parametrize(
    ("act", "function"),
    [
        (lambda x: x * F.relu6(x + 3) / 3, "hardswish"),
        (lambda x: 0.5 * x * F.relu6(x + 3) / 6, "hardswish"),
        (lambda x: -(x * F.relu6(x + 3)), "hardswish"),
        (lambda x: 0.7 * (x * (1 + torch.erf(x / math.sqrt(2)))), "gelu"),
        (lambda x: (2 * x) * torch.sigmoid(x) * 3, "silu"),
    ],
)
def test_with_a_constant_of_its_own_it_is_what_that_makes_of_it(act, function):
    torch.manual_seed(1)
    x = torch.randn(50, 6).double()
    probe, z, _ = run(act, x, 1, 4.0)
    torch.manual_seed(0)
    z = z.clone().requires_grad_()
    a = act(z)
    model = Net(act).double()
    of_z, of_a = torch.autograd.grad(model.last(a).square().sum(), (z, a))
    (site,) = probe.info.sites
    assert (site.function, site.role) == (function, "hidden")
    assert probe.record.forward_rms[0] == pytest.approx(a.detach().square().mean().sqrt().item(), rel=1e-6)
    assert probe.record.metrics["activation_gain"][0] == pytest.approx((of_z.norm() / of_a.norm()).item(), rel=1e-6)


def test_what_is_multiplied_once_it_is_complete_is_left_as_it_is():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)).double()
    probe, z, _ = run(lambda x: 3 * (0.5 * (x * (1 + torch.erf(x / math.sqrt(2))))), x, 1, 4.0)
    assert probe.record.forward_rms[0] == pytest.approx(F.gelu(z).square().mean().sqrt().item(), rel=1e-6)
