"""ReLU and its like written by hand (``clamp``, ``maximum``, ``where``, a mask): counted, and their signal, against autograd."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from measure import one_activation
from torch import nn

from lightning_gradwatch.measure.probe import Probe

ZERO = torch.zeros(())


def nowhere(z):
    return np.zeros(z.shape, dtype=bool)


def _masked(y):
    return y.mul_(y > 0)


# Name: what is written, the function's name, where its derivative is 0 of a float64 array.
WRITTEN = {
    "clamp(min=0)": (lambda x: x.clamp(min=0), "relu", lambda z: z < 0),
    "clamp(x, 0)": (lambda x: torch.clamp(x, 0), "relu", lambda z: z < 0),
    "clamp(min=tensor)": (lambda x: x.clamp(min=ZERO), "relu", lambda z: z < 0),
    "clip": (lambda x: x.clip(0), "relu", lambda z: z < 0),
    "clamp_min": (lambda x: torch.clamp_min(x, 0), "relu", lambda z: z < 0),
    "clamp_ of a copy": (lambda x: x.clone().clamp_(min=0.0), "relu", lambda z: z < 0),
    "clamp(max=0)": (lambda x: x.clamp(max=0), "relu", lambda z: z > 0),
    "clamp(0, 6)": (lambda x: x.clamp(0, 6), "relu6", lambda z: (z < 0) | (z > 6)),
    "clamp(-1, 1)": (lambda x: torch.clamp(x, -1, 1), "hardtanh", lambda z: abs(z) > 1),
    "clamp(0, 4)": (lambda x: x.clamp(min=0.0, max=4.0), "hardtanh", lambda z: (z < 0) | (z > 4)),
    "clamp(max=2)": (lambda x: torch.clamp(x, max=2.0), "hardtanh", lambda z: z > 2),
    "clamp_max": (lambda x: x.clamp_max(2.0), "hardtanh", lambda z: z > 2),
    "clamp(min=-1)": (lambda x: x.clamp(-1), "hardtanh", lambda z: z < -1),
    "maximum(x, 0)": (lambda x: torch.maximum(x, ZERO), "relu", lambda z: z < 0),
    "maximum(0, x)": (lambda x: torch.maximum(torch.zeros(1), x), "relu", lambda z: z < 0),
    "max(x, zeros_like)": (lambda x: torch.max(x, torch.zeros_like(x)), "relu", lambda z: z < 0),
    "x.max(new_zeros)": (lambda x: x.max(x.new_zeros(1)), "relu", lambda z: z < 0),
    "fmax": (lambda x: torch.fmax(x, ZERO), "relu", lambda z: z < 0),
    "minimum(x, 1)": (lambda x: torch.minimum(x, torch.tensor(1.0)), "hardtanh", lambda z: z > 1),
    "max(x, 0.1 x)": (lambda x: torch.max(x, 0.1 * x), "leaky_relu", nowhere),
    "where(x > 0, x, 0)": (lambda x: torch.where(x > 0, x, 0.0), "relu", lambda z: z <= 0),
    "where(x > 0, x, zeros)": (lambda x: torch.where(x > 0, x, torch.zeros_like(x)), "relu", lambda z: z <= 0),
    "where(x < 0, 0, x)": (lambda x: torch.where(x < 0, torch.zeros_like(x), x), "relu", lambda z: z < 0),
    "x.where": (lambda x: x.where(x >= 0, torch.zeros(())), "relu", lambda z: z < 0),
    "where(x.greater(0), x, 0)": (lambda x: torch.where(x.greater(0), x, 0.0), "relu", lambda z: z <= 0),
    "where(x > 1, x, 3)": (lambda x: torch.where(x > 1, x, 3.0), "threshold", lambda z: z <= 1),
    "where(x < 2, x, 2)": (lambda x: torch.where(x < 2, x, 2.0), "hardtanh", lambda z: z >= 2),
    "where(x > 0, x, 0.1 x)": (lambda x: torch.where(x > 0, x, 0.1 * x), "leaky_relu", nowhere),
    "x * (x > 0)": (lambda x: x * (x > 0), "relu", lambda z: z <= 0),
    "(x > 0) * x": (lambda x: (x > 0) * x, "relu", lambda z: z <= 0),
    "x * (x > 0).float()": (lambda x: x * (x > 0).float(), "relu", lambda z: z <= 0),
    "x * x.gt(0).to(x.dtype)": (lambda x: x * x.gt(0).to(x.dtype), "relu", lambda z: z <= 0),
    "x.mul_(x > 0) of a copy": (lambda x: _masked(x.clone()), "relu", lambda z: z <= 0),
    "x * (x > 1)": (lambda x: x * (x > 1), "threshold", lambda z: z <= 1),
    "masked_fill": (lambda x: x.masked_fill(x < 0, 0.0), "relu", lambda z: z < 0),
    "masked_scatter": (lambda x: x.masked_scatter(x < 0, torch.zeros_like(x)), "relu", lambda z: z < 0),
    "x * (x.detach() > 0)": (lambda x: x * (x.detach() > 0), "relu", lambda z: z <= 0),
    "x * (x.data > 0).float()": (lambda x: x * (x.data > 0).float(), "relu", lambda z: z <= 0),
    "where(x.detach() < 0, 0, x)": (lambda x: torch.where(x.detach() < 0, 0.0, x), "relu", lambda z: z < 0),
    "masked_fill of what is detached": (lambda x: x.masked_fill(x.detach() < 0, 0.0), "relu", lambda z: z < 0),
    "softmin": (lambda x: F.softmin(x, -1), "softmin", None),
    "hard swish of clamp": (lambda x: x * (x + 3).clamp(0, 6) / 6, "hardswish", lambda z: z <= -3),
    "hard swish of clamp in place": (lambda x: x * (x + 3).clamp_(0, 6) / 6, "hardswish", lambda z: z <= -3),
    "hard mish": (lambda x: 0.5 * x * (x + 2).clamp(min=0, max=2), "hardswish", lambda z: z <= -2),
}  # fmt: skip


measured = partial(one_activation.measured, spread=8, far=90, outputs=1)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", WRITTEN)
def test_it_is_one_site_whose_numbers_are_autograds(name, steps):
    act, function, inactive = WRITTEN[name]
    model, probe, x = measured(act, steps=steps)
    (site,) = probe.info.sites
    assert (site.name, site.function, site.role, site.units) == (
        f":{function}",
        function,
        "hidden",
        12 if inactive else 0,
    )
    record = probe.record
    z = model.first(x).detach().double().requires_grad_()
    a = act(z)
    expected, of_output = torch.autograd.grad(model.double().last(a).square().mean(), [z, a])
    assert record.metrics["signal_norm"][0] == pytest.approx(expected.norm().item(), rel=1e-5)
    assert record.metrics["activation_gain"][0] == pytest.approx((expected.norm() / of_output.norm()).item(), rel=1e-5)
    assert record.forward_rms[0] == pytest.approx(a.detach().square().mean().sqrt().item(), rel=1e-5)
    if inactive:
        off = inactive(z.detach().numpy())
        (slope,) = torch.autograd.grad(act(z).sum(), z)
        assert np.array_equal(off, (slope == 0).numpy())
        assert record.metrics["inactive_share"][0] == pytest.approx(off.mean())
        assert record.metrics["dead_fraction"][0] == pytest.approx(off.all(0).mean())


GUARDS = {
    "a number that mustn't be 0": lambda x: x / x.abs().clamp(min=1e-6),
    "a number format": lambda x: x.clamp(-65504, 65504),
    "a gate's edge": lambda x: torch.sigmoid(x).clamp(1e-6, 1 - 1e-6),
    "the largest of each row": lambda x: x / x.max(-1, keepdim=True).values,
    "a mask of another tensor": lambda x: x * (x.detach().roll(1, 0) > 0),
    "of data": lambda x: x + torch.randn(64, 12).clamp(min=0),
    "of one number a row": lambda x: x * x.mean(-1).clamp(min=0)[:, None],
    "of a state that has changed since": lambda x: _changed(x.clone()),
    "the larger of two": lambda x: torch.maximum(x, x.roll(1, 0)),
    "a detached state that has changed since": lambda x: _changed_since(x.clone()),
    "another tensor by its own values": lambda x: x.roll(1, 0) * (x.detach() > 0),
    "a straight way through": lambda x: x + (x.round() - x).detach(),
    "by its own scale": lambda x: x / x.detach().norm(dim=-1, keepdim=True),
}


def _changed_since(y):
    on = y.detach() > 0
    return y.add_(1.0) * on


def _changed(y):
    on = y > 0
    return y.add(0.0).add_(1.0) * on


@pytest.mark.parametrize("name", GUARDS)
def test_what_guards_or_masks_is_none(name):
    _, probe, _ = measured(GUARDS[name])
    assert [site.function for site in probe.info.sites if site.function != "sigmoid"] == []


def _scaled_exponential(x):
    return torch.where(x > 0, x, torch.exp(x) - 1)


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (lambda x: torch.maximum(x, torch.full((12,), 0.5)), ":maximum"),
        (lambda x: x.clamp(min=torch.full((12,), -1.0)), ":clamp"),
        (_scaled_exponential, ":where"),
    ],
)
def test_what_may_be_one_and_isnt_known_is_in_coverage(act, name):
    _, probe, _ = measured(act)
    assert not probe.info.sites
    assert name in [entry.name for entry in probe.info.coverage]


# Functions of two pieces.
OF_TWO = {
    "the four largest": (lambda x: x * (x >= x.topk(4, -1).values[:, -1:]), ":mul"),
    "a threshold that is learned": (lambda x: torch.where(x > x.new_full((12,), 0.1), x, 0.1 * x), ":where"),
    "leaky, of two where": (lambda x: torch.where(x > 0, x, 0.0) + torch.where(x < 0, 0.1 * x, 0.0), ":where"),
    "x heaviside(x)": (lambda x: x * torch.heaviside(x.detach(), torch.zeros(())), ":mul"),
    "x times its own values": (lambda x: x * x.detach(), ":mul"),
    "masked_scatter of another": (lambda x: x.masked_scatter(x < 0, 0.1 * x), ":masked_scatter"),
    "leaky, of two where, one of them scaled": (
        lambda x: torch.where(x > 0, x, torch.zeros_like(x)) - 0.1 * torch.where(x <= 0, -x, 0.0),
        ":where",
    ),
    "two squares": (lambda x: torch.where(x > 0, x.square(), 0.1 * x.square()), ":where"),
}

# The largest, or smallest, of several units.
MAXOUTS = {
    "max": (lambda x: x.view(-1, 6, 2).max(-1).values.repeat(1, 2), ":max"),
    "max, by name": (lambda x: torch.max(x.unflatten(-1, (2, 6)), dim=1)[0].repeat(1, 2), ":max"),
    "amax": (lambda x: x.view(-1, 3, 4).amax(1).repeat(1, 3), ":amax"),
}


@pytest.mark.parametrize(
    ("act", "place", "reason"),
    [
        *((*each, "a function of two pieces that isn't known: its units aren't counted") for each in OF_TWO.values()),
        *(
            (*each, "the largest or smallest of several units: what they are together isn't counted")
            for each in MAXOUTS.values()
        ),
    ],
    ids=[*OF_TWO, *MAXOUTS],
)
def test_what_is_not_known_is_named_once_with_its_reason(act, place, reason):
    _, probe, _ = measured(act, steps=2)
    assert not probe.info.sites
    (entry,) = probe.info.coverage
    assert (entry.name, entry.sites, entry.reason) == (place, 1, reason)


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x / x.amax(-1, keepdim=True),
        lambda x: x.view(-1, 6, 2).relu().amax(-1).repeat(1, 2),  # pools what an activation function has made
        lambda x: x - x.max(0).values,
    ],
)
def test_the_largest_of_other_things_is_none(act):
    _, probe, _ = measured(act, steps=2)
    assert not probe.info.coverage


def test_weights_that_are_clamped_are_no_site():
    class Clamped(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight.clamp(-1, 1), self.bias.mul(2).clamp(min=0))

    torch.manual_seed(0)
    model = nn.Sequential(Clamped(6, 12), nn.Linear(12, 1))
    probe = Probe(model, torch.optim.SGD(model.parameters(), 0.0))
    with probe:
        model(torch.randn(8, 6)).sum().backward()
    assert not probe.info.sites


def random_cut(draw):
    """A function of u by one of the named operations, of constants that are drawn, in torch and as its inactive region."""
    low, high = draw.choice([0.0, -0.5, -1.0, -2.0]), draw.choice([0.5, 1.0, 3.0, 6.0])
    above, other = bool(draw.integers(2)), float(draw.normal())
    taken = torch.gt if above else torch.lt
    return [
        lambda u: u.clamp(low, high),
        lambda u: torch.clamp(u, min=low) if above else torch.clamp(u, max=high),
        lambda u: torch.maximum(u, torch.tensor(low)),
        lambda u: torch.minimum(torch.tensor(high), u),
        lambda u: torch.where(taken(u, low), u, other),
        lambda u: torch.where(taken(u, high), other, u),
        lambda u: torch.where(taken(u, low), u, torch.zeros_like(u)),
        lambda u: u * taken(u, low),
        lambda u: taken(u, high).to(u.dtype) * u,
        lambda u: u.masked_fill(taken(u, low), other),
        lambda u: F.hardtanh(u, low, high),
        lambda u: F.threshold(u, low, other),
        lambda u: torch.where(u > 0, u, other * u),
        lambda u: torch.max(u, other * u),
    ][draw.integers(14)]


@pytest.mark.parametrize("seed", range(60))
def test_random_expressions(seed):
    """What is counted is what autograd says in float64, up to the kinks; what isn't is in coverage."""
    draw = np.random.default_rng(seed)
    cut, (scale, after) = random_cut(draw), draw.choice([-1.5, 0.5, 2.0], 2)
    shift, last = draw.normal(size=2)
    seen = {}

    def act(x):
        seen["u"] = u = x * float(scale) + float(shift)
        return cut(u) * float(after) + float(last)

    model, probe, x = measured(act)
    if not probe.info.sites:
        assert probe.info.coverage
        return
    ((site,), record) = probe.info.sites, probe.record
    assert (site.role, site.units) == ("hidden", 12)
    model.double()(x.double())
    u = seen["u"].detach().requires_grad_()
    assert u.dtype is torch.float64
    y = cut(u)
    (slope,) = torch.autograd.grad(y.sum(), u, retain_graph=True)
    out = y * float(after) + float(last)
    of_u, of_y = torch.autograd.grad(model.last(out).square().mean(), [u, y])
    off = (slope == 0).double().mean(0)
    assert record.metrics["inactive_share"][0] == pytest.approx(off.mean().item(), abs=1e-9)
    assert record.metrics["dead_fraction"][0] == pytest.approx((off == 1).double().mean().item())
    assert record.forward_rms[0] == pytest.approx(y.detach().square().mean().sqrt().item(), rel=1e-5)
    assert record.metrics["signal_norm"][0] == pytest.approx(of_u.norm().item(), rel=1e-5)
    assert record.metrics["activation_gain"][0] == pytest.approx((of_u.norm() / of_y.norm()).item(), rel=1e-5)
