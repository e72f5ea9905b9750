"""How far a step's gradient norm lies above the run's own recent past, and whether its loss gives up what was learned.

Both are needed. Near the floor of a loss, the medians of loss and gradient norm lie close to zero, and one batch that still
holds something to learn has many times either: that is where a median is no measure. So the norm must lie beyond the run's
own scatter as well, and the loss where the run began: an explosion undoes the training, an odd batch doesn't.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

from lightning_gradwatch.judge.evidence.loss_trend import middle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.judge.streaks import State
    from lightning_gradwatch.record.step import StepRecord

_WINDOW = 20
_LEAST = 5
_STARTING = 5
_LOSS_RISE = 2.0
"""A batch of a healthy run is seldom twice the median: a net that explodes passes that in a step or two."""
_UNKNOWN_LOSS_FACTOR = 100
"""Without a loss the norm stands alone, and so must be beyond what any batch makes: by convention two decades."""
_SCATTERS = 3.0
"""Standard deviations: one normal reading of 700 lies beyond."""
_UNKNOWN = -1.0
"""Stands for a loss that isn't known: a memory of plain data has no NaN, and a loss below zero can't be compared."""
_QUARTILE = 1.1503
"""Three quarters of all normal numbers are nearer to their mean, in standard deviations."""
_TINIEST = 5e-324


class GradientSpike(NamedTuple):
    """A step beside the readings before it."""

    growth: float
    """Gradient norm over the median before."""
    least: float
    """Growth from which it explodes, where the loss agrees."""
    past_norm: float
    """That median."""
    loss_growth: float | None
    """Loss over the median before; None where that is 0, or the losses can't be compared."""
    explodes: bool
    """Whether the norm lies beyond the run's scatter as well, and the loss where the run began."""


def read_surge(state: State, record: StepRecord, growth: float, *, lasting: bool) -> GradientSpike | None:
    """Compare a record with the readings before it; None where it is like them.

    It isn't where its norm is `growth` times their median and its loss twice theirs; where a loss isn't known, its norm must
    be a hundred times that, and the norms of the first readings stand for where the run began.

    Args:
        state: The memory, which `note_reading` fills.
        record: The step.
        growth: Growth from which it may explode.
        lasting: Whether such readings came before: then half as much, on a log scale, goes on with them.
    """
    norm = record.global_grad_norm
    norms, losses, began = _before(state, record)
    interest = math.sqrt(growth) if lasting else growth
    # The smallest bounds the median, and is found in a quarter of the time.
    if not math.isfinite(norm) or len(norms) < _LEAST or norm < interest * min(norms):
        return None
    past = middle(sorted(norms))
    if not 0 < interest * past <= norm:
        return None
    loss = _known(record.loss)
    comparable = min(loss, *losses, *began[1]) >= 0
    if comparable:
        usual = middle(sorted(losses))
        begins = norm >= growth * past and loss >= _LOSS_RISE * usual
        undoes = loss >= max(began[1])
    else:
        growth *= _UNKNOWN_LOSS_FACTOR
        begins = norm >= growth * past
        undoes = norm >= max(began[0])
    if not (lasting or begins):
        return None
    least = max(growth, math.exp(min(_SCATTERS * _scatter(norms), 700.0)))
    return GradientSpike(
        norm / past,
        least,
        past,
        loss / usual if comparable and usual > 0 else None,
        bool(begins and undoes and norm >= least * past),
    )


def note_reading(state: State, record: StepRecord) -> None:
    """Add a record to the 20 readings that later ones are compared with."""
    if not math.isfinite(record.global_grad_norm):
        return
    norms, losses, began = _before(state, record)
    for kept, value in ((norms, record.global_grad_norm), (losses, _known(record.loss))):
        kept.append(value)
        if len(kept) > _WINDOW:
            del kept[0]
    if len(began[0]) < _STARTING:
        began[0].append(norms[-1])
        began[1].append(losses[-1])


def _before(state: State, record: StepRecord) -> tuple[list[float], list[float], list[list[float]]]:
    """Return norms and losses of the latest readings, and both of the first ones; by the optimizers that stepped."""
    # Steps of different optimizers (a GAN's) differ.
    group = ",".join(map(str, record.optimizers))
    norms, losses = state.setdefault("norms", {}).setdefault(group, [[], []])
    return norms, losses, state.setdefault("began", {}).setdefault(group, [[], []])


def _known(loss: float) -> float:
    return loss if math.isfinite(loss) else _UNKNOWN


def _scatter(values: Sequence[float]) -> float:
    """Return the standard deviation of logarithms about their trend, which two odd values of twenty hardly move.

    The larger of two estimates: neighbours that are alike hide some of it from the steps between them, and readings that
    take turns hide some from what lies about a straight line. A steady rise is no scatter to either.
    """
    logs = [math.log(max(value, _TINIEST)) for value in values]
    half = len(logs) // 2
    slope = (middle(sorted(logs[-half:])) - middle(sorted(logs[:half]))) / (len(logs) - half)
    level = [log - slope * place for place, log in enumerate(logs)]
    steps = [later - earlier for earlier, later in itertools.pairwise(logs)]
    return max(_deviation(level), _deviation(steps) / math.sqrt(2))


def _deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of normal numbers by the quartile of their distances, less erratic than the median."""
    centre = middle(sorted(values))
    distances = sorted([abs(value - centre) for value in values])
    return distances[3 * len(distances) // 4] / _QUARTILE
