"""GW201: units that are dead."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lightning_gradwatch.judge.evidence.loss_decrease import note_start, wakes_up
from lightning_gradwatch.judge.evidence.loss_trend import LossTrend, loss_trend
from lightning_gradwatch.judge.evidence.onset import Drift, drift, note_first, note_passed, note_update
from lightning_gradwatch.judge.evidence.window_fill import unread
from lightning_gradwatch.judge.readings import hidden_values, why_no_fraction
from lightning_gradwatch.judge.remedies import Prescription
from lightning_gradwatch.judge.rule import LazyFinding, Line, Rule, Sentences, Verdict
from lightning_gradwatch.judge.streaks import (
    Lasting,
    State,
    columns,
    count_hits,
    has_gone,
    holds,
    lasting,
    shift_in,
    streaks,
)
from lightning_gradwatch.record.finding import Cause, CauseKind, DeadUnitsWarning, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import FloatVector, SiteInfo, StepRecord
from lightning_gradwatch.record.wording import counted, mention, percent

if TYPE_CHECKING:
    from lightning_gradwatch.record.activations import Activation
    from lightning_gradwatch.record.finding import Remedy

_READINGS = 5
"""A trend in fewer is one odd batch."""
_LEAST_LOSSES = 3
_BELOW_START = 0.8
"""Loss over that at the start below which the net has learned something, however few of its units it uses."""
_WORST_FIRST = tuple(reversed(Severity))


@dataclass(frozen=True, kw_only=True)
class DeadUnits(Rule):
    """Units of a hidden layer are dead.

    What: a dead unit sits where the derivative of its activation function is exactly 0, in every observation of a full
    window: the last ``observations`` inputs (batch, positions and calls together), or as many as there are since units seem
    to have died, at least ``least_observations`` from ``batch_elements`` elements of a batch. An activation whose window isn't full
    is not judged. A unit that is active in 2 % of independent observations is called dead by less than one window of a
    hundred. The rule fires in ``patience`` measured steps in a row, and what no longer holds for as many has healed. From
    ``inform`` on it is a warning only where the share has risen over five readings, after ``warm_up_steps``, in a net whose
    loss has stalled about where it began and whose gradient doesn't grow, as it does in one that is waking up. A share of
    zero outputs isn't death: a healthy ReLU net shows 50 to 90 % zeros. A unit of a convolution is a channel over all its
    positions. Smooth functions and LeakyReLU can't be dead.

    Why: a dead unit passes no gradient back and its weights stop learning, mostly for good. Where all units of a layer are
    dead, nothing before that layer learns (GW104). Typical causes are one step with too high a learning rate, a strongly
    negative bias, and deep narrow ReLU nets at initialisation.

    What to do: use LeakyReLU, ELU or GELU, which have no dead side; initialise with ``kaiming_normal_`` and biases of 0;
    where steps that were too large killed the units, lower the learning rate or warm it up.

    Attributes:
        error: share of an activation's units that is an error.
        warn: share of an activation's units that is a warning.
        inform: share of an activation's units that is information, and a warning while it rises and the loss is stalled.
        rise: how much the share must rise over the last five readings to count as rising.
        warm_up_steps: steps in which a share below ``warn`` stays information, rising or not.
        patience: measured steps in a row that must agree.
        loss_fall: share by which the loss must have fallen since half as many steps not to be stalled.
        converged: share of the loss at the start below which the loss isn't called stalled.
        observations: observations that a window holds, as far as the net stays as it is.
        least_observations: observations that fill a window.
        batch_elements: batch elements that a full window must hold as well.
    """

    code: ClassVar[str] = "GW201"
    name: ClassVar[str] = "dead-units"
    warning: ClassVar[type[DeadUnitsWarning]] = DeadUnitsWarning
    judges_skipped: ClassVar[bool] = True

    error: float = 1.0
    warn: float = 0.9
    inform: float = 0.5
    rise: float = 0.1
    warm_up_steps: int = 24
    patience: int = 3
    loss_fall: float = 0.05
    converged: float = 0.01
    observations: int = 1024
    least_observations: int = 256
    batch_elements: int = 32

    def __post_init__(self) -> None:
        self._require_between(0, 1, "error", "warn", "inform", "rise", "loss_fall", "converged")
        self._require_count(0, "warm_up_steps")
        self._require_count(1, "patience", "observations", "least_observations", "batch_elements")
        if not self.inform <= self.warn <= self.error:
            raise ValueError(
                f"DeadUnits(inform={self.inform}, warn={self.warn}, error={self.error}): must rise in this order"
            )

    @cached_property
    def _limits(self) -> FloatVector:
        return np.array([[self.inform], [self.warn], [self.error]])

    def lines(self, info: RunInfo) -> tuple[Line, ...]:
        """Return what a chart can show of the thresholds."""
        del info
        return (Line("dead_fraction", self.warn, "above"),)

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Judge the dead fraction of each hidden site whose window is full."""
        note_update(state, record, info)
        note_passed(state, record, info)
        note_start(record, state.setdefault("pace", {}))
        missing = unread(record, info, state, patience=self.patience, asks=_can_die)
        fractions = hidden_values(record, info, "dead_fraction")
        if fractions is None:
            return missing if missing.lapsed else Verdict(unjudged=why_no_fraction(record, info, "dead"))
        readings = columns(state, "readings", info, "sites", rows=_READINGS, fill=float("nan"))
        shift_in(readings, fractions)
        wrong = fractions >= self.inform
        note_first(state, record, info, fractions, wrong)
        held = streaks(state, "streaks", info, "sites", levels=len(Severity))
        if held.blank and not state.get("clear") and not np.count_nonzero(wrong):
            return missing
        hit = fractions >= self._limits
        trend, stalled = LossTrend(), False
        if np.count_nonzero(hit[Severity.INFO]) > np.count_nonzero(hit[Severity.WARNING]):
            trend = loss_trend(state, info)
            stalled = self._stalled(trend)
            if stalled and record.step >= self.warm_up_steps and not wakes_up(state["pace"]):
                rising = fractions - readings.values[0] >= self.rise  # NaN, and False, until there are five readings
                hit[Severity.WARNING] |= hit[Severity.INFO] & rising
        count_hits(held, hit, (fractions >= 0) > hit, record.step)
        findings = {}
        worst = state.get("worst", 0)
        # A share that doesn't go on rising is no better for it.
        level = Severity.INFO if worst == Severity.WARNING and stalled else worst
        if has_gone(state, "dead", holds=holds(held, level), patience=self.patience):
            state["worst"] = 0
            most = percent(float(np.fmax.reduce(fractions)))
            return Verdict(
                healed={"dead": f"no more than {most} of the units of an activation are dead"},
                unjudged=missing.unjudged,
                lapsed=missing.lapsed,
            )
        severity = next((each for each in _WORST_FIRST if lasting(held, self.patience, each)), None)
        due = None if severity is None else lasting(held, self.patience, min(severity, Severity.WARNING))
        if severity is not None and due is not None:
            findings["dead"] = self._sighting(
                record,
                info,
                fractions,
                due,
                severity=severity,
                trend=trend,
                how=drift(state, info, due.where, whole=fractions == 1),
            )
            state["worst"] = max(worst, int(severity))
        reported = max(self.reported(state).get("dead", -1), -1 if severity is None or due is None else severity)
        pending = bool(np.count_nonzero(hit[reported + 1 :]))
        return Verdict(
            findings=findings,
            confirming=pending,
            unjudged=self.waits if pending else missing.unjudged,
            lapsed=missing.lapsed,
        )

    def _stalled(self, trend: LossTrend) -> bool:
        """Tell whether the loss is known to have stalled: here that raises the alarm instead of holding it back."""
        if trend.unknown or trend.compared < _LEAST_LOSSES or trend.converged_to(self.converged):
            return False
        return not trend.falls_by(self.loss_fall) and trend.of_first > _BELOW_START

    def _sighting(
        self,
        record: StepRecord,
        info: RunInfo,
        fractions: FloatVector,
        due: Lasting,
        *,
        severity: Severity,
        trend: LossTrend,
        how: Drift,
    ) -> LazyFinding:
        value = float(np.maximum.reduce(fractions[due.where]))

        def write() -> Sentences:
            worst = info.site_names[int((due.where & (fractions == value)).argmax())]
            sites = [info.sites[column] for column in np.flatnonzero(due.where)]
            return Sentences(
                cause=_cause(value, sites, how),
                remedy=_remedy(info, sites, how),
                causes=how.causes if how.thrown else (Cause(CauseKind.UNSUITED_START),),
                headline=_headline(worst, value, due.names()),
                message="" if value >= self.warn else trend.sentence(self.loss_fall),
            )

        return LazyFinding(
            severity=severity,
            layers=due.names,
            first_step=due.since,
            last_step=int(record.step),
            value=value,
            threshold=self.error if value >= self.error else self.warn if value >= self.warn else self.inform,
            write=write,
        )


