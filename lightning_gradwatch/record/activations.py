"""The table of activation functions: one row a function, with all that measuring, judging and remedies know of it.

No torch here: a row names what torch has by its names, and says in numbers of z where the function is inactive or saturated.
How that is counted on a device is `measure.units`' part, what a finding makes of it is `judge`'s. `register_activation` in
`record.registration` adds rows of the user's own.

The regions follow the mathematical derivative; which kink belongs to them follows torch's backward (torch 2.13: every
kink at the edge of a zero piece has gradient 0, Hardswish's at -3 included; ELU's kink belongs to its negative side).
Single points where a smooth derivative crosses 0 are no region.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from lightning_gradwatch.record.zones import Region, Zones

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from lightning_gradwatch.record.zones import Comparison

    FloatVector: TypeAlias = npt.NDArray[np.float64]

Inner: TypeAlias = Literal["sigmoid", "tanh", "erf", "relu6", "hardtanh", "hardsigmoid"]
Method: TypeAlias = Literal["xavier_normal_", "kaiming_normal_"]
"""A function of ``torch.nn.init``."""
Gating: TypeAlias = Literal["never", "products", "sums", "scales", "itself"]
"""Whether an output that multiplies another tensor, of which something is learned, gates.

- *products*: where each entry multiplies one; where the products are added up over the units it is more likely a feature, whose
  products with another one's make a similarity.
- *sums*: there too, as in sigmoid attention.
- *scales*: as *products*, and where the other tensor is data: a positive scale, as the step of a state space model, which
  starts near 0, on the flat side.
- *itself*: the function has its own gate.
"""
Trouble: TypeAlias = Literal["fades", "dies"]
"""What a function is replaced for: it passes back too little of the signal, or its units are dead."""

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


class Activation(NamedTuple):
    """A row of the table."""

    name: str
    """As in ``torch.nn.functional``; a site's `function`."""
    module: str
    """Class in ``torch.nn``, by which findings call it; the name again where torch has none."""
    judge: Callable[..., Zones]
    """From the parameters of a call to its zones; its own parameters are those that matter, in torch's order."""
    aliases: tuple[str, ...] = ()
    """Other names in torch's namespaces."""
    steepest: float = 1.0
    """Largest |f'| to two digits where it is below 1, else 1 or more: such a function needn't shrink the signal."""
    passes: float = 1.0
    """Share of the signal that a layer passes back where it starts as its function asks for, if that is below 0.95: slope of
    the log norm over 16 layers of width 256, Gaussian inputs and weights, geometric mean of 5 seeds."""
    flat_middle: bool = False
    """Whether the derivative is 0 at 0, so that what is small is passed on in neither direction."""
    initialization: Method = "kaiming_normal_"
    """How weights before it should start: by Xavier's variance where it starts out as good as linear, else by He's."""
    when_fading: tuple[str, ...] = ("ReLU", "LeakyReLU", "ELU")
    """Modules that may take its place where the signal fades; a program takes the first."""
    when_dead: tuple[str, ...] = ("LeakyReLU", "ELU", "GELU")
    """Those that may where its units die."""
    nodes: tuple[str, ...] = ()
    """Names of the autograd nodes that torch makes for it, without their numbers; none where it makes several of other names."""
    gating: Gating = "never"
    by_output: bool = False
    """Whether autograd computes its derivative from the output, or that is constant in pieces: then what comes back through a
    derivative, as a gradient penalty's, goes through its node, or is 0."""
    formula: Callable[[FloatVector, FloatVector], FloatVector] | None = None
    """Its values at a multiple u of x, given x and u, for one that is recognised where it is written out in arithmetic. What
    remains x times a function of u, as SiLU does, has x in it."""
    functions: tuple[Any, ...] = ()
    """The user's own callables and classes that compute it; torch's are found by their names."""

    @property
    def usual(self) -> Zones:
        """The zones of a call that gives no parameters."""
        return _usual(self.judge)

    @property
    def supposed(self) -> bool:
        """Whether it serves for much else, too (see `Zones.supposed`)."""
        return self.usual.supposed

    @property
    def flat_zero(self) -> bool:
        """Whether the derivative is exactly 0 over an interval, so that units can die."""
        return bool(self.usual.inactive)

    @property
    def saturates(self) -> bool:
        """Whether it has a flat outer side on which it is bounded."""
        return self.usual.saturated is not None

    @property
    def two_sided(self) -> bool:
        """Whether it is bounded on both sides; GLU isn't, as it is judged by its gate."""
        return self.usual.two_sided

    @property
    def linear(self) -> bool:
        """Whether it starts out as good as linear, so that Xavier's weights keep the signal level, not He's."""
        return self.initialization == "xavier_normal_"

    @property
    def asked_gain(self) -> float:
        """What the weights behind it pass back of the signal if they start as it asks for: the norm's factor."""
        return 1.0 if self.linear else math.sqrt(2.0)

    @property
    def usual_gain(self) -> float:
        """What it passes back itself then, before it saturates: its steepest derivative where that is below 1."""
        return min(self.steepest, 1.0) / self.asked_gain

    def instead(self, trouble: Trouble) -> tuple[str, ...]:
        """Return the modules that may take its place, the first of which a program takes."""
        return self.when_dead if trouble == "dies" else self.when_fading


