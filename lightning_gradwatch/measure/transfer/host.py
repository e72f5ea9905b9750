"""One transfer a measured step: everything counted on the device, gathered into one float64 vector.

Nothing is read while the step runs. What is handed over here are sums and norms of a few numbers a layer and a count or
two a unit; integers up to 2^53 and float32 values go through float64 unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lightning_gradwatch.measure.unobserved import unobserved

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from lightning_gradwatch.record.step import FloatVector

Slot: TypeAlias = int
Sent: TypeAlias = "tuple[list[Slot], Tensor, torch.cuda.Event | None]"


class HostTransfer:
    """Device tensors of one step, in the order of their slots."""

    def __init__(self) -> None:
        self._tensors: list[Tensor | None] = []
        """By slot; None where one is reserved."""
        self._blocks: list[tuple[list[Slot], Tensor]] = []
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

    def reserve(self, count: int) -> Slot:
        """Return the first of some slots for what comes later, by `fill`; one that nothing came for reads as NaN."""
        first = len(self._tensors)
        self._tensors += (None,) * count
        return first

    def fill(self, slots: list[Slot], rows: Tensor) -> None:
        """Take a tensor along whose rows are for reserved slots, each for its own."""
        self._blocks.append((slots, rows))

    def send(self) -> Pending:
        """Start the transfer: one for each device that holds something (as a rule one)."""
        tensors, self._tensors = self._tensors, []
        blocks, self._blocks = self._blocks, []
        self._once.clear()
        sizes = [0 if tensor is None else tensor.numel() for tensor in tensors]
        kinds: dict[tuple[torch.device, torch.dtype, int], tuple[list[Slot], list[Tensor]]] = {}
        for slot, tensor in enumerate(tensors):
            if tensor is not None:
                slots, alike = kinds.setdefault((tensor.device, tensor.dtype, tensor.dim()), ([], []))
                slots.append(slot)
                alike.append(tensor)
        for slots, rows in blocks:
            own, alike = kinds.setdefault((rows.device, rows.dtype, 2), ([], []))
            own += slots
            alike.append(rows)
            size = rows[0].numel()
            for slot in slots:
                sizes[slot] = size
        sent: list[Sent] = []
        for device in dict.fromkeys(device for device, _, _ in kinds):
            groups = [(dim, *alike) for (its, _, dim), alike in kinds.items() if its == device]
            # Joined before they are widened: two calls a kind, however many tensors there are.
            packed = torch.cat([_joined(alike, dim).to(torch.float64) for dim, _, alike in groups])
            order = [slot for _, slots, _ in groups for slot in slots]
            if device.type == "cuda":
                host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
                host.copy_(packed, non_blocking=True)
                arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                arrived.record()
                sent.append((order, host, arrived))
            else:
                sent.append((order, packed.cpu(), None))
        return Pending(sizes, sent)


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

    @unobserved()
    def wait(self) -> Values:
        """Return the values by slot."""
        arrived: list[FloatVector] = []
        for _, host, event in self._sent:
            if event is not None:
                event.synchronize()
            arrived.append(host.numpy())
        sizes = np.array(self._sizes, dtype=np.int64)
        order = np.array([slot for slots, _, _ in self._sent for slot in slots], dtype=np.int64)
        flat = np.concatenate([*arrived, [np.nan]])  # at its end, what a slot that was never filled reads
        starts = np.full_like(sizes, len(flat) - 1)
        starts[order] = np.cumsum(sizes[order]) - sizes[order]
        return Values(flat, starts, sizes)


class Values:
    """What was transferred, by slot."""

    def __init__(self, flat: FloatVector, starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> None:
        self._flat = flat
        self._starts = starts
        self._ends = starts + sizes
        # Plain integers: numpy's own take several times as long, one by one.
        self._spans = starts.tolist(), self._ends.tolist()

    def __getitem__(self, slot: Slot) -> FloatVector:
        starts, ends = self._spans
        return self._flat[starts[slot] : ends[slot]]

    def numbers(self, slots: list[Slot]) -> FloatVector:
        """Return the numbers in slots of one entry each."""
        return self._flat[self._starts[slots]]

    def sums(self, slots: list[Slot]) -> FloatVector:
        """Return the sum of each slot's entries."""
        starts, ends = self._starts[slots], self._ends[slots]
        # From each start to its end, and on to the next start, which is left out; the end of the last one is there too.
        bounds = np.stack((starts, ends), axis=1).reshape(-1)
        with np.errstate(invalid="ignore", over="ignore"):  # what lies between may be anything
            sums = np.add.reduceat(self._flat, bounds)[::2] if len(slots) else np.empty(0)
        return np.where(starts < ends, sums, 0.0)

    def joined(self, slots: Sequence[Slot]) -> FloatVector:
        """Return the entries of several slots, one after the other."""
        return np.concatenate([np.empty(0), *(self[slot] for slot in slots)])
