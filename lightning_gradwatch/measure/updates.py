"""How far one optimizer step moves the weights, measured: the weights before against the weights after.

Measured, not predicted from the learning rate, so it holds for every optimizer. The copy is made after the backward
pass, when the activations are gone. Above a limit of memory a fixed part of each layer's entries stands for all.
Of parameters that several processes hold, the numbers are this process's share (see `shards`).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_gradwatch.measure.model.layers import by_device
from lightning_gradwatch.measure.model.path import is_matrix
from lightning_gradwatch.measure.model.shards import ALONE
from lightning_gradwatch.measure.norms import l2_norms, l2_norms_of_rows
from lightning_gradwatch.measure.transfer.stacks import StackedCopies

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_gradwatch.measure.model.layers import Owned
    from lightning_gradwatch.measure.model.path import Layer
    from lightning_gradwatch.measure.model.shards import Shards
    from lightning_gradwatch.measure.transfer.host import HostTransfer, Slot, Values
    from lightning_gradwatch.record.step import FloatVector

_NARROW = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Limits:
    """From how much memory on a part of the entries is compared."""

    copied_bytes: int = 64 * 2**20
    """Bytes of weights copied on a device; above, the part is taken."""
    entries: int = 1_000_000
    """Entries a layer in that part."""


class Moves(NamedTuple):
    """How far some parameters moved in a step: M of each."""

    layers: list[Layer]
    """Their owners."""
    norms: FloatVector
    """This process's share of the norms of their entries before the step."""
    moved: FloatVector
    """The same of the differences; NaN where the step wasn't taken."""
    entries: FloatVector
    """How many entries there are, each counted in shares too."""


class Snapshots:
    """Takes the snapshots of a run, with the memory for their copies that is kept from one measured step to the next."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._copies: dict[int, StackedCopies] = {}

    def take(self, optimizer: int, owned: list[Owned], pack: HostTransfer, *, shards: Shards = ALONE) -> WeightSnapshot:
        """Remember the weights of one optimizer, given by its place, instead of those it had the last time."""
        copies = self._copies.setdefault(optimizer, StackedCopies())
        return WeightSnapshot(owned, pack, self._limits, copies, shards)


class WeightSnapshot:
    """The weights of one optimizer before a step, and, once it has stepped, how far they moved."""

    def __init__(
        self, owned: list[Owned], pack: HostTransfer, limits: Limits, copies: StackedCopies, shards: Shards
    ) -> None:
        compared = [
            each
            for each in owned
            if is_matrix(each[1]) and each[1].layout is torch.strided and not shards.why_unreadable(each[1])
        ]
        self._groups = [_Group(members, limits, pack, copies, shards) for members in by_device(compared)]
        self.estimated = any(group.estimated for group in self._groups)

    def measure(self, pack: HostTransfer) -> None:
        """Compare with the weights as they are now, after the step."""
        for group in self._groups:
            group.measure(pack)

    def read(self, values: Values) -> Iterator[Moves]:
        """Yield how far the parameters moved, device by device."""
        for group in self._groups:
            yield group.read(values)


class _Group:
    """The weights of one optimizer on one device."""

    def __init__(
        self, members: list[Owned], limits: Limits, pack: HostTransfer, copies: StackedCopies, shards: Shards
    ) -> None:
        self._members = members
        self._shards = shards
        self._steps: list[int] | None = None
        views = self._views()
        self.estimated = sum([view.numel() * view.element_size() for view in views]) > limits.copied_bytes
        if self.estimated:
            self._steps = self._thinned(views, limits.entries)
            views = self._views()
        stacked = copies.take(views)
        self._stacks = [stack for _, stack in stacked]
        order = [place for places, _ in stacked for place in places]
        in_stacks = set(order)
        alone = [place for place in range(len(views)) if place not in in_stacks]
        self._before = [row for stack in self._stacks for row in stack.unbind()]
        self._before += [_copy(views[place]) for place in alone]
        self._alone = len(alone)
        self._order = order + alone
        """The places of the members, in the order of the copies."""
        self._replicas = shards.replicas([members[place][1] for place in self._order])
        self._sizes = [copy.numel() for copy in self._before]
        self._norms = self._measured(pack)
        self._moved: list[Slot] = []

    def _thinned(self, parts: list[Tensor], entries: int) -> list[int]:
        """Return every how manieth entry of each parameter is taken, so that a layer has about so many."""
        per_layer: dict[Layer, int] = {}
        for (layer, _), part in zip(self._members, parts, strict=True):
            per_layer[layer] = per_layer.get(layer, 0) + part.numel()
        return [max(1, math.ceil(per_layer[layer] / entries)) for layer, _ in self._members]

    def _views(self) -> list[Tensor]:
        parts = self._shards.local_parts([parameter for _, parameter in self._members])
        if self._steps is None:
            return parts
        return [part if step == 1 else _part(part, step) for part, step in zip(parts, self._steps, strict=True)]

    def measure(self, pack: HostTransfer) -> None:
        if self._moved:
            return
        views = self._views()
        # In place into the copies, so that no third copy of large weights ever exists.
        torch._foreach_sub_(self._before, [views[place] for place in self._order])
        self._moved = self._measured(pack)
        self._before, self._stacks = [], []

    def _measured(self, pack: HostTransfer) -> list[Slot]:
        slots = [pack.add(l2_norms_of_rows(stack)) for stack in self._stacks]
        if self._alone:
            slots.append(pack.add(l2_norms(self._before[-self._alone :])))
        return slots

    def read(self, values: Values) -> Moves:
        held = np.array(self._replicas)
        share = np.sqrt(held)
        norms = values.joined(self._norms) / share
        return Moves(
            layers=[self._members[place][0] for place in self._order],
            norms=norms,
            moved=values.joined(self._moved) / share if self._moved else np.full_like(norms, math.nan),
            entries=np.array(self._sizes) / held,
        )


def _copy(view: Tensor) -> Tensor:
    return view.to(torch.float32) if view.dtype in _NARROW else view.clone()


def _part(parameter: Tensor, step: int) -> Tensor:
    """Return every `step`-th entry, from an offset of our own generator: the same ones before and after the step.

    The step is made coprime with the row length, so that the part isn't a few columns.
    """
    flat = parameter.reshape(-1)
    while flat.numel() and math.gcd(step, parameter.shape[-1]) != 1:
        step += 1
    return flat[random.Random(flat.numel()).randrange(step) :: step]  # noqa: S311 - no secret; and the user's own generators must not move
