"""Parameters that nobody trains: those that a plain attribute holds, and those that no optimizer does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_gradwatch.measure.model.autograd_graph import Walk, edges
from lightning_gradwatch.measure.model.call_site import line_of_function
from lightning_gradwatch.measure.model.layers import parameters_of, unwrapped
from lightning_gradwatch.measure.model.shards import placed
from lightning_gradwatch.measure.trace.operands import tensors_in
from lightning_gradwatch.measure.unobserved import is_opaque

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.optim import Optimizer

    from lightning_gradwatch.measure.model.layers import Layers
    from lightning_gradwatch.measure.model.path import Layer
    from lightning_gradwatch.measure.transfer.host import HostTransfer, Slot, Values

_DEEPEST = 3
_MOST_ENTRIES = 1000
_MOST_LAYERS = 64
_FEWEST_ENTRIES = 64
"""Of a matrix: of so many, the largest lies within a twentieth of the bound that they were drawn within, but for one in 27."""
_NEAR_BOUND = 0.95
_OTHERS = ("torch", "lightning", "pytorch_lightning", "lightning_fabric", "builtins", "numpy", "collections")


def loose_leaves(model: nn.Module, loss: Any, optimizers: Sequence[Optimizer]) -> dict[int, Tensor]:
    """Return the tensors that a loss depends on and that could be trained, but are no parameters of the model and no optimizer's."""
    made: list[Any] = [tensor.grad_fn for tensor in tensors_in((loss,)) if tensor.grad_fn is not None]
    leaves = (getattr(node, "variable", None) for node in Walk().each(made, edges))
    loose = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad}
    for each in model.parameters():
        loose.pop(id(each), None)
    for optimizer in optimizers if loose else ():
        for each in parameters_of(optimizer):
            loose.pop(id(each), None)
    return loose


def holders(model: nn.Module, loose: dict[int, Tensor]) -> Iterator[tuple[str, int, str]]:
    """Yield the attributes of the model's modules that hold some of these tensors, as ``net.layers``, with their entries and the module's line.

    What no attribute holds may belong to another net of the program's, or be an input that asks for its gradient.
    """
    for name, module in model.named_modules():
        for attribute, value in list(vars(module).items()):
            if attribute in ("_parameters", "_buffers", "_modules"):
                continue
            found = {id(each): each.numel() for each in _tensors_of(value, _DEEPEST) if id(each) in loose}
            if found:
                place = f"{name}.{attribute}" if name else attribute
                yield place, sum(found.values()), line_of_function(type(module).__init__)


def _tensors_of(value: Any, depth: int) -> Iterator[Tensor]:
    """Yield the tensors that could be trained in a value: itself, a module's, those of containers and of the program's objects."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif depth and isinstance(value, (list, tuple, set, frozenset, dict)):
        entries = list(value.values() if isinstance(value, dict) else value)
        for each in entries[:_MOST_ENTRIES]:
            yield from _tensors_of(each, depth - 1)
    elif depth and type(value).__module__.partition(".")[0] not in _OTHERS:
        held = getattr(value, "__dict__", None)
        if isinstance(held, dict):
            for each in list(held.values())[:_MOST_ENTRIES]:
                yield from _tensors_of(each, depth - 1)


def unheld(layers: Layers, optimizers: Sequence[Optimizer]) -> Iterator[Layer]:
    """Yield the layers that have got a gradient which no optimizer will use."""
    held = {id(parameter) for optimizer in optimizers for parameter in parameters_of(optimizer)}
    for layer in layers.ordered if held else ():
        if any(each.requires_grad and each.grad is not None for each in layer.parameters) and not any(
            id(each) in held for each in layer.parameters
        ):
            yield layer


class InitialValues:
    """Tells which of a run's layers are as PyTorch or the program has initialised them, and stay so from one measured step to another.

    Two things show it that no training leaves: biases or scales that are all the same, and matrices drawn evenly from PyTorch's
    default bounds, of which an optimizer soon pushes some entry over the edge.
    """

    def __init__(self) -> None:
        self._first: dict[str, list[float]] = {}
        """By name, the extreme values of a layer's parameters when it was looked at first."""

    def look(
        self,
        unheld: Sequence[Layer],
        layers: Layers,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        pack: HostTransfer,
    ) -> list[tuple[Layer, Slot]]:
        """Take along what tells it of layers that no optimizer holds, that are in training mode and lie before one that is held."""
        held = {id(parameter) for optimizer in optimizers for parameter in parameters_of(optimizer)}
        used = [layer for layer in layers.ordered if layer.used]
        last = max(
            (place for place, each in enumerate(used) if any(id(own) in held for own in each.parameters)), default=0
        )
        before, root, looked = set(used[:last]), unwrapped(model), []
        for layer in [each for each in unheld if each in before][:_MOST_LAYERS]:
            if _is_training(root, layer) and all(map(_is_readable, layer.parameters)):
                with torch.no_grad():
                    ends = [end.detach().float() for each in layer.parameters for end in each.aminmax()]
                    looked.append((layer, pack.add(torch.stack(ends))))
        return looked

    def read(self, looked: Sequence[tuple[Layer, Slot]], values: Values) -> Iterator[str]:
        """Yield the layers that were looked at before, haven't moved since, and are as initialised."""
        for layer, slot in looked:
            ends = [float(each) for each in values[slot]]
            before = self._first.setdefault(layer.name, ends)
            if before is not ends and before == ends and _is_initial(layer, ends):
                yield layer.name


def _is_training(root: nn.Module, layer: Layer) -> bool:
    """Whether a layer's module is in training mode; False where that isn't known."""
    modules = dict(root.named_modules())
    module = modules.get(layer.name, modules.get(layer.name.rpartition(".")[0]))
    return module is not None and module.training


def _is_readable(parameter: nn.Parameter) -> bool:
    return (
        parameter.is_floating_point()
        and bool(parameter.numel())
        and parameter.layout is torch.strided
        and not is_opaque(parameter)
        and placed(parameter) is None
    )


def _is_initial(layer: Layer, ends: Sequence[float]) -> bool:
    """Tell by the extreme values of a layer's parameters whether they are as initialised."""
    pairs = list(zip(layer.parameters, ends[::2], ends[1::2], strict=True))
    vectors = [low == high for each, low, high in pairs if each.dim() == 1 and each.numel() > 1]
    if vectors and all(vectors):
        return True
    matrix = next(((each, max(-low, high)) for each, low, high in pairs if each.dim() > 1), None)
    if matrix is None or matrix[0].numel() < _FEWEST_ENTRIES:
        return False
    bound = 1 / math.sqrt(matrix[0][0].numel())
    # Biases are drawn within the same bound.
    return _NEAR_BOUND * bound <= matrix[1] and all(max(-low, high) <= bound * (1 + 1e-6) for _, low, high in pairs)
