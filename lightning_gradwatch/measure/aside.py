"""Modules for whose call the tracer steps aside, since its mere presence would change what they do.

Torch's attention modules leave their fused inference path where a function mode is active: a frozen encoder in evaluation
mode would compute the same numbers in another order, and so train another net than without us. A compiled module would
be compiled again, mode and all. A hook on such a module changes it too; so for one forward pass the function that its
call ends in is replaced on the instance, by one that takes the mode off the stack meanwhile.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_gradwatch.measure.compiled import is_compiled
from lightning_gradwatch.measure.patches import Patch, is_own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lightning_gradwatch.measure.tracer import Tracer

_FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


def may_need_space(module: nn.Module) -> bool:
    """Whether a module is of a kind that `stepping_aside` is for."""
    return isinstance(module, _FUSED) or is_compiled(module)


@contextmanager
def stepping_aside(
    modules: Sequence[nn.Module], tracer: Tracer, *, eager: bool, untrained: Callable[[nn.Module], None]
) -> Iterator[None]:
    """Step aside for those of the modules that need it while the block runs.

    Args:
        modules: The modules that may need it.
        tracer: What steps aside.
        eager: Compiled modules run eagerly in this block, so they need no space.
        untrained: Called with a module that is about to run unseen, as nothing of it is trained.
    """

    def fast(module: nn.Module, arguments: Sequence[Any]) -> bool:
        alone = _unless_training(module, arguments)
        if alone:
            untrained(module)
        return alone

    with ExitStack() as stack:
        for module in modules:
            if is_compiled(module):
                if not eager:
                    optimized = type(module).__name__ == "OptimizedModule"
                    name = "forward" if optimized else "_compiled_call_impl"
                    stack.callback(_replace(module, name, _always, tracer).remove)
            elif _may_be_fast(module) and is_own(module, "forward"):
                stack.callback(_replace(module, "forward", fast, tracer).remove)
        yield


def _replace(
    module: nn.Module, name: str, needs_space: Callable[[nn.Module, Sequence[Any]], bool], tracer: Tracer
) -> Patch:
    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def aside(*args: Any, **kwargs: Any) -> Any:
            if not tracer.recording or not needs_space(module, (*args, *kwargs.values())):
                return original(*args, **kwargs)
            tracer.pause()
            try:
                return original(*args, **kwargs)
            finally:
                tracer.resume()

        return aside

    return Patch(module, name, around)


def _may_be_fast(module: nn.Module) -> bool:
    # The forward pass itself may call `eval`, as users do with a frozen encoder that Lightning has put into train mode.
    return not module.training or not any(parameter.requires_grad for parameter in module.parameters())


def _always(module: nn.Module, arguments: Sequence[Any]) -> bool:
    del module, arguments
    return True


def _unless_training(module: nn.Module, arguments: Sequence[Any]) -> bool:
    """Whether the module sees no gradients, and so takes its fast path."""
    return not torch.is_grad_enabled() or not (
        any(parameter.requires_grad for parameter in module.parameters())
        or any(isinstance(argument, Tensor) and argument.requires_grad for argument in arguments)
    )
