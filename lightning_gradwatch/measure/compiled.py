"""Compiled modules and optimizers: told apart without importing the compiler, and left as they are while measuring.

What is put inside of a compiled region would be compiled with it. So a compiled optimizer's step is measured from outside:
for a measured batch the optimizer has a `step` of ours around its own.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from torch.optim import Optimizer

    from lightning_gradwatch.measure.tracer import Tracer

COMPILED = 'compiled: its activations aren\'t seen; pass compiled="eager" to run measured steps eagerly'
"""Why something compiled isn't covered."""


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module run compiled code (``torch.compile(module)`` or ``module.compile()``)."""
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def has_compiled_step(optimizer: Optimizer) -> bool:
    """Whether an optimizer's step runs compiled code (``optimizer.step = torch.compile(optimizer.step)``)."""
    return hasattr(optimizer.__dict__.get("step"), "_torchdynamo_orig_callable")


def _nothing() -> None:
    pass


class AroundStep:
    """Stands around an optimizer's compiled step until it is removed, as hooks would be inside of it."""

    def __init__(
        self,
        optimizer: Optimizer,
        tracer: Tracer,
        *,
        eager: bool,
        first: Callable[[], None] = _nothing,
        then: Callable[[], None] = _nothing,
    ) -> None:
        self.then = then
        """Called when the optimizer has stepped; `first` before it does, unless a closure has yet to make the gradients."""
        self._optimizer = optimizer
        self._compiled = compiled = optimizer.__dict__["step"]

        def step(*args: Any, **kwargs: Any) -> Any:
            if not args and kwargs.get("closure") is None:
                first()
            looking = tracer.recording and not eager
            if looking:
                tracer.pause()
            try:
                with torch.compiler.set_stance("force_eager") if eager else nullcontext():
                    result = compiled(*args, **kwargs)
            finally:
                if looking:
                    tracer.resume()
            self.then()
            return result

        optimizer.__dict__["step"] = step

    def remove(self) -> None:
        """Put the optimizer's own step back."""
        self._optimizer.__dict__["step"] = self._compiled