@lru_cache(maxsize=1024)
def _usual(judge: Callable[..., Zones]) -> Zones:
    return judge()


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


def _threshold(threshold: float = 0.0, value: float = 0.0) -> Zones:  # noqa: ARG001 - its own constant doesn't matter
    return Zones("threshold", (Region("<=", threshold),))


def _shrink(name: str) -> Callable[..., Zones]:
    def judge(lambd: float = 0.5) -> Zones:
        return Zones(name, (Region("<=", lambd, absolute=True),) if lambd >= 0.0 else ())

    return judge


def _glu(dim: int = -1) -> Zones:
    return Zones("glu", saturated=(Region(">", SIGMOID_BOUND, absolute=True),), gate_dim=dim)


_CONSTANT_SIDES = (Region(">=", 3.0, absolute=True),)


def _sigmoid(u: FloatVector) -> FloatVector:
    return 1 / (1 + np.exp(-u))


ROWS: tuple[Activation, ...] = (
    Activation(
        "relu",
        "ReLU",
        lambda: RELU,
        nodes=("ReluBackward",),
        by_output=True,
        formula=lambda _, u: np.maximum(u, 0.0),
    ),
    Activation("leaky_relu", "LeakyReLU", _leaky_relu, nodes=("LeakyReluBackward",), by_output=True),
    Activation("prelu", "PReLU", _always("prelu"), nodes=("PreluKernelBackward",)),
    Activation("rrelu", "RReLU", _rrelu, nodes=("RreluWithNoiseBackward",)),
    Activation("elu", "ELU", _elu, nodes=("EluBackward",)),
    Activation("celu", "CELU", _celu, nodes=("CeluBackward",)),
    Activation(
        "selu",
        "SELU",
        lambda: _exponential("selu", 1.6732632423543772),  # alpha: the slope left of 0 over that right
        steepest=1.76,
        initialization="xavier_normal_",
        nodes=("EluBackward",),
    ),
    Activation("gelu", "GELU", _gelu, steepest=1.13, nodes=("GeluBackward",)),
    Activation(
        "silu",
        "SiLU",
        _always("silu", saturated=(Region("<", SILU_BOUND),)),
        steepest=1.1,
        passes=0.77,
        nodes=("SiluBackward",),
        formula=lambda x, u: x * _sigmoid(u),
    ),
    Activation(
        "mish", "Mish", _always("mish", saturated=(Region("<", MISH_BOUND),)), steepest=1.09, nodes=("MishBackward",)
    ),
    Activation(
        "hardswish",
        "Hardswish",
        _always("hardswish", inactive=(Region("<=", -3.0),)),
        steepest=1.5,
        passes=0.74,
        nodes=("HardswishBackward",),
    ),
    Activation(
        "hardsigmoid",
        "Hardsigmoid",
        _always("hardsigmoid", inactive=_CONSTANT_SIDES, saturated=_CONSTANT_SIDES),
        steepest=1 / 6,
        passes=0.167,
        initialization="xavier_normal_",
        nodes=("HardsigmoidBackward",),
        gating="sums",
    ),
    Activation(
        "hardtanh",
        "Hardtanh",
        _hardtanh,
        initialization="xavier_normal_",
        nodes=("HardtanhBackward",),
        gating="products",
        by_output=True,
    ),
    Activation(
        "relu6",
        "ReLU6",
        lambda: _hardtanh(0.0, 6.0),
        nodes=("HardtanhBackward",),
        gating="products",
        by_output=True,
    ),
    Activation(
        "hardshrink",
        "Hardshrink",
        _shrink("hardshrink"),
        flat_middle=True,
        nodes=("HardshrinkBackward",),
        by_output=True,
    ),
    Activation(
        "softshrink",
        "Softshrink",
        _shrink("softshrink"),
        flat_middle=True,
        nodes=("SoftshrinkBackward",),
        by_output=True,
    ),
    Activation(
        "sigmoid",
        "Sigmoid",
        _always("sigmoid", saturated=(Region(">", SIGMOID_BOUND, absolute=True),)),
        ("expit",),
        steepest=0.25,
        passes=0.236,
        initialization="xavier_normal_",
        nodes=("SigmoidBackward",),
        gating="sums",
        by_output=True,
        formula=lambda _, u: _sigmoid(u),
    ),
    Activation(
        "logsigmoid",
        "LogSigmoid",
        _always("logsigmoid", saturated=(Region(">", LOGISTIC_BOUND),)),
        ("log_sigmoid",),
        passes=0.88,
        nodes=("LogSigmoidBackward",),
    ),
    Activation(
        "tanh",
        "Tanh",
        _always("tanh", saturated=(Region(">", TANH_BOUND, absolute=True),)),
        passes=0.94,
        initialization="xavier_normal_",
        nodes=("TanhBackward",),
        gating="products",
        by_output=True,
        formula=lambda _, u: np.tanh(u),
    ),
    Activation(
        "softsign",
        "Softsign",
        _always("softsign", saturated=(Region(">", SOFTSIGN_BOUND, absolute=True),)),
        passes=0.88,
        initialization="xavier_normal_",
        formula=lambda _, u: u / (1 + np.abs(u)),
    ),
    Activation("tanhshrink", "Tanhshrink", _always("tanhshrink"), passes=1e-3, flat_middle=True),
    Activation(
        "softplus",
        "Softplus",
        _softplus,
        passes=0.88,
        nodes=("SoftplusBackward",),
        gating="scales",
        formula=lambda _, u: np.log1p(np.exp(u)),
    ),
    Activation("threshold", "Threshold", _threshold, nodes=("ThresholdBackward",), by_output=True),
    Activation("glu", "GLU", _glu, nodes=("GluBackward",), gating="itself"),
    Activation("softmax", "Softmax", _always("softmax", fractions=False), nodes=("SoftmaxBackward",), by_output=True),
    Activation("softmin", "Softmin", _always("softmin", fractions=False), nodes=("SoftmaxBackward",)),
    Activation(
        "log_softmax",
        "LogSoftmax",
        _always("log_softmax", fractions=False),
        nodes=("LogSoftmaxBackward",),
        by_output=True,
    ),
    # What follows has no class in torch; isru, x / sqrt(1 + x²), no function either.
    Activation(
        "isru",
        "isru",
        _always("isru", saturated=(Region(">", ISRU_BOUND, absolute=True),)),
        initialization="xavier_normal_",
        formula=lambda _, u: u / np.sqrt(1 + u * u),
    ),
    # These serve for much else. Of sin and cos no side is outer and bounded; they can't be dead.
    Activation("sin", "sin", _always("sin", supposed=True)),
    Activation("cos", "cos", _always("cos", supposed=True)),
    Activation("asinh", "asinh", _always("asinh", supposed=True), ("arcsinh",)),
    Activation(
        "atan",
        "atan",
        _always("atan", supposed=True, saturated=(Region(">", ATAN_BOUND, absolute=True),)),
        ("arctan",),
        initialization="xavier_normal_",
    ),
)
"""All of this package's own. Where torch makes one node for several, the one that it is named after comes first."""


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


