"""The table of activation functions: what each is called, and where its units are inactive or saturated.

One row a function; the spellings that torch offers (function, method, in-place form, alias) are found by the row's
name. `identify` is called for every torch operation of a measured step, so what isn't in the table costs it one
dictionary lookup, and nothing here reads a tensor's values.

The regions follow the mathematical derivative; which kink belongs to them follows torch's backward (torch 2.13: every
kink at the edge of a zero piece has gradient 0, Hardswish's at -3 included; ELU's kink belongs to its negative side).
Single points where a smooth derivative crosses 0 are no region.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Comparison: TypeAlias = Literal["<", "<=", ">", ">="]
Inner: TypeAlias = Literal["sigmoid", "tanh", "erf", "relu6", "hardtanh", "hardsigmoid"]

FLAT = math.cosh(2.0) ** -2
"""sech²(2) = 0.0706508…: an outer bounded side is flat where |f'| is below this share of its maximum."""

# |f'(z)| = FLAT * max|f'|, the solution farthest out on the bounded side. Where there is no closed form the constant
# was solved once with 40 digits; a test solves it again.
SIGMOID_BOUND = 4.0  # f' / max f' = sech²(z / 2)
TANH_BOUND = 2.0
LOGISTIC_BOUND = 2.0 * math.log(math.sinh(2.0))  # sigmoid(-z) = FLAT: Softplus and LogSigmoid, whose f' is a sigmoid
SOFTSIGN_BOUND = math.cosh(2.0) - 1.0  # f' = 1 / (1 + |z|)²
ISRU_BOUND = math.sqrt(math.cosh(2.0) ** (4 / 3) - 1.0)  # f' = (1 + z²)^(-3/2)
ATAN_BOUND = math.sinh(2.0)  # f' = 1 / (1 + z²)
GELU_BOUND = -2.0507762548328534
GELU_TANH_BOUND = -2.0587640546960086
SILU_BOUND = -3.298184345921125
MISH_BOUND = -3.3991870993640134
GELU_ERF_ARGUMENT = -1.450117796488662  # x / sqrt(2) at GELU_BOUND
GELU_TANH_ARGUMENT = -1.9539803588372064  # sqrt(2 / pi) * (x + 0.044715 * x**3) at GELU_TANH_BOUND
MISH_ARGUMENT = 0.03285473375720755  # softplus(x) at MISH_BOUND


class Region(NamedTuple):
    """A set of z: ``z < bound``, ``|z| >= bound`` and the like."""

    comparison: Comparison
    bound: float
    absolute: bool = False
    """Whether it is |z| that is compared."""


class Zones(NamedTuple):
    """Where a function with its parameters is inactive and saturated; the regions of one tuple are disjoint."""

    name: str
    inactive: tuple[Region, ...] = ()
    """Where the mathematical derivative is exactly 0; empty for a function that can't be inactive."""
    saturated: tuple[Region, ...] | None = None
    """Where an outer bounded side is flat; None: not applicable. Inside `inactive` wherever neither is empty."""
    fractions: bool = True
    """False: no fraction of units can be given (softmax; a parameter that only the device knows)."""
    gate_dim: int | None = None
    """The axis whose second half is the gate that is judged (GLU); None: all of z is judged."""
    supposed: bool = False
    """Whether it is an activation function only where a layer has made its argument and takes its output, as sin is."""

    @property
    def height(self) -> float:
        """Where it becomes constant, if it is 0 below 0; NaN for any other function."""
        if self.name not in ("relu6", "hardtanh") or len(self.inactive) != 2 or self.inactive[0].bound:
            return math.nan
        return self.inactive[1].bound


class Call(NamedTuple):
    """One call of an activation function."""

    zones: Zones
    z: Tensor
    """What the function was called with."""
    in_place: bool
    """Whether z is, or may be, overwritten by the call."""

    @property
    def function(self) -> str:
        """Name of the function, as in ``torch.nn.functional``."""
        return self.zones.name


class Activation(NamedTuple):
    """A row of the table."""

    name: str
    judge: Callable[..., Zones]
    """From the parameters of a call to its zones; its own parameters are those that matter, in torch's order."""
    aliases: tuple[str, ...] = ()
    """Other names in torch's namespaces."""


