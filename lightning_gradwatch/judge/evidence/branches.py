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


def stronger_before(gradient: FloatVector, info: RunInfo, layer: int, times: float = _FAR_STRONGER) -> int | None:
    """Return the layer before one, on its path through the net, whose gradient is the strongest, if it is so many times stronger.

    What fades on its way through the net is weakest there; what is weak here alone is so on a branch.
    """
    paths = [columns for path in info.site_paths.along(None) if layer in (columns := info.layers_on(path))]
    before = [column for column in (paths[0] if paths else info.weight_columns) if column < layer]
    known = [column for column in before if gradient[column] > times * gradient[layer]]
    return max(known, key=lambda column: float(gradient[column]), default=None)


def on_weak_branches(record: StepRecord, info: RunInfo, layers: Sequence[int], times: float = _FAR_STRONGER) -> bool:
    """Tell whether each of some layers lies where connections skip, and one before it gets a gradient that is so many times stronger."""
    among = _skipped(tuple((site.name, site.predecessors) for site in info.sites))
    if not among or not layers:
        return False
    gradient = layer_values(record, info, "grad_rms")
    return all(
        (not info.layers[layer].feeds or info.layers[layer].feeds in among)
        and stronger_before(gradient, info, layer, times) is not None
        for layer in layers
    )


@lru_cache(maxsize=8)
def _skipped(sites: tuple[tuple[str, tuple[str, ...]], ...]) -> frozenset[str]:
    """Return the sites of which some lie before others that the path reaches around them as well, as with skip connections."""
    before = {name: frozenset(predecessors) - {name} for name, predecessors in sites}
    found: set[str] = set()
    for name, those in before.items():
        for other in those:
            if around := those & before.get(other, frozenset()):
                found |= {name, other, *around}
    return frozenset(found)
