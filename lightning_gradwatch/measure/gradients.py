"""The gradients an optimizer is about to use: norms a layer, and what state they are in, decided by their entries.

Of parameters that several processes hold, the numbers are this process's share (see `shards`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch

from lightning_gradwatch.measure.layers import parameters_of
from lightning_gradwatch.measure.norms import l2_norms
from lightning_gradwatch.measure.shards import held_entries, local_part, replicas, why_unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from lightning_gradwatch.measure.layers import Layer, Layers
    from lightning_gradwatch.measure.pack import Pack, Slot
    from lightning_gradwatch.record import FloatVector

_WIDE = (torch.float64, torch.complex128)
"""Dtypes whose smallest entries have squares that vanish even in float64, so that a norm of 0 proves nothing."""


_Owned: TypeAlias = "tuple[Layer, nn.Parameter]"


class Gradient(NamedTuple):
    """The gradient of one parameter at one optimizer step, after the transfer."""

    layer: Layer
    norm: float
    """This process's share of its norm."""
    entries: float
    """The same of its entries."""
    matrix: bool
    """Whether it has two or more dimensions."""
    zero: bool
    """Whether each entry here is 0."""


class OptimizerGradients:
    """The gradients of one optimizer's parameters at one step: measured on the device, read after the transfer."""

    def __init__(self, optimizer: Optimizer, layers: Layers, pack: Pack, *, processes: int = 1) -> None:
        # Those that are trained in this step: one that is frozen may still hold an old gradient.
        trained = [
            (layer, parameter)
            for parameter in parameters_of(optimizer)
            if parameter.requires_grad and (layer := layers.owner(parameter)) is not None
        ]
        self.unreadable = {
            layer.name: why for layer, parameter in trained if (why := why_unreadable(parameter, processes))
        }
        """Why a layer's gradients can't be measured, by its name; nothing of such a layer is read."""
        owned = [(layer, parameter) for layer, parameter in trained if layer.name not in self.unreadable]
        self.layers = [layer for layer, _ in owned]
        """The owner of each parameter that is read."""
        self._processes = processes
        self.scale: Slot | None = None
        """The factor that they are still multiplied by, where the optimizer takes it out itself."""
        self._slots: list[tuple[list[_Owned], Slot]] = []
        self._counts: list[tuple[list[_Owned], Slot]] = []
        for members in _by_device([each for each in owned if each[1].grad is not None]):
            self._slots.append((members, pack.add(l2_norms([_gradient(parameter) for _, parameter in members]))))
            wide = [each for each in members if each[1].dtype in _WIDE]
            if wide:
                nonzero = [_entries(_gradient(parameter)).count_nonzero() for _, parameter in wide]
                self._counts.append((wide, pack.add(torch.stack(nonzero))))

    def read(self, values: Sequence[FloatVector]) -> Iterator[Gradient]:
        """Yield the gradients of the parameters that have one."""
        scale = 1.0 if self.scale is None else float(values[self.scale][0])
        counts = {
            id(parameter): count
            for members, slot in self._counts
            for (_, parameter), count in zip(members, values[slot].tolist(), strict=True)
        }
        for members, slot in self._slots:
            for (layer, parameter), norm in zip(members, values[slot].tolist(), strict=True):
                yield Gradient(
                    layer=layer,
                    norm=norm / scale / math.sqrt(replicas(parameter, self._processes)),
                    entries=held_entries(parameter, self._processes),
                    matrix=parameter.dim() > 1,
                    zero=counts.get(id(parameter), norm) == 0.0,
                )


def _by_device(owned: list[_Owned]) -> list[list[_Owned]]:
    groups: dict[torch.device, list[_Owned]] = {}
    for each in owned:
        groups.setdefault(each[1].device, []).append(each)
    return list(groups.values())


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return local_part(parameter.grad)


def _entries(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.layout is torch.sparse_coo else gradient
