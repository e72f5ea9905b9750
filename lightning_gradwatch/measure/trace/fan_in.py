"""How many inputs an output of a layer's matrix adds up, as its first product with data shows.

Its shape doesn't say: ``linear(x, W)`` has a row for each output, ``x @ W`` a column, an ``einsum`` what its labels have.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.measure.trace.operands import Einsum
from lightning_gradwatch.measure.trace.product_axes import label_axes
from lightning_gradwatch.record.step import NOT_TOLD

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from lightning_gradwatch.measure.model.path import Layer
    from lightning_gradwatch.measure.trace.tensor_state import TensorState

MATMULS = frozenset(("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "baddbmm", "linalg_matmul"))
"""Products of two matrices, or stacks of such; what is added to them comes first."""
CHAINS = frozenset(("linalg_multi_dot", "chain_matmul"))
"""Products of any number of matrices."""
_LOOKED_UP = frozenset(("embedding", "embedding_bag"))


def note_inputs(
    layer: Layer, func: Callable[..., Any], arguments: Sequence[Tensor], made_by: Callable[[Tensor], Layer | None]
) -> None:
    """Note what a call shows of a layer's matrices, or of what was made of them alone.

    Args:
        layer: The layer.
        func: The torch function.
        arguments: Its tensors.
        made_by: Returns the layer of whose parameters alone a tensor was made; None for any other.
    """
    for place, argument in enumerate(arguments):
        matrix = _matrix_of(layer, argument, made_by)
        if matrix is not None and (inputs := _added_up(func, arguments, place)):
            layer.inputs[id(matrix)] = inputs
    layer.seek(again=False)


def note_factors(
    users: Sequence[Layer], arguments: Sequence[Tensor], new: TensorState, made_by: Callable[[Tensor], Layer | None]
) -> None:
    """Note which layer's matrix a product entry by entry has, in what is known of that."""
    for layer in users:
        for argument in arguments if layer.seeks else ():
            matrix = _matrix_of(layer, argument, made_by)
            if matrix is not None and len(_sizes(matrix.shape)) > 1:
                new.product = layer, matrix


def note_sum(product: tuple[Layer, nn.Parameter], func: Callable[..., Any], products: Tensor, result: Tensor) -> None:
    """Note how many products with a layer's matrix a call adds up."""
    if getattr(func, "__name__", "") != "sum" or not result.numel():
        return
    layer, matrix = product
    inputs = products.numel() // result.numel()
    if inputs and matrix.numel() % inputs == 0 and inputs in matrix.shape:
        layer.inputs[id(matrix)] = inputs
    layer.seek(again=False)


def _matrix_of(layer: Layer, argument: Tensor, made_by: Callable[[Tensor], Layer | None]) -> nn.Parameter | None:
    """Return the matrix of a layer that an argument is, or is a view of, or was made of entry by entry, for each sample perhaps."""
    derived = made_by(argument) is layer
    for matrix in layer.matrices:
        if argument is matrix or argument._base is matrix:  # noqa: SLF001 - of what a tensor is a view has no public name
            return matrix
        if derived and sorted(_sizes(argument.shape[-matrix.dim() :])) == sorted(_sizes(matrix.shape)):
            return matrix
    return None


def _sizes(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size > 1]


def _added_up(func: Callable[..., Any], arguments: Sequence[Tensor], place: int) -> int:
    """Return how many entries of one of its arguments a call adds up for an entry of its result; 0 where that isn't known."""
    name, shape, last = getattr(func, "__name__", ""), arguments[place].shape, len(arguments) - 1
    if isinstance(arguments, Einsum):
        labels = label_axes(arguments.equation, [each.dim() for each in arguments])
        pairs = () if labels is None else zip(shape, labels[place], strict=True)
        return math.prod([size for size, label in pairs if labels is not None and label not in labels[-1]])
    if name == "linear" or name.startswith("conv"):
        if place != 1 or len(shape) < 2:
            return 0
        return NOT_TOLD if "transpose" in name else math.prod(shape[1:])
    if name in CHAINS:
        return shape[-2] if place else shape[-1]
    if (name in MATMULS and place >= last - 1) or name in _LOOKED_UP:
        right = last - 1 if name == "__rmatmul__" else last
        return shape[-2] if place == right and len(shape) > 1 else shape[-1]
    return 0
