"""GW301: a weight layer hardly moves while others do, or none does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from lightning_gradwatch.judge.evidence.branches import on_weak_branches
from lightning_gradwatch.judge.evidence.loss_decrease import (
    credible,
    has_come_down,
    note_start,
    pace_evidence,
    pace_headline,
    read_pace,
    why_slow_pace,
)
from lightning_gradwatch.judge.evidence.loss_trend import LossTrend, loss_trend
from lightning_gradwatch.judge.evidence.onset import first_steps, note_update, swings
from lightning_gradwatch.judge.evidence.small_updates import weight_size, why_behind, why_slow
from lightning_gradwatch.judge.evidence.thrown_layers import Beginning, why_thrown
from lightning_gradwatch.judge.rates import relative_rates, schedule_phase, spelled_rates
from lightning_gradwatch.judge.readings import layer_values, of_full_weights, weight_layers
from lightning_gradwatch.judge.rule import HEALTHY, LazyFinding, Line, Rule, Sentences, Verdict
from lightning_gradwatch.judge.streaks import (
    Lasting,
    State,
    columns,
    count_hit,
    count_hits,
    has_gone,
    holds,
    lasting,
    shift_in,
    streaks,
)
from lightning_gradwatch.record.finding import Severity, StalledUpdateWarning
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import FloatVector, LayerState, StepRecord
from lightning_gradwatch.record.wording import listed, number

if TYPE_CHECKING:
    from lightning_gradwatch.judge.streaks import Columns, Mask

_OK = int(LayerState.OK)  # numpy takes ten times as long to compare with an enumeration
_ERROR_FACTOR = 10
"""How far beyond the threshold it is an error, by convention: a number of one layer, where a factor of 10 leaves no doubt."""
_RISEN = 2
"""More than the update ratio differs from batch to batch: such a layer is on its way."""
_HEALED = {
    "stalled": "the layers move again",
    "slow": "the weights move again",
    "pace": "the loss has come down to half of what it was",
}
_WAKES_UP = 200
"""Steps in which branches that start at next to nothing are given time, whatever the loss does."""
_CLEARLY = 2.0
"""How many times the threshold makes sure: a ratio that is just above it hasn't healed, and comes and goes with the noise."""
_NOTHING_MEASURED = "not yet: no update of a weight layer was measured"
_STALLED, _SLOW = 0, 1
"""Levels of the streaks: a layer behind the others, and all layers alike."""


class _Reading(NamedTuple):
    """The update ratios of one record."""

    record: StepRecord
    info: RunInfo
    ratios: FloatVector
    """As the largest learning rate of its optimizer would give each layer, shape [L]."""
    judged: Mask
    """Which layers take part."""
    top: float
    """The highest ratio among them."""


