"""Copies of many small tensors side by side, in memory that is kept from one measured step to the next.

In a deep net of narrow layers an operation costs its call, and a stack is measured in one. Its memory is kept, as fresh
memory is handed out by the system page by page, which costs more than the calls that are saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SMALL = 8192
"""Entries of a tensor up to which the call counts (measured on a CPU)."""
FEWEST = 4
"""Tensors of a kind that make a stack worth it."""
KEPT = 1 << 20
"""Entries of all stacks at most."""

_Kind: TypeAlias = "tuple[torch.Size, torch.dtype]"


def new_stack(rows: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return memory on the CPU for so many tensors, which outlives whatever block the program is in."""
    with torch.inference_mode(mode=False):
        return torch.empty((rows, *shape), dtype=dtype, device="cpu")


class StackedCopies:
    """Stacks of copies, one for each shape and dtype of which there are several."""

    def __init__(self) -> None:
        self._stacks: dict[_Kind, Tensor] = {}

    def take(self, tensors: Sequence[Tensor]) -> list[tuple[list[int], Tensor]]:
        """Copy the small ones among tensors, as far as several are alike, over what was copied before.

        Args:
            tensors: Without history. Those that aren't real, dense and on a CPU stay out.

        Returns:
            Of each stack the places of its rows among the tensors, and the stack, of at least 32 bits an entry.
        """
        alike: dict[_Kind, list[int]] = {}
        for place, tensor in enumerate(tensors):
            if (
                tensor.is_cpu
                and 0 < tensor.numel() <= SMALL
                and tensor.is_floating_point()
                and tensor.layout is torch.strided
            ):
                alike.setdefault((tensor.shape, tensor.dtype), []).append(place)
        before, self._stacks = self._stacks, {}
        found: list[tuple[list[int], Tensor]] = []
        left = KEPT
        for kind, places in alike.items():
            shape, own = kind
            entries = len(places) * shape.numel()
            if len(places) < FEWEST or entries > left:
                continue
            left -= entries
            stack = before.get(kind)
            if stack is None or len(stack) != len(places):
                stack = new_stack(len(places), shape, torch.promote_types(own, torch.float32))
            self._stacks[kind] = stack
            torch._foreach_copy_(stack.unbind(), [tensors[place] for place in places])
            found.append((places, stack))
        return found
