"""Measures the tensors of a step's activation calls: small ones of one shape many at once, all others one by one.

In a deep net of narrow layers an operation costs its call, not its arithmetic, and a measured step has hundreds. The
cheapest one is a copy. So small tensors are copied into the rows of a stack, which is measured when it is full or the step
ends; whatever the program writes into its own tensors in between makes no difference.

Stacks are kept from one measured step to the next, as fresh memory is handed out by the system page by page, which costs
more than the calls that are saved. Each has as many rows as tensors of its kind came in the steps before, within limits;
what comes once or twice has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from lightning_gradwatch.measure.copies import FEWEST, KEPT, SMALL, new_stack
from lightning_gradwatch.measure.norms import l2_norm, l2_norms_of_rows
from lightning_gradwatch.measure.shards import PLAIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lightning_gradwatch.measure.counting import Counter
    from lightning_gradwatch.measure.pack import Pack, Slot

_STACK = 1 << 16
"""Entries of a stack at most, few enough to stay in a processor's cache."""
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class _Kind(NamedTuple):
    """What is measured together."""

    shape: torch.Size
    counter: Counter | None = None
    """None: norms are measured."""


class _Stack:
    """Rows for copies of tensors, filled one after the other."""

    __slots__ = ("came", "counter", "firsts", "memory", "rows")

    def __init__(self, kind: _Kind, rows: int) -> None:
        self.counter = kind.counter
        # A reduction would convert to float64 in memory of its own; a copy does it on the way.
        dtype = torch.float64 if kind.counter is None else kind.counter.dtype
        self.memory = new_stack(rows, kind.shape, dtype)
        self.rows = self.memory.unbind()
        self.firsts: list[Slot] = []
        """Of each row that is filled the slot of its norm, or of its first region."""
        self.came = 0
        """Tensors in this step."""

    def put(self, tensor: Tensor, slot: Slot) -> None:
        """Copy a tensor."""
        firsts = self.firsts
        self.rows[len(firsts)].copy_(tensor.detach())
        firsts.append(slot)
        self.came += 1


class Staging:
    """What measures one tensor of a step after the other."""

    def __init__(self) -> None:
        self._norms: dict[torch.Size, _Stack] = {}
        self._counts: dict[tuple[torch.Size, Counter], _Stack] = {}
        self._came: dict[_Kind, int] = {}
        """Tensors in this step that would go into a stack, if there were one."""
        self._wanted: dict[_Kind, int] = {}
        """Rows that the last steps could have filled."""
        self._error: Exception | None = None

    def begin(self, pack: Pack) -> None:
        """Start a step, whose numbers go into `pack`."""
        self.pack = pack
        self._error = None
        before = {_Kind(shape): stack for shape, stack in self._norms.items()}
        before.update((_Kind(*key), stack) for key, stack in self._counts.items())
        came, self._came = self._came, {}
        came.update((kind, stack.came) for kind, stack in before.items())
        for kind, times in self._wanted.items():
            # A step that measures less, as one for the windows alone, takes nothing away from the next.
            came[kind] = max(came.get(kind, 0), times // 2)
        self._wanted = {kind: times for kind, times in came.items() if times >= FEWEST}
        self._norms, self._counts = {}, {}
        kept = 0
        for kind, times in self._wanted.items():
            entries = kind.shape.numel()
            rows = min(times, _STACK // entries, (KEPT - kept) // entries)
            if rows < FEWEST:
                continue
            stack = before.get(kind)
            if stack is None or len(stack.rows) < rows:
                stack = _Stack(kind, rows)
            stack.firsts, stack.came = [], 0
            kept += stack.memory.numel()
            if kind.counter is None:
                self._norms[kind.shape] = stack
            else:
                self._counts[kind.shape, kind.counter] = stack

    def norm(self, tensor: Tensor) -> Slot:
        """Measure the L2 norm of a tensor; return where it will be."""
        stack = self._norms.get(tensor.shape)
        if stack is None or not _is_plain(tensor):
            self._note(tensor, None)
            return self.pack.add(l2_norm(tensor))
        if len(stack.firsts) == len(stack.rows):
            self._measure(stack)
        slot = self.pack.reserve(1)
        stack.put(tensor, slot)
        return slot

    def count(self, counter: Counter, z: Tensor) -> Sequence[Slot]:
        """Count the observations of each unit in each region of a function; return where they will be, region by region."""
        if not counter.regions:
            return ()
        stack = self._counts.get((z.shape, counter))
        if stack is None or not _is_plain(z):
            self._note(z, counter)
            return [self.pack.add(counts) for counts in counter.count(z)]
        if len(stack.firsts) == len(stack.rows):
            self._measure(stack)
        first = self.pack.reserve(counter.regions)
        stack.put(z, first)
        return range(first, first + counter.regions)

    def end(self) -> None:
        """Measure what is still in the stacks.

        Raises:
            Exception: what was raised on the way too, in whatever part of ours: numbers of the others may be missing with it.
        """
        if self._error is not None:
            raise self._error
        for stack in (*self._norms.values(), *self._counts.values()):
            if stack.firsts:
                self._measure(stack)

    def _note(self, tensor: Tensor, counter: Counter | None) -> None:
        if tensor.dim() and 0 < tensor.numel() <= SMALL and _is_plain(tensor):
            kind = _Kind(tensor.shape, counter)
            self._came[kind] = self._came.get(kind, 0) + 1

    def _measure(self, stack: _Stack) -> None:
        firsts, stack.firsts = stack.firsts, []
        memory = stack.memory[: len(firsts)]
        try:
            found = [l2_norms_of_rows(memory)] if stack.counter is None else stack.counter.count_rows(memory)
        except Exception as error:
            self._error = error
            raise
        for place, numbers in enumerate(found):
            self.pack.fill([first + place for first in firsts], numbers)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is one of torch's own, of real floats, dense and on a CPU."""
    return tensor.is_cpu and tensor.dtype in _FLOATS and tensor.layout is torch.strided and type(tensor) in PLAIN
