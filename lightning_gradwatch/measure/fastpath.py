"""Lets torch's attention modules take their fused inference path, which they leave where a function mode is active.

A frozen encoder in evaluation mode would otherwise compute the same numbers in another order, and so train another net
than without us. A hook on such a module closes its fast path too; so for one forward pass its ``forward`` is replaced on
the instance, by one that steps aside where the fast path may be taken.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lightning_gradwatch.measure.tracer import Tracer

FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


@contextmanager
def fast_paths(modules: Sequence[nn.Module], tracer: Tracer) -> Iterator[None]:
    """Keep the fast paths of modules open that are in evaluation mode, or may be put into it, while the block runs."""
    replaced = [module for module in modules if _may_be_fast(module) and "forward" not in module.__dict__]
    for module in replaced:
        module.forward = _aside(module, tracer)
    try:
        yield
    finally:
        for module in replaced:
            module.__dict__.pop("forward", None)


def _may_be_fast(module: nn.Module) -> bool:
    # The forward pass itself may call `eval`, as users do with a frozen encoder that Lightning has put into train mode.
    return not module.training or not any(parameter.requires_grad for parameter in module.parameters())


def _aside(module: nn.Module, tracer: Tracer) -> Any:
    forward = module.forward

    def stepping_aside(*args: Any, **kwargs: Any) -> Any:
        if not tracer.recording or _needs_gradients(module, (*args, *kwargs.values())):
            return forward(*args, **kwargs)
        tracer.pause()
        try:
            return forward(*args, **kwargs)
        finally:
            tracer.resume()

    return stepping_aside


def _needs_gradients(module: nn.Module, arguments: Sequence[Any]) -> bool:
    """Whether the module will see gradients, and so won't take its fast path."""
    return torch.is_grad_enabled() and (
        any(parameter.requires_grad for parameter in module.parameters())
        or any(isinstance(argument, Tensor) and argument.requires_grad for argument in arguments)
    )
