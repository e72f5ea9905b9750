"""How much of the loss the planned steps of a run can take off at most, as one measured step shows it.

To first order a step lowers the loss by -<gradient, change>, so a layer by at most the product of the two norms. In plain
SGD that is exact; whatever the optimizer does, it can't be more. Multiplying the loss by a number, with SGD's rate
adjusted, changes nothing.

All planned steps are reckoned with the gradient that a few of the first have. So nothing is told while that grows, as in a
net that is just waking up, nor before a good part of the run has shown that it doesn't.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from lightning_gradwatch.judge.evidence.loss_trend import middle
from lightning_gradwatch.judge.evidence.unscaled_targets import WHY_HUGE, unscaled_targets
from lightning_gradwatch.judge.rates import rate_factor
from lightning_gradwatch.judge.readings import layer_values, of_full_weights
from lightning_gradwatch.judge.remedies import SCALE_TARGETS
from lightning_gradwatch.judge.rule import Explanation
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Remedy
from lightning_gradwatch.record.wording import number, percent

if TYPE_CHECKING:
    from lightning_gradwatch.judge.evidence.loss_trend import LossTrend
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

_READINGS = 5
_FEWEST_STEPS = 200
"""Planned steps: a shorter run is a trial, from which nobody expects that it gets anywhere."""
_SEEN_SHARE, _SEEN_STEPS = 0.1, 48
"""Share of the planned steps, and number of them at most, after which the gradient has shown whether it grows."""
_STILL_PUSHES = 0.5
"""Share of the gradient's norm at the start from which on it is no smaller: near an optimum it would be."""
_GROWS = 1.1
"""How many times the gradient's norm at the start is more than the difference from batch to batch."""
_COME_DOWN = 0.5
"""Share of the loss at the start below which the run has shown that it gets somewhere."""
_UNSEEN = 0.5
_SLACK = 10.0
"""How many times over the measured steps may have been outdone by others."""
_CLIPPED = 0.5
"""What clipping multiplies the gradients by where it, and not the learning rate, makes the steps as small as they are."""
_CLIPPED_BY_HAND = 1e-5
"""Relative spread of the gradient's norm below which something holds it there: it says nothing of the loss then."""
_ENOUGH = 10.0
"""How many times the loss all planned steps together could take off: few of them go straight downhill."""
_SMALL = 5e-4
"""Update ratio from which on steps are of a usual size: what is slow is something else."""


class Pace(NamedTuple):
    """What a run can reach at this pace."""

    share: float
    """Largest share of the loss that a step takes off."""
    steps: int
    """Planned."""
    loss: float
    unscaled: bool
    """Whether its targets make the loss that large."""
    top: float
    """The largest update ratio of a weight layer; of one that is smaller than PyTorch's default start, by that."""
    room: float
    """What the learning rate can be multiplied by until the steps are as large as usual."""

    @property
    def reach(self) -> float:
        """Largest share of the loss that all planned steps take off together."""
        return self.share * self.steps


def loss_share(record: StepRecord, info: RunInfo) -> float:
    """Return the largest share of the loss that this step takes off, to first order; NaN where it can't be told.

    A layer's vectors, whose changes aren't measured, count as if the optimizer changed them by as much an entry as its
    matrices (Adam), or in proportion to their gradient (SGD).
    """
    entries = np.sqrt(info.matrix_entries)
    ratios, weights = layer_values(record, info, "update_ratio"), layer_values(record, info, "weight_rms")
    matrices = layer_values(record, info, "grad_rms") * entries
    gradients = layer_values(record, info, "grad_norm")
    seen = np.isfinite(ratios) & np.isfinite(weights) & (matrices > 0)
    squares = np.where(np.isfinite(gradients), gradients, 0.0) ** 2
    if not np.add.reduce(squares, where=seen) > _UNSEEN * np.add.reduce(squares) or not 0 < record.loss < math.inf:
        return math.nan
    gradients, matrices = gradients[seen], matrices[seen]
    moved = ratios[seen] * weights[seen] * entries[seen]
    others = np.sqrt(np.fmax(gradients**2 - matrices**2, 0.0)) / matrices
    changed = others if info.steps_follow_gradient else info.vector_share[seen]
    return float(np.add.reduce(matrices * moved * (1 + others * changed))) / record.loss


def read_pace(record: StepRecord, info: RunInfo, state: dict[str, Any]) -> Pace | None:
    """Return the pace of a run that may be too slow; None where it isn't, or can't be told.

    Args:
        record: A record after the warm-up.
        info: Describes its columns.
        state: Memory of this function: the last readings, and what `note_start` keeps.
    """
    planned = info.planned_steps
    if planned is None or planned < _FEWEST_STEPS or len(info.optimizers) != 1 or state.get("gets_somewhere"):
        return None
    unscaled = unscaled_targets(record, info)  # so far off that it shows at once
    if not unscaled and (record.step < min(_SEEN_SHARE * planned, _SEEN_STEPS) or wakes_up(state)):
        return None
    reading = _reading(record, info, state)
    if reading is None:
        return None
    share, norm, loss = reading
    if norm < _STILL_PUSHES * _start(state, "norms") or loss < _COME_DOWN * _start(state, "losses"):
        state["gets_somewhere"] = True
        return None
    ratios = of_full_weights(layer_values(record, info, "update_ratio"), record, info)
    top = float(np.fmax.reduce(ratios[info.weight_mask], initial=0.0))
    if top >= _SMALL and not unscaled:
        return None
    return Pace(share, planned, loss, unscaled, top, rate_factor(info, top))