@dataclass(frozen=True, kw_only=True)
class StalledUpdate(Rule):
    """A weight layer hardly moves while others do, or none does.

    What: the update ratio is the root mean square of a step's change over that of the weights, measured, whatever the
    optimizer. The rule fires where it is below ``ratio`` in a weight layer and ``spread`` times higher in another; or below
    ``ratio`` in all of them, which is a learning rate that is too small. It must hold in ``patience`` measured steps in a
    row, after ``warm_up_steps``. A tenth of ``ratio`` is an error. Left out are layers without a gradient (GW104), frozen
    ones, weights that are all 0 or are given nothing but zeros, layers at rest, and those whose ratio has doubled since half as many steps or fewer, as
    they are on their way. A learning rate of its own that a layer's parameter group has is taken into account; while the
    learning rate rises, or after it was lowered to less than half, nothing is judged. The rule fires too where every layer
    moves, and yet the planned steps (200 or more) can't take off the share ``reach`` of the loss even if each were straight
    downhill: a step takes off at most its own norm times the gradient's. For that, a tenth of the planned steps must have
    shown (48 at most) that the gradient doesn't grow, as it does in a net that is just waking up; neither the loss nor the
    gradient may have come down to half of what it was, clipping may not have halved the step, and the steps must be smaller
    than is usual, or the targets unscaled. All of it is information only as long as the loss still falls, below where it
    began, and silent once it has converged; and in the first 200 steps for layers of branches, which connections skip, whose
    gradient is far weaker than that of a layer before them, as behind a layer scale that starts near 0. It has healed where the ratio is twice ``ratio`` for ``patience`` measured steps;
    a pace, where the loss has come down to half of what it was.

    Why: about 1e-3 is usual. At 1e-5, a layer takes 100,000 steps to change as much as it weighs, so it stays what it was
    at the start. Under SGD its gradient is that small; under Adam, whose steps don't depend on the gradient's scale, it
    has fallen below ``eps``, or the weights are too large; in bfloat16, the change is lost in rounding. Targets that aren't
    scaled make a loss that Adam's steps, whatever its size, need thousands of steps for.

    What to do: for single layers, fix what weakens their gradient (GW101), start from smaller weights, or lower the
    learning rate where steps that were too large have left them there; for all of them, raise the learning rate; keep the
    weights in float32 (``precision="bf16-mixed"``); scale the targets.

    Attributes:
        ratio: update ratio below which a layer is stalled.
        spread: how many times higher another weight layer's must be for a layer to be behind.
        reach: share of the loss that the planned steps must be able to take off, straight downhill.
        warm_up_steps: steps that aren't judged.
        patience: measured steps in a row that must agree.
        loss_fall: share by which the loss must have fallen since half as many steps for the finding to be information only.
        converged: share of the loss at the start below which the rule is silent.
    """

    code: ClassVar[str] = "GW301"
    name: ClassVar[str] = "stalled-update"
    warning: ClassVar[type[StalledUpdateWarning]] = StalledUpdateWarning

    ratio: float = 1e-5
    spread: float = 100.0
    reach: float = 0.2
    warm_up_steps: int = 10
    patience: int = 3
    loss_fall: float = 0.05
    converged: float = 0.01

    def __post_init__(self) -> None:
        self._require_between(0, 1, "ratio", "loss_fall", "converged")
        self._require_between(0, float("inf"), "reach")
        self._require_between(1, float("inf"), "spread")
        self._require_count(0, "warm_up_steps")
        self._require_count(1, "patience")

    def lines(self, info: RunInfo) -> tuple[Line, ...]:
        """Return what a chart can show of the thresholds."""
        del info
        return (Line("update_ratio", self.ratio, "below"),)

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Compare the update ratios of the weight layers with the threshold and with each other."""
        phase = schedule_phase(record, state.setdefault("rates", {}))
        _mark(record, info, state)
        if record.step < self.warm_up_steps:
            _note_beginning(record, info, state)
        if "size" not in state:
            state["size"] = weight_size(record, info, info.weight_mask)
        note_start(record, state.setdefault("pace", {}))
        if record.step < self.warm_up_steps:
            return self.warms_up()
        if phase:
            return Verdict(unjudged=f"not yet: {phase}")
        ratios = record.metrics.get("update_ratio")
        if ratios is None:
            return Verdict(unjudged=_NOTHING_MEASURED)
        judged = np.isfinite(ratios) & info.weight_mask & (record.layer_state == _OK) & ~_given_zeros(record, info)
        held = streaks(state, "streaks", info, "layers", levels=2)
        if held.blank and not state.get("clear") and not np.count_nonzero(judged & (ratios < self.ratio)):
            return (
                self._at_pace(record, info, state) if np.count_nonzero(judged) else Verdict(unjudged=_NOTHING_MEASURED)
            )
        return self._compare(record, info, state, held, judged=judged, ratios=ratios)

    def _compare(
        self, record: StepRecord, info: RunInfo, state: State, held: Columns, *, judged: Mask, ratios: FloatVector
    ) -> Verdict:
        """Compare the update ratios with the threshold and with each other, where some are or were low."""
        rates = relative_rates(record, info)
        if rates is not None:
            judged &= rates > 0
            ratios = ratios / np.where(judged, rates, 1.0)
        reading = _Reading(record, info, ratios, judged, float(np.max(ratios, initial=0.0, where=judged)))
        trend = _trend(record, info, state)
        low = judged & (ratios < self.ratio) & ~_rising(record, info, state) & (not trend.converged_to(self.converged))
        slow = low & (reading.top < self.ratio) & _most_take_part(reading)
        beside = _top_of_full_weights(reading)  # 0: there is no other layer to be behind
        hits = np.stack([low & (ratios * self.spread <= beside) & (beside > 0) & ~slow, slow])
        count_hits(held, hits, judged & ~hits, record.step)
        findings = {}
        if (due := lasting(held, self.patience, _STALLED)) is not None:
            findings["stalled"] = self._stalled(reading, due, trend, _beginning(info, state))
        if (due := lasting(held, self.patience, _SLOW)) is not None:
            findings["slow"] = self._slow(reading, due, trend, state["size"])
        near = judged & (ratios < _CLEARLY * self.ratio)
        still = {
            "stalled": holds(held, _STALLED) or bool((near & (ratios * self.spread <= _CLEARLY * beside)).any()),
            "slow": holds(held, _SLOW) or reading.top < _CLEARLY * self.ratio,
        }
        told = {*findings, *state.get("clear", {})}
        healed = {
            key: _HEALED[key]
            for key, holding in still.items()
            if has_gone(state, key, holds=holding and key in told, patience=self.patience)
        }
        reported = {*findings, *self.reported(state)}
        pending = any(
            key not in reported and hits[level].any() for level, key in ((_STALLED, "stalled"), (_SLOW, "slow"))
        )
        reason = self.waits if pending else ""
        return Verdict(findings, healed=healed, confirming=pending, unjudged=reason)

    def _at_pace(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Judge a net whose layers all move: do they move enough for this loss?"""
        memory = state.setdefault("pace", {})
        pace = read_pace(record, info, memory)
        if pace is None or pace.reach >= self.reach:
            memory.pop("hits", None)
            if self.still_reported(state, "pace") and has_come_down(memory):
                return Verdict(healed={"pace": _HEALED["pace"]})
            return HEALTHY
        hits = memory.setdefault("hits", {})
        if count_hit(hits, "slow", record.step) < self.patience:
            reason = self.waits
            return Verdict(confirming="pace" not in self.reported(state), unjudged=reason)
        trend = _trend(record, info, state)

        def write() -> Sentences:
            cause, remedy, causes = why_slow_pace(pace, spelled_rates(record))
            message = f"{pace_evidence(self.reach)} {trend.sentence(self.loss_fall)}"
            return Sentences(cause, remedy, message, causes, pace_headline(pace))

        return Verdict(
            {
                "pace": LazyFinding(
                    self._severity(pace.reach / self.reach, trend),
                    weight_layers(info),
                    hits["slow"]["since"],
                    int(record.step),
                    pace.reach,
                    self.reach,
                    write,
                )
            }
        )

    def _severity(self, part: float, trend: LossTrend) -> Severity:
        """Return how bad it is to be at that part of the threshold."""
        if trend.falls_by(self.loss_fall):
            return Severity.INFO
        return Severity.ERROR if part * _ERROR_FACTOR < 1 else Severity.WARNING

    def _stalled(self, reading: _Reading, due: Lasting, trend: LossTrend, beginning: Beginning) -> LazyFinding:
        """Tell of layers that are behind the others."""
        record, info = reading.record, reading.info
        where = due.where
        value = float(np.minimum.reduce(reading.ratios[where]))
        severity = self._severity(value / self.ratio, trend)
        if record.step < _WAKES_UP and on_weak_branches(record, info, np.flatnonzero(where).tolist()):
            severity = Severity.INFO

        def write() -> Sentences:
            worst = int(np.argmin(np.where(where, reading.ratios, np.inf)))
            best = int(np.argmax(np.where(reading.judged, reading.ratios, -1.0)))
            thrown = why_thrown(record, info, worst=worst, best=best, beginning=beginning, trend=trend)
            cause, remedy, causes = thrown or why_behind(record, info, worst, best)
            others = tuple(name for name in due.names() if name != info.layers[worst].name)
            who = f" (as slow: {listed(others)})" if others else ""
            headline = (
                f"{info.layers[worst].name} hardly moves: a step changes it by {number(value)} of itself, and {info.layers[best].name} by "
                f"{number(reading.top)}{who}"
            )
            return Sentences(cause, remedy, trend.sentence(self.loss_fall), causes, headline)

        return LazyFinding(severity, due.names, due.since, int(record.step), value, self.ratio, write)

    def _slow(self, reading: _Reading, due: Lasting, trend: LossTrend, at_first: float) -> LazyFinding:
        """Tell of a net that doesn't move, whose weights had the size `at_first` in the first measured step."""
        record, value = reading.record, reading.top

        def write() -> Sentences:
            headline = (
                f"The net hardly moves: a step changes {listed(due.names())} by at most {number(value)} of themselves"
            )
            cause, remedy, causes = why_slow(record, reading.info, reading.judged, reading.top, at_first=at_first)
            return Sentences(cause, remedy, trend.sentence(self.loss_fall), causes, headline)

        return LazyFinding(
            self._severity(value / self.ratio, trend), due.names, due.since, int(record.step), value, self.ratio, write
        )


