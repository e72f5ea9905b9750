"""GW303: clipping takes nearly all of each step away.

A step in proportion to the gradient is cut as much as that is. One that is divided by the gradient's own size, as Adam's,
isn't cut at all, until what is left of the gradient is no more than the optimizer's eps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from lightning_gradwatch.judge.evidence.loss_trend import LossTrend, loss_trend
from lightning_gradwatch.judge.evidence.standing_loss import awaits_standing_loss, count_standing, forget_standing
from lightning_gradwatch.judge.evidence.unscaled_targets import WHY_HUGE, unscaled_targets
from lightning_gradwatch.judge.rates import aimed_update, schedule_phase, spelled_rates
from lightning_gradwatch.judge.readings import layer_values, weight_layers
from lightning_gradwatch.judge.remedies import SCALE_TARGETS
from lightning_gradwatch.judge.rule import (
    HEALTHY,
    Explanation,
    LazyFinding,
    Rule,
    Sentences,
    Verdict,
    cant_judge,
    not_yet,
)
from lightning_gradwatch.judge.streaks import State
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, ClippedAwayWarning, Remedy, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord
from lightning_gradwatch.record.wording import number

_ERROR_FACTOR = 10
"""How far beyond the threshold it is an error, by convention: a number of one layer, where a factor of 10 leaves no doubt."""
_HARDLY = 0.3
"""How far all planned steps together, each as large as this one, may change a layer and still get nowhere: no further."""
_USUAL_STEPS = 1000
"""Planned steps where none are known."""
_TWICE = 2.0
"""A limit of twice the usual norm lets nearly every gradient through."""
_USUAL_LIMIT = 0.1
"""Norm from which a limit is one that suits many nets: then it is the gradient that is odd."""


@dataclass(frozen=True, kw_only=True)
class ClippedAway(Rule):
    """Clipping takes nearly all of each step away.

    What: the clip factor is the norm of all gradients after clipping over that before, whether the Trainer clips or torch's
    functions for it are called in the step. The rule fires where it is below ``clip_factor`` in ``patience`` measured steps in
    a row while the loss stands, told from step ``warm_up_steps`` on; a tenth of it is an error. Under Adam and its kin, which
    divide by the gradient's own size, what counts is what is left of the step: clipping takes something away only where it
    takes the gradient down to the optimizer's eps. Steps that are small and go far enough all the same are left alone: those
    that would change a layer by a third of itself or more over the planned steps. While the learning rate rises, or after it
    was lowered to less than half, nothing is judged. It heals when the loss has come down to half of where it began.

    Why: a limit far below the usual norm makes each step as long as the limit times the learning rate, whatever the
    gradient. With a limit of 0.01 and a norm of 20, a rate that suits the net acts as one that is 2,000 times smaller. Clipping
    is meant for the rare gradient that is many times larger than the others.

    What to do: raise ``gradient_clip_val`` or ``max_norm`` to about the usual norm of the gradient, which TensorBoard shows as
    ``gradwatch/log10_grad_norm``; the finding gives a number.

    Attributes:
        clip_factor: what clipping must leave of a step.
        warm_up_steps: steps for which the loss must have stood.
        patience: measured steps in a row that must agree.
        loss_fall: share by which the loss must have fallen since half as many steps for the rule to be silent.
    """

    code: ClassVar[str] = "GW303"
    name: ClassVar[str] = "clipped-away"
    warning: ClassVar[type[ClippedAwayWarning]] = ClippedAwayWarning

    clip_factor: float = 0.01
    warm_up_steps: int = 24
    patience: int = 3
    loss_fall: float = 0.05

    def __post_init__(self) -> None:
        self._require_between(0, 1, "clip_factor", "loss_fall")
        self._require_count(0, "warm_up_steps")
        self._require_count(1, "patience")

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Compare what clipping leaves of the step with the threshold, and see whether the loss stands."""
        if not info.layers:
            return not_yet("no layer was seen")
        phase = schedule_phase(record, state.setdefault("rates", {}))
        if math.isnan(record.clip_factor):
            return cant_judge("what clipping leaves of the gradient isn't known") if info.clipping else HEALTHY
        if phase:
            return not_yet(phase)
        left, top = _left_of_step(record, info), self._top(record, info)
        if math.isnan(left) or math.isnan(top):
            return not_yet("no update of a weight layer was measured")
        trend = loss_trend(state, info).from_start()
        told = self.still_reported(state, "clipped")
        small = left < self.clip_factor and (told or top * (info.planned_steps or _USUAL_STEPS) < _HARDLY)
        if not small or trend.come_down:
            state.pop("since", None)
            forget_standing(state)
            return Verdict(healed={"clipped": self._healed(trend, small=small)} if told else {})
        state.setdefault("since", int(record.step))
        return self._count(record, info, state, trend, left=left, top=top)

    def _count(
        self, record: StepRecord, info: RunInfo, state: State, trend: LossTrend, *, left: float, top: float
    ) -> Verdict:
        """Count one more step that was clipped away while the loss stood, and tell what has lasted."""
        told = self.still_reported(state, "clipped")
        if not told and trend.falls_by(self.loss_fall):  # what was told isn't over for a few odd losses
            forget_standing(state)
            return HEALTHY
        standing = count_standing(state, record.step)
        if (waiting := awaits_standing_loss(self, record.step, trend, standing, told=told)) is not None:
            return waiting
        error = left * _ERROR_FACTOR < self.clip_factor
        sighting = LazyFinding(
            severity=Severity.ERROR if error else Severity.WARNING,
            layers=weight_layers(info),
            first_step=state["since"],
            last_step=int(record.step),
            value=left,
            threshold=self.clip_factor,
            write=partial(self._write, record, info, trend, left, top),
        )
        return Verdict({"clipped": sighting})

    def _healed(self, trend: LossTrend, *, small: bool) -> str:
        return trend.told_come_down() if small else "clipping leaves more of the steps"

    def _top(self, record: StepRecord, info: RunInfo) -> float:
        """Return the largest update ratio of a weight layer; NaN where none was measured."""
        ratios = layer_values(record, info, "update_ratio")[info.weight_mask]
        return float(np.fmax.reduce(ratios, initial=math.nan))

    def _write(self, record: StepRecord, info: RunInfo, trend: LossTrend, left: float, top: float) -> Sentences:
        cause, remedy, causes = _why_clipped(record, info, top, left)
        headline = (
            f"Clipping takes nearly all of each step: it leaves {number(left)} of it, which changes no weight layer by more than "
            f"{number(top)} of itself"
        )
        message = (
            f"The gradient's norm is {number(record.global_grad_norm)}, and {number(record.global_grad_norm * record.clip_factor)} "
            f"after clipping. {trend.sentence(self.loss_fall)}"
        )
        return Sentences(cause, remedy, message, causes, headline)