def _unknown() -> Zones:
    return Zones("", saturated=())


_registered: dict[str, Activation] = {}
"""The user's own, by name as `_plain` has it."""


def _plain(name: str) -> str:
    return name.lower().replace("_", "")


_BUILT_IN = {_plain(row.name): row for row in ROWS} | {_plain(row.module): row for row in ROWS}


_BY_NODE = {node: row.name for row in reversed(ROWS) for node in row.nodes}


@lru_cache(maxsize=1024)
def look_up(name: str) -> Activation:
    """Find a function whatever its spelling; one that isn't known keeps its name and is taken to shrink nothing.

    >>> look_up("leaky_relu").module, look_up("swoosh").module
    ('LeakyReLU', 'swoosh')
    """
    plain = _plain(name)
    return _BUILT_IN.get(plain) or _registered.get(plain) or Activation(name, name, _unknown)


def function_of_node(node: str) -> str | None:
    """Return which function makes autograd nodes of a name, without its number; None where none does.

    >>> function_of_node("TanhBackward"), function_of_node("AddBackward")
    ('tanh', None)
    """
    own = next((row.name for row in _registered.values() if node in row.nodes), None)
    return own or _BY_NODE.get(node)


def registered() -> tuple[Activation, ...]:
    """Return the rows of the user's own, in the order in which they were registered."""
    return tuple(_registered.values())


@lru_cache(maxsize=1)
def registered_classes() -> tuple[type, ...]:
    """Return the classes among their functions."""
    return tuple(each for row in registered() for each in row.functions if isinstance(each, type))


def is_known(name: str) -> bool:
    """Whether a name is that of a row, in whatever spelling."""
    return _plain(name) in _BUILT_IN or _plain(name) in _registered


def add_row(row: Activation) -> None:
    """Add a row of the user's own, in the place of an earlier one of its name."""
    _registered[_plain(row.name)] = row
    look_up.cache_clear()
    registered_classes.cache_clear()