def _reading(record: StepRecord, info: RunInfo, state: dict[str, Any]) -> tuple[float, float, float] | None:
    """Return what a step can take off, the gradient's norm and the loss, medians over the last readings; None if unknown."""
    share, norm = loss_share(record, info), float(record.global_grad_norm)
    if math.isnan(share) or not math.isfinite(norm) or record.clip_factor < _CLIPPED:
        return None
    readings = state.setdefault("readings", [])
    readings.append([share, norm, float(record.loss)])
    del readings[:-_READINGS]
    norms = [norm for _, norm, _ in readings]
    if len(norms) > 1 and max(norms) - min(norms) <= _CLIPPED_BY_HAND * max(norms):
        return None
    share, norm, loss = (middle(sorted(column)) for column in zip(*readings, strict=True))
    return share, norm, loss


def note_start(record: StepRecord, state: dict[str, Any]) -> None:
    """Remember loss and gradient norm of the first records of a run, and the latest norms."""
    norm, loss = float(record.global_grad_norm), float(record.loss)
    if not (0 < norm < math.inf and math.isfinite(loss)):
        return
    first = state.setdefault("first", {"norms": [], "losses": []})
    if len(first["norms"]) < _READINGS:
        first["norms"].append(norm)
        first["losses"].append(loss)
    for name, value in (("latest", norm), ("losses", loss)):
        latest = state.setdefault(name, [])
        latest.append(value)
        del latest[:-_READINGS]


def has_come_down(state: dict[str, Any]) -> bool:
    """Tell whether the loss is half of what it was at the start: what was slow has got somewhere, whatever the steps can do."""
    return "first" in state and middle(sorted(state["losses"])) < _COME_DOWN * _start(state, "losses")


def _start(state: dict[str, Any], what: Literal["norms", "losses"]) -> float:
    return middle(sorted(state["first"][what]))


def wakes_up(state: dict[str, Any]) -> bool:
    """Tell whether the gradient has grown since the start: the next steps take off more than these."""
    if "first" not in state:
        return False
    first, latest = state["first"]["norms"], sorted(state["latest"])
    if middle(latest) < _GROWS * _start(state, "norms"):
        return False
    pairs = sum(bisect_left(latest, norm) for norm in first)
    return pairs <= 0.25 * len(first) * len(latest)


def credible(trend: LossTrend, record: StepRecord, info: RunInfo, state: dict[str, Any]) -> LossTrend:
    """Return the trend; a fall that is many times what the steps since then can have made doesn't count.

    Args:
        trend: Of the loss.
        record: The latest one.
        info: Describes its columns.
        state: Memory of this function: the largest share of the loss that a step could take off.
    """
    share = loss_share(record, info)
    if share > state.get("most", -1.0):
        state["most"] = share
    if "most" in state and trend.fall > _SLACK * state["most"] * (record.step - trend.since_step):
        return trend._replace(discounted="many times what such steps can make, so that is noise")
    return trend.from_start()


def pace_headline(pace: Pace) -> str:
    """Say what was seen."""
    return (
        f"Steps of the whole net are too small for its loss of {number(pace.loss)}: {pace.steps} planned steps can take off "
        f"{number(100 * pace.reach)} % of it at most, {number(100 * pace.share)} % each"
    )


def pace_evidence(threshold: float) -> str:
    """Say how that is reckoned, and from when on it is reported."""
    return (
        "That is the gradient's norm times that of the step, as if each went straight downhill, and as long as the gradient is no "
        f"smaller than it was. Reported below {percent(threshold)}."
    )


def why_slow_pace(pace: Pace, rates: str) -> Explanation:
    """Say whether the loss is too large for such steps, or the steps are too small for the loss."""
    if pace.unscaled:
        cause = f"The steps (learning rate {rates}) are too small for so large a loss, which {WHY_HUGE}."
        return Explanation(cause, SCALE_TARGETS, (Cause(CauseKind.UNSCALED_TARGETS),))
    wanted = 10.0 ** max(math.ceil(math.log10(_ENOUGH / pace.reach)), 1) if pace.reach > 0 else math.inf
    factor = min(wanted, pace.room)
    cause = f"The learning rate ({rates}) is too small for this loss and these gradients."
    remedy = Remedy(
        f"Raise the learning rate {factor:g} times, which makes the largest update ratio about {number(factor * pace.top)}.",
        (Action("set_learning_rate", (), (("factor", factor),)),),
    )
    return Explanation(cause, remedy, (Cause(CauseKind.LOW_LEARNING_RATE),))
