"""Where an activation function is inactive and saturated: sets of its argument z, as numbers."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

Comparison: TypeAlias = Literal["<", "<=", ">", ">="]


class Region(NamedTuple):
    """A set of z: ``z < bound``, ``|z| >= bound`` and the like."""

    comparison: Comparison
    bound: float
    absolute: bool = False
    """Whether it is |z| that is compared."""
    lower: float = -math.inf
    """Of ``z <= bound`` alone: what z is at least, too."""


class Zones(NamedTuple):
    """Where a function with its parameters is inactive and saturated; the regions of one tuple are disjoint."""

    name: str
    inactive: tuple[Region, ...] = ()
    """Where the mathematical derivative is exactly 0; empty for a function that can't be inactive."""
    saturated: tuple[Region, ...] | None = None
    """Where an outer bounded side is flat; None: not applicable. Inside `inactive` wherever neither is empty."""
    fractions: bool = True
    """False: no fraction of units can be given (softmax; a parameter that only the device knows)."""
    gate_dim: int | None = None
    """The axis whose second half is the gate that is judged (GLU); None: all of z is judged."""
    supposed: bool = False
    """Whether it is an activation function only where a layer has made its argument and takes its output, as sin is."""

    @property
    def two_sided(self) -> bool:
        """Whether both outer sides are saturated."""
        sides = () if self.gate_dim is not None else self.saturated or ()
        below = any(
            region.comparison in ("<", "<=") and not region.absolute and region.lower == -math.inf for region in sides
        )
        above = any(region.comparison in (">", ">=") for region in sides)
        return above and (below or any(region.absolute for region in sides))

    @property
    def height(self) -> float:
        """Where it becomes constant, if it is 0 below 0; NaN for any other function."""
        if self.name not in ("relu6", "hardtanh") or len(self.inactive) != 2 or self.inactive[0].bound:
            return math.nan
        return self.inactive[1].bound
