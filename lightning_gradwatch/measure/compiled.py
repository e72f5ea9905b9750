"""Telling compiled modules apart, without importing the compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module run compiled code (``torch.compile(module)`` or ``module.compile()``)."""
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
