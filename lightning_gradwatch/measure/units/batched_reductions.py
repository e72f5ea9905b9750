"""Measures the tensors of a step's activation calls: small ones of one shape many at once, all others one by one.

In a deep net of narrow layers an operation costs its call, not its arithmetic, and a measured step has hundreds. The
cheapest one is a copy. So small tensors are copied into the rows of a stack, which is measured when it is full or the step
ends; whatever the program writes into its own tensors in between makes no difference.

Stacks are kept from one measured step to the next, as fresh memory is handed out by the system page by page, which costs
more than the calls that are saved. Each has as many rows as tensors of its kind came in the steps before, within limits;
what comes once or twice has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch

from lightning_gradwatch.measure.norms import l2_norm, l2_norms_of_rows
from lightning_gradwatch.measure.transfer.stacks import FEWEST, KEPT, SMALL, new_stack
from lightning_gradwatch.measure.unobserved import PLAIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lightning_gradwatch.measure.transfer.host import HostTransfer, Slot
    from lightning_gradwatch.measure.units.counting import Counter

_STACK = 1 << 16
"""Entries of a stack at most, few enough to stay in a processor's cache."""
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


_Kind: TypeAlias = "tuple[torch.Size, Counter | None, bool]"
"""What is measured together: tensors of a shape, by a counter or, without one, their norms; or by both, those of ReLU's output."""


class _Stack:
    """Rows for copies of tensors, filled one after the other."""

    __slots__ = ("came", "counter", "firsts", "memory", "rectified", "rows")

    def __init__(self, kind: _Kind, rows: int) -> None:
        shape, self.counter, rectified = kind
        # A reduction would convert to float64 in memory of its own; a copy does it on the way.
        self.memory = new_stack(rows, shape, torch.float64 if self.counter is None else self.counter.dtype)
        self.rectified = new_stack(rows, shape, torch.float64) if rectified else None
        """What ReLU makes of the rows."""
        self.rows = self.memory.unbind()
        self.firsts: list[Slot] = []
        """Of each row that is filled the slot of its norm, or of its first region."""
        self.came = 0
        """Tensors in this step."""

    def put(self, tensor: Tensor, slot: Slot) -> None:
        """Copy a tensor."""
        firsts = self.firsts
        self.rows[len(firsts)].copy_(tensor.detach() if tensor.requires_grad else tensor)  # gradients are without
        firsts.append(slot)
        self.came += 1


class BatchedReductions:
    """What measures one tensor of a step after the other."""

    def __init__(self) -> None:
        self._stacks: dict[_Kind, _Stack] = {}
        self._came: dict[_Kind, int] = {}
        """Tensors in this step that would go into a stack, if there were one."""
        self._wanted: dict[_Kind, int] = {}
        """Rows that the last steps could have filled."""
        self._error: Exception | None = None

    def begin(self, pack: HostTransfer) -> None:
        """Start a step, whose numbers go into `pack`."""
        self.pack = pack
        self._error = None
        before, self._stacks = self._stacks, {}
        came, self._came = self._came, {}
        came.update((kind, stack.came) for kind, stack in before.items())
        for kind, times in self._wanted.items():
            # A step that measures less, as one for the windows alone, takes nothing away from the next.
            came[kind] = max(came.get(kind, 0), times // 2)
        self._wanted = {kind: times for kind, times in came.items() if times >= FEWEST}
        kept = 0
        for kind, times in self._wanted.items():
            entries = kind[0].numel()
            rows = min(times, _STACK // entries, (KEPT - kept) // entries)
            if rows < FEWEST:
                continue
            stack = before.get(kind)
            if stack is None or len(stack.rows) < rows:
                stack = _Stack(kind, rows)
            stack.firsts, stack.came = [], 0
            kept += stack.memory.numel() * (1 if stack.rectified is None else 2)
            self._stacks[kind] = stack

    def norm(self, tensor: Tensor) -> Slot:
        """Measure the L2 norm of a tensor; return where it will be."""
        slot = self._copied(tensor, (tensor.shape, None, False), 1)
        return self.pack.add(l2_norm(tensor)) if slot is None else slot

    def count(self, counter: Counter, z: Tensor) -> Sequence[Slot]:
        """Count the observations of each unit in each region of a function; return where they will be, region by region."""
        return self._count(counter, z, rectified=False)[0]

    def count_and_rectify(self, counter: Counter, z: Tensor) -> tuple[Sequence[Slot], Slot | None]:
        """Do so for ReLU; return too where the norm of its output will be, which follows from the copy of its argument.

        None: there is no copy, and the output is to be measured.
        """
        return self._count(counter, z, rectified=True)

    def _count(self, counter: Counter, z: Tensor, *, rectified: bool) -> tuple[Sequence[Slot], Slot | None]:
        regions = counter.regions
        if not regions:
            return (), None
        first = self._copied(z, (z.shape, counter, rectified), regions + rectified)
        if first is None:
            return [self.pack.add(counts) for counts in counter.count(z)], None
        return range(first, first + regions), first + regions if rectified else None

    def _copied(self, tensor: Tensor, kind: _Kind, numbers: int) -> Slot | None:
        """Copy a tensor into the stack of its kind; return the first of its slots, None where there is no such stack."""
        if not _is_plain(tensor):
            return None
        stack = self._stacks.get(kind)
        if stack is None:
            if tensor.dim() and 0 < tensor.numel() <= SMALL:
                self._came[kind] = self._came.get(kind, 0) + 1
            return None
        if len(stack.firsts) == len(stack.rows):
            self._measure(stack)
        slot = self.pack.reserve(numbers)
        stack.put(tensor, slot)
        return slot

    def end(self) -> None:
        """Measure what is still in the stacks.

        Raises:
            Exception: what was raised on the way too, in whatever part of ours: numbers of the others may be missing with it.
        """
        if self._error is not None:
            raise self._error
        for stack in self._stacks.values():
            if stack.firsts:
                self._measure(stack)

    def _measure(self, stack: _Stack) -> None:
        firsts, stack.firsts = stack.firsts, []
        memory = stack.memory[: len(firsts)]
        try:
            if stack.counter is None:
                found = [l2_norms_of_rows(memory)]
            elif stack.rectified is None:
                found = stack.counter.count_rows(memory)
            else:
                output = l2_norms_of_rows(stack.rectified[: len(firsts)].copy_(memory).clamp_(min=0))
                found = [*stack.counter.count_rows(memory), output]
        except Exception as error:
            self._error = error
            raise
        for place, numbers in enumerate(found):
            self.pack.fill([first + place for first in firsts], numbers)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is one of torch's own, of real floats, dense and on a CPU."""
    return tensor.is_cpu and tensor.dtype in _FLOATS and tensor.layout is torch.strided and type(tensor) in PLAIN
