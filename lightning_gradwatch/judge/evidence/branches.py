"""Branches that count for little beside what passes them by: behind a layer scale, a gate, or a last layer that starts near 0.

What is weak there isn't lost on its way through the net, and grows with the factor: most of such nets start so on purpose.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from lightning_gradwatch.judge.readings import layer_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import FloatVector, StepRecord

_FAR_STRONGER = 100.0
"""The spread from which on GW301 calls a layer behind another."""
_MOST = 2 / 3


def stronger_before(gradient: FloatVector, info: RunInfo, layer: int, times: float = _FAR_STRONGER) -> int | None:
    """Return the layer before one, on its path through the net, whose gradient is the strongest, if it is so many times stronger.

    What fades on its way through the net is weakest there; what is weak here alone is so on a branch.
    """
    paths = [columns for path in info.site_paths.along(None) if layer in (columns := info.layers_on(path))]
    before = [column for column in (paths[0] if paths else info.weight_columns) if column < layer]
    known = [column for column in before if gradient[column] > times * gradient[layer]]
    return max(known, key=lambda column: float(gradient[column]), default=None)


def on_weak_branches(record: StepRecord, info: RunInfo, layers: Sequence[int], times: float = _FAR_STRONGER) -> bool:
    """Tell whether most of some layers lie where connections skip, and one before each gets a gradient that is so many times stronger.

    Not all, as what feeds such a branch from the side (a net of positions) has nothing before it.
    """
    among = _skipped(tuple((site.name, site.predecessors) for site in info.sites))
    if not among or not layers:
        return False
    gradient = layer_values(record, info, "grad_rms")
    weak = [
        (not info.layers[layer].feeds or info.layers[layer].feeds in among)
        and stronger_before(gradient, info, layer, times) is not None
        for layer in layers
    ]
    return sum(weak) >= _MOST * len(layers)


@lru_cache(maxsize=8)
def _skipped(sites: tuple[tuple[str, tuple[str, ...]], ...]) -> frozenset[str]:
    """Return the sites around which the path goes as well, as with skip connections and gates, and those at either end of it."""
    place = {name: column for column, (name, _) in enumerate(sites)}
    direct, ancestors = [0] * len(sites), [0] * len(sites)  # sets of columns, as bits
    descendants = [0] * len(sites)
    for column, (_, predecessors) in enumerate(sites):
        for before in {place[name] for name in predecessors if place.get(name, column) < column}:
            direct[column] |= 1 << before
            ancestors[column] |= 1 << before | ancestors[before]
    for column in reversed(range(len(sites))):
        for before in _columns(direct[column]):
            descendants[before] |= 1 << column | descendants[column]
    found = 0
    for column, before in enumerate(direct):
        longer = 0
        for other in _columns(before):
            if ancestors[other] & before:
                longer |= 1 << other | ancestors[other]
        if around := longer & before:
            first = _columns(around)[0]
            found |= 1 << column | 1 << first | (descendants[first] & longer)
    return frozenset(sites[column][0] for column in _columns(found))


def _columns(bits: int) -> list[int]:
    """Return the columns in a set, in order.

    >>> _columns(0b10110)
    [1, 2, 4]
    """
    return [column for column, bit in enumerate(reversed(f"{bits:b}")) if bit == "1"]
