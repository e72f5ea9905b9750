"""The gradients an optimizer is about to use: norms a layer, and what state they are in, decided by their entries.

Of parameters that several processes hold, the numbers are this process's share (see `shards`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_gradwatch.measure.model.layers import by_device
from lightning_gradwatch.measure.model.shards import ALONE
from lightning_gradwatch.measure.norms import l2_norms

if TYPE_CHECKING:
    import numpy.typing as npt

    from lightning_gradwatch.measure.model.layers import Owned
    from lightning_gradwatch.measure.model.path import Layer
    from lightning_gradwatch.measure.model.shards import Shards
    from lightning_gradwatch.measure.transfer.host import HostTransfer, Slot, Values
    from lightning_gradwatch.record.step import FloatVector

_WIDE = (torch.float64, torch.complex128)
"""Dtypes whose smallest entries have squares that vanish even in float64, so that a norm of 0 proves nothing."""


class Gradients(NamedTuple):
    """The gradients of some parameters at one optimizer step, after the transfer: G of each."""

    layers: list[Layer]
    """Their owners."""
    norms: FloatVector
    """This process's share of their norms."""
    entries: FloatVector
    """The same of their numbers of entries."""
    matrix: npt.NDArray[np.bool_]
    """Whether one has two or more dimensions."""
    zero: npt.NDArray[np.bool_]
    """Whether each entry here is 0."""


class OptimizerGradients:
    """The gradients of one optimizer's parameters at one step: measured on the device, read after the transfer."""

    def __init__(self, owned: list[Owned], pack: HostTransfer, *, shards: Shards = ALONE) -> None:
        """Measure the gradients of the parameters that the optimizer trains: one that is frozen may still hold an old one."""
        self.unreadable = {layer.name: why for layer, parameter in owned if (why := shards.why_unreadable(parameter))}
        """Why a layer's gradients can't be measured, by its name; nothing of such a layer is read."""
        if self.unreadable:
            owned = [each for each in owned if each[0].name not in self.unreadable]
        self.layers = [layer for layer, _ in owned]
        """The owner of each parameter that is read."""
        self.scale: Slot | None = None
        """The factor that they are still multiplied by, where the optimizer takes it out itself."""
        self._members: list[Owned] = []
        """Those that have a gradient, in the order of the slots' norms."""
        self._entries: list[int] = []
        """How many entries of each are here."""
        self._norms: list[Slot] = []
        self._counts: list[tuple[int, Slot]] = []
        """Of members whose norm doesn't tell whether there is an entry that isn't 0: how many there are."""
        for members in by_device([each for each in owned if each[1].grad is not None]):
            gradients = shards.local_parts([parameter.grad for _, parameter in members if parameter.grad is not None])
            self._norms.append(pack.add(l2_norms(gradients)))
            for place, gradient in enumerate(gradients, len(self._members)):
                if gradient.dtype in _WIDE:
                    self._counts.append((place, pack.add(_entries(gradient).count_nonzero())))
            self._entries += map(Tensor.numel, gradients)
            self._members += members
        self._replicas = shards.replicas([parameter for _, parameter in self._members])

    @property
    def were_emptied(self) -> bool:
        """Whether some of them are gone, as a program may throw them away before the optimizer steps."""
        return any(parameter.grad is None for _, parameter in self._members)

    def read(self, values: Values) -> Gradients:
        """Return the gradients of the parameters that have one."""
        scale = 1.0 if self.scale is None else float(values[self.scale][0])
        norms = values.joined(self._norms)
        zero = norms == 0.0
        for index, slot in self._counts:
            zero[index] = values[slot][0] == 0.0
        held = np.array(self._replicas, dtype=np.int64)
        return Gradients(
            layers=[layer for layer, _ in self._members],
            norms=norms / scale / np.sqrt(held),
            entries=np.array(self._entries, dtype=np.int64) / held,
            matrix=np.array([parameter.dim() > 1 for _, parameter in self._members], dtype=np.bool_),
            zero=zero,
        )


def _entries(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.layout is torch.sparse_coo else gradient
