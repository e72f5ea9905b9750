"""The gradients an optimizer is about to use: norms a layer, and what state they are in, decided by their entries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_gradwatch.measure.layers import parameters_of
from lightning_gradwatch.measure.norms import l2_norms
from lightning_gradwatch.record import FloatVector, LayerState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch.optim import Optimizer

    from lightning_gradwatch.measure.layers import Layer, Layers
    from lightning_gradwatch.measure.pack import Pack, Slot

_WIDE = (torch.float64, torch.complex128)
"""Dtypes whose smallest entries have squares that vanish even in float64, so that a norm of 0 proves nothing."""


@dataclass(frozen=True)
class Gradient:
    """The gradient of one parameter at one optimizer step, after the transfer."""

    norm: float
    zero: bool


class OptimizerGradients:
    """The gradients of one optimizer's parameters at one step: measured on the device, read after the transfer."""

    def __init__(self, optimizer: Optimizer, layers: Layers, pack: Pack, *, scale: Tensor | None = None) -> None:
        self.parameters = [parameter for parameter in parameters_of(optimizer) if parameter in layers]
        self._scale = None if scale is None else pack.add(scale)
        present = [(parameter, parameter.grad) for parameter in self.parameters if parameter.grad is not None]
        self._slots: list[tuple[list[int], Slot]] = []
        self._counts: list[tuple[list[int], Slot]] = []
        for group in _by_device(present):
            members = [id(parameter) for parameter, _ in group]
            gradients = [gradient for _, gradient in group]
            self._slots.append((members, pack.add(l2_norms(gradients))))
            wide = [
                (member, gradient)
                for member, gradient in zip(members, gradients, strict=True)
                if gradient.dtype in _WIDE
            ]
            if wide:
                nonzero = torch.stack([_entries(gradient).count_nonzero() for _, gradient in wide])
                self._counts.append(([member for member, _ in wide], pack.add(nonzero)))

    def read(self, values: Sequence[FloatVector]) -> dict[int, Gradient]:
        """Return the gradients by the `id` of their parameter; those without one aren't there."""
        scale = 1.0 if self._scale is None else float(values[self._scale][0])
        counts = {
            member: float(count)
            for members, slot in self._counts
            for member, count in zip(members, values[slot], strict=True)
        }
        return {
            member: Gradient(norm=float(norm) / scale, zero=counts.get(member, float(norm)) == 0.0)
            for members, slot in self._slots
            for member, norm in zip(members, values[slot], strict=True)
        }


def layer_state(layer: Layer, gradients: dict[int, Gradient], held: set[int]) -> LayerState:
    """Say what the gradient of a layer is, given those of its parameters and which ones a stepping optimizer holds."""
    trainable = [parameter for parameter in layer.parameters if parameter.requires_grad]
    if not trainable:
        return LayerState.FROZEN
    own = [parameter for parameter in trainable if id(parameter) in held]
    if not own:
        return LayerState.UNMEASURED
    found = [gradients[id(parameter)] for parameter in own if id(parameter) in gradients]
    if not found:
        return LayerState.NONE
    if not all(math.isfinite(gradient.norm) for gradient in found):
        return LayerState.NON_FINITE
    return LayerState.ZERO if all(gradient.zero for gradient in found) else LayerState.OK


def combined_norm(parameters: Iterable[nn.Parameter], gradients: dict[int, Gradient]) -> float:
    """Return the L2 norm over several parameters' gradients; NaN where none of them has one."""
    found = [gradients[id(parameter)].norm for parameter in parameters if id(parameter) in gradients]
    return math.hypot(*found) if found else float("nan")


def entries_with_gradient(parameters: Iterable[nn.Parameter], gradients: dict[int, Gradient]) -> int:
    """Return how many entries those parameters have that have a gradient."""
    return sum(parameter.numel() for parameter in parameters if id(parameter) in gradients)


def _by_device(present: list[tuple[Tensor, Tensor]]) -> list[list[tuple[Tensor, Tensor]]]:
    groups: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}
    for parameter, gradient in present:
        groups.setdefault(gradient.device, []).append((parameter, gradient))
    return list(groups.values())


def _entries(gradient: Tensor) -> Tensor:
    gradient = gradient.detach()
    return gradient.coalesce().values() if gradient.layout is torch.sparse_coo else gradient
