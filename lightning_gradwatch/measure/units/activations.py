"""Calls of activation functions, and what those that are written out by hand are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lightning_gradwatch.record.activations import COMPOSITES, Inner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_gradwatch.record.zones import Zones


class Call(NamedTuple):
    """One call of an activation function."""

    zones: Zones
    z: Tensor
    """What the function was called with."""
    in_place: bool
    """Whether z is, or may be, overwritten by the call."""

    @property
    def function(self) -> str:
        """Name of the function, as in ``torch.nn.functional``."""
        return self.zones.name


OUTER: Mapping[str, tuple[Zones, ...]] = {
    inner: tuple(zones for (_, argument), zones in COMPOSITES.items() if argument == inner)
    for inner in ("sigmoid", "tanh", "relu6", "hardtanh", "hardsigmoid")
}
"""What a call of an activation function may turn out to be the inner step of, by its name."""

ERF: frozenset[Any] = frozenset((torch.erf, torch.erf_, torch.Tensor.erf, torch.Tensor.erf_, torch.special.erf))
"""The inner function that is no activation function by itself."""


def composite(name: str, inner: Inner, u: Tensor) -> Call:
    """Return the call of a function that was written out by hand, judged at its inner function's argument.

    Raises:
        ValueError: no such composite is in the table.
    """
    if (zones := COMPOSITES.get((name, inner))) is None:
        known = ", ".join(f"{outer} of {argument}" for outer, argument in COMPOSITES)
        raise ValueError(f"name={name!r}, inner={inner!r} is no known composite; there are {known}")
    return Call(zones, u, in_place=False)
