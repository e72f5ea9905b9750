"""Where the units of a product of tensors lie: those that weights make, and those of data."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from lightning_gradwatch.measure.trace.axes import CACHED, fit_split, split_of, whole
from lightning_gradwatch.measure.trace.operands import Einsum
from lightning_gradwatch.measure.trace.tensor_state import LOST, NO_UNITS, Axis, Parts, Split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_MATRIX = 2


def axes_of_products(
    arguments: Sequence[Tensor], weights: Sequence[bool], result: Tensor, entries: int
) -> tuple[int, ...]:
    """Return which axes of a product of tensors have the features that weights have made; none where nothing tells.

    Args:
        arguments: The tensors.
        weights: Which of them are parameters, or made from parameters alone.
        result: The product.
        entries: How many the largest parameter has that they are made of; what has more repeats it.

    In ``W @ x`` that is the last axis but one; of an ``einsum``, those that its output has from weights. Weights that are there
    for each of several heads or experts make each one's features.
    """
    if not any(weights) or all(weights):
        return ()
    rank = result.dim()
    if not isinstance(arguments, Einsum):
        *_, first, second = weights if len(weights) > 1 else (False, *weights)  # the bias of `addmm` stands before both
        weight = arguments[-2 if first else -1]
        left = first and not second and weight.dim() > 1
        if not left and weight.dim() <= _MATRIX:
            return ()
        own = max(rank - 1 - (arguments[-1].dim() > 1), 0) if left else rank - 1
        shift = rank - weight.dim()
        several = range(_repeated_axes(weight, entries), weight.dim() - _MATRIX)
        each = [axis + shift for axis in several if weight.size(axis) > 1 and axis + shift >= 0]
        return (*each, own) if left or each else ()
    inputs, arrow, output = arguments.equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow or len(terms) != len(weights):
        return ()
    made = {label for term, weight in zip(terms, weights, strict=True) if weight for label in term} - {"."}
    before, dots, behind = output.partition("...")
    if not dots:
        before, behind = "", output
    found = [place for place, label in enumerate(before) if label in made]
    return (*found, *(rank - len(behind) + place for place, label in enumerate(behind) if label in made))


def _repeated_axes(weight: Tensor, entries: int) -> int:
    """Return how many of a weight's first axes are there for each sample, say, and have the same entries all along."""
    count, held = 0, weight.numel()
    while held > entries > 0 and count < weight.dim() - _MATRIX:
        held //= max(weight.size(count), 1)
        count += 1
    return count


def axis_of_data(name: str, arguments: Sequence[Tensor], axes: Sequence[Axis], result: Tensor) -> Axis:
    """Return where the units of a product of data lie: along each axis that it has from one that has units.

    Args:
        name: Of the torch function.
        arguments: The tensors.
        axes: Where the units of each lie; without any, `NO_UNITS`.
        result: The product.

    What attention weighs are the features of its values, at the positions of its queries. Where the features of all arguments are
    added up, as in attention's scores, there are new ones along the last axis.
    """
    if isinstance(arguments, Einsum):
        labels = label_axes(arguments.equation, [each.dim() for each in arguments])
    else:
        arguments, axes = arguments[-2:], axes[-2:]
        if name == "__rmatmul__":
            arguments, axes = arguments[::-1], axes[::-1]
        labels = _labels_of_matrices(*(each.dim() for each in arguments))
    if labels is None:
        return LOST
    return _of_data(labels, tuple(each.shape for each in arguments), tuple(axes), result.shape)


_Labels: TypeAlias = "tuple[tuple[str, ...], ...]"
"""Of the axes of each argument, and of the result last."""


@lru_cache(maxsize=CACHED)
def _labels_of_matrices(one: int, other: int) -> _Labels:
    batch = [f"batch {place}" for place in range(max(one, other) - _MATRIX, 0, -1)]
    left = (*batch[len(batch) - max(one - _MATRIX, 0) :], "row", "shared")[-max(one, 1) :]
    right = (*batch[len(batch) - max(other - _MATRIX, 0) :], *(("shared", "column") if other > 1 else ("shared",)))
    return left, right, (*batch, *(("row",) if one > 1 else ()), *(("column",) if other > 1 else ()))


def label_axes(equation: str, ranks: Sequence[int]) -> _Labels | None:
    """Return the labels of the axes of each operand of an ``einsum`` and of its output; None for one without an output."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow or len(terms) != len(ranks):
        return None
    dots = max(
        (rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True) if "..." in term),
        default=0,
    )

    def spelled(term: str, count: int) -> tuple[str, ...]:
        before, there, behind = term.partition("...")
        return (*before, *(f"dots {place}" for place in range(count if there else 0, 0, -1)), *behind)

    each = (spelled(term, rank - len(term.replace("...", ""))) for term, rank in zip(terms, ranks, strict=True))
    return (*each, spelled(output, dots))


@lru_cache(maxsize=CACHED)
def _of_data(
    labels: _Labels, shapes: tuple[tuple[int, ...], ...], axes: tuple[Axis, ...], after: tuple[int, ...]
) -> Axis:
    found: dict[str, Parts] = {}
    kept = False
    for own, shape, axis in zip(labels, shapes, axes, strict=False):
        split = fit_split(axis, shape) if isinstance(axis, Split) and axis != NO_UNITS else None
        if split is None:
            split = split_of(shape, (axis,) if isinstance(axis, int) else ())
        if split == LOST or len(own) != len(shape):
            return LOST
        units = split.with_units
        kept = kept or (bool(units) and all(own[place] in labels[-1] for place in units))
        for place, (label, parts) in enumerate(zip(own, split.axes, strict=True)):
            if place in units or not found.get(label):
                found[label] = parts
    made = Split(tuple(found.get(label, ()) for label in labels[-1]))
    sizes = [math.prod(part.size for part in parts) for parts in made.axes]
    if not kept:
        return max(len(after) - 1, 0)
    return whole(made) if sizes == [*after] else LOST
