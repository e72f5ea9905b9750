"""Activation functions that are written out in arithmetic, as ``1 / (1 + torch.exp(-x))``, told by their values.

A tensor that is a function of one other, entry by entry, remembers what that function is at a few points. Two formulas are the
same function where they agree there to the last digits, however they are written. Nothing is read from a tensor.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from lightning_gradwatch.measure.trace.unknown_functions import UNKNOWN_FUNCTIONS
from lightning_gradwatch.record.activations import ROWS, look_up

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lightning_gradwatch.measure.signal import Origin
    from lightning_gradwatch.measure.trace.tensor_state import Formula, SiteCall, TensorState, TensorStates
    from lightning_gradwatch.record.step import FloatVector
    from lightning_gradwatch.record.zones import Zones

POINTS: FloatVector = np.array([-2.875, -1.625, -0.75, -0.3125, 0.4375, 1.1875, 2.25])
"""Where a function is looked at: of both signs, in no regular distance."""
_CLOSE = 1e-9

_UNARY: Mapping[str, Callable[[Any], Any]] = {
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "abs": np.abs,
    "absolute": np.abs,
    "sqrt": np.sqrt,
    "rsqrt": lambda values: 1 / np.sqrt(values),
    "log": np.log,
    "log1p": np.log1p,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "neg": np.negative,
    "negative": np.negative,
    "square": np.square,
    "sign": np.sign,
    "reciprocal": np.reciprocal,
    "erf": np.vectorize(math.erf, otypes=[float]),
    **dict.fromkeys(("clone", "contiguous", "float", "double", "half", "bfloat16"), lambda values: values),
}
_BINARY: Mapping[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("add", "radd", "iadd"), np.add),
    **dict.fromkeys(("sub", "subtract", "isub"), np.subtract),
    "rsub": lambda one, other: other - one,
    **dict.fromkeys(("mul", "multiply", "rmul", "imul"), np.multiply),
    **dict.fromkeys(("div", "divide", "true_divide", "truediv", "itruediv", "idiv"), np.divide),
    **dict.fromkeys(("rtruediv", "rdiv"), lambda one, other: other / one),
    **dict.fromkeys(("pow", "ipow"), np.power),
    "rpow": lambda one, other: np.power(other, one),
    "logaddexp": np.logaddexp,
}
STARTS = frozenset(
    (
        "exp",
        "exp2",
        "expm1",
        "abs",
        "absolute",
        "square",
        "pow",
        "mul",
        "multiply",
        "rmul",
        "erf",
        "rpow",
        "sinh",
        "cosh",
        "sign",
    )
) | {
    *("log", "log1p", "sqrt", "rsqrt", "reciprocal", "rtruediv", "rdiv", "logaddexp"),
    *(name.strip("_") for name in UNKNOWN_FUNCTIONS),
}
"""Calls that may be the first step of a function."""
_DIRECT = STARTS - {"exp", "exp2", "expm1", "abs", "absolute", "rpow"}
"""Those of which nearly all belong to a norm, a distance or a loss, unless their argument is what a layer has just made."""
_PRODUCTS = frozenset(("mul", "multiply", "rmul"))
WHOLE = frozenset(("logaddexp",))
"""Those that may be all of a known one: the sum of exponentials of z and 0 is a softplus."""
CARRIES = frozenset(
    {f"{kind}dropout{rank}" for kind in ("", "alpha_", "feature_") for rank in ("", "1d", "2d", "3d")}
    | {
        "cat",
        "concat",
        "concatenate",
        "stack",
        "getitem",
        "chunk",
        "split",
        "unbind",
        "narrow",
        "select",
        "pad",
        "index_select",
    }
)
"""Calls that hand on what a function has made, entry by entry."""


class Known(NamedTuple):
    """Which function a formula turned out to be."""

    zones: Zones
    scale: float
    """Its argument is so many times the formula's."""


def may_start(name: str, given: Sequence[Any]) -> bool:
    """Whether a call may be the first step of a function: of powers not the first, of products that of two tensors."""
    if name not in STARTS:
        return False
    if name == "pow":
        return len(given) == 2 and given[1].__class__ in (int, float) and given[1] != 1
    return name not in _PRODUCTS or (len(given) == 2 and all(isinstance(each, Tensor) for each in given))


def is_unknown(name: str, given: Sequence[Any]) -> bool:
    """Whether a call is the first step of no known function but of a GELU, whose tanh hides what it is of: nobody evaluates it.

    So are cubes, and products of two multiples of one tensor: ``x * (1 - x)``.
    """
    return (name == "pow" and given[1] == 3) or (name in _PRODUCTS and given[0] is not given[1])


def wants_layer(name: str) -> bool:
    """Whether a call is the first step of a function only where its argument is what a layer has made."""
    return name in _DIRECT


def evaluate(name: str, given: Sequence[Any], of: Origin, tags: TensorStates) -> FloatVector | None:
    """Return the values of a call's result, a function of `of`; None where they aren't known."""
    inputs = [_values(each, of, tags) for each in given]
    if any(each is None for each in inputs):
        return None
    with np.errstate(all="ignore"):
        if len(inputs) == 1 and (unary := _UNARY.get(name)) is not None:
            values = unary(inputs[0])
        elif len(inputs) == 2 and (binary := _BINARY.get(name)) is not None:
            values = binary(*inputs)
        else:
            return None
    return values if np.isfinite(values).all() else None


def _values(given: Any, of: Origin, tags: TensorStates) -> Any:
    if isinstance(given, np.ndarray):
        return given
    number = tags.comparisons.number(given)
    if number is not None:
        return number
    tag = tags.get(given)
    if tag is not None and tag.formula is not None:
        return tag.formula.values if tag.formula.of is of else None
    if tag is not None and tag.call is not None and tag.of is of:
        return _of_call(tag, tag.call)
    if not tags.is_of(given, of):
        return None
    factor = 1.0 if tag is None else tag.factor
    return None if factor is None else factor * POINTS


def _of_call(tag: TensorState, call: SiteCall) -> Any:
    """Return the values of a multiple of what an activation function has made; None where they aren't known."""
    formula = None if call.site.composite is not None or tag.shifted else look_up(call.site.function).formula
    return None if formula is None or call.factor is None else tag.scale * formula(POINTS, call.factor * POINTS)


def recognise(formula: Formula) -> Known | None:
    """Return which function a formula is; None for one that isn't known, or whose argument isn't there any more."""
    start, values = formula.start, formula.values
    if values is None or start.argument is None or start.argument._version != start.version:  # noqa: SLF001 - as above
        return None
    functions, table = _table(start.factor)
    found = np.flatnonzero((np.abs(table - values) <= _CLOSE * (1 + np.abs(values))).all(1))
    return functions[found[0]] if len(found) else None


_WRITTEN_OUT = tuple((row, row.formula) for row in ROWS if row.formula is not None)


@lru_cache(maxsize=64)
def _table(factor: float) -> tuple[list[Known], Any]:
    """Return the functions that there are of multiples of an argument, and their values."""
    functions, rows = [], []
    for scale in (factor, -factor, factor / 2, -factor / 2):
        u = scale * POINTS
        for row, formula in _WRITTEN_OUT:
            functions.append(Known(row.usual, scale))
            rows.append(formula(POINTS, u))
    return functions, np.array(rows)
