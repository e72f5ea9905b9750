"""Functions written out in arithmetic: a site with autograd's numbers in float64, or named as not counted; ordinary arithmetic is neither."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from measure import one_activation
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch.measure.probe import Probe

FLAT = 1 / math.cosh(2.0) ** 2


measured = partial(one_activation.measured, spread=4, far=30, outputs=12)


class Softsign(nn.Module):
    def forward(self, x):
        return x / (1 + torch.abs(x))


# Name: what is written, the function's name, what it computes of z in float64.
WRITTEN = {
    "1 / (1 + exp(-x))": (lambda x: 1 / (1 + torch.exp(-x)), "sigmoid", torch.sigmoid),
    "1.0 / (torch.exp(-x) + 1.0)": (lambda x: 1.0 / (torch.exp(-x) + 1.0), "sigmoid", torch.sigmoid),
    "reciprocal": (lambda x: torch.reciprocal(1 + torch.exp(-x)), "sigmoid", torch.sigmoid),
    "x.neg().exp().add(1).reciprocal()": (lambda x: x.neg().exp().add(1).reciprocal(), "sigmoid", torch.sigmoid),
    "pow(-1)": (lambda x: (1 + (-x).exp()).pow(-1), "sigmoid", torch.sigmoid),
    "** -1": (lambda x: (1 + torch.exp(-x)) ** -1, "sigmoid", torch.sigmoid),
    "torch.pow(…, -1.0)": (lambda x: torch.pow(1 + torch.exp(-x), -1.0), "sigmoid", torch.sigmoid),
    "exp(x) / (1 + exp(x))": (lambda x: torch.exp(x) / (1 + torch.exp(x)), "sigmoid", torch.sigmoid),
    "exp(x) / (exp(x) + 1), once": (lambda x: (e := torch.exp(x)) / (e + 1), "sigmoid", torch.sigmoid),
    "torch.div(1, …)": (lambda x: torch.div(torch.tensor(1.0), 1 + torch.exp(-1 * x)), "sigmoid", torch.sigmoid),
    "in place": (lambda x: (1 + torch.exp(-x)).reciprocal_(), "sigmoid", torch.sigmoid),
    "a steeper one": (lambda x: 1 / (1 + torch.exp(-2 * x)), "sigmoid", lambda x: torch.sigmoid(2 * x)),
    "expm1": (lambda x: 1 / (2 + torch.expm1(-x)), "sigmoid", torch.sigmoid),
    "x / (1 + |x|)": (lambda x: x / (1 + torch.abs(x)), "softsign", F.softsign),
    "x / (1 + x.abs())": (lambda x: x / (1 + x.abs()), "softsign", F.softsign),
    "x * (1 + |x|)^-1": (lambda x: x * (1 + abs(x)).reciprocal(), "softsign", F.softsign),
    "x.div(x.abs() + 1)": (lambda x: x.div(x.abs() + 1), "softsign", F.softsign),
    "a module": (Softsign(), "softsign", F.softsign),
    "(e^x - e^-x) / (e^x + e^-x)": (lambda x: (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x)), "tanh", torch.tanh),
    "the same, each once": (lambda x: ((p := x.exp()) - (n := (-x).exp())) / (p + n), "tanh", torch.tanh),
    "(1 - e^-2x) / (1 + e^-2x)": (lambda x: (1 - torch.exp(-2 * x)) / (1 + torch.exp(-2 * x)), "tanh", torch.tanh),
    "(e^2x - 1) / (e^2x + 1)": (lambda x: (torch.exp(2 * x) - 1) / (torch.exp(2 * x) + 1), "tanh", torch.tanh),
    "2 / (1 + e^-2x) - 1": (lambda x: 2 / (1 + torch.exp(-2 * x)) - 1, "tanh", torch.tanh),
    "1 - 2 / (1 + e^2x)": (lambda x: 1 - 2 / (1 + torch.exp(2 * x)), "tanh", torch.tanh),
    "sinh / cosh": (lambda x: torch.sinh(x) / torch.cosh(x), "tanh", torch.tanh),
    "x / sqrt(1 + x * x)": (lambda x: x / torch.sqrt(1 + x * x), "isru", lambda x: x / (1 + x * x).sqrt()),
    "x * rsqrt(1 + x ** 2)": (lambda x: x * torch.rsqrt(1 + x**2), "isru", lambda x: x / (1 + x * x).sqrt()),
    "x / (1 + x.square()) ** 0.5": (lambda x: x / (1 + x.square()) ** 0.5, "isru", lambda x: x / (1 + x * x).sqrt()),
    "x / (1 + exp(-x))": (lambda x: x / (1 + torch.exp(-x)), "silu", F.silu),
    "x * (1 / (1 + exp(-x)))": (lambda x: x * (1 / (1 + torch.exp(-x))), "silu", F.silu),
    "QuickGELU": (lambda x: x / (1 + torch.exp(-1.702 * x)), "silu", lambda x: x * torch.sigmoid(1.702 * x)),
    "log(1 + exp(x))": (lambda x: torch.log(1 + torch.exp(x)), "softplus", F.softplus),
    "log1p(exp(x))": (lambda x: x.exp().log1p(), "softplus", F.softplus),
    "logaddexp(x, 0)": (lambda x: torch.logaddexp(x, torch.zeros_like(x)), "softplus", F.softplus),
    "logaddexp(0, x)": (lambda x: torch.logaddexp(torch.tensor(0.0), x), "softplus", F.softplus),
    "max(x, 0) + log1p(exp(-|x|))": (lambda x: x.clamp(min=0) + torch.log1p(torch.exp(-x.abs())), "softplus", F.softplus),
    "relu(x) + log(1 + exp(-|x|))": (lambda x: F.relu(x) + torch.log(1 + torch.exp(-torch.abs(x))), "softplus", F.softplus),
    "(x + |x|) / 2": (lambda x: (x + x.abs()) / 2, "relu", F.relu),
    "0.5 * (|x| + x)": (lambda x: 0.5 * (torch.abs(x) + x), "relu", F.relu),
    "x / 2 + |x| / 2": (lambda x: x / 2 + x.abs() / 2, "relu", F.relu),
    "x * (1 + sign(x)) / 2": (lambda x: x * (1 + torch.sign(x)) / 2, "relu", F.relu),
    "sin": (torch.sin, "sin", torch.sin),
    "sin of 3 x": (lambda x: torch.sin(3 * x), "sin", torch.sin),
    "cos": (lambda x: x.cos(), "cos", torch.cos),
    "atan": (torch.atan, "atan", torch.atan),
    "arctan": (lambda x: x.arctan(), "atan", torch.atan),
    "asinh": (torch.asinh, "asinh", torch.asinh),
}  # fmt: skip
NEVER_FLAT = ("sin", "cos", "asinh")


def slopes_of(function, z):
    z = z.detach().double().requires_grad_()
    (slope,) = torch.autograd.grad(function(z).sum(), z)
    return slope.abs()


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", WRITTEN)
def test_it_is_one_site_whose_numbers_are_autograds(name, steps):
    act, function, own = WRITTEN[name]
    model, probe, x = measured(act, steps=steps)
    (site,) = probe.info.sites
    assert (site.function, site.role, site.units) == (function, "hidden", 12)
    assert site.name == ("act" if isinstance(act, nn.Module) else f":{function}") or name == "x * (1 / (1 + exp(-x)))"
    assert probe.info.coverage == ()
    record = probe.record
    factor = 3.0 if name == "sin of 3 x" else 1.0
    model.double()
    z = (factor * model.first(x.double())).detach().requires_grad_()
    a = own(z)
    expected, of_output = torch.autograd.grad(model.last(a).square().mean(), [z, a])
    assert record.metrics["signal_norm"][0] == pytest.approx(expected.norm().item(), rel=1e-4)
    assert record.metrics["activation_gain"][0] == pytest.approx((expected.norm() / of_output.norm()).item(), rel=1e-4)
    assert record.forward_rms[0] == pytest.approx(a.detach().square().mean().sqrt().item(), rel=1e-5)
    if function == "relu":
        off = (z <= 0).double()
        assert record.metrics["inactive_share"][0] == pytest.approx(off.mean().item())
        assert record.metrics["dead_fraction"][0] == (off.mean(0) == 1).double().mean() > 0
        return
    assert record.metrics["dead_fraction"][0] == 0
    if function in NEVER_FLAT:
        assert np.isnan(record.metrics["saturated_fraction"][0])
        return
    steepest = slopes_of(own, torch.linspace(-6, 6, 200_001)).max()
    flat = slopes_of(own, z) < FLAT * steepest
    if function == "silu":  # its outer bounded side
        flat &= z < (-2 / 1.702 if name == "QuickGELU" else -2)
    assert record.metrics["inactive_share"][0] == pytest.approx(flat.double().mean().item(), abs=1e-9)
    assert record.metrics["saturated_fraction"][0] == (flat.double().mean(0) >= 0.95).double().mean()
    assert record.metrics["saturated_fraction"][0] > 0


def assigned(x):
    y = x.clone()
    y[y < 0] = 0
    return y


class PReLU(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.a = nn.Parameter(torch.full((12,), 0.25))
        self.way = way

    def forward(self, x):
        return self.way(x, self.a)


UNKNOWN = {
    "x[x < 0] = 0": (assigned, ":setitem"),
    "x * exp(-x)": (lambda x: x * torch.exp(-x / 9), ":exp"),
    "a Gaussian": (lambda x: torch.exp(-x.square()), ":square"),
    "exp": (lambda x: torch.exp(x / 9), ":exp"),
    "square": (torch.square, ":square"),
    "x ** 2": (lambda x: x**2, ":pow"),
    "x * x": (lambda x: x * x, ":mul"),
    "x / (1 + x²)": (lambda x: x / (1 + x * x), ":mul"),
    "erf": (torch.erf, ":erf"),
    "abs": (torch.abs, ":abs"),
    "expm1": (lambda x: torch.expm1(x / 9), ":expm1"),
    "sinh": (lambda x: torch.sinh(x / 9), ":sinh"),
    "log cosh": (lambda x: torch.log(torch.cosh(x / 9)), ":cosh"),
    "a scaled sigmoid": (lambda x: 3.7 / (1 + torch.exp(-x)), ":exp"),
    "with dropout": (lambda x: F.dropout(torch.exp(x / 9), 0.2), ":exp"),
    "viewed": (lambda x: torch.abs(x.view(64, 3, 4)).flatten(1), ":abs"),
    "around a residual block": (lambda x: x + torch.square(x), ":square"),
    "of what was shifted": (lambda x: 0.5 * (1 + torch.erf((x - 0.7).div(0.28 * math.sqrt(2)))), ":erf"),
    "shifted, then squared": (lambda x: (x + 1) ** 2, ":pow"),
    "a distance": (lambda x: (x - x.roll(1, 0)).square(), ":square"),
    "a difference": (lambda x: (x - x.roll(1, 0)).abs(), ":abs"),
    "a difference, moved": (lambda x: (x - x.roll(1, 0)).view(64, 3, 4).pow(2).flatten(1), ":pow"),
    "a product of differences": (lambda x: (d := x - x.roll(1, 0)) * d, ":mul"),
    "a sum of two, squared": (lambda x: (x + x.roll(1, 0)) ** 2, ":pow"),
    "the distance of two, as a Gaussian": (lambda x: torch.exp(-((x - x.roll(1, 0)) ** 2)), ":pow"),
    "leaky, by its size": (lambda x: 0.55 * x + 0.45 * x.abs(), ":abs"),
    "x |x|": (lambda x: x * x.abs(), ":abs"),
    "the logarithm of the size": (lambda x: torch.sign(x) * torch.log1p(x.abs()), ":sign"),
    "log": (lambda x: torch.log(x + 1000), ":log"),
    "sqrt": (lambda x: (x + 1000).sqrt(), ":sqrt"),
    "1 / x": (lambda x: 1 / (x + 1000), ":rdiv"),
    "logaddexp with another": (lambda x: torch.logaddexp(x, torch.ones_like(x)), ":logaddexp"),
    "GELU by ndtr": (lambda x: x * torch.special.ndtr(x), ":special_ndtr"),
    "erfc": (torch.erfc, ":erfc"),
    "tan": (lambda x: torch.tan(x / 99), ":tan"),
    "sinc": (torch.sinc, ":sinc"),
    "squareplus": (lambda x: (x + torch.sqrt(x * x + 4)) / 2, ":mul"),
    "ELU of a ReLU": (lambda x: F.relu(x) + (torch.exp(-F.relu(-x)) - 1), ":relu"),
    "leaky, of two ReLUs": (lambda x: F.relu(x) - 0.1 * F.relu(-x), ":relu"),
    "ELU, cut off": (lambda x: torch.clamp(x, min=0) + torch.expm1(torch.clamp(x, max=0)), ":relu"),
    "x ** 3": (lambda x: x**3, ":pow"),
    "pow(x, 3.0)": (lambda x: torch.pow(x / 9, 3.0), ":pow"),
    "float_power": (lambda x: x.float_power(2).float(), ":float_power"),
    "frac": (torch.frac, ":frac"),
    "fmod": (lambda x: torch.fmod(x, 1), ":fmod"),
    "x % 1": (lambda x: x % 1, ":remainder"),
    "x - floor(x)": (lambda x: x - torch.floor(x), ":floor"),
    "hypot": (lambda x: torch.hypot(x, torch.ones_like(x)) - 1, ":hypot"),
    "i0": (lambda x: torch.special.i0(x / 9), ":special_i0"),
    "copysign": (lambda x: torch.copysign(x, torch.ones_like(x)), ":copysign"),
    "huber_loss": (lambda x: F.huber_loss(x, torch.zeros_like(x), reduction="none"), ":huber_loss"),
    "smooth_l1_loss": (lambda x: F.smooth_l1_loss(x, torch.zeros_like(x), reduction="none"), ":smooth_l1_loss"),
    "mse_loss": (lambda x: F.mse_loss(x, torch.zeros_like(x), reduction="none"), ":mse_loss"),
    "x erf(softplus(x))": (lambda x: x * torch.erf(F.softplus(x)), ":softplus"),
    "erf(softplus(x)) x": (lambda x: torch.erf(F.softplus(x)) * x, ":softplus"),
    "x tanh(softplus(x, beta=2))": (lambda x: x * torch.tanh(F.softplus(x, beta=2)), ":tanh"),
    "x tanh(2 softplus(x))": (lambda x: x * torch.tanh(2 * F.softplus(x)), ":tanh"),
    "x (1 + tanh(softplus(x)))": (lambda x: x * (1 + torch.tanh(F.softplus(x))), ":tanh"),
    "x tanh(exp(x))": (lambda x: x * torch.tanh(torch.exp(x)), ":tanh"),
    "x exp(-softplus(x))": (lambda x: x * torch.exp(-F.softplus(x)), ":softplus"),
    "x tanh(x)": (lambda x: x * torch.tanh(x), ":tanh"),
    "x softplus(x)": (lambda x: x * F.softplus(x), ":softplus"),
    "x atan(x)": (lambda x: x * torch.atan(x), ":atan"),
    "x sigmoid(x)²": (lambda x: x * torch.sigmoid(x) ** 2, ":sigmoid"),
    "x sigmoid(x + 1)": (lambda x: x * torch.sigmoid(x + 1), ":sigmoid"),
    "x sigmoid(x²)": (lambda x: x * torch.sigmoid(x**2), ":sigmoid"),
    "x (1 + sigmoid(x))": (lambda x: x * (1 + torch.sigmoid(x)), ":sigmoid"),
    "x (1 - sigmoid(x))": (lambda x: x * (1 - torch.sigmoid(x)), ":sigmoid"),
    "x (1 + tanh(x)) / 2": (lambda x: x * (1 + torch.tanh(x)) / 2, ":tanh"),
    "x (0.5 + tanh(…))": (lambda x: x * (0.5 + torch.tanh(0.8 * (x + 0.0447 * x**3))), ":tanh"),
    "x (1 + erf(x)) / 2": (lambda x: x * (1 + torch.erf(x)) / 2, ":erf"),
    "x (1 - erf(x / √2)) / 2": (lambda x: x * (1 - torch.erf(x / math.sqrt(2))) / 2, ":erf"),
    "x Φ(x - 1)": (lambda x: x * torch.distributions.Normal(1.0, 1.0).cdf(x), ":erf"),
    "x + relu(x)": (lambda x: x + F.relu(x), ":relu"),
    "leaky, of a ReLU": (lambda x: 0.1 * x + 0.9 * F.relu(x), ":relu"),
    "x - 0.9 relu(x)": (lambda x: x - 0.9 * F.relu(x), ":relu"),
    "leaky, of two masks": (lambda x: x * (x > 0).float() + 0.1 * x * (x <= 0).float(), ":relu"),
    "x - tanh(x)": (lambda x: x - torch.tanh(x), ":tanh"),
    "sigmoid(x) + x": (lambda x: torch.sigmoid(x) + x, ":sigmoid"),
    "exp(x + x)": (lambda x: torch.exp((x + x) / 9), ":exp"),
    "the exponential of a difference": (lambda x: torch.exp((x - x.roll(1, 0)) / 9), ":exp"),
    "x (1 - x)": (lambda x: x * (1 - x), ":mul"),
    "a square, interpolated": (lambda x: torch.lerp(torch.zeros_like(x), x * x, 0.5), ":mul"),
    "leaky, interpolated": (lambda x: torch.lerp(x, F.relu(x), 0.9), ":relu"),
    "leaky, by addcmul": (lambda x: torch.addcmul(x, F.relu(x), torch.full_like(x, 9.0)), ":relu"),
    "around dropout": (lambda x: x + F.dropout(F.relu(x), 0.1), ":relu"),
    "leaky, by alpha": (lambda x: torch.add(x, F.relu(x), alpha=9), ":relu"),
    "PReLU": (PReLU(lambda x, a: F.relu(x) - a * F.relu(-x)), "act:relu"),
    "PReLU, the other way round": (PReLU(lambda x, a: -a * F.relu(-x) + F.relu(x)), "act:relu"),
    "PReLU of clamp": (PReLU(lambda x, a: x.clamp(min=0) + a * x.clamp(max=0)), "act:relu"),
    "PReLU of a size": (PReLU(lambda x, a: F.relu(x) + a * (x - x.abs()) / 2), "act:abs"),
    "a sum of two": (lambda x: torch.exp(x / 9) + torch.exp(-x / 9), ":exp"),
}


def named_alone(act):
    """The one entry of what isn't covered, of a net that has no site."""
    _, probe, _ = measured(act, steps=2)
    assert not probe.info.sites
    (entry,) = probe.info.coverage
    return entry


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_named_where_it_is(name):
    act, place = UNKNOWN[name]
    entry = named_alone(act)
    assert (entry.name, entry.sites) == (place, 1)
    assert entry.reason == "an activation function by hand that isn't counted: which one it is isn't known"


