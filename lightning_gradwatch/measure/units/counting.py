"""Counting inactive and saturated observations a unit, on the tensor's own device and without reading anything back.

On a CPU the obvious ``(z < bound).sum(…)`` is slow: torch compares into bool one entry at a time and adds booleans up in
int64. Large tensors therefore go through comparisons into their own dtype, which are vectorised, and sums of
at most 255 bytes that stay bytes; in blocks that fit the cache. Small tensors take the fewest operations instead.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_gradwatch.record.zones import Region

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lightning_gradwatch.record.zones import Zones

_COMPARE: Mapping[str, Callable[..., Tensor]] = {"<": torch.lt, "<=": torch.le, ">": torch.gt, ">=": torch.ge}
_IN_PLACE = frozenset(_COMPARE.values())
"""Those that may write into their argument."""
_BLOCK = 1 << 20
"""Entries a block: enough to be worth a call to each operation, few enough to be made of memory that is there."""
_LARGE = 1 << 17
"""Entries from which the blocked way is the faster one on a CPU."""
_BYTES = 128
"""How many 0/1 bytes are added up as bytes: at most 255 fit."""
_WIDE = 256
"""Bytes a row that torch adds up several at a time; below about 128 it goes one by one."""


class Counter:
    """Counts in how many observations a unit is in each region of a function, for tensors of one dtype and rank.

    What doesn't depend on the tensor is worked out once: in a net of narrow layers that takes longer than counting. A
    region that is inactive and saturated (Hardtanh, ReLU6) is counted once; adding up is left to who reads the counts.

    Args:
        zones: The function's.
        dtype: Of the tensors.
        rank: Their number of axes.
        unit_axis: Which of them is that of the units.
    """

    def __init__(self, zones: Zones, dtype: torch.dtype, rank: int, unit_axis: int) -> None:
        inactive, saturated = zones.inactive, zones.saturated or ()
        regions = tuple(dict.fromkeys((*inactive, *saturated)))
        self.regions = len(regions)
        """How many there are to count in."""
        self.dtype = dtype
        self.judges = zones.fractions
        """Whether fractions of units can be given at all."""
        self.inactive = tuple(regions.index(region) for region in inactive)
        """Which of the regions add up to the inactive observations; empty where the function can't be inactive."""
        self.saturated = tuple(regions.index(region) for region in saturated)
        """Those of the saturated ones; empty where it isn't applicable."""
        self.either = tuple(dict.fromkeys((*self.inactive, *self.saturated)))
        """Those of the observations that are one of them."""
        # Compared with a tensor, as torch would make one of a number each time; one without axes is for any device.
        self._regions = [
            (_comparison(region, dtype), torch.tensor(_in_dtype(region, dtype), dtype=dtype), region.absolute)
            for region in regions
        ]
        self._gate_dim = zones.gate_dim
        self._rank = rank
        self._unit_axis = unit_axis % max(rank, 1)
        self._halved = zones.gate_dim is not None and rank > 0 and zones.gate_dim % rank == self._unit_axis
        """Whether the unit axis is the one whose second half is judged."""
        self._others = [axis for axis in range(rank) if axis != self._unit_axis]

    def units(self, z: Tensor) -> int:
        """Return the number of units of a tensor, 1 without axes; GLU has half as many along its own axis. 0 if not judged."""
        if not self.judges:
            return 0
        if not self._rank:
            return 1
        units = z.shape[self._unit_axis]
        return units // 2 if self._halved else units

    def seen(self, z: Tensor) -> tuple[int, int]:
        """Return how many observations of each unit, and how many batch elements, are in a tensor.

        A tensor without axes is one unit, observed once. The batch elements are the length of the first axis, unless that
        is the unit axis.
        """
        if not self._rank:
            return 1, 1
        units = self.units(z)
        entries = z.numel() if self._gate_dim is None else z.numel() // 2
        return entries // units if units else 0, z.shape[0] if self._rank > 1 and self._unit_axis else 1

    def count(self, z: Tensor) -> list[Tensor]:
        """Return int32[U] for each region, on the tensor's device.

        NaN is in no region. A bound is compared as float64 compares it, whatever the dtype.
        """
        z = z.detach()
        if self._gate_dim is not None:
            z = _second_half(z, self._gate_dim)
        if not self._rank:
            z = z.unsqueeze(-1)
        if z.numel() >= _LARGE and z.device.type == "cpu":
            return [
                _count_blocks(z, self._unit_axis, compare, bound, absolute=absolute)
                for compare, bound, absolute in self._regions
            ]
        counts = []
        for compare, bound, absolute in self._regions:
            inside = compare(z.abs() if absolute else z, bound)
            # A sum over no axes would be one over all.
            counts.append(inside.sum(self._others, dtype=torch.int32) if self._others else inside.to(torch.int32))
        return counts

    def count_rows(self, stack: Tensor) -> list[Tensor]:
        """Return float32[N, U] for each region, of N tensors on a CPU that are the rows of one; they are overwritten.

        Each has few enough entries that float32 counts them exactly.
        """
        if self._gate_dim is not None:
            stack = _second_half(stack, self._gate_dim % self._rank + 1)
        others = [axis + 1 for axis in self._others]
        counts = []
        for left, (compare, bound, absolute) in zip(range(self.regions - 1, -1, -1), self._regions, strict=True):
            # Into its own dtype, which is vectorised, and in place where it isn't needed any more.
            inside = stack if left == 0 and compare in _IN_PLACE else torch.empty_like(stack)
            compare(torch.abs(stack, out=inside) if absolute else stack, bound, out=inside)
            counts.append(inside.sum(others, dtype=torch.float32) if others else inside.to(torch.float32, copy=True))
        return counts


@lru_cache(maxsize=1024)
def counter(zones: Zones, dtype: torch.dtype, rank: int, unit_axis: int) -> Counter:
    """Return the one counter of its kind, so that calls which are counted alike are known by it."""
    return Counter(zones, dtype, rank, unit_axis)


def _second_half(z: Tensor, axis: int) -> Tensor:
    half = z.shape[axis] // 2
    return z.narrow(axis, half, half)


def _count_blocks(
    z: Tensor, unit_axis: int, compare: Callable[..., Tensor], bound: Tensor, *, absolute: bool
) -> Tensor:
    rows, units = _as_rows(z, unit_axis)
    width = rows.shape[1]
    block = max(1, _BLOCK // width)
    group = _BYTES * max(1, _WIDE // width)
    if block > group:
        block -= block % group
    scratch = torch.empty((min(block, len(rows)), width), dtype=z.dtype)
    total: Tensor | None = None
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        inside = scratch[: len(part)]
        if absolute:
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


def _comparison(region: Region, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Return what compares with the bound of a region, and with its lower one where it has one."""
    if region.lower == -math.inf:
        return _COMPARE[region.comparison]
    low, high = _in_dtype(Region(">=", region.lower), dtype), _in_dtype(region, dtype)

    def between(z: Tensor, _: Tensor, *, out: Tensor | None = None) -> Tensor:
        # What a clamp leaves as it is lies between, and NaN isn't equal to itself.
        return torch.eq(torch.clamp(z, low, high, out=out), z, out=out)

    return between


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
