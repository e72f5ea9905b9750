"""Judges a run record by record. Live and replay are this one path, so that they can't disagree.

What it keeps is plain data, so that a checkpoint can carry it and a resumed run goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_gradwatch.judge.evidence.first_bad_step import RECENT, RecentSteps, first_bad_step
from lightning_gradwatch.judge.evidence.loss_trend import LOSSES, Losses
from lightning_gradwatch.judge.kept import Kept, read_kept
from lightning_gradwatch.judge.root_causes import awaits_root, in_order, relate, related
from lightning_gradwatch.judge.rule import HEALTHY
from lightning_gradwatch.judge.streaks import plain
from lightning_gradwatch.record.checkpoint import (
    StateError,
    count_of,
    instance_of,
    mapping_of,
    named,
    numbers_of,
    plain_of,
)
from lightning_gradwatch.record.finding import Finding, Severity
from lightning_gradwatch.record.reasons import DATA_ERRORS, CannotJudgeError, reason_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lightning_gradwatch.judge.rule import LazyFinding, Rule, Verdict
    from lightning_gradwatch.judge.streaks import State
    from lightning_gradwatch.record.run_end import RunEnd
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

_VERSION, _READ = 6, (5, 6)
"""Of the state; those of version 5 say nothing of the kinds of causes, which are unknown then."""
_quietly = np.errstate(over="ignore", invalid="ignore", divide="ignore")
"""Weights of 1e300, as float64 or a damaged file may have them, are no reason for numpy to warn in a training loop."""
_SHARED = frozenset((LOSSES, RECENT))
"""What rules find in their memory and isn't theirs: the evaluator keeps it, once for all of them."""
_MOST_LOSSES = 64
_MOST_CONFIRMATIONS = 32  # a value that dances around its threshold must not have every step measured


@dataclass
class _Entry:
    """What is kept about one rule."""

    rule: Rule
    memory: State = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)
    judged: bool = False
    reason: str = "not yet: no step was measured"
    confirming: bool = False
    confirmations: int = 0
    since: int | None = None
    """The step since which it has hit and lacked patience; None where it doesn't."""
    readings: int = 0
    """How many times in a row it did, without a step being known by which that is settled."""
    restored: bool = False
    """Whether the memory comes from a checkpoint."""

    def judge(self, record: StepRecord, info: RunInfo) -> Sequence[tuple[Kept, Severity | None]]:
        """Judge a record; return as `take`."""
        verdict = self.rule.judge(record, info, self.memory)
        if verdict.findings and self.rule.tells_first_bad_step:
            verdict = verdict._replace(
                findings={key: self._with_onset(key, seen, info) for key, seen in verdict.findings.items()}
            )
        return self.take(verdict, int(record.step))

    def _with_onset(self, key: str, seen: Finding | LazyFinding, info: RunInfo) -> Finding | LazyFinding:
        """Say where what was found began: as it was said at first, for as long as it is the same."""
        if isinstance(seen, Finding) or seen.first_bad is not None:
            return seen
        kept = self.kept.get(key)
        known = kept is not None and kept.healed is None
        onset = (
            kept.seen.first_bad if kept is not None and known else first_bad_step(self.memory, info, seen.first_step)
        )
        return seen if onset is None else seen._replace(first_bad=onset)

    def take(self, verdict: Verdict, step: int) -> Sequence[tuple[Kept, Severity | None]]:
        """Take in a verdict on the record of a step; return what is new, or worse than ever before, each with the worst before."""
        if verdict is HEALTHY:
            self.judged, self.reason, self.confirming = True, "", False
            self.since, self.readings = None, 0
            return ()
        told: list[tuple[Kept, Severity | None]] = []
        taken_in = [self.kept.pop(key) for key in verdict.withdrawn if key in self.kept]
        worst = max((kept.told for kept in taken_in if not kept.held), default=None)
        for key, seen in verdict.findings.items():
            kept = self.kept.get(key)
            if kept is None:
                kept = self.kept[key] = Kept(seen, told=seen.severity if worst is None else max(worst, seen.severity))
                if worst is None or seen.severity > worst:
                    told.append((kept, worst))
                continue
            before = kept.told
            if kept.take(seen):
                told.append((kept, before))
        for key, shown_by in verdict.healed.items():
            if key in self.kept and key not in verdict.findings:
                self.kept[key].heal(step, shown_by)
        self.judged = (self.judged and not verdict.lapsed) or not verdict.unjudged
        self.reason = verdict.unjudged
        self.confirming = verdict.confirming and self.confirmations < _MOST_CONFIRMATIONS
        self.confirmations += self.confirming
        self.since = None if not verdict.confirming else step if self.since is None else self.since
        self.readings = 0 if not verdict.confirming else self.readings + (not verdict.dated)
        return told

    @property
    def under_way(self) -> int | None:
        """The step since which it may be about to find something; None where it isn't."""
        return self.since if self.readings <= _MOST_CONFIRMATIONS else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "memory": plain({key: value for key, value in self.memory.items() if key not in _SHARED}),
            "findings": {key: kept.to_dict(self.rule) for key, kept in self.kept.items()},
            "judged": self.judged,
            "reason": self.reason,
            "confirming": self.confirming,
            "confirmations": self.confirmations,
            "since": self.since,
            "readings": self.readings,
        }

    @classmethod
    def from_dict(cls, rule: Rule, shared: Mapping[str, Any], data: Any) -> _Entry:
        what = f"the state of {rule.code}"
        mapping_of(data, what, required=cls(rule).to_dict())
        memory = plain(plain_of(named(data["memory"], f"the memory of {rule.code}"), f"the memory of {rule.code}"))
        findings = named(plain_of(data["findings"], what), f"what {rule.code} found")
        return cls(
            rule,
            memory={**memory, **shared},
            kept={key: read_kept(finding, rule) for key, finding in findings.items()},
            judged=instance_of(data["judged"], what, bool),
            reason=instance_of(data["reason"], what, str),
            confirming=instance_of(data["confirming"], what, bool),
            confirmations=count_of(data["confirmations"], what, most=_MOST_CONFIRMATIONS),
            since=None if data["since"] is None else count_of(data["since"], what),
            readings=count_of(data["readings"], what),
            restored=True,
        )


