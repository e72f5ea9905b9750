"""Which way round a layer's matrix is: a row for each output, as in ``linear(x, W)``, or a column, as in ``x @ W``.

Its shape doesn't say; the first product with data does, once a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_gradwatch.measure.trace.axes import label_axes
from lightning_gradwatch.measure.trace.tensor_state import Einsum
from lightning_gradwatch.record.step import TURNED_KIND

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from lightning_gradwatch.measure.model.path import Layer

_MATRIX = 2


def note_turned(layer: Layer, func: Callable[..., Any], arguments: Sequence[Tensor]) -> None:
    """Note which way round a layer's matrix is, as the first call shows that takes it, or it transposed; else as its kind has it.

    Args:
        layer: The layer.
        func: The torch function.
        arguments: Its tensors.
    """
    for place, argument in enumerate(arguments):
        for matrix in layer.matrices:
            flipped = _is_flipped(argument, matrix)
            if flipped is not None and (summed := _summed_axis(func, arguments, place)) is not None:
                layer.turned = (summed == 0) != flipped
                return
    layer.turned = layer.kind == TURNED_KIND and not func.__name__.startswith("conv")


def _is_flipped(argument: Tensor, matrix: nn.Parameter) -> bool | None:
    """Whether an argument is a matrix transposed; None where it is something else."""
    if matrix.dim() != _MATRIX or not (argument is matrix or argument._base is matrix):  # noqa: SLF001 - of what a tensor is a view has no public name
        return None
    shape, strides = argument.shape[-2:], argument.stride()[-2:]
    if argument.numel() != matrix.numel():
        return None
    if (shape, strides) == (matrix.shape, matrix.stride()):
        return False
    return True if (shape[::-1], strides[::-1]) == (matrix.shape, matrix.stride()) else None


def _summed_axis(func: Callable[..., Any], arguments: Sequence[Tensor], place: int) -> int | None:
    """Return over which axis of one of its arguments, a matrix, a call sums; None where that isn't known."""
    name = getattr(func, "__name__", "")
    if name == "linear":
        return 1 if place == 1 else None
    if isinstance(arguments, Einsum):
        labels = label_axes(arguments.equation, [each.dim() for each in arguments])
        gone = [] if labels is None else [axis for axis, label in enumerate(labels[place]) if label not in labels[-1]]
        return gone[0] if len(gone) == 1 else None
    last = len(arguments) - 1
    if name == "__rmatmul__":
        return 0 if place == last - 1 else 1
    return 0 if place == last else 1 if place == last - 1 else None
