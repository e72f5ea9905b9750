"""Layers that steps which were too large have left where they hardly move: no start of theirs is to blame, and none helps.

What the first steps did tells it from what was so from the start: weights that were small when they were first measured, or
a layer that moved then; and the loss, which isn't below where it began.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lightning_gradwatch.judge.evidence.onset import OVERSIZED
from lightning_gradwatch.judge.evidence.small_updates import LARGE_WEIGHTS, THROWN
from lightning_gradwatch.judge.rates import spelled_rates
from lightning_gradwatch.judge.readings import layer_values
from lightning_gradwatch.judge.remedies import Prescription
from lightning_gradwatch.judge.rule import Explanation
from lightning_gradwatch.record.finding import Cause, CauseKind
from lightning_gradwatch.record.wording import number

if TYPE_CHECKING:
    from lightning_gradwatch.judge.evidence.loss_trend import LossTrend
    from lightning_gradwatch.judge.evidence.onset import Drift
    from lightning_gradwatch.record.finding import Remedy
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import FloatVector, StepRecord

_MOVED = 1e-4
"""Update ratio with which a layer didn't start as one that hardly moves: ten times the threshold."""
_HARMED, _CLEARLY = 2.0, 1.25
"""Loss over that at the start from which the steps have done harm; and where most of the first ones were seen to be too large."""


class Beginning(NamedTuple):
    """What is known of the first steps: it tells what was so from the start from what steps have made so."""

    weights: FloatVector
    """rms of each layer's weights when it was first measured, shape [L]; NaN where it wasn't then."""
    updates: FloatVector
    """The largest update ratio of each layer in the first steps, shape [L]; NaN where none was measured."""
    how: Drift
    """How large these steps were."""
    swings: bool = False
    """Whether most of them changed some layer by too much, be it the head alone."""


def why_thrown(
    record: StepRecord, info: RunInfo, *, worst: int, best: int, beginning: Beginning, trend: LossTrend
) -> Explanation | None:
    """Say that steps which were too large left a layer where it hardly moves; None where it began so, or may have.

    Args:
        record: One in which it hardly moves.
        info: Describes its columns.
        worst: The layer.
        best: The one that moves most.
        beginning: What is known of the first steps.
        trend: Where the loss goes.
    """
    name, other = info.layer_names[worst], info.layer_names[best]
    size, first = float(layer_values(record, info, "weight_rms")[worst]), float(beginning.weights[worst])
    top = float(layer_values(record, info, "update_ratio")[best])
    if size > LARGE_WEIGHTS * info.default_rms[worst] and first * THROWN < size:
        cause = (
            f"Steps that were too large threw the weights of {name}: their rms is {number(size)}, and was {number(first)} when "
            "it was first measured. The same step is a smaller part of them."
        )
        return Explanation(
            f"{cause} {beginning.how.sentence()}" if beginning.how.oversized else cause,
            _smaller_steps(info, beginning.how, top),
            (*beginning.how.causes, Cause(CauseKind.LARGE_WEIGHTS)),
        )
    gradient = layer_values(record, info, "grad_rms")
    if trend.unknown or trend.of_first < 1 or not gradient[worst] < gradient[best]:
        return None
    moved = float(beginning.updates[worst])
    harm = _CLEARLY if beginning.swings else _HARMED
    too_large = beginning.how.oversized or top > OVERSIZED
    if not too_large or not (moved >= _MOVED or (trend.of_first >= harm and top > OVERSIZED)):
        return None
    weak = f"The gradient of {name} has an rms of {number(gradient[worst])}, that of {other} {number(gradient[best])}."
    at_first = (
        f" It wasn't so at first, when a step changed it by {number(moved)} of itself." if moved >= _MOVED else ""
    )
    how = (
        beginning.how.sentence()
        if beginning.how.oversized
        else f"Steps that change {other} by {number(top)} of itself are too large: the learning rate ({spelled_rates(record)}) is too high."
    )
    harmed = trend.of_first >= harm and not trend.discounted  # a fall that is discounted says where it leads
    level = f" The loss is {number(trend.of_first)} times what it was at first." if harmed else ""
    return Explanation(
        f"{weak}{at_first} {how}{level}",
        _smaller_steps(info, beginning.how, top),
        (*beginning.how.causes, Cause(CauseKind.WEAK_GRADIENT)),
    )


def _smaller_steps(info: RunInfo, how: Drift, top: float) -> Remedy:
    """Say how to take smaller steps than those of the start, and than the largest now."""
    cure = Prescription(info)
    cure.take_smaller_steps(max(how.update, top), unscaled=how.oversized and how.unscaled)
    cure.clip_gradients()
    return cure.remedy()
