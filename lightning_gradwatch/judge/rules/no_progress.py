"""GW601: half of the planned steps are spent, or the run is over, and the loss isn't below what one constant answer gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from lightning_gradwatch.judge.evidence.constant_answer import UNKNOWN, Cost, note_answer, read_cost
from lightning_gradwatch.judge.evidence.loss_trend import loss_trend, middle
from lightning_gradwatch.judge.evidence.standing_loss import count_standing, forget_standing
from lightning_gradwatch.judge.rule import HEALTHY, LazyFinding, Rule, Sentences, Verdict, cant_judge, not_yet
from lightning_gradwatch.judge.streaks import State
from lightning_gradwatch.record.finding import Cause, CauseKind, NoProgressWarning, Remedy, Severity
from lightning_gradwatch.record.run_end import RunEnd
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord
from lightning_gradwatch.record.wording import counted, number, percent

if TYPE_CHECKING:
    from lightning_gradwatch.judge.evidence.loss_trend import LossTrend

_ERRORS, _CLEARLY = 3.0, 0.1
"""Where what a constant answer gives is estimated from targets: its standard errors, and a share of it, by which the loss must be
above it. Four readings tell their own error badly, and a net that explains a twentieth of its targets is no ill one."""
_FIRST_STEPS = 10
_KEPT = 9
"""Latest losses, of half of the steps at most, whose median is compared: single batches stray."""
_QUARTER, _HALF = 0.25, 0.5
_RISEN = 1.001
_SETTLED = 0.75
"""Share of a run's steps by which its learning rate must have been at its highest: before that it is warming up."""


class Level(NamedTuple):
    """How far a loss has come, beside what a constant answer costs."""

    loss: float
    bound: float
    """From which on it is no progress."""
    cost: Cost
    first_step: int
    last_step: int


