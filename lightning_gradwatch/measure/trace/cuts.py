"""Functions that cut their argument off, written by hand: ``clamp``, ``maximum(x, 0)``, ``where(x > 0, x, 0)``, ``x * (x > 0)``.

These calls serve for much else: a guard against a division by 0, an attention mask, the larger of two tensors. One is an
activation function where the tensor that is cut is an argument of the cut alone: where it is compared with plain numbers,
or takes a mask that was made by comparing that very tensor with one. No tensor's values are read on a device: what a
constant holds is known of zeros made in this pass, and of numbers without axes on the host.

Kinks follow torch's backward: ``clamp`` passes the gradient at its bounds, ``maximum`` half of it, ``where`` what the
comparison says.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_gradwatch.measure.model.call_site import inside_function
from lightning_gradwatch.measure.trace.axes import count_of_units
from lightning_gradwatch.measure.trace.gates import may_gate
from lightning_gradwatch.measure.trace.handwritten import chain_of
from lightning_gradwatch.measure.trace.tensor_state import inner_call, is_in_place
from lightning_gradwatch.measure.units.activations import Call
from lightning_gradwatch.record.zones import Comparison, Region, Zones

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lightning_gradwatch.measure.model.path import Site
    from lightning_gradwatch.measure.signal import Origin
    from lightning_gradwatch.measure.trace.tensor_state import TensorStates

_OPPOSITE: Mapping[Comparison, Comparison] = {">": "<=", ">=": "<", "<": ">=", "<=": ">"}
_LARGEST = 1e3
"""A bound beyond it guards a number format: no unit works there."""
_ENDS = frozenset({"softmax", "log_softmax", "softmin", "logsigmoid"})
"""Functions whose output is clamped against the logarithm of 0, or a division by it, as that of those is that may gate."""


def cut(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], tags: TensorStates
) -> Call | str | None:
    """Return which activation function a call computes that may cut its argument off; None if it is none.

    A text says why it isn't known, where it may be one.
    """
    try:
        read: _Reader = _READERS.get(func.__name__.rstrip("_"), _product)
        found = read(args, kwargs, tags)
    except (ArithmeticError, LookupError, TypeError, ValueError):  # torch itself is about to refuse it
        return None
    if found is None or isinstance(found, str):
        return found
    zones, z = found
    return Call(zones, z, is_in_place(func) or kwargs.get("out") is not None) if _judged(z, tags) else None


def _judged(z: Tensor, tags: TensorStates) -> bool:
    """Whether a tensor is one of features that are trained, and not of weights, of one number a sample, or guarded."""
    if z.dim() < 2 or not z.is_floating_point() or isinstance(z, nn.Parameter):
        return False
    if not (z.requires_grad and torch.is_grad_enabled()) and inside_function() != "checkpoint":
        return False
    tag = tags.get(z)
    return tag is None or not (
        tag.weights_only
        or (not tag.call and tag.gate)
        or (tag.call is not None and (_may_gate(tag.call.site) or tag.call.site.function in _ENDS))
    )


def _may_gate(site: Site) -> bool:
    """Whether a site's output may gate, of which what cuts it off once more is a guard, not a bound at its other side."""
    return may_gate(site) and site.function not in _CUT_OFF


_CUT_OFF = frozenset(("hardtanh", "relu6"))
MAXOUT = "the largest or smallest of several units: what they are together isn't counted"
PIECES = "a function of two pieces that isn't known: its units aren't counted"
_Found: TypeAlias = "tuple[Zones, Tensor] | str | None"


def _bounded(lower: float | None, upper: float | None, z: Tensor) -> _Found:
    """Judge a function that is z between two bounds, at them included, and constant outside."""
    if lower is not None and lower <= -_LARGEST:
        lower = None
    if upper is not None and upper >= _LARGEST:
        upper = None
    if (lower is None and upper is None) or (lower or 0.0) > 0 or (upper or 0.0) < 0 or lower == upper:
        return None  # a guard, which what is about 0 doesn't pass
    below = () if lower is None else (Region("<", lower),)
    above = () if upper is None else (Region(">", upper),)
    if (lower == 0 and upper is None) or (upper == 0 and lower is None):
        return Zones("relu", (*below, *above)), z
    # What is 0 at 0 and below is a ReLU there; other outer pieces are flat sides.
    return Zones(
        "relu6" if (lower, upper) == (0, 6) else "hardtanh", (*below, *above), above if lower == 0 else (*below, *above)
    ), z


def _clamp(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    tags: TensorStates,
    *,
    names: Sequence[str] = ("input", "min", "max"),
) -> _Found:
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    lower, upper = given.get("min"), given.get("max")
    bounds = [None if each is None else tags.comparisons.number(each) for each in (lower, upper)]
    known = all(bound is None or number is not None for bound, number in zip((lower, upper), bounds, strict=True))
    z = given["input"] if "input" in given else given["self"]
    if not isinstance(z, Tensor):
        return None
    return _bounded(bounds[0], bounds[1], z) if known else _unknown(z, tags)


def _larger(args: Sequence[Any], kwargs: Mapping[str, Any], tags: TensorStates, *, smaller: bool = False) -> _Found:
    given = dict(zip(("input", "other"), args, strict=False)) | dict(kwargs)
    one, other = given.get("input"), given.get("other")
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return _over_axis([one, given.get("dim", other)], {}, tags)
    for z, bound in ((one, other), (other, one)):
        if (number := tags.comparisons.number(bound)) is not None and z.dim() >= bound.dim():
            return _bounded(None, number, z) if smaller else _bounded(number, None, z)
        if _slope(bound, z, tags) not in (None, 0.0, 1.0):
            return Zones("leaky_relu"), z
    if one.requires_grad and other.requires_grad:  # of two that are trained, or of two pieces of one function
        alike = argument_of(one, tags) is argument_of(other, tags)
        return PIECES if alike and (_judged(one, tags) or _judged(other, tags)) else None
    return _unknown(one if one.requires_grad else other, tags)


def _over_axis(args: Sequence[Any], kwargs: Mapping[str, Any], tags: TensorStates) -> _Found:
    """Judge the largest of each along an axis that has some of the units, and others have more: a Maxout."""
    given = dict(zip(("input", "dim"), args, strict=False)) | dict(kwargs)
    z, dim = given.get("input"), given.get("dim")
    tag = tags.get(z)
    if tag is None or tag.layer is None or not isinstance(z, Tensor) or not isinstance(dim, int) or inner_call(tag):
        return None
    axis = tags.unit_axis(z)
    if isinstance(axis, int) or dim % z.dim() not in axis.with_units or not _judged(z, tags):
        return None
    return MAXOUT if count_of_units(axis, z.shape) > z.size(dim) else None


def _unknown(z: Tensor, tags: TensorStates) -> str | None:
    return "its bound is a tensor, whose values aren't read: its units aren't counted" if _judged(z, tags) else None


def _where(args: Sequence[Any], kwargs: Mapping[str, Any], tags: TensorStates) -> _Found:
    # A method's own tensor comes first, a function's condition.
    given = dict(kwargs)
    mask, one, other = (given.get(key) for key in ("condition", "input", "other"))
    rest = list(args)
    if rest and isinstance(rest[0], Tensor) and rest[0].dtype is not torch.bool:
        one = rest.pop(0)
    for value in rest:
        if mask is None:
            mask = value
        elif one is None:
            one = value
        else:
            other = value
    for z, constant, taken in ((one, other, True), (other, one, False)):
        region = tags.comparisons.of(mask, z)
        if region is not None and isinstance(z, Tensor):
            off = region._replace(comparison=_OPPOSITE[region.comparison]) if taken else region
            return _off(z, off, constant, tags)
    z = tags.comparisons.compared_in(mask)
    pieces = [each for each in (one, other) if isinstance(each, Tensor) and each.requires_grad]
    if z is None or not pieces or not _judged(z, tags):
        return None
    # Neither is the tensor that was compared, but functions of it.
    return PIECES if all(argument_of(each, tags) is tags.root(z) for each in pieces) else None


