"""Activation functions written by hand, recognised by what they compute.

``x * sigmoid(c * x)`` shows as a sigmoid that is multiplied by another tensor, as a gate does. What tells it apart is that
both factors are functions of one tensor. So each tensor remembers of which tensor it is an elementwise function, as long
as nothing else came in, and which activation call it carries.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import nn

from lightning_gradwatch.measure.trace.formulas import POINTS
from lightning_gradwatch.measure.trace.tensor_state import Op, SiteCall, TensorState, TensorStates, inner_call
from lightning_gradwatch.record.activations import look_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lightning_gradwatch.measure.signal import Origin
    from lightning_gradwatch.measure.trace.operands import Operands


class HandWritten(NamedTuple):
    """A hand-written activation function whose last step was just done."""

    function: str
    """``""`` for one that isn't known."""
    call: SiteCall | None
    """Its inner activation call; None where that is no activation function by itself (erf)."""
    u: Tensor | None
    """The argument of the inner function, where it isn't an activation function."""
    root: Origin
    """Of z, of which all of it is a function."""

    missing: float = 1.0
    """The constant that the function's own formula still wants: 1/2 where a GELU's is multiplied last; NaN: not known."""


def combine(op: Op, arguments: Operands, tag: TensorState, tags: TensorStates) -> HandWritten | None:
    """Complete the tag of an arithmetic result; return the activation function that it completes, if it does."""
    operands = [argument for argument in arguments if argument.dim() > 0]
    if not operands:
        return None
    if op is Op.FUNCTION or op is Op.POWER:
        tag.within = inner_call(tags.get(operands[0]))
        if op is Op.FUNCTION:
            return None
    roots = [tags.root(operand) for operand in operands]
    known = [tags.get(operand) for operand in operands]
    if op is Op.MULTIPLY and len(operands) == 2:
        done = _product(operands, known, roots, tag, tags)
        if done is not None:
            return done
    if all(root is roots[0] for root in roots):
        tag.root, tag.factor = roots[0], None
        if len(operands) == 1 and op is not Op.POWER:
            _carry(op, arguments, known[0], tag)
            return None if op is Op.SHIFT else _hard_sigmoid(arguments.constant, known[0])
    return None


def _product(
    operands: Sequence[Tensor],
    known: Sequence[TensorState | None],
    roots: Sequence[Origin],
    tag: TensorState,
    tags: TensorStates,
) -> HandWritten | None:
    """Return the function that a product of two tensors completes, or note what is known of it."""
    for factor, other, root in zip(known, reversed(known), reversed(roots), strict=True):
        if factor is None:
            continue
        if factor.of is root and (done := _completed(factor, other, root)) is not None:
            return done
        if (call := _gates_its_own(factor, root)) is not None:
            return HandWritten("", call, None, root)
    for operand, own, other in zip(operands, known, reversed(known), strict=True):
        if isinstance(operand, nn.Parameter) or (own is not None and own.weights_only):
            tag.within = inner_call(other)  # each unit's own slope, as in a PReLU
    if tags.comparisons.masks:
        _masked(operands, roots, tag, tags)
    return None


def _masked(operands: Sequence[Tensor], roots: Sequence[Origin], tag: TensorState, tags: TensorStates) -> None:
    """Note that what a mask leaves of a tensor is a function of it, where the mask was made by comparing that, or a multiple."""
    for mask, root in zip(operands, reversed(roots), strict=True):
        if (z := tags.comparisons.compared_in(mask)) is not None and tags.is_of(z, root):
            tag.root, tag.factor = root, None


def steps_of(arguments: Sequence[Tensor], tags: TensorStates) -> Sequence[SiteCall]:
    """Return the activation calls of one z whose sum is made, with another or with z: ``relu(x) + exp(-relu(-x)) - 1``, ``x - tanh(x)``.

    Where z is less than 0 in all observations the one is flat and the other isn't, so neither tells of dead units.
    """
    one, *others = arguments
    first = inner_call(tags.get(one))
    for other in others:
        second = inner_call(tags.get(other))
        if first is not None and second is not None:
            if first is not second and first.of is second.of:
                return first, second
        elif (call := first or second) is not None and call.of is not None:
            rest = one if first is None else other
            if rest.dim() and tags.is_of(rest, call.of):
                return (call,)
    return ()


def chain_of(call: SiteCall) -> Sequence[SiteCall]:
    """Return an activation call and those of whose outputs its argument is made, entry by entry."""
    found = [call]
    while len(found) < _LONGEST and call.within is not None:
        call = call.within
        found.append(call)
    return found


_LONGEST = 8
"""Calls of one function that is written by hand."""