def test_what_becomes_a_piece_in_a_later_step_is_named_then():
    class Late(nn.Module):
        steps = 0

        def forward(self, x):
            self.steps += 1
            a = F.relu(x)
            return a if self.steps < 3 else a - 0.1 * F.relu(-x)

    _, probe, _ = measured(Late(), steps=4)
    assert [site.function for site in probe.info.sites] == ["relu"]  # it was one
    assert [entry.name for entry in probe.info.coverage] == ["act"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_is_recomputed_is_named_as_well(reentrant):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)

        def leaky(self, x):
            z = self.b(x)
            return 0.1 * z + 0.9 * F.relu(z)

        def forward(self, x):
            return self.c(checkpoint(self.leaky, self.a(x), use_reentrant=reentrant))

    torch.manual_seed(0)
    with Probe(model := Net(), optimizer := torch.optim.SGD(model.parameters(), 0.1)) as probe:
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
    assert probe.info.sites == ()
    assert [entry.name for entry in probe.info.coverage] == [":relu"]


PIECES = {
    "where(x > 0, x, 0.1 elu(x))": (lambda x: torch.where(x > 0, x, 0.1 * F.elu(x)), ":where"),
    "where(x > 0, tanh(x), 0.1 x)": (lambda x: torch.where(x > 0, torch.tanh(x), 0.1 * x), ":where"),
    "where(x > 0, relu(x), sigmoid(x))": (lambda x: torch.where(x > 0, F.relu(x), torch.sigmoid(x)), ":where"),
    "where in where": (lambda x: torch.where(x > 1, 1.0, torch.where(x < 0, 0.0, x)), ":where"),
    "min(relu6(x), x)": (lambda x: torch.minimum(F.relu6(x), x), ":minimum"),
    "max(relu(x), gelu(x))": (lambda x: torch.maximum(F.relu(x), F.gelu(x)), ":maximum"),
    "max(hardsigmoid(x), x)": (lambda x: torch.maximum(F.hardsigmoid(x), x), ":maximum"),
    "min(sin(relu(x)), x)": (lambda x: torch.minimum(torch.sin(F.relu(x)), x), ":minimum"),
    "max(erf(x), x)": (lambda x: torch.maximum(torch.erf(x), x), ":maximum"),
    "max(|x|, x + 1)": (lambda x: torch.maximum(x.abs(), x + 1), ":maximum"),
    "slopes of two masks": (lambda x: ((x > 0) + 0.1 * (x <= 0)) * x, ":mul"),
    "slopes of where": (lambda x: torch.where(x > 0, 1.0, 0.1).mul(x), ":mul"),
    "a mask the other way round": (lambda x: x * ~(x <= 0), ":mul"),
}


