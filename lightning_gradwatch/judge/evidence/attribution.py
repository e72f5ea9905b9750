"""Where the signal is lost: how much of its fading the functions account for and how much the weights between them.

From the last hidden site back to the first, each step is a product of two measured gains, so logarithms add up. Each is
held against what it would be with weights that start as the function asks for: half of a ReLU's units pass nothing back,
which He's weights make up for, so a ReLU that passes back 0.71 takes nothing away.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from lightning_gradwatch.record.activations import Activation
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

_LEAST_STEPS = 2
_EXPLAINED = (0.5, 1.5)
"""Share of the fading from end to end that the measured steps must add up to, so that they can stand for it."""
_FADES = 0.75
"""Factor a step below which a fading whose end isn't known can be what makes the signal 0."""


class Part(NamedTuple):
    """What one activation function does to the signal."""

    function: Activation
    columns: tuple[int, ...]
    """Its sites."""
    gain: float
    """Share of the signal that a site passes back, geometric mean."""
    share: float
    """Share of the fading."""


class Attribution(NamedTuple):
    """How the fading splits up between functions and weights."""

    parts: tuple[Part, ...]
    """By function, the one that takes most first."""
    gain: float
    """Share of the signal that a site passes back, geometric mean over all functions."""
    weight_gain: float
    """Share of the signal that what lies between two sites passes back, geometric mean."""
    asked_gain: float
    """The same with weights that start as the functions ask for."""
    weight_share: float
    """Share of the fading that isn't the functions'; below 0 where the weights make up for a part of it."""


def attribute(record: StepRecord, info: RunInfo, hidden: npt.NDArray[np.intp]) -> Attribution | None:
    """Split up the fading over some hidden sites, along the path.

    None where gains weren't measured, where they don't account for the fading (a net whose branches have none), and where
    nothing fades.
    """
    steps = _steps(record, info, int(hidden[-1]), int(hidden[0])) if len(hidden) else []
    if len(steps) < _LEAST_STEPS:
        return None
    norms = record.metrics["signal_norm"]
    total = -sum(math.log(gain) + math.log(weight) for _, gain, weight in steps)
    if not _accounts(total, len(steps), float(norms[hidden[0]]), float(norms[hidden[-1]])):
        return None
    by_function: dict[Activation, list[tuple[int, float, float]]] = {}
    for step in steps:
        by_function.setdefault(info.sites[step[0]].activation, []).append(step)
    parts = []
    for function, own in by_function.items():
        gain = _mean(gain for _, gain, _ in own)
        lost = len(own) * -math.log(gain * function.asked_gain)
        parts.append(Part(function, tuple(sorted(column for column, _, _ in own)), gain, lost / total))
    return Attribution(
        parts=tuple(sorted(parts, key=lambda part: -part.share)),
        gain=_mean(gain for _, gain, _ in steps),
        weight_gain=_mean(weight for _, _, weight in steps),
        asked_gain=_mean(info.sites[column].activation.asked_gain for column, _, _ in steps),
        weight_share=1 - sum(part.share for part in parts),
    )


def _steps(record: StepRecord, info: RunInfo, last: int, first: int) -> list[tuple[int, float, float]]:
    """Return column, activation gain and the gain of the weights behind it for each site from `last` back to `first`.

    As far as they are known.
    """
    activation, weight = record.metrics.get("activation_gain"), record.metrics.get("weight_gain")
    steps: list[tuple[int, float, float]] = []
    if activation is None or weight is None:
        return steps
    column = last
    while column != first and (before := info.segment_starts[column]) is not None:
        gains = float(activation[before]), float(weight[column])
        if not all(0 < gain < math.inf for gain in gains):
            break  # where a layer is dead, or a number format ends; what is behind it says why
        steps.append((before, *gains))
        column = before
    return steps


def _accounts(total: float, steps: int, first: float, last: float) -> bool:
    """Tell whether so much fading in all, as a logarithm, is that from the last site to the first."""
    if last == 0:
        return False
    if first == 0:
        return total > -math.log(_FADES) * steps
    if not 0 < first < last < math.inf:
        return False
    fading = math.log(last) - math.log(first)
    return _EXPLAINED[0] <= total / fading <= _EXPLAINED[1]


def _mean(gains: Iterable[float]) -> float:
    return float(np.exp(np.mean(np.log(list(gains)))))