def _left_of_step(record: StepRecord, info: RunInfo) -> float:
    """Return what clipping leaves of a step, 0 to 1: in the median weight layer; NaN where nothing was clipped, or it isn't known."""
    factor = record.clip_factor
    if math.isnan(factor) or info.steps_follow_gradient:
        return factor
    if len(info.optimizers) != 1:
        return math.nan
    eps = info.optimizers[0].settings.get("eps")
    if not isinstance(eps, float):
        return 1.0  # by its sign (Lion), or by what else isn't known
    gradients = layer_values(record, info, "grad_rms")[info.weight_mask]
    gradients = gradients[gradients > 0]
    if not gradients.size:
        return math.nan
    return float(np.median(factor * (gradients + eps) / (factor * gradients + eps)))


def _why_clipped(record: StepRecord, info: RunInfo, top: float, left: float) -> Explanation:
    """Say that clipping takes the steps away, and how far its limit is to be raised.

    Args:
        record: One whose gradient was clipped.
        info: Describes its columns.
        top: The largest update ratio of a weight layer.
        left: What `_left_of_step` gave.
    """
    if record.global_grad_norm * record.clip_factor >= _USUAL_LIMIT and unscaled_targets(record, info):
        return Explanation(
            f"The loss is so large that hardly anything of the gradient is left by clipping: it {WHY_HUGE}.",
            SCALE_TARGETS,
            (Cause(CauseKind.UNSCALED_TARGETS), Cause(CauseKind.TIGHT_CLIPPING)),
        )
    norm, factor = record.global_grad_norm, record.clip_factor
    by, limit = _limit(info)
    whole = top / left
    aim = aimed_update(info)
    free = whole <= _TWICE * aim
    wanted = _TWICE / factor if free or not info.steps_follow_gradient else aim / top
    now = limit if limit is not None and by == "norm" else norm * factor
    raised = _rounded(now * wanted)
    through = (
        f"which lets the gradient through, whose norm is {number(norm)}"
        if free
        else f"which makes the largest update ratio about {number(aim)}; the whole gradient, with a norm of {number(norm)}, would make it {number(whole)}"
    )
    knob, argument, where = _knob(info, by)
    if by == "value" and limit is not None:
        raised = _rounded(limit * wanted)
        through = through.replace("which lets the gradient through", "which lets most of the gradient through")
    set_to = "The limit in your code" if limit is None else f"The limit ({by} {number(limit)})"
    eps = "" if info.steps_follow_gradient else " and what it leaves is below the optimizer's eps,"
    return Explanation(
        f"{set_to} is far below the usual size of the gradient,{eps} so the steps are a fraction of what the learning rate "
        f"({spelled_rates(record)}) implies.",
        Remedy(
            f"Raise {knob} to {number(raised)}, {through}.",
            (Action("raise_clip", (), ((argument, raised), *where)),),
        ),
        (Cause(CauseKind.TIGHT_CLIPPING),),
    )


def _limit(info: RunInfo) -> tuple[str, float | None]:
    """Return by what the Trainer clips, and its limit; None where it doesn't, so that the code does."""
    by, _, limit = info.clipping.partition(" ")
    try:
        return by or "norm", float(limit)
    except ValueError:
        return "norm", None


def _knob(info: RunInfo, by: str) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """Return what is to be raised, the argument that says to what, and where that is set if it isn't the Trainer's."""
    if info.clipping:
        return "the Trainer's gradient_clip_val", by, ()
    return "max_norm where your code clips", by, (("where", "code"),)


def _rounded(value: float) -> float:
    """Return a number with one significant digit, no smaller."""
    if not 0 < value < math.inf:
        return value
    digit = 10.0 ** math.floor(math.log10(value))
    return float(f"{math.ceil(value / digit - 1e-9) * digit:.6g}")
