"""How ranks exchange numbers: sums of vectors, in a process group of the monitor's own.

Not in the training's group, where a collective has its place in one order that all ranks must keep: there, a rank whose
monitor has failed could neither stay away nor say so without its peers waiting for ever. Here it hands in that it leaves
as soon as it fails, and the others read it whenever they come by. And not on the device: what is added up is on its way
to the host anyway (the step's one transfer), and so no kernel and no stream of the training is touched.
"""

from __future__ import annotations

import ctypes
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from lightning_gradwatch.record.step import FloatVector


_TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for another that never comes, as one whose Trainer has no GradWatch."""


class Exchange:
    """A group of all ranks; making one is itself collective, as is each of its exchanges, in the order they are begun.

    Raises:
        RuntimeError: the group can't be made.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._group: Any = dist.new_group(backend="gloo", timeout=_TIMEOUT)

    def begin_sum(self, vector: FloatVector) -> Sum:
        """Begin to add up vectors, float64 and of one length on all ranks; returns at once."""
        total = torch.from_numpy(vector)
        return Sum(total, dist.all_reduce(total, group=self._group, async_op=True))

    def begin_last_sum(self, vector: FloatVector) -> None:
        """Begin one that nobody waits for, and that the others may come to much later, or never."""
        self.begin_sum(vector)
        # A group is taken down only when nothing waits in it any more. This one stays, or the process couldn't end.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._group))
        self._group = None

    def gather(self, message: bytes, lengths: list[int]) -> list[bytes]:
        """Return the messages of all ranks, whose lengths all know; waits for them."""
        padded = np.zeros(max(lengths), dtype=np.uint8)
        padded[: len(message)] = np.frombuffer(message, dtype=np.uint8)
        gathered = [torch.empty(max(lengths), dtype=torch.uint8) for _ in lengths]
        dist.all_gather(gathered, torch.from_numpy(padded), group=self._group)
        return [bytes(each.numpy()[:length]) for each, length in zip(gathered, lengths, strict=True)]

    def close(self) -> None:
        """Give the group up; fine to call again, and after the training has taken down all groups."""
        group, self._group = self._group, None
        if group is not None and dist.is_initialized():
            dist.destroy_process_group(group)


class Sum:
    """A vector that is being added up."""

    def __init__(self, total: torch.Tensor, work: Any) -> None:
        self._total = total
        self._work = work

    def wait(self) -> FloatVector:
        """Return the sum, the same to the last bit on all ranks.

        Raises:
            RuntimeError: a rank is gone, or didn't come by in time.
        """
        self._work.wait()
        total: FloatVector = self._total.numpy()
        return total