def _given_zeros(record: StepRecord, info: RunInfo) -> Mask:
    """Return the layers whose weights alone have a gradient of exactly 0: all that they are given is 0, and biases learn."""
    return np.asarray(layer_values(record, info, "grad_rms") == 0)


def _trend(record: StepRecord, info: RunInfo, state: State) -> LossTrend:
    """Return where the loss goes, as far as the steps can be what takes it there."""
    return credible(loss_trend(state, info), record, info, state.setdefault("pace", {}))


def _mark(record: StepRecord, info: RunInfo, state: State) -> None:
    """Remember the update ratios of steps 0, 1, 3, 7, …: the last two of them, and whether the older is due for use."""
    if record.step < state.get("next_mark", 0):
        return
    held = columns(state, "marks", info, "layers", rows=2, fill=math.nan)
    shift_in(held, record.values("update_ratio", len(info.layers)))
    state["next_mark"] = 2 * int(record.step) + 1


def _note_beginning(record: StepRecord, info: RunInfo, state: State) -> None:
    """Remember how large each layer's weights are when it is first measured, and the largest change of a first step."""
    note_update(state, record, info)
    held = columns(state, "beginning", info, "layers", rows=2, fill=math.nan)
    weights, updates = held.values
    np.copyto(weights, record.values("weight_rms", len(weights)), where=np.isnan(weights))
    np.fmax(updates, record.values("update_ratio", len(updates)), out=updates)
    held.blank = False


