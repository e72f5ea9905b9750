"""Which of a layer's units a tensor has: those of one head, where they were taken apart, and all of them, where pieces are joined.

A call for each head has other units each time, copied or not. So each tensor has the number of the piece that it is: a head
keeps its own through whatever is done to it, until a layer makes features of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_gradwatch.measure.trace.axes import (
    as_flattened,
    axis_after,
    count_of_units,
    first_unit,
    put_together,
    split_of,
)
from lightning_gradwatch.measure.trace.operands import tensors_in
from lightning_gradwatch.measure.trace.tensor_state import LOST, Op, Split, TensorState, unit_axis

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from torch import Tensor

    from lightning_gradwatch.measure.trace.tensor_state import Axis, Sources, TensorStates


class Joined(list["Tensor"]):
    """The tensors that a call puts together."""

    along: int | None = None
    """The axis of the result along which it does; None where that isn't known."""


_ALONG = {"vstack": 0, "row_stack": 0, "hstack": 1, "column_stack": 1, "dstack": 2}


def joined_by(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Joined:
    """Return the tensors that a call puts together, and along which axis."""
    tensors = Joined(tensors_in((*args, *kwargs.values()) if kwargs else args))
    if not tensors:
        return tensors
    name = getattr(func, "__name__", "")
    rank = tensors[0].dim() + (name == "stack")
    along = _ALONG.get(name)
    if along is None:
        along = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
    elif along >= rank or rank == 1:
        return tensors  # what has fewer axes gets some
    if along.__class__ is int and -rank <= along < rank:
        tensors.along = along % rank
    return tensors


def _number(tags: TensorStates, key: Hashable) -> int:
    return tags.pieces.setdefault(key, len(tags.pieces) + 1)


def made(tags: TensorStates, arguments: Sequence[Tensor], sources: Sources) -> int:
    """Return the number of what a call makes of weights, or makes features of: that of the weights, or of all its data."""
    known = [tags.get(each) for each in arguments]
    found = tuple(
        0 if tag is None or (sources.user is not None and not tag.weights_only) else tag.piece for tag in known
    )
    return _number(tags, found) if any(found) else 0


def taken(
    tags: TensorStates, arguments: Sequence[Tensor], axis: Axis | None, result: Tensor
) -> tuple[Axis | None, int]:
    """Return where the units lie in what was taken from the first of a call's arguments, and its number.

    Args:
        tags: What is known of tensors.
        arguments: The tensor, and those that say what is taken.
        axis: Where its units stay; None: nothing is known.
        result: What was taken.
    """
    source = arguments[0]
    tag = tags.get(source)
    before = 0 if tag is None else tag.piece
    of_weights = tag is None or tag.weights_only
    if not of_weights and _takes_units_of_each(result, arguments, unit_axis(source, tag)):
        return LOST, before
    tags.apart = tags.apart or of_weights
    units = split_of(source.shape, range(source.dim())) if of_weights else unit_axis(source, tag)
    if isinstance(units, Split) and not of_weights:
        units = as_flattened(units)
    if result._is_view() and result._base is (source if source._base is None else source._base):  # noqa: SLF001 - the documented test for a view has no public name
        offset = int(result.storage_offset()) - int(source.storage_offset())
        if not offset and isinstance(units, int):
            return axis, before
        place, own = first_unit(units, tuple(source.shape), source.stride(), tuple(result.shape), offset)
        if not of_weights and isinstance(axis, Split) and result.dim() == source.dim():
            axis = own
        return axis, _number(tags, (before, place)) if any(place) else before
    if not of_weights:
        own = unit_axis(result, None) if axis is None else axis
        if count_of_units(own, result.shape) == count_of_units(units, source.shape):
            return axis, before
    # A copy, as of what an index tensor picks: another one picks otherwise.
    picked = tuple(_identity(tags, each) for each in arguments[1:]) or len(tags.pieces)
    return axis, _number(tags, (before, picked))


def _takes_units_of_each(result: Tensor, arguments: Sequence[Tensor], units: Axis) -> bool:
    """Whether each sample has other units in each place: sorted along their axis, or picked by an index of its own."""
    node = result.grad_fn
    saved = getattr(node, "_saved_dim", None)
    if saved is None or not type(node).__name__.startswith(_PER_SAMPLE):
        return False
    # A negative one is kept as an unsigned number.
    along = (saved if saved < _WRAPS // 2 else saved - _WRAPS) % arguments[0].dim()
    if len(arguments) > 1:
        index = arguments[1]
        others = [axis for axis, size in enumerate(index.shape) if axis != along and size > 1]
        if not any(index.stride(axis) for axis in others):
            return False  # the same ones of each
    return along == units if isinstance(units, int) else along in units.with_units


_PER_SAMPLE = ("SortBackward", "TopkBackward", "GatherBackward")
_WRAPS = 1 << 64


def _identity(tags: TensorStates, index: Tensor) -> int:
    """Return a number of an index tensor, which stays alive for as long as pieces are told apart."""
    return tags.pieces.setdefault(_Index(index), len(tags.pieces) + 1)


class _Index:
    """A tensor as a key: itself, not its values."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __hash__(self) -> int:
        return id(self._tensor)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Index) and other._tensor is self._tensor


def joined(
    tags: TensorStates, arguments: Sequence[Tensor], axis: Axis | None, result: Tensor
) -> tuple[Axis | None, int]:
    """Return where the units lie in what tensors were put together to, and its number.

    Args:
        tags: What is known of tensors.
        arguments: The tensors.
        axis: Where the units of the first of which something is known stay, if the others have the same ones.
        result: All of them.

    Where each has units of its own, as the layers or the pieces of one that made them, the axis along which they were put has units.
    """
    known = [tags.get(each) for each in arguments]
    own = [
        (tag.layer, tag.piece) for tag in known if tag is not None and tag.layer is not None and not tag.weights_only
    ]
    if not own or len(own) < len(known):
        return axis, 0
    numbers = [piece for _, piece in own]
    distinct = len({*own})
    number = numbers[0] if len({*numbers}) == 1 else _number(tags, ("joined", *numbers))
    first = arguments[0]
    stacked = result.dim() > first.dim()
    along = arguments.along if isinstance(arguments, Joined) else None
    if distinct == 1 or along is None or not (stacked or number != numbers[0]):
        return axis, number  # what several layers made for other positions is taken for one's
    units = unit_axis(first, known[0])
    if not stacked and (along == units if isinstance(units, int) else along in units.with_units):
        return axis, number
    apart = distinct == len(own) and all(each.shape == first.shape for each in arguments)
    return put_together(units, first, len(own), along, new=stacked) if apart else LOST, number


def assigned(tags: TensorStates, func: Callable[..., Any], arguments: Sequence[Tensor]) -> None:
    """Note what is known of a tensor to a part of which another one was assigned.

    Args:
        tags: What is known of tensors.
        func: The torch function.
        arguments: The tensor, those that say which part, and what was assigned.
    """
    buffer, value = arguments[0], arguments[-1]
    tag, before = tags.get(value), tags.get(buffer)
    if tag is None or tag.layer is None or tag.weights_only or value is buffer:
        return
    units = unit_axis(value, tag)
    if before is None:
        axis = axis_after(Op.KEEP, func, value, units, buffer)
        before = TensorState(buffer, LOST if axis is None else axis, tag.layer)
        before.buffer, before.piece = True, tag.piece
        tags.put(buffer, before)
        return
    others = before.buffer and (before.layer, before.piece) != (tag.layer, tag.piece)
    # Of other units than those before: fine where it is their axis that is filled.
    if others and count_of_units(unit_axis(buffer, before), buffer.shape) == count_of_units(units, value.shape):
        before.axis = LOST
