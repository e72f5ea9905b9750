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
Sent: TypeAlias = "tuple[list[int], list[int], Tensor, torch.cuda.Event | None]"


class Pack:
    """Device tensors of one step, in the order of their slots."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._once: dict[int, Slot] = {}

    def add(self, tensor: Tensor) -> Slot:
        """Take a tensor of any real dtype along; its slot finds it again after the transfer."""
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def add_once(self, tensor: Tensor) -> Slot:
        """Take a tensor along unless it is along already, as one that several sites share is."""
        slot = self._once.get(id(tensor))
        if slot is None:
            slot = self._once[id(tensor)] = self.add(tensor)
        return slot

    def send(self) -> Pending:
        """Start the transfer: one for each device that holds something (as a rule one)."""
        tensors, self._tensors = self._tensors, []
        self._once.clear()
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
        return Pending(len(tensors), sent)


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    """Return the entries of tensors that all have `dim` dimensions, most of them none."""
    if dim == 0:
        return torch.stack(tensors)
    return torch.cat(tensors if dim == 1 else [tensor.reshape(-1) for tensor in tensors])


class Pending:
    """A transfer under way."""

    def __init__(self, length: int, sent: list[Sent]) -> None:
        self._length = length
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
        return arrived