@pytest.mark.parametrize("name", PIECES)
def test_what_has_other_pieces_is_named_where_they_are_put_together(name):
    act, place = PIECES[name]
    entry = named_alone(act)
    assert (entry.name, entry.sites) == (place, 1)
    assert "isn't known" in entry.reason


def test_a_module_of_its_own_is_named_by_its_name():
    class Squared(nn.Module):
        def forward(self, x):
            return x**2

    _, probe, _ = measured(Squared())
    assert [entry.name for entry in probe.info.coverage] == ["act"]


@pytest.mark.parametrize(
    ("act", "place"),
    [(lambda x: torch.tanh(x.abs()), ":abs"), (lambda x: F.relu(x**2 - 1), ":pow"), (lambda x: torch.sigmoid(torch.frac(x)), ":frac")],
)  # fmt: skip
def test_what_an_activation_takes_is_named_too(act, place):
    _, probe, _ = measured(act, steps=2)
    assert [site.role for site in probe.info.sites] == ["hidden"]
    assert [entry.name for entry in probe.info.coverage] == [place]


def test_a_second_bound_is_a_site_as_the_first_is():
    model, probe, x = measured(lambda x: x.clamp(max=1).clamp(min=0))
    z = model.first(x).detach()
    assert [site.function for site in probe.info.sites] == ["hardtanh", "relu"]
    expected = [(z > 1).double().mean().item(), (z < 0).double().mean().item()]
    assert probe.record.metrics["inactive_share"].tolist() == pytest.approx(expected)


