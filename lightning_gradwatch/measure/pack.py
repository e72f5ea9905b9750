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
    from collections.abc import Sequence

    import numpy.typing as npt

    from lightning_gradwatch.record import FloatVector

Slot: TypeAlias = int
Sent: TypeAlias = "tuple[list[Slot], Tensor, torch.cuda.Event | None]"


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
        kinds: dict[tuple[torch.device, torch.dtype, int], list[int]] = {}
        for slot, tensor in enumerate(tensors):
            kind = (tensor.device, tensor.dtype, tensor.dim())
            if kind in kinds:
                kinds[kind].append(slot)
            else:
                kinds[kind] = [slot]
        sent: list[Sent] = []
        for device in dict.fromkeys(device for device, _, _ in kinds):
            groups = [(dim, slots) for (its, _, dim), slots in kinds.items() if its == device]
            # Joined before they are widened: two calls a kind, however many tensors there are.
            packed = torch.cat(
                [_joined([tensors[slot] for slot in slots], dim).to(torch.float64) for dim, slots in groups]
            )
            order = [slot for _, slots in groups for slot in slots]
            if device.type == "cuda":
                host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
                host.copy_(packed, non_blocking=True)
                arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                arrived.record()
                sent.append((order, host, arrived))
            else:
                sent.append((order, packed.cpu(), None))
        return Pending([tensor.numel() for tensor in tensors], sent)


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    """Return the entries of tensors that all have `dim` dimensions, most of them none."""
    if dim == 0:
        return torch.stack(tensors)
    return torch.cat(tensors if dim == 1 else [tensor.reshape(-1) for tensor in tensors])


class Pending:
    """A transfer under way."""

    def __init__(self, sizes: list[int], sent: list[Sent]) -> None:
        self._sizes = sizes
        self._sent = sent

    @property
    def arrived(self) -> bool:
        """Whether `wait` would return at once."""
        return all(event is None or event.query() for _, _, event in self._sent)  # type: ignore[no-untyped-call]  # as above

    def wait(self) -> Values:
        """Return the values by slot."""
        arrived = [np.empty(0)]
        for _, host, event in self._sent:
            if event is not None:
                event.synchronize()
            arrived.append(host.numpy())
        sizes = np.array(self._sizes, dtype=np.int64)
        order = np.array([slot for slots, _, _ in self._sent for slot in slots], dtype=np.int64)
        starts = np.empty_like(sizes)
        starts[order] = np.cumsum(sizes[order]) - sizes[order]
        return Values(np.concatenate(arrived), starts, sizes)


class Values:
    """What was transferred, by slot."""

    def __init__(self, flat: FloatVector, starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> None:
        self._flat = flat
        self._starts = starts
        # Plain integers: numpy's own take several times as long, one by one.
        self._spans = list(map(slice, starts.tolist(), (starts + sizes).tolist()))

    def __getitem__(self, slot: Slot) -> FloatVector:
        return self._flat[self._spans[slot]]

    def numbers(self, slots: Sequence[Slot]) -> FloatVector:
        """Return the numbers in slots of one entry each."""
        return self._flat[self._starts[slots]]

    def joined(self, slots: Sequence[Slot]) -> FloatVector:
        """Return the entries of several slots, one after the other."""
        return np.concatenate([np.empty(0), *(self[slot] for slot in slots)])