def _sort_in(taken: Iterable[tuple[Kept, Severity | None]], risen: list[Kept], told: list[Kept]) -> None:
    """Add what is new or worse, each with the worst before, to what has risen; and to what is told, unless it was a warning already."""
    for kept, before in taken:
        risen.append(kept)
        if before is None or before < Severity.WARNING:
            told.append(kept)


def _read_losses(data: Any) -> Losses:
    """Build the losses of a run from plain data.

    Raises:
        StateError: they aren't what is kept of a run.
    """
    mapping_of(data, "losses", required=Losses().plain())
    start = numbers_of(data["start"], "the first losses", most=_MOST_LOSSES)
    losses = numbers_of(data["losses"], "losses", most=_MOST_LOSSES)
    steps = numbers_of(data["steps"], "steps of the losses", most=_MOST_LOSSES, whole=True)
    counts = numbers_of(data["counts"], "numbers of steps of the losses", most=_MOST_LOSSES, whole=True)
    means = numbers_of(data["means"], "means of the losses", most=_MOST_LOSSES)
    if {len(means), len(counts)} != {len(losses)} or min(counts, default=1) < 1:
        raise StateError("the losses aren't each of one step or more")
    if len(steps) != len(losses) or list(steps) != sorted(steps) or bool(start) != bool(losses):
        raise StateError("the losses aren't one a step, in order")
    return Losses(data)


