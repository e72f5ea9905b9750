"""Activation functions written by hand, recognised by what they compute.

``x * sigmoid(c * x)`` shows as a sigmoid that is multiplied by another tensor, as a gate does. What tells it apart is that
both factors are functions of one tensor. So each tensor remembers of which tensor it is an elementwise function, as long
as nothing else came in, and which activation call it carries.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from lightning_gradwatch.measure.trace.tensor_state import Op, Operands, SiteCall, Tag, Tags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lightning_gradwatch.measure.signal import Origin


class Composite(NamedTuple):
    """A hand-written activation function whose last step was just done."""

    function: str
    call: SiteCall | None
    """Its inner activation call; None where that is no activation function by itself (erf)."""
    u: Tensor | None
    """The argument of the inner function, where it isn't an activation function."""
    root: Origin
    """Of z, of which all of it is a function."""

    missing: float = 1.0
    """The constant that the function's own formula still wants: 1/2 where a GELU's is multiplied last; NaN: not known."""


def combine(op: Op, arguments: Operands, tag: Tag, tags: Tags) -> Composite | None:
    """Complete the tag of an arithmetic result; return the activation function that it completes, if it does."""
    operands = [argument for argument in arguments if argument.dim() > 0]
    if not operands:
        return None
    if op is Op.FUNCTION:
        if (inner := tags.get(operands[0])) is not None:
            tag.within = inner.call or inner.within
        return None
    roots = [tags.root(operand) for operand in operands]
    known = [tags.get(operand) for operand in operands]
    if op is Op.MULTIPLY and len(operands) == 2:
        for factor, other, root in zip(known, reversed(known), reversed(roots), strict=True):
            if factor is not None and factor.of is root and (done := _completed(factor, other, root)) is not None:
                return done
    if all(root is roots[0] for root in roots):
        tag.root, tag.factor = roots[0], None
        if len(operands) == 1 and op is not Op.POWER:
            _carry(op, arguments.constant, known[0], tag)
            return None if op is Op.SHIFT else _hard_sigmoid(arguments.constant, known[0])
    return None


def steps_of(arguments: Sequence[Tensor], tags: Tags) -> tuple[SiteCall, ...]:
    """Return the activation calls of one z whose sum is made, as an ELU's may be: ``relu(x) + exp(-relu(-x)) - 1``.

    Where z is less than 0 in all observations the one is flat and the other isn't, so neither tells of dead units.
    """
    one = tags.get(arguments[0])
    first = None if one is None else one.call or one.within
    other = None if first is None else tags.get(arguments[1])
    second = None if other is None else other.call or other.within
    if first is None or second is None or first is second or first.of is not second.of:
        return ()
    return first, second


def _completed(factor: Tag, other: Tag | None, root: Origin) -> Composite | None:
    """Return what a multiple of z times a function of z computes; None where it is something else."""
    multiple = 1.0 if other is None else other.factor
    function = _function(factor)
    if multiple is None or function is None:
        return None
    inner = "erf" if factor.call is None else factor.call.site.function
    height = math.nan if factor.call is None or inner == "hardsigmoid" else factor.call.height
    constant = 1 / height if height > 0 else _CONSTANTS.get((function, inner), 1.0)
    return Composite(function, factor.call, factor.u, root, constant / (multiple * factor.scale or math.nan))


def _hard_sigmoid(constant: float, known: Tag | None) -> Composite | None:
    """Return what a constant makes of a function that is cut off at both sides: ``relu6(x + 3) / 6``."""
    call = None if known is None else known.call
    if known is None or call is None or not call.centred or known.shifted or known.scale != 1.0 or known.of is None:
        return None
    if call.site.composite not in _MAYBE or not math.isclose(constant, 1 / call.height, rel_tol=1e-3):
        return None
    return Composite("hardsigmoid", call, None, known.of)


_MAYBE = (None, "hardsigmoid")
"""What a site may be taken for that turns out to be a hard sigmoid, or a step of a hard swish."""


def _carry(op: Op, constant: float, known: Tag | None, tag: Tag) -> None:
    """Hand on what is known of the one argument of a shift or a multiplication with a constant."""
    if op is Op.SHIFT:
        tag.shift = constant
    else:
        multiple = 1.0 if known is None else known.factor
        tag.factor = None if multiple is None else multiple * constant
    if known is None:
        return
    tag.within = known.within
    if known.of is None:
        return
    tag.call, tag.u, tag.of = known.call, known.u, known.of
    tag.shifted = known.shifted or op is Op.SHIFT
    tag.scale = known.scale if op is Op.SHIFT else known.scale * constant


_CONSTANTS = {("gelu", "tanh"): 0.5, ("gelu", "erf"): 0.5}
"""What the product of z and the inner function's output is multiplied by; 1 where nothing is said."""


def _function(factor: Tag) -> str | None:
    """Name what a tensor times this function of the same tensor computes."""
    if factor.u is not None:
        return "gelu" if factor.shifted else None
    assert factor.call is not None
    site = factor.call.site
    if site.composite not in _MAYBE:
        return site.composite
    if site.function == "tanh" and factor.shifted:
        return "gelu"
    if factor.shifted:
        return None
    if site.function == "tanh":
        inner = factor.call.inner
        return "mish" if inner is not None and inner.site.function == "softplus" else None
    return "hardswish" if factor.call.height > 0 else {"sigmoid": "silu", "hardsigmoid": "hardswish"}.get(site.function)