@dataclass(frozen=True, kw_only=True)
class NoProgress(Rule):
    """The loss isn't below what one constant answer gives, though half of the steps are spent, or the run has ended.

    What: judged from ``share`` of the planned steps on, or from step ``steps`` on where no plan is known; and at the end of a run
    that ends before that (early stopping, a time limit, an interruption, an exception), unless its learning rate was still
    rising. Runs that are planned for fewer than ``fewest_steps`` steps, or end before half of these, are trials, and aren't judged. The rule fires where the loss is no more than ``margin`` below what
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
        fewest_steps: planned steps from which on a run is judged: from a trial nobody expects that it gets anywhere.
        margin: share by which the loss must be below what a constant answer gives.
        patience: measured steps in a row that must agree.
        loss_fall: share by which the loss must have fallen since half as many steps for it to be information only.
    """

    code: ClassVar[str] = "GW601"
    name: ClassVar[str] = "no-progress"
    warning: ClassVar[type[NoProgressWarning]] = NoProgressWarning

    share: float = 0.5
    steps: int = 1000
    fewest_steps: int = 200
    margin: float = 0.01
    patience: int = 3
    loss_fall: float = 0.05

    def __post_init__(self) -> None:
        self._require_between(0, 1, "share", "margin", "loss_fall")
        self._require_count(1, "steps", "fewest_steps", "patience")

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """See whether the loss is below what a constant answer gives, once it should be."""
        note_answer(state, record)
        if math.isfinite(record.loss):
            state["latest"] = [*state.get("latest", ()), [int(record.step), float(record.loss)]][-_KEPT:]
        state["lost"] = not math.isfinite(record.loss)
        _note_rate(state, record)
        if len(info.optimizers) > 1:
            return cant_judge("several optimizers share the run, each with a loss of its own")
        cost = read_cost(state)
        if cost is None:
            return not_yet(UNKNOWN) if record.step < _FIRST_STEPS else cant_judge(UNKNOWN)
        planned = info.planned_steps
        if planned is not None and planned < self.fewest_steps:
            return cant_judge(
                f"a run of {planned} steps is a trial; from {self.fewest_steps} on, progress is asked for"
            )
        due = self._due(info)
        if record.step + 1 < due:
            return not_yet(f"progress is asked for from step {math.ceil(due) - 1} on")
        if not math.isfinite(record.loss):
            return HEALTHY  # it is told as such
        return self._judged(record, info, state, cost)

    def at_end(self, end: RunEnd, info: RunInfo, state: State) -> Verdict | None:
        """See whether a run that hasn't been judged for long enough got anywhere before it ended."""
        judged = state.get("told") or (end.steps >= self._due(info) and "stood" not in state)
        if len(info.optimizers) > 1 or judged or state.get("lost", True):
            return None  # of a loss that isn't finite, that is told
        cost = read_cost(state)
        why = UNKNOWN if cost is None else self._why_not(end, state)
        if cost is None or why:
            return cant_judge(why)
        latest, bound = _since(end, state, _QUARTER), self._bound(cost)
        # Of the few that there are of a short run, all count; what it has come to, those of its second half say.
        levels = [middle(sorted([loss for _, loss in each])) for each in (latest, _since(end, state, _HALF))]
        now = levels[1]
        if min(levels) < bound:
            return self._below(min(levels), cost)
        spent = f"{end.sentence} {_spent(end.steps, info.planned_steps)}, and"
        return self._found(Level(now, bound, cost, latest[0][0], latest[-1][0]), info, state, spent)

    def _why_not(self, end: RunEnd, state: State) -> str:
        """Return why the end of a run says nothing."""
        fewest, compared = math.ceil(self.share * self.fewest_steps), len(_since(end, state, _QUARTER))
        if end.steps < fewest:
            return f"the run ended after {counted(end.steps, 'step')}; from {fewest} on, progress is asked for"
        if state["risen"][1] > _SETTLED * end.steps:
            return f"the learning rate was still rising when the run ended, after {end.steps:,} steps"
        if compared < self.patience or not _since(end, state, _HALF):
            return (
                f"the run ended after {end.steps:,} steps, with {counted(compared, 'measured step')} in the last three quarters "
                f"of them; {self.patience} must agree, one of the second half among them"
            )
        return ""

    def _due(self, info: RunInfo) -> float:
        """Return how many steps must have been taken for it to be judged while the run goes on."""
        return self.steps if info.planned_steps is None else self.share * info.planned_steps

    def _bound(self, cost: Cost) -> float:
        """Return the loss from which on it is no progress."""
        return cost.loss * (1 + _CLEARLY) + _ERRORS * cost.error if cost.estimated else cost.loss * (1 - self.margin)

    def _below(self, now: float, cost: Cost) -> Verdict:
        """Say of a loss that isn't above the bound what it is."""
        if now < cost.loss * (1 - self.margin):
            return HEALTHY
        return not_yet("the loss is as near to a constant answer's as a few batches of targets tell")

    def _judged(self, record: StepRecord, info: RunInfo, state: State, cost: Cost) -> Verdict:
        now = middle(sorted([loss for step, loss in state["latest"] if 2 * step >= record.step]))
        bound = self._bound(cost)
        if now < bound:
            forget_standing(state)
            if state.pop("told", False):
                return Verdict(
                    healed={"loss": f"the loss is {number(now)}, below the {number(cost.loss)} of a constant answer"}
                )
            return self._below(now, cost)
        standing = count_standing(state, record.step)
        if not standing.is_due(self, record.step) and not state.get("told"):
            return Verdict(confirming=True, unjudged=self.waits)
        state["told"] = True
        spent = _spent(int(record.step) + 1, info.planned_steps)
        return self._found(Level(now, bound, cost, standing.since, int(record.step)), info, state, f"A{spent[1:]}")

    def _found(self, level: Level, info: RunInfo, state: State, spent: str) -> Verdict:
        trend = loss_trend(state, info).from_start()
        falls = not trend.unknown and trend.falls_by(self.loss_fall)
        return Verdict(
            {
                "loss": LazyFinding(
                    severity=Severity.INFO if falls else Severity.WARNING,
                    layers=info.weight_names or info.layer_names,
                    first_step=level.first_step,
                    last_step=level.last_step,
                    value=level.loss / level.cost.loss,
                    threshold=level.bound / level.cost.loss,
                    write=partial(self._sentences, level, spent, trend),
                )
            }
        )

    def _sentences(self, level: Level, spent: str, trend: LossTrend) -> Sentences:
        cost = level.cost
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
            headline=f"{spent} the loss is {number(level.loss)}, where one constant answer gives{about} {number(cost.loss)}",
            message=f"Reported {least}. {trend.sentence(self.loss_fall)}",
        )


def _note_rate(state: State, record: StepRecord) -> None:
    """Keep the highest learning rate, and the step at which it was first about that high."""
    rate = max(record.learning_rates, default=0.0)
    highest, step = state.get("risen", (0.0, 0))
    if rate > highest * _RISEN:
        state["risen"] = [float(rate), int(record.step)]
    elif "risen" not in state:
        state["risen"] = [highest, step]


def _since(end: RunEnd, state: State, share: float) -> list[tuple[int, float]]:
    """Return the latest losses of a run that has ended, from a share of its steps on, with their steps."""
    return [(step, loss) for step, loss in state["latest"] if step >= share * end.steps]


def _spent(steps: int, planned: int | None) -> str:
    return f"after {steps:,} steps" if planned is None else f"after {steps:,} of {planned:,} planned steps"
