"""What one constant answer would have cost, over the first measured steps, beside what the loss came to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lightning_gradwatch.judge.readings import hidden_sites, layer_values

if TYPE_CHECKING:
    from lightning_gradwatch.judge.streaks import State
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

_READINGS = 4
_LARGE = 10.0
"""rms of an output from which on it is too large to go on with."""
_TIMES = 3.0
"""How many times the targets' spread their mean must be, or the outputs' rms, to be what a loss is made of."""
_ABOVE_USUAL = 2.0
"""rms of weights over that of PyTorch's default start from which on they are too large."""

_EXACT = 1e-6

UNKNOWN = "what a constant answer gives isn't known for this loss"


class Cost(NamedTuple):
    """What one constant answer costs."""

    loss: float
    """The mean over the first measured steps."""
    error: float
    """Standard error of that mean: how much the targets of a few batches tell of all."""

    @property
    def estimated(self) -> bool:
        """Whether it depends on the targets of a few batches."""
        return self.error > _EXACT * self.loss


def note_answer(state: State, record: StepRecord) -> None:
    """Keep what a record shows of it, of the first few that do."""
    known: list[float] = state.setdefault("answers", [])
    if record.constant_answer and len(known) < _READINGS and 0 < record.constant_answer[0] < math.inf:
        known.append(float(record.constant_answer[0]))


def read_cost(state: State) -> Cost | None:
    """Return it, as far as it is known by now."""
    known = state.get("answers")
    if not known:
        return None
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return Cost(mean, 0.0)
    variance = math.fsum([(each - mean) ** 2 for each in known]) / (len(known) - 1)
    return Cost(mean, math.sqrt(variance / len(known)))


class Excess(NamedTuple):
    """What makes a loss far larger than that of a constant answer, as one of the first records shows it."""

    kind: str
    """``targets``, ``inputs`` or ``weights``."""
    layer: str
    """Whose output is the first that is too large."""
    rms: float
    """Of that output."""
    mean: float
    deviation: float
    """Of the targets; NaN where they are classes."""


def read_excess(record: StepRecord, info: RunInfo) -> Excess:
    """Find what makes a loss so large."""
    _, output, mean, deviation = record.constant_answer
    names = info.weight_names or info.layer_names or ("",)
    if abs(mean) > _TIMES * deviation and output < abs(mean) * _TIMES:
        return Excess("targets", names[-1], output, mean, deviation)
    place, rms = len(names) - 1, output
    for column, site in hidden_sites(info):
        if column < len(record.forward_rms) and record.forward_rms[column] > _LARGE:
            feeding = [layer.name for layer in info.layers if layer.weight and layer.feeds == site.name]
            if feeding:
                place, rms = names.index(feeding[-1]), float(record.forward_rms[column])
                break
    sizes = layer_values(record, info, "weight_rms") / info.default_rms
    large = {names[at]: float(sizes[column]) for at, column in enumerate(info.weight_columns)}
    usual = not large.get(names[place], 0.0) > _ABOVE_USUAL
    if place == 0 and len(names) > 1 and usual:
        return Excess("inputs", names[0], rms, mean, deviation)
    if usual and any(size > _ABOVE_USUAL for size in large.values()):
        layer = max(large, key=lambda name: large[name] if np.isfinite(large[name]) else 0.0)
        return Excess("weights", layer, rms, mean, deviation)
    return Excess("weights", names[place], rms, mean, deviation)
