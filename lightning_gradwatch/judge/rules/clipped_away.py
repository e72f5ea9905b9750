"""GW303: clipping takes nearly all of each step away."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from lightning_gradwatch.judge.evidence.clipping import left_of_step, why_clipped
from lightning_gradwatch.judge.evidence.loss_trend import LossTrend, loss_trend
from lightning_gradwatch.judge.evidence.standing_loss import awaits_standing_loss, count_standing, forget_standing
from lightning_gradwatch.judge.rates import schedule_phase
from lightning_gradwatch.judge.readings import layer_values, weight_layers
from lightning_gradwatch.judge.rule import HEALTHY, Rule, Sentences, Sighting, Verdict, cant_judge, not_yet
from lightning_gradwatch.judge.streaks import State
from lightning_gradwatch.record.finding import ClippedAwayWarning, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord
from lightning_gradwatch.record.wording import number

_ERROR_FACTOR = 10
"""How far beyond the threshold it is an error, by convention: a number of one layer, where a factor of 10 leaves no doubt."""
_HARDLY = 0.3
"""How far all planned steps together, each as large as this one, may change a layer and still get nowhere: no further."""
_USUAL_STEPS = 1000
"""Planned steps where none are known."""


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
        left, top = left_of_step(record, info), self._top(record, info)
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
        sighting = Sighting(
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
        cause, remedy, causes = why_clipped(record, info, top, left)
        headline = (
            f"Clipping takes nearly all of each step: it leaves {number(left)} of it, which changes no weight layer by more than "
            f"{number(top)} of itself"
        )
        message = (
            f"The gradient's norm is {number(record.global_grad_norm)}, and {number(record.global_grad_norm * record.clip_factor)} "
            f"after clipping. {trend.sentence(self.loss_fall)}"
        )
        return Sentences(cause, remedy, message, causes, headline)
