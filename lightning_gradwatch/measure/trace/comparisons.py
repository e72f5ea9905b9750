"""Which tensors of a pass came from another's values alone, as from comparing it with a number, and which are zeros: without reading any."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lightning_gradwatch.record.zones import Comparison, Region

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_COMPARISONS: Mapping[str, Comparison] = {
    "gt": ">",
    "ge": ">=",
    "lt": "<",
    "le": "<=",
    "greater": ">",
    "greater_equal": ">=",
    "less": "<",
    "less_equal": "<=",
}
_CASTS = frozenset(("float", "half", "bfloat16", "double", "to", "type", "type_as", "clone", "contiguous", "detach"))
"""What a mask remains itself through."""
_HOST = frozenset((torch.float16, torch.float32, torch.float64, torch.int32, torch.int64))


class _Mask(NamedTuple):
    """What a comparison of a tensor with a number has made, or else its values alone."""

    ref: weakref.ref[Tensor]
    of: weakref.ref[Tensor]
    """The tensor that was compared."""
    version: int
    """Which state of it: one that is changed in place afterwards is another."""
    where: Region | None
    """None for what was made of masks and numbers, as the slopes of several pieces, and of the values, also by comparing with a tensor."""
    same: bool = False
    """Whether it is that tensor's values as they are: detached."""


class Comparisons:
    """The masks and the zeros of one pass."""

    def __init__(self) -> None:
        self.masks: dict[int, _Mask] = {}
        """By the `id` of each."""
        self._zeros: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def clear(self) -> None:
        """Forget all."""
        self.masks.clear()
        self._zeros.clear()

    def take(self, func: Callable[..., Any], compared: Sequence[Any] | None, result: object) -> None:
        """Note the result of a comparison; or zeros, where nothing was `compared`."""
        if compared is None:
            self.made_zeros(result)
        elif compared:
            z, bound = compared
            self.compared(func, z, bound, result)

    def compared(self, func: Callable[..., Any], z: Tensor, bound: float | None, result: object) -> None:
        """Note a comparison of a tensor with a number, or with another tensor, for which None stands."""
        if not isinstance(result, Tensor):
            return
        where = None if bound is None else Region(_COMPARISONS[func.__name__], bound)
        if z.requires_grad:
            self.masks[id(result)] = _Mask(weakref.ref(result), weakref.ref(z), z._version, where)  # noqa: SLF001 - it has no public name
        elif (alias := self.masks.get(id(z))) is not None and alias.ref() is z and alias.same:
            self.masks[id(result)] = alias._replace(ref=weakref.ref(result), where=where, same=False)

    def detached(self, z: object, result: object) -> None:
        """Note that a tensor holds another one's values, and passes no gradient back."""
        if isinstance(z, Tensor) and isinstance(result, Tensor) and z.requires_grad and not z.is_leaf:
            self.masks[id(result)] = _Mask(weakref.ref(result), weakref.ref(z), z._version, None, same=True)  # noqa: SLF001 - as above

    def cast(self, func: Callable[..., Any], source: object, result: object) -> None:
        """Note that a mask has become another tensor of the same entries, or one that is made of its entries."""
        mask = self.masks.get(id(source))
        if mask is None or mask.ref() is not source or not isinstance(result, Tensor):
            return
        if func.__name__ in _CASTS:
            self.masks[id(result)] = mask._replace(ref=weakref.ref(result))
        elif isinstance(source, Tensor) and result.shape == source.shape and not result.requires_grad:
            self.masks[id(result)] = mask._replace(ref=weakref.ref(result), where=None, same=False)

    def made_zeros(self, result: object) -> None:
        """Note a tensor that was made of zeros."""
        if isinstance(result, Tensor) and not result.requires_grad and not result.is_inference():
            self._zeros[id(result)] = weakref.ref(result), result._version  # noqa: SLF001 - as above

    def of(self, mask: object, z: object) -> Region | None:
        """Return where a mask is True, if it was made by comparing this very tensor; None otherwise."""
        found = self.masks.get(id(mask))
        if found is None or found.ref() is not mask or found.of() is not z:
            return None
        return found.where if isinstance(z, Tensor) and found.version == z._version else None  # noqa: SLF001 - as above

    def cuts(self, mask: object, z: Tensor) -> bool:
        """Whether a mask was made by comparing a tensor, whatever has been written into that since."""
        found = self.masks.get(id(mask))
        return found is not None and found.ref() is mask and found.of() is z

    def makes_slopes(self, mask: object) -> bool:
        """Whether a tensor is made of a mask and of numbers, or of the values that are compared, and no number says where it is True."""
        found = self.masks.get(id(mask))
        return found is not None and found.ref() is mask and found.where is None

    def compared_in(self, mask: object) -> Tensor | None:
        """Return the tensor that was compared to make a mask; None where it isn't known, or isn't there any more."""
        found = self.masks.get(id(mask))
        return found.of() if found is not None and found.ref() is mask else None

    def number(self, value: object) -> float | None:
        """Return what a number, or a tensor that is everywhere the same, holds; None where that isn't known."""
        if isinstance(value, Tensor):
            known = self._zeros.get(id(value))
            if known is not None and known[0]() is value and known[1] == value._version:  # noqa: SLF001 - as above
                return 0.0
        return plain_number(value)


def plain_number(value: object) -> float | None:
    """Return a number, also that of a tensor without axes on the host; None for anything else."""
    if isinstance(value, (int, float)):
        return float(value)
    if type(value) is Tensor and not value.dim() and value.device.type == "cpu" and not value.requires_grad:
        # Not `item`, which a dispatch mode of the user's would see.
        return float(value.numpy()) if value.dtype in _HOST else None
    return None


def bound_of(args: Sequence[Any]) -> tuple[Tensor, float | None] | None:
    """Return the tensor that is compared, with a number, or with another tensor, for which None stands; None for anything else."""
    if len(args) != 2 or not isinstance(args[0], Tensor):
        return None
    z, other = args
    number = plain_number(other)
    if number is None and isinstance(other, Tensor) and other.numel() > z.numel():
        z = other
    return z, number
