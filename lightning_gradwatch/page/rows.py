"""The rows of the page: each layer with the activation that it feeds, along the data's path, and the paths of the signal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import FloatVector

_NOTHING = -1


def rows_of(info: RunInfo, layers: Sequence[str], sites: Sequence[str]) -> list[list[int]]:
    """Return pairs of a layer's and a site's place, -1 where a row has none.

    A site stands beside the last weight layer that feeds it. Where older runs don't say which layer feeds which site, one
    that bears a layer's name, or the name of the module after it, can't be told; such a site has a row of its own, behind the
    last layer that was used before it, as far as their names tell, else in its turn.

    Args:
        info: The newest description.
        layers: Names of the layers that the page shows: those of `info`, then those that only older ones have.
        sites: The same of the sites.
    """
    place = {name: each for each, name in enumerate(sites)}
    beside: dict[int, int] = {}
    for column, layer in enumerate(info.layers):
        site = place.get(layer.feeds)
        if site is not None and (site not in beside or layer.weight or not info.layers[beside[site]].weight):
            beside[site] = column
    of_layer = {layer: site for site, layer in beside.items()}
    if not beside:
        beside = _in_turn(info)
        of_layer = {layer: site for site, layer in beside.items()}
    rows: list[list[int]] = []
    waiting = [each for each in range(len(sites)) if each not in beside]
    for column in range(len(layers)):
        site = of_layer.get(column, _NOTHING)
        while site != _NOTHING and waiting and waiting[0] < site:
            rows.append([_NOTHING, waiting.pop(0)])
        rows.append([column, site])
    return rows + [[_NOTHING, each] for each in waiting]


def _in_turn(info: RunInfo) -> dict[int, int]:
    """Pair weight layers with sites where there is no record of which feeds which: in turn, if there are about as many."""
    weights = info.weight_columns
    if not 0 <= len(weights) - len(info.sites) <= 1:
        return {}
    return dict(enumerate(weights[: len(info.sites)]))


def paths_of(info: RunInfo, last_signal: FloatVector | None) -> list[list[int]]:
    """Return the paths of the signal from the input to the loss, as places of sites; the one that is longest first."""
    paths = [path.tolist() for path in info.site_paths.along(last_signal)]
    kept = [path for path in paths if len(path) > 1]
    return sorted(kept, key=len, reverse=True)[:_MOST_PATHS]


_MOST_PATHS = 8


def theory_of(info: RunInfo, column: int) -> dict[str, Any]:
    """Return what an activation and the weights behind it pass back of the signal, if they start as it asks for."""
    function = info.sites[column].activation
    return {
        "passes": function.passes,
        "steepest": function.steepest,
        "activation_gain": function.usual_gain,
        "weight_gain": function.asked_gain,
        "initialization": function.initialization,
    }


def last_signal(info: RunInfo, values: FloatVector) -> FloatVector | None:
    """Return the signal of the latest step that has one, over the sites of `info`; None: no step has.

    Args:
        info: The newest description.
        values: Shape [steps, sites], the sites of `info` first.
    """
    own = values[:, : len(info.sites)]
    measured = np.flatnonzero(np.isfinite(own).any(axis=1))
    return own[measured[-1]] if measured.size else None


def plain(value: Any) -> Any:
    """Return a number as JSON holds it: one of three words where it isn't finite.

    >>> plain(float("nan")), plain(float("inf")), plain(0.5), plain(None)
    ('NaN', 'Infinity', 0.5, None)
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
