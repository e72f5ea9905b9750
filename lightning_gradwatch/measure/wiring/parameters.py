"""Parameters that nobody trains: those that a plain attribute holds, and those that no optimizer does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lightning_gradwatch.measure.model.autograd_graph import Walk, edges
from lightning_gradwatch.measure.model.call_site import line_of_function
from lightning_gradwatch.measure.model.layers import parameters_of
from lightning_gradwatch.measure.trace.tensor_state import tensors_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.optim import Optimizer

    from lightning_gradwatch.measure.model.layers import Layers
    from lightning_gradwatch.measure.model.path import Layer

_DEEPEST = 3
_MOST_ENTRIES = 1000
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
