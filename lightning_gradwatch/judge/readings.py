"""What several rules read from a record: hidden sites, early layers, metrics by column."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.record.step import LayerState

if TYPE_CHECKING:
    from lightning_gradwatch.judge.streaks import Mask
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import FloatVector, SiteInfo, StepRecord


_NON_FINITE = int(LayerState.NON_FINITE)  # numpy takes ten times as long to compare with an enumeration


def broken_layers(record: StepRecord) -> Mask:
    """Return which layers have NaN or infinity in their gradients, shape [L]."""
    broken: Mask = record.layer_state == _NON_FINITE
    return broken


def masking_sites(info: RunInfo) -> Mask:
    """Return which sites put out minus infinity where that is meant, shape [S]: log softmax, for a class that is masked."""
    return np.array([site.function == "log_softmax" for site in info.sites], dtype=bool)


def hidden_sites(info: RunInfo) -> list[tuple[int, SiteInfo]]:
    """Return the hidden sites with their columns, along the path."""
    return [(column, info.sites[column]) for column in info.hidden_columns]


def hidden_values(record: StepRecord, info: RunInfo, metric: str) -> FloatVector | None:
    """Return a site metric, shape [S], NaN where it wasn't measured, isn't finite or the site isn't hidden; None: all NaN."""
    values = record.metrics.get(metric)
    if values is None:
        return None
    known = np.isfinite(values)
    if len(info.hidden_columns) < len(values):
        known &= info.hidden_mask
    count = np.count_nonzero(known)
    if count == len(values):
        return values if count else None
    return np.where(known, values, np.nan) if count else None


def weight_layers(info: RunInfo) -> tuple[str, ...]:
    """Return the names of the weight layers, along the path."""
    return info.weight_names


def early_mask(info: RunInfo) -> Mask:
    """Return which layers are early weight layers, shape [L]: of each path, where towers part."""
    early = np.zeros(len(info.layers), dtype=bool)
    paths = [columns for path in info.site_paths.along(None) if (columns := info.layers_on(path))]
    for columns in paths if len(paths) > 1 else [info.weight_columns]:
        early[list(columns[: max(1, len(columns) // 3)])] = True
    return early


def site_values(record: StepRecord, info: RunInfo, metric: str) -> FloatVector:
    """Return a site metric, shape [S]."""
    return record.values(metric, len(info.sites))


def layer_values(record: StepRecord, info: RunInfo, metric: str) -> FloatVector:
    """Return a layer metric, shape [L]."""
    return record.values(metric, len(info.layers))


def of_full_weights(ratios: FloatVector, record: StepRecord, info: RunInfo) -> FloatVector:
    """Return update ratios, shape [L], of which those of weights below PyTorch's default start are as if it were that large.

    A layer that starts at 0 changes by all of itself and hardly moves.
    """
    return ratios * np.fmin(layer_values(record, info, "weight_rms") / info.default_rms, 1.0)


def why_no_fraction(record: StepRecord, info: RunInfo, what: str) -> str:
    """Say why no hidden site has a unit fraction in this record."""
    if not info.hidden_columns:
        return "can't judge: the run has no hidden activation"
    fullest = np.fmax.reduce(record.window_fill[info.hidden_mask])
    if np.isnan(fullest):
        return "not yet: no hidden activation was measured"
    if fullest < 1:
        return f"not yet: the fullest window of a hidden activation is {100 * fullest:.0f} % full"
    return f"can't judge: no hidden activation whose window is full can be {what} ({', '.join(info.hidden_functions)})"