def _beginning(info: RunInfo, state: State) -> Beginning:
    """Return what is known of the first steps."""
    weights, updates = columns(state, "beginning", info, "layers", rows=2, fill=math.nan).values
    return Beginning(weights, updates, first_steps(state), swings(state))


def _rising(record: StepRecord, info: RunInfo, state: State) -> Mask:
    """Return the layers whose update ratio has doubled since half as many steps or fewer: they are on their way.

    Behind branches that start at next to nothing (a layer scale), the first steps are tiny and grow from step to step.
    """
    held = columns(state, "marks", info, "layers", rows=2, fill=math.nan)
    ratios = record.values("update_ratio", len(info.layers))
    return np.asarray((ratios >= _RISEN * held.values[0]) & (ratios > 0))


def _top_of_full_weights(reading: _Reading) -> float:
    """Return the highest ratio, beside which others are behind."""
    ratios = of_full_weights(np.where(reading.judged, reading.ratios, 0.0), reading.record, reading.info)
    return float(np.fmax.reduce(ratios, initial=0.0))


def _most_take_part(reading: _Reading) -> bool:
    """Tell whether at least half of the weight layers are judged: of a net that is mostly dead, the rest says little."""
    return bool(2 * np.count_nonzero(reading.judged) >= np.count_nonzero(reading.info.weight_mask))