class Evaluator:
    """Feeds records to rules and keeps what they found.

    Args:
        rules: rules in force, such as `resolve_rules` gives.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._losses, self._recent = Losses(), RecentSteps()
        self._entries = {rule.code: _Entry(rule, dict(self._shared)) for rule in self.rules}
        self.begun_anew: dict[str, str] = {}
        """Why rules could do nothing with what a checkpoint had of them, by code."""
        self.confirming = False
        """Whether a rule has hit and lacks patience, so that the next step should be measured as well; asked at each step."""
        self.risen: Severity | None = None
        """The highest severity that a finding reached for the first time by the last record; None: none did."""
        self._before_end: dict[str, dict[str, Any]] = {}
        """What was kept of the rules that the end of the run says something to: a checkpoint of it is one to go on from."""

    @property
    def _shared(self) -> Mapping[str, Any]:
        """What each rule finds in its memory, beside what it keeps there."""
        return {LOSSES: self._losses, RECENT: self._recent}

    def wants(self, step: int) -> bool:
        """Whether a step should be measured though it isn't due: a rule lacks patience, or something has jumped shortly before.

        A loop of your own asks it beside what it measures anyway. At most 64 steps follow a jump, and in all of a run
        at most 192 of them, or later one of 200 steps.
        """
        return self.confirming or self._recent.wants(step)

    def follows(self, step: int) -> bool:
        """Whether a step is one of those after a jump that are measured one by one."""
        return self._recent.wants(step)

    @_quietly
    def feed(self, record: StepRecord, info: RunInfo) -> tuple[Finding, ...]:
        """Judge one record, whose columns `info` describes; return the findings that are new, or a warning from now on.

        Each is to be told once: as a warning from severity WARNING on, and not again where that rises to ERROR. Findings of
        severity INFO are returned too. What may follow from a root that is on its way is kept back for as long as that is,
        until `let_go` at the latest.
        """
        self.risen = None
        self._losses.note(record)
        self._recent.note(record, info)
        risen: list[Kept] = []
        told: list[Kept] = []
        for entry in self._entries.values():
            _sort_in(self._judge(entry, record, info), risen, told)
        self.confirming = self._wants_more()
        under_way = {code: since for code, entry in self._entries.items() if (since := entry.under_way) is not None}
        return self._tell(told, risen, under_way)

    @_quietly
    def let_go(self) -> tuple[Finding, ...]:
        """Return what was kept back for a root that won't come any more, as the run is over; as `feed`."""
        return self._tell([], [], {})

    @_quietly
    def end(self, end: RunEnd, info: RunInfo) -> tuple[Finding, ...]:
        """Judge how the run ended, and return what that brings together with what was kept back; as `feed`.

        Args:
            end: How it did.
            info: What describes the last record.
        """
        risen: list[Kept] = []
        told: list[Kept] = []
        for code, entry in self._entries.items() if not (self._before_end or end.by_finding) else ():
            verdict = entry.rule.at_end(end, info, entry.memory)
            if verdict is None:
                continue
            self._before_end[code] = entry.to_dict()
            _sort_in(entry.take(verdict, end.steps), risen, told)
        return self._tell(told, risen, {})

    def _tell(self, told: Sequence[Kept], risen: Sequence[Kept], under_way: Mapping[str, int]) -> tuple[Finding, ...]:
        """Return what is news, together with what was kept back, unless it may follow from what is under way."""
        held = [kept for entry in self._entries.values() for kept in entry.kept.values() if kept.held]
        told, risen = [*told, *(kept for kept in held if kept not in told)], [*risen, *held]
        if not told:
            self.risen = max((kept.severity for kept in risen), default=None)
            return ()
        each = [(kept, kept.finding(entry.rule)) for entry in self._entries.values() for kept in entry.kept.values()]
        alone = [finding for _, finding in each]
        untold = [finding for kept, finding in each if kept in told]
        for kept, finding in each:
            kept.held = (
                kept in told and kept.severity >= Severity.WARNING and awaits_root(finding, alone, untold, under_way)
            )
        self.risen = max((kept.severity for kept in risen if not kept.held), default=None)
        news = [
            finding for (kept, _), finding in zip(each, related(alone), strict=True) if kept in told and not kept.held
        ]
        return tuple(sorted(news, key=in_order))

    def _judge(self, entry: _Entry, record: StepRecord, info: RunInfo) -> Sequence[tuple[Kept, Severity | None]]:
        """Judge by a memory that may come from a checkpoint, and make no sense to the rule: then it begins anew."""
        if not entry.restored:
            return entry.judge(record, info)
        try:
            return entry.judge(record, info)
        except Exception as error:  # noqa: BLE001 - whatever it holds; a fault of the rule's own comes again below
            code = entry.rule.code
            self.begun_anew[code] = f"the memory of {code} makes no sense ({type(error).__name__}: {error})"
            entry = self._entries[code] = _Entry(entry.rule, dict(self._shared))
            return entry.judge(record, info)

    @property
    @_quietly
    def findings(self) -> tuple[Finding, ...]:
        """All findings so far, each with its latest numbers; roots first, and each other one says whose consequence it is."""
        return relate(self.alone)

    @property
    @_quietly
    def alone(self) -> tuple[Finding, ...]:
        """The same, each by itself, as if it were the only one: for `relate`, together with others."""
        return tuple(kept.finding(entry.rule) for entry in self._entries.values() for kept in entry.kept.values())

    @property
    def outline(self) -> tuple[tuple[Any, ...], ...]:
        """What makes findings worth telling again, and costs no writing: that their numbers go on is told at the end."""
        return tuple(
            (code, int(kept.severity), kept.first_step, kept.layers)
            for code, entry in self._entries.items()
            for kept in entry.kept.values()
        )

    @property
    def unjudged(self) -> dict[str, str]:
        """Rules that couldn't judge any record so far, by code, with the reason."""
        return {code: entry.reason for code, entry in self._entries.items() if not entry.judged}

    def warning_for(self, finding: Finding) -> type[Warning]:
        """Return the class of the warning that tells a finding of one of these rules."""
        return next(rule.warning for rule in self.rules if rule.code == finding.code)

    @_quietly
    def state_dict(self) -> dict[str, Any]:
        """Return all that is kept, as plain data."""
        return {
            "version": _VERSION,
            "losses": self._losses.plain(),
            "recent": self._recent.plain(),
            "rules": {code: self._before_end.get(code) or entry.to_dict() for code, entry in self._entries.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; rules that weren't in force then start afresh.

        Raises:
            StateError: the state is from another version, or isn't what that gives.
        """
        version = named(state, "rules").get("version")
        if version not in _READ:
            raise StateError(f"the rules' state has version {version!r}; this release reads {_VERSION}")
        mapping_of(state, "rules", required=("version", "losses", "rules"), optional=("recent",))
        saved = named(state["rules"], "the states of the rules")
        self._losses = _read_losses(state["losses"])
        self._recent = RecentSteps.from_plain(state["recent"]) if "recent" in state else RecentSteps()
        self._entries = {
            rule.code: _Entry.from_dict(rule, self._shared, saved[rule.code])
            if rule.code in saved
            else _Entry(rule, dict(self._shared))
            for rule in self.rules
        }
        self.confirming = self._wants_more()

    def _wants_more(self) -> bool:
        return any(entry.confirming for entry in self._entries.values())


def replay(
    records: Iterable[StepRecord], infos: Mapping[str, RunInfo], rules: Sequence[Rule], end: RunEnd | None = None
) -> Evaluator:
    """Judge stored records as a live run would have; `infos` is keyed by layout, `end` is how the run ended, if that is known.

    Raises:
        ValueError: a record's layout isn't described.
        CannotJudgeError: a record holds what can't be calculated with.
    """
    evaluator = Evaluator(rules)
    step, info = -1, None
    for record in records:
        info = infos.get(record.layout)
        if info is None:
            raise ValueError(
                f"the record of step {record.step} has layout {record.layout!r}, which the run doesn't describe"
            )
        step = int(record.step)
        try:
            evaluator.feed(record, info)
        except DATA_ERRORS as error:
            raise CannotJudgeError(f"step {step}: {reason_of(error)}") from error
    if end is not None and info is not None and end.steps > step:  # else these steps are of a fit that went further
        try:
            evaluator.end(end, info)
        except DATA_ERRORS as error:
            raise CannotJudgeError(f"the end: {reason_of(error)}") from error
    return evaluator


def evaluate_records(
    records: Iterable[StepRecord], infos: Mapping[str, RunInfo], rules: Sequence[Rule], end: RunEnd | None = None
) -> tuple[Finding, ...]:
    """Return the findings of stored records: those that a live run with the same rules reported."""
    return replay(records, infos, rules, end).findings
