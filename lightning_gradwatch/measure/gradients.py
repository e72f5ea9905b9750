"""The gradients an optimizer is about to use: norms a layer, and what state they are in, decided by their entries."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from lightning_gradwatch.measure.layers import parameters_of
from lightning_gradwatch.measure.norms import l2_norms
from lightning_gradwatch.record import FloatVector, LayerState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.optim import Optimizer

    from lightning_gradwatch.measure.layers import Layers
    from lightning_gradwatch.measure.pack import Pack, Slot

_WIDE = (torch.float64, torch.complex128)
"""Dtypes whose smallest entries have squares that vanish even in float64, so that a norm of 0 proves nothing."""


Gradient: TypeAlias = "tuple[nn.Parameter, float, bool]"
"""A parameter, the norm of its gradient at one optimizer step, and whether each entry of that is 0; after the transfer."""


class OptimizerGradients:
    """The gradients of one optimizer's parameters at one step: measured on the device, read after the transfer."""

    def __init__(self, optimizer: Optimizer, layers: Layers, pack: Pack, *, scale: Tensor | None = None) -> None:
        owners = layers.owners
        self.parameters = [
            parameter for parameter in parameters_of(optimizer) if parameter.requires_grad and id(parameter) in owners
        ]
        """Those that are trained in this step; one that is frozen may still hold an old gradient."""
        self._scale = None if scale is None else pack.add(scale)
        self._slots: list[tuple[list[nn.Parameter], Slot]] = []
        self._counts: list[tuple[list[nn.Parameter], Slot]] = []
        for members in _by_device([parameter for parameter in self.parameters if parameter.grad is not None]):
            gradients = [parameter.grad for parameter in members if parameter.grad is not None]
            self._slots.append((members, pack.add(l2_norms(gradients))))
            wide = [parameter for parameter in members if parameter.dtype in _WIDE]
            if wide:
                nonzero = [_entries(parameter.grad).count_nonzero() for parameter in wide if parameter.grad is not None]
                self._counts.append((wide, pack.add(torch.stack(nonzero))))

    def read(self, values: Sequence[FloatVector]) -> Iterator[Gradient]:
        """Yield the gradients of the parameters that have one."""
        scale = 1.0 if self._scale is None else float(values[self._scale][0])
        counts = {
            id(parameter): count
            for members, slot in self._counts
            for parameter, count in zip(members, values[slot].tolist(), strict=True)
        }
        for members, slot in self._slots:
            for parameter, norm in zip(members, values[slot].tolist(), strict=True):
                yield parameter, norm / scale, counts.get(id(parameter), norm) == 0.0


class LayerGradient:
    """The gradients of a layer's parameters, put together."""

    __slots__ = ("_entries", "_matrices", "_norms", "_zero", "frozen", "held", "left_out")

    def __init__(self, *, frozen: bool, left_out: bool) -> None:
        self.frozen = frozen
        self.left_out = left_out
        self.held = False
        """Whether an optimizer that stepped holds one of its parameters."""
        self._norms: list[float] = []
        self._matrices: list[float] = []
        self._entries = 0
        self._zero = True

    def add(self, gradient: Gradient) -> None:
        """Take in the gradient of one of its parameters."""
        parameter, norm, zero = gradient
        self._norms.append(norm)
        self._zero = self._zero and zero
        if parameter.dim() > 1:
            self._matrices.append(norm)
            self._entries += parameter.numel()

    @property
    def state(self) -> LayerState:
        """What it is, decided by the entries."""
        if self.frozen:
            return LayerState.FROZEN
        if not self.held:
            return LayerState.UNMEASURED
        if self._zero and self.left_out:
            return LayerState.UNUSED
        if not self._norms:
            return LayerState.NONE
        if not math.isfinite(math.fsum(self._norms)):
            return LayerState.NON_FINITE
        return LayerState.ZERO if self._zero else LayerState.OK

    @property
    def norms(self) -> tuple[float, float]:
        """The L2 norm over all parameters, and the rms over the entries of the matrices; NaN where none has a gradient."""
        return (
            math.hypot(*self._norms) if self._norms else float("nan"),
            math.hypot(*self._matrices) / math.sqrt(self._entries) if self._entries else float("nan"),
        )


def _by_device(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    groups: dict[torch.device, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(parameter.device, []).append(parameter)
    return list(groups.values())


def _entries(gradient: Tensor) -> Tensor:
    gradient = gradient.detach()
    return gradient.coalesce().values() if gradient.layout is torch.sparse_coo else gradient
