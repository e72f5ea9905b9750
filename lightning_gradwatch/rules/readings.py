"""What several rules read from a record: hidden sites, early layers, and how long something has held."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning_gradwatch.record import FloatVector, RunInfo, SiteInfo, StepRecord
    from lightning_gradwatch.rules.protocol import State


def hidden_sites(info: RunInfo) -> list[tuple[int, SiteInfo]]:
    """Return the hidden sites with their columns, in execution order."""
    return [(column, info.sites[column]) for column in info.hidden_columns]


def measured_sites(record: StepRecord, info: RunInfo, metric: str) -> list[tuple[SiteInfo, float]]:
    """Return the hidden sites where a metric was measured and finite, with its values, in execution order."""
    # Plain floats: a rule visits each site of each record, and numpy's scalars cost ten times as much there.
    values = record.values(metric, len(info.sites)).tolist()
    return [(info.sites[column], values[column]) for column in info.hidden_columns if math.isfinite(values[column])]


def weight_layers(info: RunInfo) -> list[str]:
    """Return the names of the weight layers, in execution order."""
    return [info.layers[column].name for column in info.weight_columns]


def early_layers(info: RunInfo) -> list[str]:
    """Return the names of the first third of the weight layers, at least one of them."""
    names = weight_layers(info)
    return names[: max(1, len(names) // 3)]


def site_values(record: StepRecord, info: RunInfo, metric: str) -> FloatVector:
    """Return a site metric, shape [S]."""
    return record.values(metric, len(info.sites))


def layer_values(record: StepRecord, info: RunInfo, metric: str) -> FloatVector:
    """Return a layer metric, shape [L]."""
    return record.values(metric, len(info.layers))


def why_no_fraction(record: StepRecord, info: RunInfo, what: str) -> str:
    """Say why no hidden site has a unit fraction in this record."""
    hidden = hidden_sites(info)
    if not hidden:
        return "can't judge: the run has no hidden activation site"
    fills = [float(record.window_fill[column]) for column, _ in hidden if column < len(record.window_fill)]
    known = [fill for fill in fills if fill == fill]  # noqa: PLR0124 - NaN is the one value that differs from itself
    if not known:
        return "not yet: no hidden site was measured"
    if max(known) < 1:
        return f"not yet: the fullest window of a hidden site is {100 * max(known):.0f} % full"
    return f"can't judge: no hidden site whose window is full can be {what} ({_functions(hidden)})"


def _functions(hidden: Iterable[tuple[int, SiteInfo]]) -> str:
    return ", ".join(dict.fromkeys(site.function for _, site in hidden))


def count_hit(streaks: State, name: str, step: int) -> int:
    """Count one more reading in a row in which something holds; the streak remembers its first step."""
    streak = streaks.get(name)
    if streak is None:
        streak = streaks[name] = {"count": 0, "since": int(step)}
    streak["count"] += 1
    return int(streak["count"])
