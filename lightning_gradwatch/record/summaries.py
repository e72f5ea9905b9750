"""The few numbers of a step that are worth a curve of their own, and findings as a table: what a viewer without our dashboard shows.

At most twelve (a page of TensorBoard's), norms and ratios as log10: TensorBoard's axes are linear, and its smoothing and
its hiding of outliers would else hide what matters.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.record.escape import Place, escape
from lightning_gradwatch.record.metrics import is_over_layers
from lightning_gradwatch.record.step import FloatVector, LayerState, StepRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.record.finding import Finding
    from lightning_gradwatch.record.run_info import RunInfo

DESCRIPTIONS = {
    "gradwatch/log10_grad_norm": "log10 of the L2 norm of all gradients, unscaled and before clipping.",
    "gradwatch/log10_first_layer_grad_norm": "log10 of the gradient norm of the first weight layer.",
    "gradwatch/log10_last_layer_grad_norm": "log10 of the gradient norm of the last weight layer.",
    "gradwatch/log10_attenuation": "log10 of the signal (norm of dL/dz) at the first hidden activation over that at the "
    "last, along a path through the net; of several paths the one where it changes most. Far below 0: the gradient vanishes, far "
    "above: it explodes.",
    "gradwatch/max_dead_fraction": "Share of dead units at the site that has the largest.",
    "gradwatch/mean_dead_fraction": "Share of dead units, mean over the sites.",
    "gradwatch/max_saturated_fraction": "Share of saturated units at the hidden site that has the largest.",
    "gradwatch/log10_min_update_ratio": "log10 of rms(update) / rms(weight) at the weight layer that moves least.",
    "gradwatch/log10_median_update_ratio": "log10 of rms(update) / rms(weight), median over the weight layers.",
    "gradwatch/log10_max_update_ratio": "log10 of rms(update) / rms(weight) at the weight layer that moves most.",
    "gradwatch/clip_factor": "What clipping multiplied the gradients by.",
    "gradwatch/layers_without_gradient": "Number of layers that got no gradient, or one that is exactly zero.",
}

_SHOWN = 6
_LEAST_SITES = 3
_CURVE_DIGITS = 3


@np.errstate(over="ignore", invalid="ignore")  # a damaged value is left out, and no warning reaches the training loop
def summaries(record: StepRecord, info: RunInfo) -> dict[str, float]:
    """Return the step's summaries by tag; what wasn't measured, or has no finite value, isn't there.

    Norms and ratios are log10, so one that is exactly 0 isn't there either.
    """
    weights = [column for column in info.weight_columns if info.layers[column].used is not False]
    hidden = list(info.hidden_columns)
    norms = record.values("grad_norm", len(info.layers))[weights]
    dead = _measured(record.values("dead_fraction", len(info.sites)))
    saturated = _measured(record.values("saturated_fraction", len(info.sites))[hidden])
    ratios = np.sort(_measured(record.values("update_ratio", len(info.layers))[weights]))
    stopped = (record.layer_state == LayerState.NONE) | (record.layer_state == LayerState.ZERO)
    found = {
        "log10_grad_norm": _log10(record.global_grad_norm),
        "log10_first_layer_grad_norm": _log10(_at(norms, 0)),
        "log10_last_layer_grad_norm": _log10(_at(norms, -1)),
        "log10_attenuation": _log10_attenuation(record, info),
        "max_dead_fraction": dead.max(initial=-np.inf),
        "mean_dead_fraction": dead.mean() if dead.size else np.nan,
        "max_saturated_fraction": saturated.max(initial=-np.inf),
        "log10_min_update_ratio": _log10(_at(ratios, 0)),
        "log10_median_update_ratio": _log10(_at(ratios, ratios.size // 2)),
        "log10_max_update_ratio": _log10(_at(ratios, -1)),
        "clip_factor": record.clip_factor,
        "layers_without_gradient": np.count_nonzero(stopped),
    }
    return {f"gradwatch/{name}": float(value) for name, value in found.items() if math.isfinite(value)}


def _log10_attenuation(record: StepRecord, info: RunInfo) -> float:
    """Return that of the path on which the signal changes most; minus infinity where nothing of it is left."""
    signal = record.values("signal_norm", len(info.sites))
    paths = [_measured(signal[path]) for path in info.site_paths.along(signal)]
    longest = max(map(len, paths), default=0)
    # A single site has no depth, and what lies between two says little, unless there is nothing more.
    ends = np.array([norms[[0, -1]] for norms in paths if len(norms) >= min(longest, _LEAST_SITES) > 0])
    if not len(ends):
        return math.nan
    with np.errstate(divide="ignore"):
        # As a difference: the quotient of two doubles of this range may overflow.
        changes = np.log10(ends[:, 0]) - np.log10(ends[:, 1])
    known = changes[~np.isnan(changes)]
    return float(known[np.argmax(np.abs(known))]) if len(known) else math.nan


def curve_tags(metric: str, info: RunInfo, max_curves: int | None) -> tuple[tuple[int, str], ...]:
    """Return the columns of a metric that get a curve each, with the tags of these; none where there would be too many.

    A tag's number says how many layers, or sites, were known before that one. It stays, whatever takes its place on the path
    later: a column that moves begins no other curve.
    """
    of_layers = is_over_layers(metric)
    columns = info.weight_columns if of_layers else tuple(range(len(info.sites)))
    if max_curves is not None and len(columns) > max_curves:
        return ()
    return _tags(metric, info.names(metric), columns, info.layer_places if of_layers else info.site_places)


@lru_cache(maxsize=32)
def _tags(
    metric: str, names: tuple[str, ...], columns: tuple[int, ...], places: tuple[int, ...]
) -> tuple[tuple[int, str], ...]:
    digits = max(_CURVE_DIGITS, len(str(len(names) - 1)))
    return tuple(
        (column, f"gradwatch.{metric}/{places[column]:0{digits}}.{_utf8(names[column])}") for column in columns
    )


def findings_markdown(findings: Sequence[Finding]) -> str:
    """Return the findings as Markdown for TensorBoard's text page: a headline and a list each.

    No table: TensorBoard squeezes narrow columns until their words break.
    """
    if not findings:
        return "No findings."
    return "\n\n".join(map(_markdown, findings))


def _markdown(finding: Finding) -> str:
    layers = ", ".join(finding.layers[:_SHOWN])
    if len(finding.layers) > _SHOWN:
        layers += f" and {len(finding.layers) - _SHOWN} more"
    headline = f"### {_cell(finding.code)} {_cell(finding.name)}: {finding.severity.label}"
    if finding.healed_step is not None:
        headline += f", healed by step {finding.healed_step}"
    if finding.consequence_of:
        rest = f", at {layers}: {finding.seen}; {finding.follows}"
        return f"{headline} since step {finding.first_step}{_cell(rest)}"
    rows = {
        "layers": layers,
        "steps": f"{finding.first_step} to {finding.last_step}",
        "seen": finding.message,
        "cause": finding.cause,
        "remedy": finding.remedy.text,
    }
    return "\n".join([headline, "", *(f"- **{label}** {_cell(text)}" for label, text in rows.items() if text)])


def _cell(text: str) -> str:
    return escape(text, Place.TENSORBOARD)


def _utf8(text: str) -> str:
    """Return the text as protobuf can hold it: Python's strings may hold lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


def _measured(values: FloatVector) -> FloatVector:
    return values[~np.isnan(values)]


def _at(values: FloatVector, index: int) -> float:
    return float(values[index]) if values.size else math.nan


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan
