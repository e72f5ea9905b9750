"""GW601: half of the planned steps are spent, and the loss isn't below what one constant answer gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from lightning_gradwatch.judge.evidence.constant_answer import UNKNOWN, Cost, note_answer, read_cost
from lightning_gradwatch.judge.evidence.loss_trend import loss_trend, middle
from lightning_gradwatch.judge.rule import HEALTHY, Rule, Sentences, Sighting, Verdict, cant_judge, not_yet
from lightning_gradwatch.judge.streaks import State
from lightning_gradwatch.record.finding import Cause, CauseKind, NoProgressWarning, Remedy, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord
from lightning_gradwatch.record.wording import number, percent

if TYPE_CHECKING:
    from lightning_gradwatch.judge.evidence.loss_trend import LossTrend

_ERRORS, _CLEARLY = 3.0, 0.1
"""Where what a constant answer gives is estimated from targets: its standard errors, and a share of it, by which the loss must be
above it. Four readings tell their own error badly, and a net that explains a twentieth of its targets is no ill one."""
_FIRST_STEPS = 10
_KEPT = 9
"""Latest losses, of half of the steps at most, whose median is compared: single batches stray."""
_FEWEST_STEPS = 200
"""Planned steps: a shorter run is a trial, from which nobody expects that it gets anywhere."""


@dataclass(frozen=True, kw_only=True)
class NoProgress(Rule):
    """The loss isn't below what one constant answer gives, though half of the steps are spent.

    What: judged from ``share`` of the planned steps on, or from step ``steps`` on where no plan is known; runs that are planned
    for fewer than 200 steps are trials, and aren't judged. The rule fires where the loss is no more than ``margin`` below what
    the same loss gives where all classes are equally likely (ln C), or where each output is the mean of the targets, in
    ``patience`` measured steps in a row. Of targets, a few batches tell no more than an estimate; the loss must be a tenth
    and three standard errors above that. It is information where the loss falls by ``loss_fall``, and has healed where it is below. What a
    constant answer gives is read off the loss function in the first measured steps; where a term of another kind takes part (a
    penalty, a prior), it isn't known, and nothing is judged. Another finding that explains it is its root.

    Why: a net that knows nothing of its inputs can do as well. Some nets learn suddenly, after a long plateau; most that
    have learned nothing by half of their steps don't.

    What to do: see whether the net can learn a single batch by heart. If it can't, look for a mistake in the loss, the
    optimizer or the graph; if it can, look at whether targets belong to their inputs (shuffled apart), and change the
    learning rate.

    Attributes:
        share: of the planned steps, after which it is judged.
        steps: steps after which it is judged where no plan is known.
        margin: share by which the loss must be below what a constant answer gives.
        patience: measured steps in a row that must agree.
        loss_fall: share by which the loss must have fallen since half as many steps for it to be information only.
    """

    code: ClassVar[str] = "GW601"
    name: ClassVar[str] = "no-progress"
    warning: ClassVar[type[NoProgressWarning]] = NoProgressWarning

    share: float = 0.5
    steps: int = 1000
    margin: float = 0.01
    patience: int = 3
    loss_fall: float = 0.05

    def __post_init__(self) -> None:
        self._require_between(0, 1, "share", "margin", "loss_fall")
        self._require_count(1, "steps", "patience")

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """See whether the loss is below what a constant answer gives, once it should be."""
        note_answer(state, record)
        if math.isfinite(record.loss):
            state["latest"] = [*state.get("latest", ()), [int(record.step), float(record.loss)]][-_KEPT:]
        if len(info.optimizers) > 1:
            return cant_judge("several optimizers share the run, each with a loss of its own")
        cost = read_cost(state)
        if cost is None:
            return not_yet(UNKNOWN) if record.step < _FIRST_STEPS else cant_judge(UNKNOWN)
        planned = info.planned_steps
        if planned is not None and planned < _FEWEST_STEPS:
            return cant_judge(f"a run of {planned} steps is a trial; from {_FEWEST_STEPS} on, progress is asked for")
        due = self.steps if planned is None else self.share * planned
        if record.step + 1 < due:
            return not_yet(f"progress is asked for from step {math.ceil(due) - 1} on")
        if not math.isfinite(record.loss):
            return HEALTHY  # it is told as such
        return self._judged(record, info, state, cost)

    def _judged(self, record: StepRecord, info: RunInfo, state: State, cost: Cost) -> Verdict:
        trend = loss_trend(state, info).from_start()
        now = middle(sorted([loss for step, loss in state["latest"] if 2 * step >= record.step]))
        bound = cost.loss * (1 - self.margin)
        if cost.estimated:
            bound = cost.loss * (1 + _CLEARLY) + _ERRORS * cost.error
        if now < bound:
            state.pop("stood", None)
            below = now < cost.loss * (1 - self.margin)
            if state.pop("told", False):
                return Verdict(
                    healed={"loss": f"the loss is {number(now)}, below the {number(cost.loss)} of a constant answer"}
                )
            return (
                HEALTHY
                if below
                else not_yet("the loss is as near to a constant answer's as a few batches of targets tell")
            )
        count, since = state.get("stood", (0, int(record.step)))
        state["stood"] = [count + 1, since]
        if count + 1 < self.patience and not state.get("told"):
            return Verdict(confirming=True, unjudged=self.waits)
        state["told"] = True
        falls = not trend.unknown and trend.falls_by(self.loss_fall)
        return Verdict(
            {
                "loss": Sighting(
                    severity=Severity.INFO if falls else Severity.WARNING,
                    layers=info.weight_names or info.layer_names,
                    first_step=since,
                    last_step=int(record.step),
                    value=now / cost.loss,
                    threshold=bound / cost.loss,
                    write=partial(self._sentences, now, cost, int(record.step), info.planned_steps, trend),
                )
            }
        )

    def _sentences(self, now: float, cost: Cost, step: int, planned: int | None, trend: LossTrend) -> Sentences:
        spent = f"After {step + 1:,} steps" if planned is None else f"After {step + 1:,} of {planned:,} planned steps"
        about = " about" if cost.estimated else ""
        least = (
            f"where it is {percent(_CLEARLY)} above that"
            if cost.estimated
            else f"unless it is {percent(self.margin)} below"
        )
        return Sentences(
            cause="Nothing that is measured shows why: what the net has learned of its inputs is worth no more than one constant answer.",
            causes=(Cause(CauseKind.UNKNOWN),),
            remedy=Remedy(
                "See whether the net can learn a single batch by heart, as with overfit_batches=1. If it can't, look for a mistake in "
                "the loss, the optimizer or the graph; if it can, look at whether the targets belong to their inputs, and try other "
                "learning rates."
            ),
            headline=f"{spent} the loss is {number(now)}, where one constant answer gives{about} {number(cost.loss)}",
            message=f"Reported {least}. {trend.sentence(self.loss_fall)}",
        )
