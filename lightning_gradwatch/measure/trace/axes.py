"""Where the units of a tensor lie: along one axis, or along parts of several, as where features are split into heads.

A layer makes its features along one axis. What `view`, `transpose` and their like do to it afterwards changes no unit: head h's
feature d stays feature h * D + d of the layer, also where the heads have an axis of their own or share one with the batch. So a
tensor whose features were split remembers of each of its axes what it is made of.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING

from lightning_gradwatch.measure.trace.tensor_state import LOST, Axis, Op, Part, Parts, Split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet

    from torch import Tensor

_RANK_OF_CONVOLUTION = {f"conv{transposed}{n}d": n + 2 for n in (1, 2, 3) for transposed in ("", "_transpose")}
_LAST, _RESHAPE, _TRANSPOSE = Op.LAST, Op.RESHAPE, Op.TRANSPOSE  # by name, as in `tracer`
_MOST_REMOVED = 2
_UNFOLDED = (4, 3)
"""How many axes an image has, and what its patches are unfolded to."""
CACHED = 1024
"""Shapes for which it is remembered where units went."""
_ORDER = ("batch", "positions", "units")


def split_of(shape: Sequence[int], units: Sequence[int]) -> Split:
    """Return what the axes of a tensor are made of, of which some are its units'."""
    return Split(
        tuple(
            () if size == 1 else (Part(size, "units" if axis in units else "positions" if axis else "batch"),)
            for axis, size in enumerate(shape)
        )
    )


def axis_after(
    op: Op, func: Callable[..., object], source: Tensor | None, axis: Axis | None, result: Tensor
) -> Axis | None:
    """Return where the units of a result lie whose first tagged argument `source` had them at `axis`; None: nothing is known."""
    rank = result.dim()
    if op is _LAST:
        return rank - 1 if rank else None
    if op is Op.CHANNEL:
        full = _RANK_OF_CONVOLUTION.get(getattr(func, "__name__", ""))
        return 0 if full is not None and rank == full - 1 else min(1, rank - 1)
    if source is None or axis is None:
        return None
    if axis == 1 and (source.dim(), rank) == _UNFOLDED and getattr(func, "__name__", "") == "unfold":
        return 1  # each feature, at each place of a patch
    if source.is_nested or result.is_nested:  # has no shape, and may have no strides
        return axis if rank == source.dim() else None
    return _after_move(op, source, axis, result)


def _after_move(op: Op, source: Tensor, axis: Axis, result: Tensor) -> Axis | None:
    if op is _RESHAPE:
        return _after_reshape(source.shape, axis, result.shape)
    if op is _TRANSPOSE:
        return _after_transpose(source, axis, result)
    return axis if result.dim() == source.dim() else _after_another_call(source, axis, result)


def _after_another_call(source: Tensor, axis: Axis, result: Tensor) -> Axis | None:
    view = result.dim() < source.dim() and result._is_view()  # noqa: SLF001 - the documented test for a view has no public name
    strides, new = (source.stride(), result.stride()) if view else ((), ())
    return _at_another_rank(axis, source.shape, strides, result.shape, new)


def as_units(tensor: Tensor, axis: Axis) -> tuple[Tensor, int]:
    """Return a tensor of the same entries whose units lie along one axis, and that axis.

    Raises:
        ValueError: they don't lie where the tensor has entries that could be told apart.
    """
    if isinstance(axis, int):
        return tensor, axis
    parts = [part for each in axis.axes for part in each]
    places = sorted(range(len(parts)), key=lambda place: _ORDER.index(parts[place].of))
    units = [parts[place].size for place in places if parts[place].of == "units"]
    others = [parts[place].size for place in places if parts[place].of != "units"]
    apart = tensor.reshape([part.size for part in parts]).permute(places)
    return apart.reshape([*others, math.prod(units)]), len(others)


