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

from lightning_gradwatch.measure.layers import parameters_of
from lightning_gradwatch.measure.norms import l2_norm, stacked_norms
from lightning_gradwatch.measure.shards import local_part, replicas

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from torch import nn
    from torch.optim import Optimizer

    from lightning_gradwatch.measure.layers import Layer, Layers
    from lightning_gradwatch.measure.pack import Pack, Slot, Values
    from lightning_gradwatch.record import FloatVector

_SMALL = 32_768
"""Entries up to which weights of one shape are taken together."""
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


class WeightSnapshot:
    """The weights of one optimizer before a step, and, once it has stepped, how far they moved."""

    def __init__(self, optimizer: Optimizer, layers: Layers, pack: Pack, limits: Limits, *, processes: int = 1) -> None:
        held = {id(parameter) for parameter in parameters_of(optimizer)}
        owned = [
            (layer, parameter)
            for layer in layers.ordered
            for parameter in layer.matrices
            if id(parameter) in held
            and parameter.requires_grad
            and parameter.layout is torch.strided
            and replicas(parameter, processes)
        ]
        weights: dict[torch.device, int] = {}
        for _, parameter in owned:
            size = local_part(parameter).numel() * parameter.element_size()
            weights[parameter.device] = weights.get(parameter.device, 0) + size
        large = {device for device, size in weights.items() if size > limits.copied_bytes}
        self.estimated = bool(large)
        self._groups: list[_Group] = []
        for device in weights:
            members = [(layer, parameter) for layer, parameter in owned if parameter.device == device]
            self._groups.append(_Group(members, limits.entries if device in large else None, pack, processes))

    def measure(self, pack: Pack) -> None:
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
        self, members: list[tuple[Layer, nn.Parameter]], entries: int | None, pack: Pack, processes: int
    ) -> None:
        self._members = members
        self._replicas = [replicas(parameter, processes) for _, parameter in members]
        per_layer: dict[str, int] = {}
        for layer, parameter in members:
            per_layer[layer.name] = per_layer.get(layer.name, 0) + local_part(parameter).numel()
        self._steps = [
            1 if entries is None else max(1, math.ceil(per_layer[layer.name] / entries)) for layer, _ in members
        ]
        views = self._views()
        self._sizes = [view.numel() for view in views]
        self._alike = _alike(views)
        self._before: list[Tensor] | None = [_copy([views[index] for index in alike]) for alike in self._alike]
        self._norms = self._measure(self._before, pack)
        self._moved: list[Slot] = []

    def _views(self) -> list[Tensor]:
        return [
            local_part(parameter) if step == 1 else _part(local_part(parameter), step)
            for (_, parameter), step in zip(self._members, self._steps, strict=True)
        ]

    def _measure(self, copies: list[Tensor], pack: Pack) -> list[Slot]:
        return [
            pack.add(stacked_norms(copy) if len(alike) > 1 else l2_norm(copy))
            for copy, alike in zip(copies, self._alike, strict=True)
        ]

    def measure(self, pack: Pack) -> None:
        if self._before is None:
            return
        views = self._views()
        for copy, alike in zip(self._before, self._alike, strict=True):
            # In place into the copies, so that no third copy of large weights ever exists.
            copy.sub_(torch.stack([views[index] for index in alike]) if len(alike) > 1 else views[alike[0]])
        self._moved = self._measure(self._before, pack)
        self._before = None

    def read(self, values: Values) -> Moves:
        order = [index for alike in self._alike for index in alike]
        norms = values.joined(self._norms)
        held = np.array([self._replicas[index] for index in order])
        share = np.sqrt(held)
        return Moves(
            layers=[self._members[index][0] for index in order],
            norms=norms / share,
            moved=values.joined(self._moved) / share if self._moved else np.full_like(norms, math.nan),
            entries=np.array([self._sizes[index] for index in order]) / held,
        )


def _alike(views: list[Tensor]) -> list[list[int]]:
    """Return which small weights have one shape and dtype, and so are copied and compared as one; the others alone."""
    groups: dict[Hashable, list[int]] = {}
    for index, view in enumerate(views):
        key = (tuple(view.shape), view.dtype) if view.numel() < _SMALL and not view.is_complex() else index
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def _copy(views: list[Tensor]) -> Tensor:
    copy = torch.stack(views) if len(views) > 1 else views[0].clone()
    return copy.to(torch.float32) if copy.dtype in _NARROW else copy


def _part(parameter: Tensor, step: int) -> Tensor:
    """Return every `step`-th entry, from an offset of our own generator: the same ones before and after the step.

    The step is made coprime with the row length, so that the part isn't a few columns.
    """
    flat = parameter.reshape(-1)
    while flat.numel() and math.gcd(step, parameter.shape[-1]) != 1:
        step += 1
    return flat[random.Random(flat.numel()).randrange(step) :: step]  # noqa: S311 - no secret; and the user's own generators must not move