def _always(name: str, **zones: Any) -> Callable[[], Zones]:
    return lambda: Zones(name, **zones)


RELU = Zones("relu", (Region("<=", 0.0),))


def _hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Zones:
    if (min_val, max_val) == (0.0, 6.0):  # as which nn.ReLU6 arrives
        return Zones("relu6", (Region("<=", 0.0), Region(">=", 6.0)), (Region(">=", 6.0),))
    if min_val == 0.0 < max_val:  # a ReLU with an upper side, as ReLU6 is
        return Zones("hardtanh", (Region("<=", 0.0), Region(">=", max_val)), (Region(">=", max_val),))
    if min_val == -max_val != 0.0:
        sides: tuple[Region, ...] = (Region(">=", max_val, absolute=True),)
    else:
        # Equal limits leave one point, which must not count twice.
        sides = (Region("<=", min_val), Region(">" if min_val == max_val else ">=", max_val))
    return Zones("hardtanh", sides, sides)


def _leaky_relu(negative_slope: float = 0.01) -> Zones:
    return Zones("leaky_relu") if negative_slope else RELU


def _rrelu(lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Zones:
    flat = lower == upper == 0.0 if training else lower + upper == 0.0
    return RELU if flat else Zones("rrelu")


def _exponential(name: str, steepest: float, rate: float = 1.0) -> Zones:
    """Judge a function with |f'| = steepest * exp(rate * z) on its negative side and 1 on its positive one."""
    bound = math.log(FLAT * max(1.0, steepest) / steepest) / rate
    # A slope that is flat from the start is saturated up to the kink.
    return Zones(name, saturated=(Region("<", bound) if bound < 0.0 else Region("<=", 0.0),))


def _elu(alpha: float = 1.0) -> Zones:
    return _exponential("elu", abs(alpha)) if alpha else RELU


def _celu(alpha: float = 1.0) -> Zones:
    # f = alpha * (exp(z / alpha) - 1); with a negative alpha that side is steep, not bounded.
    return _exponential("celu", 1.0, rate=1.0 / alpha) if alpha > 0.0 else Zones("celu")


def _gelu(approximate: str = "none") -> Zones:
    bound = GELU_TANH_BOUND if approximate == "tanh" else GELU_BOUND
    return Zones("gelu", saturated=(Region("<", bound),))


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Zones:
    if not beta:
        return Zones("softplus")
    # Where beta * z exceeds the threshold the function is linear, so the flat side ends there at the latest.
    bound = min(-LOGISTIC_BOUND, threshold)
    below: Comparison = "<=" if bound == threshold else "<"
    above: Comparison = ">=" if bound == threshold else ">"
    return Zones("softplus", saturated=(Region(below if beta > 0.0 else above, bound / beta),))


def _threshold(threshold: float, value: float) -> Zones:  # noqa: ARG001 - its own constant doesn't matter
    return Zones("threshold", (Region("<=", threshold),))


def _shrink(name: str) -> Callable[..., Zones]:
    def judge(lambd: float = 0.5) -> Zones:
        return Zones(name, (Region("<=", lambd, absolute=True),) if lambd >= 0.0 else ())

    return judge


def _glu(dim: int = -1) -> Zones:
    return Zones("glu", saturated=(Region(">", SIGMOID_BOUND, absolute=True),), gate_dim=dim)


_CONSTANT_SIDES = (Region(">=", 3.0, absolute=True),)

ACTIVATIONS: tuple[Activation, ...] = (
    Activation("relu", lambda: RELU),
    Activation("relu6", lambda: _hardtanh(0.0, 6.0)),
    Activation("leaky_relu", _leaky_relu),
    Activation("prelu", _always("prelu")),
    Activation("rrelu", _rrelu),
    Activation("elu", _elu),
    Activation("celu", _celu),
    Activation("selu", lambda: _exponential("selu", 1.6732632423543772)),  # alpha: the slope left of 0 over that right
    Activation("gelu", _gelu),
    Activation("silu", _always("silu", saturated=(Region("<", SILU_BOUND),))),
    Activation("mish", _always("mish", saturated=(Region("<", MISH_BOUND),))),
    Activation("hardswish", _always("hardswish", inactive=(Region("<=", -3.0),))),
    Activation("hardsigmoid", _always("hardsigmoid", inactive=_CONSTANT_SIDES, saturated=_CONSTANT_SIDES)),
    Activation("hardtanh", _hardtanh),
    Activation("hardshrink", _shrink("hardshrink")),
    Activation("softshrink", _shrink("softshrink")),
    Activation("sigmoid", _always("sigmoid", saturated=(Region(">", SIGMOID_BOUND, absolute=True),)), ("expit",)),
    Activation("logsigmoid", _always("logsigmoid", saturated=(Region(">", LOGISTIC_BOUND),)), ("log_sigmoid",)),
    Activation("tanh", _always("tanh", saturated=(Region(">", TANH_BOUND, absolute=True),))),
    Activation("softsign", _always("softsign", saturated=(Region(">", SOFTSIGN_BOUND, absolute=True),))),
    Activation("tanhshrink", _always("tanhshrink")),
    Activation("softplus", _softplus),
    Activation("threshold", _threshold),
    Activation("glu", _glu),
    Activation("softmax", _always("softmax", fractions=False)),
    Activation("softmin", _always("softmin", fractions=False)),
    Activation("log_softmax", _always("log_softmax", fractions=False)),
)

PLAIN: tuple[Activation, ...] = (
    Activation("sin", _always("sin", supposed=True)),
    Activation("cos", _always("cos", supposed=True)),
    Activation("asinh", _always("asinh", supposed=True), ("arcsinh",)),
    Activation(
        "atan", _always("atan", supposed=True, saturated=(Region(">", ATAN_BOUND, absolute=True),)), ("arctan",)
    ),
)
"""Functions that serve for much else. Of sin and cos no side is outer and bounded; they can't be dead."""

ISRU = Zones("isru", saturated=(Region(">", ISRU_BOUND, absolute=True),))
"""``x / sqrt(1 + x²)``, which torch has no function for."""

_OUTSIDE = (Region("<=", 0.0), Region(">=", 6.0))
COMPOSITES: Mapping[tuple[str, Inner], Zones] = {
    # x * sigmoid(u) with u = c * x is silu(u) / c, so SiLU's own bound holds for every c; the other arguments grow with x.
    ("silu", "sigmoid"): Zones("silu", saturated=(Region("<", SILU_BOUND),)),
    ("gelu", "tanh"): Zones("gelu", saturated=(Region("<", GELU_TANH_ARGUMENT),)),
    ("gelu", "erf"): Zones("gelu", saturated=(Region("<", GELU_ERF_ARGUMENT),)),
    # Where the inner function is 0 the product is, whatever was added to x; where it is constant above, the product is linear.
    ("hardswish", "relu6"): Zones("hardswish", (Region("<=", 0.0),)),
    ("hardsigmoid", "relu6"): Zones("hardsigmoid", _OUTSIDE, _OUTSIDE),
    ("hardswish", "hardtanh"): Zones("hardswish", (Region("<=", 0.0),)),
    ("hardswish", "hardsigmoid"): Zones("hardswish", (Region("<=", -3.0),)),
    ("mish", "tanh"): Zones("mish", saturated=(Region("<", MISH_ARGUMENT),)),
}
"""Functions written out by hand, by name and inner function; the regions are of u, the inner function's argument."""

OUTER: Mapping[str, tuple[Zones, ...]] = {
    inner: tuple(zones for (_, argument), zones in COMPOSITES.items() if argument == inner)
    for inner in ("sigmoid", "tanh", "relu6", "hardtanh", "hardsigmoid")
}
"""What a call of an activation function may turn out to be the inner step of, by its name."""

ERF: frozenset[Any] = frozenset((torch.erf, torch.erf_, torch.Tensor.erf, torch.Tensor.erf_, torch.special.erf))
"""The inner function that is no activation function by itself."""


def composite(name: str, inner: Inner, u: Tensor, *, in_place: bool = False) -> Call:
    """Return the call of a function that was written out by hand, judged at its inner function's argument.

    Raises:
        ValueError: no such composite is in the table.
    """
    if (zones := COMPOSITES.get((name, inner))) is None:
        known = ", ".join(f"{outer} of {argument}" for outer, argument in COMPOSITES)
        raise ValueError(f"name={name!r}, inner={inner!r} is no known composite; there are {known}")
    return Call(zones, u, in_place)
