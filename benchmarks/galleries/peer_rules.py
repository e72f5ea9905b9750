"""The rules of other detectors, from their papers and sources, as functions of what `peers` read.

Each says what it would alarm of, and when it could first have done so. AUTOTRAINER (Zhang et al. 2021), DeepDiagnosis
(Wardat et al. 2022), Amazon SageMaker Debugger (its built-in rules), TheDeepChecker (Ben Braiek and Khomh 2023), torchmortem.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.galleries.peers import Readings

Illness: TypeAlias = Literal["vanishing", "exploding", "dead", "saturated", "update"]

_NEIGHBOURS = 5


@dataclass(frozen=True)
class Alarm:
    """What a detector would say of a run."""

    illness: Illness
    step: int
    """Of the first reading in which it would."""


def judge_as_peers(readings: Readings, needed: float) -> dict[str, tuple[Alarm, ...]]:
    """Return each detector's alarms; `needed` is the accuracy that AUTOTRAINER calls good."""
    with np.errstate(all="ignore"):
        return {name: _alarms(rules(readings, needed), readings.runs["step"]) for name, rules in PEERS.items()}


def _alarms(hits: dict[Illness, np.ndarray], steps: np.ndarray) -> tuple[Alarm, ...]:
    return tuple(Alarm(illness, int(steps[hit.argmax()])) for illness, hit in hits.items() if hit.any())


def _autotrainer(readings: Readings, needed: float) -> dict[Illness, np.ndarray]:
    norms = readings.layers["kernel_norm"]
    first, last = norms[:, 0], norms[:, -1]
    bad = ~(readings.runs["score"] >= needed)  # where there is no accuracy it holds nothing back
    return {
        "vanishing": (first < 1e-3 * last) & (first < 1e-4) & bad,
        "exploding": ((first > 70 * last) | _non_finite(readings)) & bad,
        "dead": (np.nanmean(readings.layers["zero_gradients"], axis=1) >= 0.7) & bad,
    }


def _deep_diagnosis(readings: Readings, _: float) -> dict[Illness, np.ndarray]:
    last = np.arange(len(readings.runs["step"])) == len(readings.runs["step"]) - 1
    updates = readings.layers["predicted_update"]
    return {
        "vanishing": _any(readings.layers["mean_gradient"] < 1e-7),
        "exploding": _non_finite(readings),
        "dead": _any(readings.sites["not_positive"] >= 0.7) & last,
        "saturated": _any(readings.sites["far"] > 0.5),
        "update": _any((updates < 1e-5) | (updates > 1e-1)),
    }


def _sagemaker(readings: Readings, _: float) -> dict[Illness, np.ndarray]:
    updates = readings.layers["measured_update"]
    return {
        "vanishing": _any(readings.layers["mean_gradient"] < 1e-7),
        "exploding": _non_finite(readings),
        "dead": _any(readings.sites["silent_units"] > 0.5),
        "saturated": _any(readings.sites["sagemaker_flat"] > 0.5),
        "update": _any((updates < 1e-8) | (updates > 10)),
    }


def _deep_checker(readings: Readings, _: float) -> dict[Illness, np.ndarray]:
    means = readings.layers["mean_gradient"]
    towards_input = means[:, :-1] / means[:, 1:]
    updates = np.log10(readings.layers["measured_update"])
    return {
        "vanishing": _any(means < 1e-6) | _in_a_row(towards_input <= 0.5),
        "exploding": _any(means > 1e6) | _in_a_row(towards_input >= 2) | _non_finite(readings),
        "dead": _any(readings.sites["idle_units"] > 0.5),
        "saturated": _any(readings.sites["bimodality"] > 0.85),
        "update": _any((updates < -4) | (updates > -1)),
    }


def _torchmortem(readings: Readings, _: float) -> dict[Illness, np.ndarray]:
    norms = readings.layers["kernel_norm"]
    first, last = norms[:, 0], norms[:, -1]
    late = np.arange(len(norms)) >= len(norms) / 2
    updates = readings.layers["measured_update"]
    return {
        "vanishing": (last > 100 * first) & late,
        "exploding": ((first > 1000 * last) & late) | _non_finite(readings),
        "dead": _any(readings.sites["near_zero"] > 0.5),
        "saturated": _any(readings.sites["mean_output"] > 0.95),
        "update": _any((updates < 1e-5) | (updates > 1e-1)),
    }


PEERS: dict[str, Callable[[Readings, float], dict[Illness, np.ndarray]]] = {
    "AUTOTRAINER": _autotrainer,
    "DeepDiagnosis": _deep_diagnosis,
    "SageMaker": _sagemaker,
    "DeepChecker": _deep_checker,
    "torchmortem": _torchmortem,
}


def _any(hits: np.ndarray) -> np.ndarray:
    """Tell for each reading whether some layer or site hits; shape [R, N], N may be 0."""
    return hits.reshape(len(hits), -1).any(1)


def _non_finite(readings: Readings) -> np.ndarray:
    return _any(readings.layers["non_finite"] > 0)


def _in_a_row(hits: np.ndarray) -> np.ndarray:
    """Tell for each reading whether five neighbouring layers hit, shape [R, L - 1]."""
    if hits.shape[1] < _NEIGHBOURS:
        return np.zeros(len(hits), dtype=bool)
    windows = np.lib.stride_tricks.sliding_window_view(hits, _NEIGHBOURS, axis=1)
    return windows.all(2).any(1)