def argument_of(value: Tensor, tags: TensorStates) -> Origin:
    """Return the origin of the value of which a tensor is a function, entry by entry; of itself, where of none."""
    tag = tags.get(value)
    if (call := inner_call(tag)) is not None and (first := chain_of(call)[-1]).of is not None:
        return first.of
    if tag is not None and tag.u is not None and tag.of is not None:
        return tag.of
    return tag.formula.of if tag is not None and tag.formula is not None else tags.root(value)


def _masked_fill(args: Sequence[Any], kwargs: Mapping[str, Any], tags: TensorStates) -> _Found:
    given = dict(zip(("input", "mask", "value"), args, strict=False)) | dict(kwargs)
    z = given.get("input")
    region = tags.comparisons.of(given.get("mask"), z)
    return None if region is None or not isinstance(z, Tensor) else _off(z, region, given.get("value"), tags)


def _masked_scatter(args: Sequence[Any], kwargs: Mapping[str, Any], tags: TensorStates) -> _Found:
    given = dict(zip(("input", "mask", "source"), args, strict=False)) | dict(kwargs)
    z, constant = given.get("input"), tags.comparisons.number(given.get("source"))
    region = tags.comparisons.of(given.get("mask"), z)
    if region is None or not isinstance(z, Tensor):
        return None
    # What isn't everywhere the same doesn't stay where it was: the first entries go to the first places.
    return (PIECES if _judged(z, tags) else None) if constant is None else _off(z, region, constant, tags)


def _product(args: Sequence[Any], kwargs: Mapping[str, Any], tags: TensorStates) -> _Found:
    given = dict(zip(("input", "other"), args, strict=False)) | dict(kwargs)
    one, other = given.get("input"), given.get("other")
    for z, mask in ((one, other), (other, one)):
        region = tags.comparisons.of(mask, z)
        if region is not None and isinstance(z, Tensor):
            return _off(z, region._replace(comparison=_OPPOSITE[region.comparison]), 0.0, tags)
        if tags.comparisons.makes_slopes(mask) and isinstance(z, Tensor):
            compared = tags.comparisons.compared_in(mask)
            alike = compared is not None and tags.root(compared) is tags.root(z)
            return PIECES if alike and _judged(z, tags) else None
    return None


def _off(z: Tensor, off: Region, constant: object, tags: TensorStates) -> _Found:
    """Judge a function that is z but for a region, in which it is something else."""
    if isinstance(constant, Tensor) and constant.requires_grad:
        slope = _slope(constant, z, tags)
        if slope and off.bound == 0:
            return Zones("leaky_relu"), z
        return PIECES if _judged(z, tags) else None
    below = off.comparison in ("<", "<=")
    if tags.comparisons.number(constant) == off.bound == 0:
        return Zones("relu", (off,)), z
    if below or tags.comparisons.number(constant) != off.bound:
        return Zones("threshold", (off,)), z
    return Zones("hardtanh", (off,), (off,)), z


def _slope(value: object, z: Tensor, tags: TensorStates) -> float | None:
    """Return of what multiple of z a tensor is; None where it is something else."""
    if not isinstance(value, Tensor) or value is z:
        return None
    tag, own = tags.get(value), tags.get(z)
    if tag is None or tag.root is None or tag.factor is None or tag.root is not tags.root(z):
        return None
    factor = 1.0 if own is None else own.factor
    slope = tag.factor / factor if factor else math.nan
    return slope if math.isfinite(slope) else None


_Reader: TypeAlias = "Callable[[Sequence[Any], Mapping[str, Any], TensorStates], _Found]"
_READERS: Mapping[str, _Reader] = {
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": partial(_clamp, names=("input", "min")),
    "clamp_max": partial(_clamp, names=("input", "max")),
    **dict.fromkeys(("maximum", "max", "fmax"), _larger),
    **dict.fromkeys(("amax", "amin"), _over_axis),
    **dict.fromkeys(("minimum", "min", "fmin"), partial(_larger, smaller=True)),
    "where": _where,
    "masked_fill": _masked_fill,
    "masked_scatter": _masked_scatter,
}
