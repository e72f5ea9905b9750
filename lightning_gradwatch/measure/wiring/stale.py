"""Gradients that an optimizer has used and that are still there when the next ones are added to them.

Whether they were emptied meanwhile shows when a backward pass begins: emptied gradients are None, other tensors, or 0. A pass
of another network may come before, which finds them as they are; so all passes up to the optimizer's next step are looked at.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NamedTuple

import torch

from lightning_gradwatch.measure.model.call_site import line_of_step
from lightning_gradwatch.measure.model.layers import parameters_of
from lightning_gradwatch.measure.model.shards import placed
from lightning_gradwatch.measure.norms import l2_norms
from lightning_gradwatch.measure.unobserved import is_opaque

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from lightning_gradwatch.measure.transfer.host import HostTransfer, Slot, Values

_MOST_ENTRIES = 1_000_000
"""Entries of gradients that are looked at, from the first parameter on: one that wasn't emptied stands for all."""


class _Used(NamedTuple):
    """The gradients that an optimizer has just stepped by."""

    optimizer: Optimizer
    parameters: Sequence[nn.Parameter]
    gradients: Sequence[weakref.ref[Tensor]]

    def still_there(self) -> list[Tensor]:
        """Return them; none where one of them is another one now, or gone."""
        found = [each.grad for each in self.parameters]
        same = [new for new, old in zip(found, self.gradients, strict=True) if new is not None and new is old()]
        return same if len(same) == len(self.gradients) else []


class _Left(NamedTuple):
    """What was left of them when the last backward pass before the next step began."""

    copies: list[Tensor]
    norms: list[Slot]
    """Of all at each pass that began since."""


class StaleGradients:
    """Follows what optimizers leave in the gradients, from one measured step to the next."""

    def __init__(self) -> None:
        self._used: dict[int, _Used] = {}
        """By the optimizer's place."""

    def begin(self, pack: HostTransfer) -> StaleStep:
        """Begin a step, whose numbers go into `pack`."""
        return StaleStep(self._used, pack)


class StaleStep:
    """One measured step."""

    def __init__(self, used: dict[int, _Used], pack: HostTransfer) -> None:
        self._used = used
        self._pack = pack
        self._left: dict[int, _Left] = {}
        self._found: dict[int, tuple[Optimizer, list[Slot], Slot, str]] = {}

    def backward_begins(self) -> None:
        """Look at what is there when a backward pass begins."""
        for index, used in list(self._used.items()):
            gradients = used.still_there()
            if not gradients:
                self._forget(index)
                continue
            before = self._left.get(index)
            norms = [] if before is None else before.norms
            norms.append(self._pack.add(l2_norms(gradients).square().sum().sqrt()))
            self._left[index] = _Left([each.detach().clone() for each in gradients], norms)

    def steps(self, optimizer: Optimizer, index: int) -> None:
        """Compare the gradients that an optimizer is about to step by with what was left."""
        used, left = self._used.pop(index, None), self._left.pop(index, None)
        if used is None or left is None or used.optimizer is not optimizer:
            return
        gradients = used.still_there()
        if not gradients:
            return
        with torch.no_grad():
            new = [now - then for now, then in zip(gradients, left.copies, strict=True)]
        self._found[index] = (
            optimizer,
            left.norms,
            self._pack.add(l2_norms(new).square().sum().sqrt()),
            line_of_step(),
        )

    def stepped(self, optimizer: Optimizer, index: int) -> None:
        """Remember the gradients that an optimizer has stepped by."""
        parameters, entries = [], 0
        for each in parameters_of(optimizer):
            if each.grad is None:
                continue
            if not _is_dense(each.grad) or entries + each.numel() > _MOST_ENTRIES:
                break
            entries += each.numel()
            parameters.append(each)
        if parameters and len({each.device for each in parameters}) == 1:
            gradients = [weakref.ref(each.grad) for each in parameters if each.grad is not None]
            self._used[index] = _Used(optimizer, parameters, gradients)

    def _forget(self, index: int) -> None:
        self._used.pop(index, None)
        self._left.pop(index, None)

    def read(self, values: Values) -> list[tuple[Optimizer, float, str]]:
        """Return the optimizers that stepped by gradients that weren't empty, with the norm of what was left over the new ones' and their line."""
        found = []
        for optimizer, left, new, line in self._found.values():
            norms = [float(values[slot][0]) for slot in left]
            added = float(values[new][0])
            if all(norm > 0 for norm in norms) and added > 0:
                found.append((optimizer, norms[-1] / added, line))
        return found


def _is_dense(gradient: Tensor) -> bool:
    """Whether the entries of a gradient are all here, and to be calculated with."""
    return gradient.layout is torch.strided and not is_opaque(gradient) and placed(gradient) is None
