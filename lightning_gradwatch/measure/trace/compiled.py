"""Compiled modules and optimizers: told apart without importing the compiler, and left as they are while measuring.

What is put inside of a compiled region would be compiled with it. So a compiled optimizer's step is measured from outside
(`optimizer_step.AroundStep`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.measure.patches import beneath

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


COMPILED = 'compiled: its activations aren\'t seen; pass compiled="eager" to run measured steps eagerly'
"""Why something compiled isn't covered."""


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module run compiled code (``torch.compile(module)`` or ``module.compile()``)."""
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def is_compiled_class(kind: type[nn.Module]) -> bool:
    """Whether that holds of each module of a class."""
    return kind.__name__ == "OptimizedModule" or getattr(kind, "_compiled_call_impl", None) is not None


def has_compiled_step(optimizer: Optimizer) -> bool:
    """Whether an optimizer's step runs compiled code (``optimizer.step = torch.compile(optimizer.step)``)."""
    return hasattr(beneath(optimizer.__dict__.get("step")), "_torchdynamo_orig_callable")
