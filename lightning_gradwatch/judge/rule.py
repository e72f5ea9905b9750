"""What a rule is: a frozen dataclass of thresholds that reads one record at a time and keeps nothing itself.

A rule states its thresholds (fields), its condition (`Rule.check`) and its words (`Rule.words`). What the steps make of that
is here, once: those that were skipped, the warm-up, for how many measured steps in a row it must hold, what was reported,
what has healed. A
rule whose condition isn't a number a layer or site overrides `look`, and says with `Rule.waits`, `Rule.warms_up` and
`streaks` what it waits for.

A rule's memory is a dictionary of plain data and of `streaks.Columns`, handed in at each record: it travels in a
checkpoint by names, so layers or sites that appear in mid-run can't shift it. The losses in it (`trend.loss_trend`) are the
evaluator's, one for all rules.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from lightning_gradwatch.judge.streaks import (
    Columns,
    Lasting,
    Mask,
    State,
    count_hits,
    has_gone,
    holds,
    lasting,
    streaks,
)
from lightning_gradwatch.record.finding import Cause, Finding, GradWatchWarning, Remedy, Severity
from lightning_gradwatch.record.first_bad_step import FirstBadStep
from lightning_gradwatch.record.run_end import RunEnd
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import FloatVector, StepRecord
from lightning_gradwatch.record.wording import counted

_REPORTED = "reported findings"
"""Where the memory of a rule has them."""
_MOST_COUNTED = 2**53
"""Up to here a float counts without gaps."""
NEAR = 16
"""Steps before one that decides, from which on each is measured."""


class Explanation(NamedTuple):
    """Why something is so, in a sentence and as data, and what to do about it."""

    cause: str
    remedy: Remedy
    causes: tuple[Cause, ...]
    """What the sentence says, the first of it first."""


class Sentences(NamedTuple):
    """What a finding says in words, and its causes as data."""

    cause: str
    remedy: Remedy
    message: str
    """What was seen; beside a headline, the evidence for it."""
    causes: tuple[Cause, ...] = ()
    """As in `Explanation`; none: not known."""
    headline: str = ""
    """What is wrong, where and by which number, in one sentence without a full stop: the first line that a user reads."""


class LazyFinding(NamedTuple):
    """A finding whose sentences aren't written yet: a failing run has one at each record, and only the last is read."""

    severity: Severity
    layers: tuple[str, ...] | Callable[[], tuple[str, ...]]
    """Or what names them; as `write`."""
    first_step: int
    last_step: int
    value: float
    threshold: float
    write: Callable[[], Sentences]
    """Called at most once, and maybe after later records: it must hold what it needs, and not the rule's memory."""
    first_bad: FirstBadStep | None = None
    """Where it began; of a rule that `Rule.tells_first_bad_step`, the evaluator looks for it."""


class Line(NamedTuple):
    """Where a metric's numbers begin to be what a rule is about: a line on a chart of that metric."""

    metric: str
    value: float
    side: Literal["above", "below"]
    """On which side of the line they are."""
    of_last: bool = False
    """Whether the numbers are taken relative to the last hidden activation's, as the signal is."""


class Verdict(NamedTuple):
    """What a rule says about one record."""

    findings: Mapping[str, Finding | LazyFinding] = MappingProxyType({})
    """What holds at this record, by root cause: a key that stays the same as long as the cause does."""
    withdrawn: tuple[str, ...] = ()
    """Keys of earlier findings that those of `findings` which are new have taken in: they aren't news then."""
    healed: Mapping[str, str] = MappingProxyType({})
    """Earlier findings that no longer hold, by key, each with a sentence that says what shows it; may be said again."""
    confirming: bool = False
    """The rule has hit and lacks patience: the next steps would settle it."""
    dated: bool = False
    """While `confirming`: the step by which that is settled is fixed, so what may follow from it can wait so long."""
    unjudged: str = ""
    """Why this record couldn't be judged: starts with ``can't judge`` (an input is missing) or ``not yet``."""
    lapsed: bool = False
    """What earlier records were judged by is no longer known to hold, so that the rule doesn't count as having judged."""


HEALTHY = Verdict()
"""What is said of nearly every record of nearly every run."""


def not_yet(why: str) -> Verdict:
    """Say that later records may be judged."""
    return Verdict(unjudged=f"not yet: {why}")