def _headline(worst: str, value: float, names: tuple[str, ...]) -> str:
    others = f", as in {counted(len(names) - 1, 'more activation')}, or nearly so" if len(names) > 1 else ""
    if value == 1:
        return f"{worst} is dead: 100 % of its units pass no gradient back, whatever the input{others}"
    return f"{percent(value)} of the units of {worst} are dead: they pass no gradient back, whatever the input{others}"


def _can_die(function: Activation) -> bool:
    return function.flat_zero


def _cause(value: float, sites: list[SiteInfo], how: Drift) -> str:
    functions = " and ".join(dict.fromkeys(site.activation.module for site in sites))
    if how.thrown:
        why = f"The inputs of these {functions} units stay where the derivative is exactly 0. {how.sentence()}"
    else:
        why = (
            f"These {functions} units have been dead since the first full window: biases or weights start them so, or inputs that "
            "aren't scaled."
        )
    whole = f" Nothing before such a layer gets a gradient through it{mention('GW104')}." if value == 1 else ""
    return f"{why}{whole}"


def _remedy(info: RunInfo, sites: list[SiteInfo], how: Drift) -> Remedy:
    cure = Prescription(info)
    cure.replace(sites, "dies")
    if how.thrown:  # the start was good: what the steps have done isn't undone by another one
        cure.take_smaller_steps(how.update, unscaled=how.unscaled)
        return cure.remedy()
    cure.initialize()
    firsts = [info.sites[column] for column in info.site_paths.firsts]
    if any(site in firsts and site.activation.two_sided for site in sites):
        cure.normalize_inputs()
    cure.add_skip_connections()
    return cure.remedy()