def _norm(x):
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(
        (x - x.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + 1e-5
    )


def _attention(x):
    q = x.view(4, 16, 12)
    scores = q @ q.mT / math.sqrt(12)
    e = torch.exp(scores - scores.amax(-1, keepdim=True))
    return ((e / e.sum(-1, keepdim=True)) @ q).reshape(64, 12)


ORDINARY = {
    "layer norm": _norm,
    "rms norm": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "rms norm, divided": lambda x: x / x.square().mean(-1, keepdim=True).sqrt(),
    "unit length": lambda x: x / (x * x).sum(-1, keepdim=True).sqrt(),
    "by the largest": lambda x: x / x.abs().amax(-1, keepdim=True),
    "by the sum of the sizes": lambda x: x / (x.abs().sum(-1, keepdim=True) + 1e-6),
    "batch norm": lambda x: (x - x.mean(0)) / torch.sqrt(x.var(0) + 1e-5),
    "softmax": lambda x: torch.exp(x) / torch.exp(x).sum(-1, keepdim=True),
    "softmax, shifted": lambda x: (e := torch.exp(x - x.amax(-1, keepdim=True))) / e.sum(-1, keepdim=True),
    "attention": _attention,
    "positions": lambda x: x + torch.cat([torch.sin(torch.arange(64.0)[:, None] / 10 ** torch.arange(6)), torch.cos(torch.arange(64.0)[:, None] / 10 ** torch.arange(6))], -1),
    "rotated": lambda x: x * torch.cos(torch.arange(12.0)) + x.roll(1, -1) * torch.sin(torch.arange(12.0)),
    "a sample": lambda x: x + torch.exp(0.5 * x.roll(1, -1)) * torch.randn_like(x),
    "a sample of a layer's": lambda x: x.roll(1, -1) + torch.exp(0.05 * x) * torch.randn_like(x),
    "a scale": lambda x: x * torch.exp(0.01 * x.roll(1, -1)),
    "a distance to centres": lambda x: (x[:, None] - x.detach()[None, :12]).pow(2).sum(-1),
    "pooled moments": lambda x: x + (x**2).mean(0) - x.mean(0) ** 2,
    "powers of positions": lambda x: x + torch.pow(torch.rand(12) + 1, torch.arange(12.0)) + torch.pow(x.detach().abs(), torch.ones(12)),
    "a learned exponent": lambda x: x.detach().abs().add(0.1) ** (x / 99) + torch.pow(2.0, x.detach()),
    "a constant": lambda x: x * torch.exp(torch.tensor(0.1)),
    "a difference to the mean": lambda x: (x - x.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + x,
    "standard deviations": lambda x: x + torch.sqrt(x.var(0, keepdim=True) + 1e-5).expand_as(x),
    "a residual's root mean square": lambda x: (r := x + x.roll(1, 0)) * torch.rsqrt(r.pow(2).mean(-1, keepdim=True)),
    "residual of two": lambda x: x + x.roll(1, 0) * 0.5,
    "scaled and shifted": lambda x: 0.5 * (x + 1) / 3 - 2,
}  # fmt: skip


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_arithmetic_is_neither(name):
    _, probe, _ = measured(ORDINARY[name], steps=2)
    assert probe.info.sites == ()
    assert probe.info.coverage == ()


LOSSES = {
    "squares": lambda y: (y - 1).pow(2).mean(),
    "squares of the output": lambda y: y.square().mean(),
    "sizes": lambda y: y.abs().mean(),
    "logistic": lambda y: torch.log(1 + torch.exp(-torch.sign(torch.arange(12.0) - 5) * y / 9)).mean(),
    "Poisson": lambda y: (torch.exp(y / 99) - y).mean(),
    "cross-entropy": lambda y: (torch.log(torch.exp(y / 9).sum(-1)) - y[:, 0]).mean(),
    "Cauchy": lambda y: torch.log(1 + y * y).mean(),
    "angles": lambda y: (1 - torch.cos(y - 1)).mean(),
    "smooth": lambda y: torch.sqrt(1 + y**2).mean(),
    "the distance of two": lambda y: (y - y.roll(1, 0)).square().mean(),
    "the size of a difference": lambda y: (y - y.roll(1, 0)).abs().sum(),
    "two squares": lambda y: ((y - y.roll(1, 0)) * (y - y.roll(1, 0))).mean(),
    "pairs": lambda y: torch.log(1 + torch.exp(-(y - y.roll(1, 0)) / 9)).mean(),
    "cubes": lambda y: (y**3).abs().mean(),
    "Huber's": lambda y: F.huber_loss(y, torch.ones(64, 12)),
    "Huber's, weighed": lambda y: (F.huber_loss(y, torch.ones(64, 12), reduction="none") * torch.rand(64, 12)).sum(),
    "expectiles": lambda y: (torch.where(y > 0, 0.9, 0.1) * y**2).mean(),
    "of two pieces": lambda y: torch.where(y > 0, y.square(), 0.1 * y.square()).mean(),
    "binary, by softplus": lambda y: (F.softplus(y) - y).mean(),
    "binary, by hand": lambda y: (F.relu(y) - 0.3 * y + torch.log1p(torch.exp(-y.abs()))).mean(),
    "log cosh": lambda y: (y + F.softplus(-2 * y)).mean(),
    "like a swish": lambda y: (y * torch.sigmoid(y + 1)).mean(),
    "y (1 - y)": lambda y: (y * (1 - y)).mean(),
    "inverse": lambda y: (1 / (y + 1000)).mean(),
    "root": lambda y: (y + 1000).sqrt().log().mean(),
    "Gaussian": lambda y: (y.square() * torch.exp(-y / 99) + y).mean(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_neither(name):
    _, probe, _ = measured(F.relu, loss=LOSSES[name], steps=2)
    assert [site.function for site in probe.info.sites] == ["relu"]
    assert probe.info.coverage == ()


def test_what_a_loss_gives_an_activation_is_none_of_the_net():
    _, probe, _ = measured(F.relu, loss=lambda y: F.relu(1 - y.abs()).sum() + F.softplus(y**3 / 99).sum(), steps=2)
    assert [(site.function, site.role) for site in probe.info.sites] == [
        ("relu", "hidden"),
        ("relu", "output"),
        ("softplus", "output"),
    ]
    assert probe.info.coverage == ()


def test_a_sigmoid_written_out_is_a_gate_where_it_gates():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x):
            return self.c(self.a(x) / (1 + torch.exp(-self.b(x))) + self.a(x) * (1 / (1 + torch.exp(-self.b(x)))))

    torch.manual_seed(0)
    model = Gated()
    with Probe(model, optimizer := torch.optim.SGD(model.parameters(), 0.1)) as probe:
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
    assert [(site.function, site.role) for site in probe.info.sites] == [("sigmoid", "gate")]


def test_a_sigmoid_written_out_at_the_end_is_an_output():
    _, probe, _ = measured(lambda x: 1 / (1 + torch.exp(-x)), last=False)
    assert [(site.function, site.role) for site in probe.info.sites] == [("sigmoid", "output")]


def test_siren():
    class Sine(nn.Module):
        def forward(self, x):
            return torch.sin(30 * x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), Sine(), nn.Linear(16, 16), Sine(), nn.Linear(16, 1))
    with Probe(model, optimizer := torch.optim.SGD(model.parameters(), 0.1)) as probe:
        model(torch.rand(9, 2)).sum().backward()
        optimizer.step()
    assert [(site.name, site.function, site.role, site.predecessors) for site in probe.info.sites] == [
        ("1", "sin", "hidden", ()),
        ("3", "sin", "hidden", ("1",)),
    ]
    assert probe.info.coverage == ()