def cant_judge(why: str) -> Verdict:
    """Say which input is missing."""
    return Verdict(unjudged=f"can't judge: {why}")


_SKIPPED = not_yet("the optimizer step was skipped")


class Seen(NamedTuple):
    """What one record shows of a rule's condition, a layer or a site each."""

    of: Literal["layers", "sites"]
    values: FloatVector
    """The numbers that are judged, one a layer or site; NaN where there is none."""
    hit: Mask
    """Where the condition holds."""
    threshold: float
    severity: Severity = Severity.WARNING
    unread: Verdict = HEALTHY
    """What is said of those that couldn't be read, where others could."""


class Found(NamedTuple):
    """What has lasted, for the words of a rule."""

    record: StepRecord
    """The latest."""
    info: RunInfo
    seen: Seen
    names: tuple[str, ...]
    """Of the layers or sites, along the data's path."""
    worst: str
    """The one whose number is furthest beyond the threshold."""
    value: float
    """That number."""
    where: Mask
    """The columns of `names`."""
    facts: Any
    """What `Rule.facts` gave."""


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):  # of a dataclass without another base, jsonargparse (LightningCLI) takes no subclass
    """A rule; its fields are its thresholds, its docstring is the page that ``gradwatch explain`` prints.

    Give it a `code`, a `name`, and `check` and `words`; ``patience`` and ``warm_up_steps`` as fields where users may set them.
    """

    code: ClassVar[str]
    """Capitals and a number, such as LAB001; those that begin with GW are this package's own."""
    name: ClassVar[str]
    """In lower case, such as ``loud-layer``."""
    warning: ClassVar[type[GradWatchWarning]] = GradWatchWarning
    judges_skipped: ClassVar[bool] = False
    """Whether a step that the gradient scaler left out says something to this rule."""
    numbered: ClassVar[bool] = True
    """Whether a finding's number and threshold say something: not where what was found is so or isn't."""
    tells_first_bad_step: ClassVar[bool] = False
    """Whether what it finds may have begun with a jump or a NaN: then its findings say in which step, and in which layer."""
    key: ClassVar[str] = "found"
    """Names what `check` finds in the rule's memory; of a rule whose runs are stored, it stays."""

    # No annotations: these are thresholds only of a rule that states them.
    patience = 3
    warm_up_steps = 0

    def judge(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Judge one record; `state` is this rule's memory, changed in place: plain JSON data, or made by `streaks`."""
        if record.skipped and not self.judges_skipped:
            return _SKIPPED
        verdict = self.look(record, info, state)
        if verdict.findings or verdict.healed:
            _note_reported(state, verdict)
        return verdict

    @staticmethod
    def reported(state: State) -> Mapping[str, Severity]:
        """Return what earlier records brought, by key, each with the worst it has ever been; what has healed is among it."""
        return {key: Severity(worst) for key, (worst, _) in state.get(_REPORTED, {}).items()}

    @staticmethod
    def still_reported(state: State, key: str) -> bool:
        """Tell whether a finding was reported, and hasn't healed since."""
        return bool(state.get(_REPORTED, {}).get(key, (0, False))[1])

    def check(self, record: StepRecord, info: RunInfo, state: State) -> Seen | Verdict:
        """State the condition: what one record shows of it, or why it can't be judged (`not_yet`, `cant_judge`)."""
        raise NotImplementedError(f"{type(self).__name__} has no check, which states its condition")

    def words(self, found: Found) -> Sentences:
        """Say of what has lasted why it is so, what to do and what was seen. Called once, and only when it is read."""
        raise NotImplementedError(f"{type(self).__name__} has no words, which say what it found")

    def healed(self, seen: Seen) -> str:
        """Say what shows that it no longer holds."""
        del seen
        return f"it hasn't held in the last {counted(self.patience, 'measured step')}"

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Judge a step that wasn't skipped: find where the condition has held for `patience` measured steps in a row."""
        seen = self.check(record, info, state)
        if isinstance(seen, Verdict):
            return seen
        if record.step < self.warm_up_steps:
            return self.warms_up()
        held = streaks(state, "streaks", info, seen.of)
        if held.blank and not state.get("clear") and not np.count_nonzero(seen.hit):
            return seen.unread  # as nearly every record of nearly every run
        return self._last(record, info, state, seen, held)

    def _last(self, record: StepRecord, info: RunInfo, state: State, seen: Seen, held: Columns) -> Verdict:
        """Count what a record shows, and tell what has lasted."""
        count_hits(held, seen.hit, ~seen.hit & ~np.isnan(seen.values), record.step)
        if has_gone(state, self.key, holds=holds(held), patience=self.patience):
            return seen.unread._replace(healed={self.key: self.healed(seen)})
        due = lasting(held, self.patience)
        if due is not None:
            sighting = _sighting(self, record, info, seen, due, facts=self.facts(info, state, due.where))
            return seen.unread._replace(findings={self.key: sighting})
        if self.key in self.reported(state) or not np.count_nonzero(seen.hit):
            return seen.unread
        return Verdict(confirming=True, unjudged=self.waits)

    def at_end(self, end: RunEnd, info: RunInfo, state: State) -> Verdict | None:
        """Say what the end of a run adds to what its records showed; None: nothing. Where the end isn't known, it isn't asked.

        Args:
            end: How the fit ended.
            info: What describes the last record.
            state: This rule's memory; what is changed in it, a run that goes on from a checkpoint doesn't see.
        """
        del end, info, state
        return None

    @property
    def waits(self) -> str:
        """Why a condition that holds isn't reported yet."""
        return f"not yet: {counted(self.patience, 'measured step')} in a row must agree"

    def warms_up(self) -> Verdict:
        """Say of a step before `warm_up_steps` that it isn't judged."""
        return not_yet(f"the first {self.warm_up_steps} steps are warm-up")

    def facts(self, info: RunInfo, state: State, where: Mask) -> Any:
        """Return what `words` needs of the memory: it is written when that may have gone on."""
        del info, state, where

    def lines(self, info: RunInfo) -> tuple[Line, ...]:
        """Return the thresholds that a chart of a metric can show; a rule whose condition is more than that shows the first part."""
        del info
        return ()

    def settings(self) -> dict[str, Any]:
        """Return the thresholds by field name, as plain JSON data."""
        return {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}

    def _require_between(self, low: float, high: float, *fields: str, optional: bool = False) -> None:
        """Check that fields are numbers in [low, high], low excluded where it is 0."""
        for name in fields:
            value = getattr(self, name)
            if value is None and optional:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            held = not isinstance(value, int) or abs(value) <= sys.float_info.max
            if number and held and low <= value <= high and not (low == 0 and value == 0):
                continue
            span = f"between {low:g} and {high:g}" if math.isfinite(high) else f"a number above {low:g}"
            span += "" if held else f", and at most {sys.float_info.max:.3g}"
            raise ValueError(f"{self._call(name)}: {name} must be {span}{' or None' if optional else ''}")

    def _require_count(self, least: int, *fields: str) -> None:
        """Check that fields are whole numbers of at least `least`."""
        for name in fields:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{self._call(name)}: {name} must be a whole number of at least {least}")
            if value > _MOST_COUNTED:
                raise ValueError(f"{self._call(name)}: {name} must be a whole number of at most {_MOST_COUNTED}")

    def _call(self, name: str) -> str:
        value = getattr(self, name)
        whole = isinstance(value, int) and abs(value) > sys.float_info.max
        told = f"a whole number of {value.bit_length()} bits" if whole else f"{value!r:.200}"
        return f"{type(self).__name__}({name}={told})"


def _note_reported(state: State, verdict: Verdict) -> None:
    """Remember what is reported, how bad it has been at worst, and whether it has healed since."""
    reported = state.setdefault(_REPORTED, {})
    for key in verdict.healed:
        if key in reported:
            reported[key][1] = False
    for key, finding in verdict.findings.items():
        worst = reported[key][0] if key in reported else int(finding.severity)
        reported[key] = [max(worst, int(finding.severity)), True]


def _sighting(rule: Rule, record: StepRecord, info: RunInfo, seen: Seen, due: Lasting, *, facts: Any) -> LazyFinding:
    """Return what has lasted as a finding, told by the number that is furthest beyond the threshold."""
    column = int(np.argmax(np.where(due.where, np.abs(seen.values - seen.threshold), -1.0)))
    value = float(seen.values[column])

    def write() -> Sentences:
        worst = due.columns[column]
        return rule.words(Found(record, info, seen, due.names(), worst, value, due.where, facts))

    return LazyFinding(
        severity=seen.severity,
        layers=due.names,
        first_step=due.since,
        last_step=int(record.step),
        value=value,
        threshold=seen.threshold,
        write=write,
    )
