"""The table of activation functions against autograd in float64."""

import math
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from lightning_gradwatch.measure.trace.identify import identify
from lightning_gradwatch.measure.units.activations import composite
from lightning_gradwatch.record import activations
from lightning_gradwatch.record.activations import COMPOSITES

COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
# |z| <= 5 densely and farther out; the kinks of every parametrisation below, and the numbers next to them.
KINKS = torch.tensor([-10, -6, -5, -4, -3, -2.5, -2, -1, -0.5, 0, 0.1, 0.5, 1, 2, 3, 6, 7], dtype=torch.float64)
GRID = torch.cat(
    [
        torch.linspace(-12.0, 12.0, 4801, dtype=torch.float64),
        KINKS,
        KINKS.nextafter(torch.tensor(math.inf).double()),
        KINKS.nextafter(torch.tensor(-math.inf).double()),
    ]
).unique()


def zones_of(function):
    """Return the zones of the one activation function that a callable calls."""
    found = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            found.append(identify(func, args, kwargs))
            return func(*args, **(kwargs or {}))

    z = GRID.clone()
    with Mode():
        function(z)
    (call,) = [call for call in found if call is not None]
    return call.zones


def inside(regions, z):
    found = torch.zeros_like(z, dtype=torch.bool)
    for region in regions:
        found |= COMPARE[region.comparison](z.abs() if region.absolute else z, region.bound)
    return found


def derivative(function, z=GRID):
    leaf = z.clone().requires_grad_()
    # A copy, so that an in-place function may overwrite it.
    (gradient,) = torch.autograd.grad(function(leaf.clone()).sum(), leaf)
    return gradient


UNAPPLICABLE = [
    F.relu, nn.LeakyReLU(), nn.LeakyReLU(0.0), nn.ELU(0.0), nn.PReLU(dtype=torch.float64), nn.RReLU(), nn.RReLU().eval(),
    nn.RReLU(0.0, 0.0), nn.RReLU(-0.5, 0.5).eval(), nn.Hardswish(), nn.Hardshrink(), nn.Hardshrink(1.0), nn.Hardshrink(-1.0),
    nn.Softshrink(), nn.Softshrink(2.0), nn.Tanhshrink(), nn.Threshold(0.1, 2.0), nn.Threshold(-2.0, 0.0),
    F.relu_, nn.Hardswish(inplace=True), lambda z: F.threshold_(z, 0.1, 2.0), nn.LeakyReLU(0.0, inplace=True),
]  # fmt: skip
APPLICABLE = [
    nn.ReLU6(), F.relu6, nn.ELU(), nn.ELU(0.01), nn.ELU(3.0), nn.ELU(-0.5), nn.CELU(), nn.CELU(2.0), nn.CELU(0.1), nn.SELU(),
    nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Hardtanh(-2.5, 0.5),
    nn.Hardtanh(-10.0, 7.0), lambda z: F.hardtanh(z, 2.0, 2.0), nn.Sigmoid(), nn.LogSigmoid(), nn.Tanh(), nn.Softsign(),
    nn.Softplus(), nn.Softplus(3.0), nn.Softplus(-1.0), nn.Softplus(1.0, -5.0), nn.Softplus(-2.0, -10.0),
    nn.ReLU6(inplace=True), F.elu_, F.selu_, F.celu_, F.hardtanh_, nn.Hardsigmoid(inplace=True), nn.SiLU(inplace=True),
    nn.Mish(inplace=True), torch.sigmoid_, torch.tanh_,
]  # fmt: skip


@pytest.mark.parametrize("function", UNAPPLICABLE + APPLICABLE)
def test_inactive_is_where_the_derivative_is_zero(function):
    zones = zones_of(function)
    zero = derivative(function) == 0.0
    # A derivative that is 0 at one point, or that only underflows, is not inactive.
    zero &= ~((GRID.abs() < 1e-8) & (zones.name == "tanhshrink"))
    zero &= ~((GRID == -1.5) & (zones.name == "hardswish"))
    zero &= ~((GRID < -7.0) & (zones.name == "gelu"))
    assert torch.equal(inside(zones.inactive, GRID), zero)


@pytest.mark.parametrize("function", UNAPPLICABLE)
def test_saturation_is_not_applicable_to_functions_with_an_off_side(function):
    assert zones_of(function).saturated is None


def saturated_by_definition(function, z, sides):
    """Return where |f'| is below sech²(2) of its maximum all the way out, and whether that is decided by rounding."""
    share = derivative(function, z).abs()
    share = share / share.max() / (1.0 / math.cosh(2.0) ** 2) if share.max() else share
    flat = share < 1.0
    found = torch.zeros_like(flat)
    far = torch.tensor([-2e6, -1e6, 1e6, 2e6]).double()
    levels = function(far.clone())
    if (levels[0] - levels[1]).abs() < 1.0 and "left" in sides:
        found |= flat.cumprod(0).bool()
    if (levels[2] - levels[3]).abs() < 1.0 and "right" in sides:
        found |= flat.flip(0).cumprod(0).bool().flip(0)
    return found, (share - 1.0).abs() < 1e-6


@pytest.mark.parametrize("function", APPLICABLE)
def test_saturated_is_the_flat_outer_bounded_sides(function):
    zones = zones_of(function)
    # The lower side of ReLU6 is an off side, as ReLU's.
    expected, undecided = saturated_by_definition(
        function, GRID, ["right"] if zones.name == "relu6" else ["left", "right"]
    )
    assert expected.any()
    assert torch.equal(inside(zones.saturated, GRID) | undecided, expected | undecided)


