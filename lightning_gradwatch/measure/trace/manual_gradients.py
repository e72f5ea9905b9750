"""What a program does with gradients before the optimizer steps: a gradient scaler unscales them, and they are clipped.

Both are seen as torch calls: the scaler may be anybody's, and torch's functions for clipping are imported under any name.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad

from lightning_gradwatch.measure.trace.operands import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch.optim import Optimizer

UNSCALES = torch._amp_foreach_non_finite_check_and_unscale_
_MULTIPLIES = frozenset(("mul_", "_foreach_mul_"))
_CLAMPS = frozenset(
    ("clamp_", "clip_", "clamp_min_", "clamp_max_", "_foreach_clamp_min_", "_foreach_clamp_max_", "_foreach_maximum_")
)
_SPACES: tuple[object, ...] = (torch, Tensor)
CHANGES = frozenset(
    found for space in _SPACES for name in (*_MULTIPLIES, *_CLAMPS) if (found := getattr(space, name, None)) is not None
)
"""Calls that may clip."""
_DEEPEST = 12


def changes_gradients(func: object) -> bool:
    """Whether a torch function may be one that changes gradients."""
    return func is UNSCALES or func in CHANGES


def clipped_by(func: Callable[..., Any], args: Sequence[Any]) -> list[Tensor]:
    """Return the tensors that a call of `CHANGES` is about to change, if they may be gradients that it clips.

    A clamp clips whoever calls it; a factor may be an average over accumulated passes, unless torch's own functions for
    clipping multiply by it.
    """
    changed = [each for each in tensors_in(args[:1]) if not each.requires_grad]
    if not changed or getattr(func, "__name__", "") in _CLAMPS:
        return changed
    return changed if not torch.is_grad_enabled() and _inside_clipping() else []


def _inside_clipping() -> bool:
    frame = sys._getframe(1)  # noqa: SLF001 - the documented way to look at the caller's stack
    for _ in range(_DEEPEST):
        if frame.f_code.co_filename == clip_grad.__file__:
            return True
        if frame.f_back is None:
            break
        frame = frame.f_back
    return False


class Held:
    """Which optimizer holds the parameter of a gradient; found once for many calls."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self._index: dict[int, int] = {}
        for index, optimizer in enumerate(optimizers):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._index[_place(parameter.grad)] = index

    def of(self, gradients: Iterable[Tensor]) -> set[int]:
        """Return the indices of the optimizers that are to step with some of these."""
        return {index for each in gradients if (index := self._index.get(_place(each))) is not None}


def _place(tensor: Tensor) -> int:
    """Return what `tensor` and ``tensor.data`` have in common."""
    return tensor.data_ptr() if type(tensor) is Tensor and tensor.layout is torch.strided else id(tensor)
