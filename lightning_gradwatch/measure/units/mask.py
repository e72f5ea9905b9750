"""Which positions of a batch are samples: a padded one is none, so it counts neither for a unit nor against it.

The mask stays on its device. What it leaves out is set to NaN in a copy of an activation function's argument, which no
interval contains; how much it leaves is counted there and travels with the step's other numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

Mask: TypeAlias = Tensor | Mapping[str, Tensor]
"""True where a position is a sample, shaped as the activations without their unit axis, or as the first of those axes;
one for all modules, or by module name for what is inside each."""


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples among the positions of a tensor."""

    keep: Tensor
    counts: Tensor
    """Positions that are samples, and batch elements that have one: int64[2]."""

    def spread(self, tensor: Tensor, unit_axis: int) -> Tensor:
        """Return the mask in a shape that broadcasts to a tensor."""
        axes = tensor.dim() - 1
        return self.keep.reshape(self.keep.shape + (1,) * (axes - self.keep.dim())).unsqueeze(unit_axis)

    def only(self, tensor: Tensor, unit_axis: int, other: float) -> Tensor:
        """Return a copy of a tensor with what is no sample set to another value."""
        return tensor.detach().masked_fill(~self.spread(tensor, unit_axis), other)

    def each(self, entries: int) -> int:
        """Return how many of a tensor's entries stand for one position of the mask."""
        return entries // max(self.keep.numel(), 1)


class Masks:
    """The mask of one pass, in the shapes that its tensors ask for."""

    def __init__(self, given: Mask | None) -> None:
        self._by_module = {} if given is None else dict(given) if isinstance(given, Mapping) else {"": given}
        self._made: dict[tuple[str, bool], Samples] = {}
        for module, mask in self._by_module.items():
            _check(module, mask)
        self.given = bool(self._by_module)
        """Whether there is any."""

    def meant_for(self, module: str) -> bool:
        """Whether there is a mask for what is inside a module."""
        return self._name(module) is not None

    def of(self, module: str, tensor: Tensor, unit_axis: int) -> Samples | None:
        """Return the samples among a tensor's positions in a module that `meant_for` holds for; None if its shape is another."""
        name = self._name(module)
        assert name is not None
        mask = self._by_module[name]
        axis = unit_axis % max(tensor.dim(), 1)
        positions = tensor.shape[:axis] + tensor.shape[axis + 1 :]
        flat = tuple(positions) == (mask.numel(),)
        if not flat and positions[: mask.dim()] != mask.shape:
            return None
        made = self._made.get((name, flat))
        if made is None:
            keep = mask.detach().to(device=tensor.device, dtype=torch.bool)
            elements = keep.reshape(len(keep), -1).any(1) if keep.dim() else keep
            counts = torch.stack([keep.sum(), elements.sum()])
            made = self._made[name, flat] = Samples(keep.reshape(-1) if flat else keep, counts)
        return made

    def _name(self, module: str) -> str | None:
        while module not in self._by_module:
            if not module:
                return None
            module = module.rpartition(".")[0]
        return module


def _check(module: str, mask: Any) -> None:
    where = f"mask[{module!r}]" if module else "mask"
    if not isinstance(mask, Tensor):
        raise TypeError(f"{where} is {type(mask).__name__}: must be a tensor that is True where a position is a sample")
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(f"{where} has dtype {mask.dtype}: must be bool, or integers that are 0 where nothing counts")


def mask_of(function: Callable[[Any], Mask | None], batch: Any) -> Masks:
    """Return the masks that a user's function makes of a batch.

    Raises:
        ValueError: the function failed.
        TypeError: what it returned is no mask.
    """
    try:
        given = function(batch)
    except Exception as error:
        raise ValueError(f"the function handed in as mask failed: {type(error).__name__}: {error}") from error
    return Masks(given)
