"""Counting inactive and saturated observations a unit, on the tensor's own device and without reading anything back.

On a CPU the obvious ``(z < bound).sum(…)`` is slow: torch compares into bool one entry at a time and adds booleans up in
int64. Large tensors therefore go through comparisons into their own dtype, which are vectorised, and sums of
at most 255 bytes that stay bytes; in blocks that fit the cache. Small tensors take the fewest operations instead.
"""

from __future__ import annotations

import math
import operator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lightning_gradwatch.measure.functions import Call, Region, Zones

_COMPARE: Mapping[str, Callable[..., Tensor]] = {"<": torch.lt, "<=": torch.le, ">": torch.gt, ">=": torch.ge}
_OPERATOR: Mapping[str, Callable[..., Tensor]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
"""The same, quicker to call: torch's functions first try whether the bound is a tensor."""
_BLOCK = 1 << 20
"""Entries a block: enough to be worth a call to each operation, few enough to be made of memory that is there."""
_LARGE = 1 << 17
"""Entries from which the blocked way is the faster one on a CPU."""
_BYTES = 128
"""How many 0/1 bytes are added up as bytes: at most 255 fit."""
_WIDE = 256
"""Bytes a row that torch adds up several at a time; below about 128 it goes one by one."""


class Counts(NamedTuple):
    """Observations counted a unit: int32[U] on the device of z, U the number of units."""

    units: int
    observations: int
    """Of each unit."""
    inactive: Tensor | None
    """None where the function can't be inactive: 0."""
    saturated: Tensor | None
    """None where it isn't applicable."""
    either: Tensor | None
    """Inactive or saturated, may be one of the other two; None where both are."""


def count(call: Call, z: Tensor, unit_axis: int) -> Counts | None:
    """Count a call's inactive and saturated observations in z, which is its `Call.z` or some observations of it.

    Returns None for a function without unit fractions. GLU has half as many units where its own axis is the unit axis.
    NaN counts as neither. A bound is compared as float64 compares it, whatever the dtype of z.
    A tensor without axes is one unit, observed once.
    """
    if not call.zones.fractions:
        return None
    z = _judged(call.zones, z.detach(), 0)
    units = z.shape[unit_axis]
    return _counts(
        call.zones, units, z.numel() // units if units else 0, lambda region: _count_region(z, unit_axis, region)
    )


def count_many(zones: Zones, stacked: Tensor, unit_axis: int) -> list[Counts] | None:
    """Count the observations of several calls of one function at once: `stacked[i]` is what `count` takes as z.

    `unit_axis` is that of one call. The counts equal those of `count`, call by call.
    """
    if not zones.fractions:
        return None
    z = _judged(zones, stacked.detach(), 1)
    calls, units = len(z), z.shape[unit_axis + 1]
    others = [axis for axis in range(1, z.dim()) if axis != unit_axis + 1]

    def count_region(region: Region) -> Tensor:
        inside = _inside(z, region)
        return inside.sum(others, dtype=torch.int32) if others else inside.to(torch.int32)

    counts = _counts(zones, units, z[0].numel() // units if units else 0, count_region)
    split: dict[int, Sequence[Tensor | None]] = {
        id(counted): (None,) * calls if counted is None else counted.unbind()
        for counted in (counts.inactive, counts.saturated, counts.either)
    }
    return [
        Counts(units, counts.observations, inactive, saturated, either)
        for inactive, saturated, either in zip(
            split[id(counts.inactive)], split[id(counts.saturated)], split[id(counts.either)], strict=True
        )
    ]


def _judged(zones: Zones, z: Tensor, first: int) -> Tensor:
    """Return what of z is judged; `first` is where the axes of one call begin."""
    if zones.gate_dim is not None:
        axis = zones.gate_dim + first if zones.gate_dim >= 0 else zones.gate_dim
        half = z.shape[axis] // 2
        z = z.narrow(axis, half, half)
    return z.unsqueeze(-1) if z.dim() == first else z


def _counts(zones: Zones, units: int, observations: int, count_region: Callable[[Region], Tensor]) -> Counts:
    inactive, saturated = zones.inactive, zones.saturated or ()
    counted: dict[Region, Tensor] = {}  # a region of both (Hardtanh, ReLU6) is counted once
    in_inactive = _count(inactive, counted, count_region) if inactive else None
    if saturated == inactive:
        in_saturated = in_inactive
    else:
        in_saturated = _count(saturated, counted, count_region) if saturated else None
    # No third pass: where a function has both, its saturated regions are inactive too.
    either = in_saturated if in_inactive is None else in_inactive
    return Counts(units, observations, in_inactive, in_saturated, either)


def _count(
    regions: tuple[Region, ...], counted: dict[Region, Tensor], count_region: Callable[[Region], Tensor]
) -> Tensor:
    total: Tensor | None = None
    for region in regions:
        if region not in counted:
            counted[region] = count_region(region)
        total = counted[region] if total is None else total + counted[region]
    assert total is not None
    return total


def _inside(z: Tensor, region: Region) -> Tensor:
    return _OPERATOR[region.comparison](z.abs() if region.absolute else z, _in_dtype(region, z.dtype))


def _count_region(z: Tensor, unit_axis: int, region: Region) -> Tensor:
    if z.numel() >= _LARGE and z.device.type == "cpu":
        return _count_blocks(z, unit_axis, region)
    inside = _inside(z, region)
    axes = z.dim()
    if axes == 1:  # a sum over no axes would be one over all
        return inside.to(torch.int32)
    if axes == 2:
        return inside.sum(1 - unit_axis % 2, dtype=torch.int32)
    unit_axis %= axes
    return inside.sum([axis for axis in range(axes) if axis != unit_axis], dtype=torch.int32)


def _count_blocks(z: Tensor, unit_axis: int, region: Region) -> Tensor:
    rows, units = _as_rows(z, unit_axis)
    width = rows.shape[1]
    block = max(1, _BLOCK // width)
    group = _BYTES * max(1, _WIDE // width)
    if block > group:
        block -= block % group
    scratch = torch.empty((min(block, len(rows)), width), dtype=z.dtype)
    compare, bound = _COMPARE[region.comparison], _in_dtype(region, z.dtype)
    total: Tensor | None = None
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        inside = scratch[: len(part)]
        if region.absolute:
            part = torch.abs(part, out=inside)
        compare(part, bound, out=inside)
        added = _add_up(inside.to(torch.bool).view(torch.uint8), units)
        total = added if total is None else total.add_(added)
    assert total is not None
    return total


def _as_rows(z: Tensor, unit_axis: int) -> tuple[Tensor, int]:
    """Return z as [R, U * S], S the inner axes, and the number U of units; a copy only of an unusual layout."""
    unit_axis %= z.dim()
    if not z.is_contiguous():
        last = z.movedim(unit_axis, -1)  # channels-last memory is contiguous so
        if last.is_contiguous():
            z, unit_axis = last, last.dim() - 1
        else:
            z = z.contiguous()
    return z.view(math.prod(z.shape[:unit_axis]), -1), z.shape[unit_axis]


def _add_up(marks: Tensor, units: int) -> Tensor:
    """Add up 0/1 bytes [R, U * S] a unit."""
    rows, width = marks.shape
    fold = max(1, _WIDE // width)
    whole = rows - rows % (_BYTES * fold)
    if not whole:
        if rows > 8 and fold == 1:
            marks = marks.sum(0, keepdim=True, dtype=torch.uint8)
        return _add_up_rows(marks, units)
    # Several narrow rows side by side are one wide row.
    total = _add_up_rows(marks[:whole].view(-1, _BYTES, fold * width).sum(1, dtype=torch.uint8).view(-1, width), units)
    return total if whole == rows else total.add_(_add_up(marks[whole:], units))


def _add_up_rows(sums: Tensor, units: int) -> Tensor:
    return sums.view(len(sums), units, -1).sum((0, 2), dtype=torch.int32)


@lru_cache(maxsize=1024)
def _in_dtype(region: Region, dtype: torch.dtype) -> float:
    """Return the bound that compares with every value of the dtype as the float64 bound does.

    torch rounds a Python number to the tensor's dtype before it compares, so it must be a number of that dtype already:
    the largest one up to the bound for ``<=`` and ``>``, the smallest one from the bound on for ``<`` and ``>=``.
    """
    bound, up = region.bound, region.comparison in ("<", ">=")
    if not math.isfinite(bound):
        return bound
    info: Any = torch.finfo(dtype)
    exponent = max(math.frexp(bound)[1], math.frexp(info.smallest_normal)[1]) - 1
    spacing = math.ldexp(info.eps, exponent)
    rounded = (math.ceil if up else math.floor)(bound / spacing) * spacing
    if rounded > info.max:
        return math.inf if up else float(info.max)
    if rounded < -info.max:
        return -float(info.max) if up else -math.inf
    return rounded
