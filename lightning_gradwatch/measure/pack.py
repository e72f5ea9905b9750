"""One transfer a measured step: everything counted on the device, gathered into one float64 vector.

Nothing is read while the step runs. What is handed over here are sums and norms of a few numbers a layer and a count or
two a unit; integers up to 2^53 and float32 values go through float64 unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_gradwatch.record import FloatVector

Slot: TypeAlias = int
Place: TypeAlias = tuple[int, int, int]
"""Of a slot: which tensor that travels, from which entry on, how many."""
Sent: TypeAlias = "tuple[list[int], list[int], Tensor, torch.cuda.Event | None]"

_SHARED = 1 << 20
"""Entries up to which a view's whole base travels: ours are a few counts a unit, a user's may be anything."""


class Pack:
    """Device tensors of one step, in the order of their slots."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._places: list[Place] = []
        self._shared: dict[int, int] = {}

    def add(self, tensor: Tensor) -> Slot:
        """Take a tensor of any real dtype along; its slot finds it again after the transfer."""
        base = tensor._base  # noqa: SLF001 - of which it is a view; it has no public name
        if base is None or base.numel() > _SHARED or not (base.is_contiguous() and tensor.is_contiguous()):
            self._places.append((len(self._tensors), 0, tensor.numel()))
            self._tensors.append(tensor.detach() if tensor.requires_grad else tensor)
        else:
            # The rows of one tensor, as batched measuring makes them, travel as that tensor.
            index = self._shared.get(id(base))
            if index is None:
                index = self._shared[id(base)] = len(self._tensors)
                self._tensors.append(base.detach() if base.requires_grad else base)
            start = int(tensor.storage_offset() - base.storage_offset())
            self._places.append((index, start, tensor.numel()))
        return len(self._places) - 1

    def send(self) -> Pending:
        """Start the transfer: one for each device that holds something (as a rule one)."""
        tensors, self._tensors = self._tensors, []
        places, self._places = self._places, []
        self._shared.clear()
        devices: dict[torch.device, dict[tuple[torch.dtype, int], list[int]]] = {}
        for slot, tensor in enumerate(tensors):
            kinds = devices.setdefault(tensor.device, {})
            kinds.setdefault((tensor.dtype, tensor.dim()), []).append(slot)
        sent: list[Sent] = []
        for device, kinds in devices.items():
            order = [slot for group in kinds.values() for slot in group]
            sizes = [tensors[slot].numel() for slot in order]
            # Joined before they are widened: two calls a kind, however many tensors there are.
            packed = torch.cat(
                [_joined([tensors[slot] for slot in group], dim).to(torch.float64) for (_, dim), group in kinds.items()]
            )
            if device.type == "cuda":
                host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
                host.copy_(packed, non_blocking=True)
                arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                arrived.record()
                sent.append((order, sizes, host, arrived))
            else:
                sent.append((order, sizes, packed.cpu(), None))
        return Pending(len(tensors), places, sent)


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    """Return the entries of tensors that all have `dim` dimensions, most of them none."""
    if dim == 0:
        return torch.stack(tensors)
    return torch.cat(tensors if dim == 1 else [tensor.reshape(-1) for tensor in tensors])


class Pending:
    """A transfer under way."""

    def __init__(self, length: int, places: list[Place], sent: list[Sent]) -> None:
        self._length = length
        self._places = places
        self._sent = sent

    @property
    def arrived(self) -> bool:
        """Whether `wait` would return at once."""
        return all(event is None or event.query() for _, _, _, event in self._sent)  # type: ignore[no-untyped-call]  # as above

    def wait(self) -> list[FloatVector]:
        """Return the values by slot, each flattened."""
        arrived: list[FloatVector] = [np.empty(0)] * self._length
        for indices, sizes, host, event in self._sent:
            if event is not None:
                event.synchronize()
            flat, start = host.numpy(), 0
            for index, size in zip(indices, sizes, strict=True):
                arrived[index] = flat[start : start + size]
                start += size
        return [arrived[index][start : start + size] for index, start, size in self._places]