@lru_cache(maxsize=CACHED)
def first_unit(
    axis: Axis, shape: tuple[int, ...], strides: tuple[int, ...], after: tuple[int, ...], offset: int
) -> tuple[tuple[int, ...], Axis]:
    """Return the place of a view's first entry along the axes that have units, and where the units lie in the view.

    Args:
        axis: Where those of the tensor lie.
        shape: Of the tensor.
        strides: Of the tensor.
        after: The shape of the view.
        offset: How many entries the view's first one lies behind the tensor's.
    """
    axis = fitted(axis, shape)
    index = [0] * len(shape)
    for stride, place in sorted(((stride, place) for place, stride in enumerate(strides) if stride), reverse=True):
        if shape[place] > 1:
            index[place], offset = divmod(offset, stride)
    if isinstance(axis, int):
        return (index[axis],), axis
    first, axes = [], [*axis.axes]
    for place in axis.with_units:
        parts = axis.axes[place]
        if len(parts) > 1 and len(after) == len(shape) and after[place] < shape[place]:
            # One of several blocks, as of one head's samples, has what lies within it.
            outer, inner = parts[0], parts[1:]
            if after[place] != math.prod(part.size for part in inner) or index[place] % after[place]:
                continue
            axes[place] = inner
            first += [index[place] // after[place]] * (outer.of == "units")
        else:
            first.append(index[place])
    return tuple(first), whole(Split(tuple(axes))) if axis != LOST else LOST


def count_of_units(axis: Axis, shape: Sequence[int]) -> int:
    """Return how many units a tensor of a shape has; 0 where that can't be told."""
    if isinstance(axis, int):
        return shape[axis] if shape else 1
    split = fitted(axis, shape)
    if isinstance(split, int) or split == LOST:
        return 0
    return math.prod(part.size for parts in split.axes for part in parts if part.of == "units")


def put_together(axis: Axis, source: Tensor, count: int, along: int, *, new: bool) -> Axis:
    """Return where the units lie in what several tensors of other units each were put together to, along an axis without units.

    Args:
        axis: Where those of the first tensor lie.
        source: That tensor.
        count: How many there are.
        along: The axis of the result along which they were put.
        new: Whether that is a new one.
    """
    split = split_of(source.shape, (axis,)) if isinstance(axis, int) else fit_split(axis, source.shape)
    if split == LOST:
        return LOST
    axes, own = [*split.axes], (Part(count, "units"),) if count > 1 else ()
    if new:
        axes.insert(along, own)
    else:
        axes[along] = (*own, *axes[along])
    return whole(Split(tuple(axes)))


def fitted(axis: Axis, shape: Sequence[int]) -> Axis:
    """Return where the units lie in a tensor of this shape, which may be a piece of the one that they were known of."""
    return axis if isinstance(axis, int) else fit_split(axis, shape)


def fit_split(split: Split, shape: Sequence[int]) -> Split:
    """Return `fitted` of what isn't one axis."""
    if len(split.axes) != len(shape):
        return LOST
    fitting = [_fit(parts, size) for parts, size in zip(split.axes, shape, strict=True)]
    axes = tuple(parts for parts in fitting if parts is not None)
    return Split(axes) if len(axes) == len(fitting) else LOST


def _fit(parts: Parts, size: int) -> Parts | None:
    if math.prod(part.size for part in parts) == size:
        return parts
    if len(parts) > 1:
        return None
    of = parts[0].of if parts else "positions"
    return (Part(size, of),) if size != 1 else ()


def whole(split: Split) -> Axis:
    """Return the one axis that has all of the units, where there is one and it has nothing else."""
    places = split.with_units
    if len(places) == 1 and all(part.of == "units" for part in split.axes[places[0]]):
        return places[0]
    return split if places else LOST


@lru_cache(maxsize=CACHED)
def _after_reshape(before: tuple[int, ...], axis: Axis, after: tuple[int, ...]) -> Axis | None:
    if isinstance(axis, int):
        if before[: axis + 1] == after[: axis + 1]:
            return axis
        shift = len(after) - len(before)
        if axis + shift >= 0 and before[axis:] == after[axis + shift :]:
            return axis + shift
        if 0 in before or before[axis] == 1:
            return len(after) - 1 if axis == len(before) - 1 and after else None
        axis = split_of(before, (axis,))
    axis = fit_split(axis, before)
    if axis == LOST:
        return LOST
    if math.prod(before) != math.prod(after):
        return _after_repeating(axis, before, after)
    axes = _regrouped([part for parts in axis.axes for part in parts], after)
    return LOST if axes is None else whole(Split(axes))


def _regrouped(parts: list[Part], shape: Sequence[int]) -> tuple[Parts, ...] | None:
    """Deal parts out to axes of other sizes, splitting them where it takes; None where they don't fit."""
    left = parts[::-1]
    axes = []
    for size in shape:
        found = []
        while size > 1:
            if not left:
                return None
            part = left.pop()
            if size % part.size == 0:
                size //= part.size  # noqa: PLW2901 - what is still wanted
            elif part.size % size == 0:
                left.append(Part(part.size // size, part.of))
                part, size = Part(size, part.of), 1  # noqa: PLW2901 - as above
            else:
                return None
            found.append(part)
        axes.append(tuple(found))
    return tuple(axes)


@lru_cache(maxsize=CACHED)
def as_flattened(split: Split) -> Axis:
    """Take positions for units where all units were merged with them into one axis, as in front of a linear layer.

    Only where units are counted: a view back tells positions from units again.
    """
    places = split.with_units
    if len(places) != 1 or any(part.of == "batch" for part in split.axes[places[0]]):
        return split
    axes = [*split.axes]
    axes[places[0]] = tuple(Part(part.size, "units") for part in axes[places[0]])
    return whole(Split(tuple(axes)))


def _after_repeating(split: Split, before: Sequence[int], after: Sequence[int]) -> Axis:
    """Find the parts of what was expanded or repeated along axes that have no units."""
    new = len(after) - len(before)
    if new < 0:
        return LOST
    axes: list[Parts] = [(Part(size, "positions"),) if size != 1 else () for size in after]
    for place, parts in enumerate(split.axes, new):
        if after[place] == before[place - new]:
            axes[place] = parts
        elif any(part.of == "units" for part in parts):
            return LOST
    return Split(tuple(axes))


def _after_transpose(source: Tensor, axis: Axis, result: Tensor) -> Axis | None:
    """Find where axes went by their strides, which no permutation changes."""
    if isinstance(axis, int):
        stride, size = source.stride(axis), source.size(axis)
        places = [
            place for place in range(result.dim()) if result.stride(place) == stride and result.size(place) == size
        ]
        return places[0] if len(places) == 1 else None
    return _turned(axis, source.shape, source.stride(), result.shape, result.stride())


@lru_cache(maxsize=CACHED)
def _turned(
    split: Split, before: tuple[int, ...], strides: tuple[int, ...], after: tuple[int, ...], new: tuple[int, ...]
) -> Axis:
    split = fit_split(split, before)
    if split == LOST:
        return LOST
    now = [*zip(after, new, strict=True)]
    axes: list[Parts] = [()] * len(after)
    for place, parts in enumerate(split.axes):
        if parts:
            if now.count(own := (before[place], strides[place])) != 1:
                return LOST
            axes[now.index(own)] = parts
    return whole(Split(tuple(axes)))


@lru_cache(maxsize=CACHED)
def _at_another_rank(
    axis: Axis, before: tuple[int, ...], strides: tuple[int, ...], after: tuple[int, ...], new: tuple[int, ...]
) -> Axis | None:
    """Find where units lie in what has more axes, or fewer; the strides are those of a tensor and a view of it, or none."""
    split = split_of(before, (axis,)) if isinstance(axis, int) else fit_split(axis, before)
    found: Axis | None = None
    if split != LOST:
        found = (
            _selected(split, before, strides, after, new)
            if len(after) < len(before)
            else _stacked(split, before, after)
        )
    if found is not None or (isinstance(axis, int) and len(after) < len(before)):
        return found
    shift = len(after) - len(before)
    if isinstance(axis, int) and all(old in (1, size) for old, size in zip(before, after[shift:], strict=True)):
        return axis + shift  # broadcast
    return LOST


def _selected(
    split: Split, before: tuple[int, ...], strides: tuple[int, ...], after: tuple[int, ...], new: tuple[int, ...]
) -> Axis | None:
    """Find the units of what has fewer axes, as one of several parts that share a tensor, or what was added up over axes."""
    removed = len(before) - len(after)
    if removed > _MOST_REMOVED:
        return None
    found = set()
    for gone in combinations(range(len(before)), removed):
        kept = [place for place in range(len(before)) if place not in gone]
        if all(
            before[place] == size and (not strides or size == 1 or strides[place] == new[at])
            for at, (place, size) in enumerate(zip(kept, after, strict=True))
        ):
            found.add(tuple(split.axes[place] for place in kept))
    return _the_only(found)


def _stacked(split: Split, before: tuple[int, ...], after: tuple[int, ...]) -> Axis | None:
    """Find the units of what has an axis more, of length 1 or of several tensors that have the same units."""
    if len(after) != len(before) + 1:
        return None
    found = set()
    for new, size in enumerate(after):
        if after[:new] + after[new + 1 :] == before:
            own: Parts = (Part(size, "positions"),) if size != 1 else ()
            found.add((*split.axes[:new], own, *split.axes[new:]))
    return _the_only(found)


def _the_only(found: AbstractSet[tuple[Parts, ...]]) -> Axis | None:
    """Return what was found where it is one thing, and has units."""
    units = whole(Split(next(iter(found)))) if len(found) == 1 else LOST
    return None if units == LOST else units