def _gates_its_own(factor: TensorState, root: Origin) -> SiteCall | None:
    """Return the activation call that makes a factor of a function of z, where that is no known function: ``x * tanh(x)``.

    Alone it would be taken for a gate, or for a function of its own inside of another: ``x * erf(softplus(x))``.
    """
    call = inner_call(factor)
    # What is flat on no side tells the truth of the product too: that of z and ReLU is dead where ReLU is.
    if call is None or not (factor.gate or look_up(call.site.function).saturates):
        return None
    return call if call.of is root or call.source is root else None


def _completed(factor: TensorState, other: TensorState | None, root: Origin) -> HandWritten | None:
    """Return what a multiple of z times a function of z computes; None where it is something else."""
    multiple = 1.0 if other is None else other.factor
    function = _function(factor)
    if multiple is None or function is None:
        return None
    inner = "erf" if factor.call is None else factor.call.site.function
    height = math.nan if factor.call is None or inner == "hardsigmoid" else factor.call.height
    constant = 1 / height if height > 0 else _CONSTANTS.get((function, inner), 1.0)
    return HandWritten(function, factor.call, factor.u, root, constant / (multiple * factor.scale or math.nan))


def _hard_sigmoid(constant: float, known: TensorState | None) -> HandWritten | None:
    """Return what a constant makes of a function that is cut off at both sides: ``relu6(x + 3) / 6``."""
    call = None if known is None else known.call
    if known is None or call is None or not call.centred or known.shifted or known.scale != 1.0 or known.of is None:
        return None
    if call.site.composite not in _MAYBE or not math.isclose(constant, 1 / call.height, rel_tol=1e-3):
        return None
    return HandWritten("hardsigmoid", call, None, known.of)


_MAYBE = (None, "hardsigmoid")
"""What a site may be taken for that turns out to be a hard sigmoid, or a step of a hard swish."""


def _carry(op: Op, arguments: Operands, known: TensorState | None, tag: TensorState) -> None:
    """Hand on what is known of the one argument of a shift or a multiplication with a constant."""
    constant = arguments.constant
    multiple = 1.0 if known is None else known.factor
    if op is not Op.SHIFT:
        tag.factor = None if multiple is None else multiple * constant
    elif constant:
        tag.shift = constant
    elif arguments.sign > 0:  # nothing was added
        tag.factor = multiple
    if known is None:
        return
    tag.within = known.within
    if known.of is None:
        return
    tag.call, tag.u, tag.of = known.call, known.u, known.of
    tag.u_factor = known.u_factor
    if op is Op.SHIFT:
        tag.shifted, tag.scale = True, known.scale * arguments.sign
        tag.offset = known.offset + constant / (tag.scale or math.nan)
    else:
        tag.shifted, tag.scale, tag.offset = known.shifted, known.scale * constant, known.offset


_CONSTANTS = {("gelu", "tanh"): 0.5, ("gelu", "erf"): 0.5}
"""What the product of z and the inner function's output is multiplied by; 1 where nothing is said."""


def _function(factor: TensorState) -> str | None:
    """Name what a tensor times this function of the same tensor computes."""
    call = factor.call
    if call is None:
        of_normal = factor.u_factor is not None and not abs(abs(factor.u_factor) - math.sqrt(0.5)) > _NEARLY
        return "gelu" if of_normal and _adds_one(factor) else None
    site = call.site
    if site.composite not in _MAYBE:
        return site.composite
    if site.function == "tanh":
        return _of_tanh(call, factor)
    if factor.shifted or (site.function == "sigmoid" and call.factor is None):
        return None
    return "hardswish" if call.height > 0 else {"sigmoid": "silu", "hardsigmoid": "hardswish"}.get(site.function)


def _of_tanh(call: SiteCall, factor: TensorState) -> str | None:
    if factor.shifted:
        # Of a plain multiple it would be a SiLU: GELU's has a cube in it.
        return "gelu" if call.factor is None and call.within is None and _adds_one(factor) and _has_cube(call) else None
    inner = call.inner
    known = inner is not None and inner.site.function == "softplus" and inner.usual and inner.factor is not None
    return "mish" if known else None


_NEARLY = 1e-2
"""Of constants that are rounded where they are written."""


def _has_cube(call: SiteCall) -> bool:
    """Whether a tanh's argument may be that in a GELU: where no first step of another function is known to be in it."""
    if call.formula is None:
        return True
    values = call.formula.values
    if values is None:
        return call.formula.start.name in ("pow", "mul")
    return bool(np.allclose(np.abs(values), np.abs(_OF_GELU), rtol=_NEARLY))


_OF_GELU = math.sqrt(2 / math.pi) * (POINTS + 0.044715 * POINTS**3)


def _adds_one(factor: TensorState) -> bool:
    """Whether 1 was added to an inner function's output, up to a scale of both; or what only a device knows."""
    return factor.shifted and not abs(factor.offset - 1) > _NEARLY
