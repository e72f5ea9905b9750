"""What a run keeps of an activation function of the user's own, so that it is judged alike where nobody has registered it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast, get_args

from lightning_gradwatch.record.activations import Activation, Method, registered
from lightning_gradwatch.record.zones import Comparison, Region, Zones

_MOST = 16
"""Regions, or replacements, of one function."""
_Bounds = tuple[str, float, bool, float | None]
"""A region: its comparison, its bound, whether |z| is compared, and the lower bound where it has one."""


@dataclass(frozen=True)
class StoredFunction:
    """The row of a registered activation function, as plain data."""

    inactive: tuple[_Bounds, ...] = ()
    """Its regions without a derivative: comparison, bound, whether |z| is compared, and the lower bound or None."""
    saturated: tuple[_Bounds, ...] | None = None
    """Those that are flat outer sides; None: not applicable."""
    steepest: float = 1.0
    passes: float = 1.0
    flat_middle: bool = False
    initialization: str = "kaiming_normal_"
    when_fading: tuple[str, ...] = ()
    when_dead: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str) -> StoredFunction | None:
        """Return what is to be stored of a function: nothing, unless it was registered."""
        row = next((each for each in registered() if each.name == name), None)
        if row is None:
            return None
        zones = row.usual
        return cls(
            inactive=tuple(map(_bounds, zones.inactive)),
            saturated=None if zones.saturated is None else tuple(map(_bounds, zones.saturated)),
            steepest=row.steepest,
            passes=row.passes,
            flat_middle=row.flat_middle,
            initialization=row.initialization,
            when_fading=row.when_fading,
            when_dead=row.when_dead,
        )

    @classmethod
    def read(cls, data: Any) -> StoredFunction | None:
        """Build from a description's plain data; None where there is none.

        Raises:
            TypeError, ValueError: it isn't what a registered function can have.
        """
        if data is None:
            return None
        if not isinstance(data, Mapping):
            raise TypeError(f"a site's own function is {type(data).__name__}, not a mapping")
        saturated = data.get("saturated")
        method = data.get("initialization", "kaiming_normal_")
        if method not in get_args(Method):
            raise ValueError(f"a site's own function has the initialisation {method!r:.80}")
        return cls(
            inactive=_regions(data.get("inactive", ())),
            saturated=None if saturated is None else _regions(saturated),
            steepest=_positive(data.get("steepest", 1.0), most=math.inf),
            passes=_positive(data.get("passes", 1.0), most=1.0),
            flat_middle=bool(data.get("flat_middle", False)),
            initialization=method,
            when_fading=_names(data.get("when_fading", ())),
            when_dead=_names(data.get("when_dead", ())),
        )

    def row(self, name: str) -> Activation:
        """Return the row that judging reads: the same one for each site of the function."""
        return _row(self, name)


@lru_cache(maxsize=256)
def _row(stored: StoredFunction, name: str) -> Activation:
    zones = Zones(
        name,
        tuple(map(_region, stored.inactive)),
        None if stored.saturated is None else tuple(map(_region, stored.saturated)),
    )
    return Activation(
        name,
        name,
        lambda: zones,
        steepest=stored.steepest,
        passes=stored.passes,
        flat_middle=stored.flat_middle,
        initialization=cast("Method", stored.initialization),
        when_fading=stored.when_fading,
        when_dead=stored.when_dead,
    )


def _bounds(region: Region) -> _Bounds:
    return region.comparison, region.bound, region.absolute, None if region.lower == -math.inf else region.lower


def _region(bounds: _Bounds) -> Region:
    comparison, bound, absolute, lower = bounds
    return Region(cast("Comparison", comparison), bound, absolute, -math.inf if lower is None else lower)


def _regions(data: Any) -> tuple[_Bounds, ...]:
    if not isinstance(data, Sequence) or len(data) > _MOST:
        raise ValueError(f"a site's own function has regions that are {data!r:.80}")
    regions = []
    for comparison, bound, absolute, lower in data:
        if comparison not in get_args(Comparison) or not isinstance(absolute, bool):
            raise ValueError(f"a site's own function has a region with {comparison!r:.80}")
        regions.append((comparison, _finite(bound), absolute, None if lower is None else _finite(lower)))
    return tuple(regions)


def _finite(number: Any) -> float:
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        raise ValueError(f"a site's own function has the bound {number!r:.80}")
    return float(number)


def _positive(number: Any, *, most: float) -> float:
    if not 0 < _finite(number) <= most:
        raise ValueError(f"a site's own function has the share {number!r:.80}")
    return float(number)


def _names(data: Any) -> tuple[str, ...]:
    if not isinstance(data, Sequence) or len(data) > _MOST or not all(isinstance(each, str) for each in data):
        raise ValueError(f"a site's own function is replaced by {data!r:.80}")
    return tuple(each for each in data if each.isidentifier())