def written_out(name, inner):
    return {
        ("silu", "sigmoid"): (lambda x: x * torch.sigmoid(1.702 * x), lambda x: 1.702 * x),
        ("gelu", "tanh"): (
            lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
            lambda x: math.sqrt(2 / math.pi) * (x + 0.044715 * x**3),
        ),
        ("gelu", "erf"): (lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2, lambda x: x / math.sqrt(2)),
        ("mish", "tanh"): (lambda x: x * torch.tanh(F.softplus(x)), F.softplus),
        ("hardswish", "relu6"): (lambda x: x * F.relu6(x + 3) / 6, lambda x: x + 3),
        ("hardsigmoid", "relu6"): (lambda x: F.relu6(x + 3) / 6, lambda x: x + 3),
        ("hardswish", "hardtanh"): (lambda x: x * F.hardtanh(x + 1.7013, 0.0, 4.0) / 4, lambda x: x + 1.7013),
        ("hardswish", "hardsigmoid"): (lambda x: x * F.hardsigmoid(x), lambda x: x),
    }[name, inner]


@pytest.mark.parametrize(("name", "inner"), [key for key, zones in COMPOSITES.items() if zones.inactive])
def test_a_function_written_out_is_inactive_where_autograd_has_no_slope(name, inner):
    function, argument = written_out(name, inner)

    def flat(shift):
        z = (GRID + shift).requires_grad_()
        return torch.autograd.grad(function(z).sum(), z)[0] == 0

    # At a minimum it is exactly 0 in one arithmetic, and nearly so in another.
    undecided = ~flat(-1e-3) & ~flat(1e-3) | ((argument(GRID) - COMPOSITES[name, inner].inactive[0].bound).abs() < 1e-9)
    assert torch.equal(inside(COMPOSITES[name, inner].inactive, argument(GRID)) | undecided, flat(0.0) | undecided)


@pytest.mark.parametrize(("name", "inner"), [key for key, zones in COMPOSITES.items() if zones.saturated])
def test_a_function_written_out_is_judged_at_its_inner_argument(name, inner):
    function, argument = written_out(name, inner)
    u = argument(GRID)
    call = composite(name, inner, u)
    assert call.function == name
    assert call.z is u
    expected, undecided = saturated_by_definition(function, GRID, ["left", "right"])
    assert expected.any()
    assert torch.equal(inside(call.zones.saturated, u) | undecided, expected | undecided)


def test_an_unknown_composite_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="gelu of erf"):
        composite("relu", "tanh", torch.zeros(1))


def outermost(function, low, high):
    """Solve |f'| = sech²(2) max|f'| between two points of the left side by bisection."""

    def slope(z):
        return abs(derivative(function, torch.tensor([z], dtype=torch.float64)).item())

    top = low_top = 0.5
    high_top = 4.0
    for _ in range(200):  # golden section; f' is flat at its maximum, so its position needs no accuracy
        a, b = high_top - 0.618 * (high_top - low_top), low_top + 0.618 * (high_top - low_top)
        low_top, high_top, top = (a, high_top, b) if slope(a) < slope(b) else (low_top, b, a)
    target = slope(top) / math.cosh(2.0) ** 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < target else (low, middle)
    return low


@pytest.mark.parametrize(
    ("constant", "function", "low", "high"),
    [
        (activations.GELU_BOUND, F.gelu, -3.0, -1.6),
        (activations.GELU_TANH_BOUND, lambda z: F.gelu(z, approximate="tanh"), -3.0, -1.6),
        (activations.SILU_BOUND, F.silu, -6.0, -2.6),
        (activations.MISH_BOUND, F.mish, -6.0, -2.6),
        (-activations.SIGMOID_BOUND, torch.sigmoid, -9.0, -0.5),
        (-activations.TANH_BOUND, torch.tanh, -9.0, -0.5),
        (-activations.SOFTSIGN_BOUND, F.softsign, -9.0, -0.5),
    ],
)
def test_a_constant_solves_its_equation(constant, function, low, high):
    if constant in (-activations.SIGMOID_BOUND, -activations.TANH_BOUND, -activations.SOFTSIGN_BOUND):
        middle = derivative(function, torch.zeros(1).double()).item()  # their maximum is at 0, outside the search
        assert derivative(function, torch.tensor([constant], dtype=torch.float64)).item() == pytest.approx(
            activations.FLAT * middle, rel=1e-13
        )
    else:
        assert outermost(function, low, high) == pytest.approx(constant, rel=1e-13)


@pytest.mark.parametrize(
    ("name", "inner", "bound"),
    [
        ("silu", "sigmoid", activations.SILU_BOUND / 1.702),
        ("gelu", "tanh", activations.GELU_TANH_BOUND),
        ("gelu", "erf", activations.GELU_BOUND),
        ("mish", "tanh", activations.MISH_BOUND),
    ],
)
def test_a_composite_bound_is_the_functions_own_at_the_inner_argument(name, inner, bound):
    (region,) = COMPOSITES[name, inner].saturated
    argument = written_out(name, inner)[1](torch.tensor([bound], dtype=torch.float64)).item()
    assert region.bound == pytest.approx(argument, rel=1e-15)


def test_saturated_lies_inside_inactive_where_a_function_has_both():
    for function in APPLICABLE:
        zones = zones_of(function)
        if zones.inactive:
            assert not (inside(zones.saturated, GRID) & ~inside(zones.inactive, GRID)).any()
