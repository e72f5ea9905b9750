"""Judges a run record by record. Live and replay are this one path, so that they can't disagree.

What it keeps is plain data, so that a checkpoint can carry it and a resumed run goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_gradwatch.findings import Finding
from lightning_gradwatch.rules.causes import relate
from lightning_gradwatch.rules.memory import plain
from lightning_gradwatch.rules.protocol import HEALTHY
from lightning_gradwatch.rules.trend import LOSSES, Losses

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lightning_gradwatch.record import RunInfo, StepRecord
    from lightning_gradwatch.rules.protocol import Rule, Sighting, State, Verdict

_VERSION = 3
_quietly = np.errstate(over="ignore", invalid="ignore", divide="ignore")
"""Weights of 1e300, as float64 or a damaged file may have them, are no reason for numpy to warn in a training loop."""
_MOST_CONFIRMATIONS = 32  # a value that dances around its threshold must not have every step measured


class _Kept:
    """A finding over all records: the worst severity with the numbers that go with it, and the whole span of steps."""

    __slots__ = ("_finding", "first_step", "last_step", "seen")

    def __init__(self, seen: Finding | Sighting) -> None:
        self.seen = seen
        self.first_step = seen.first_step
        self.last_step = seen.last_step
        self._finding: Finding | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of the latest of the worst."""
        seen = self.seen
        if isinstance(seen, Finding):
            return seen.layers
        if isinstance(seen.layers, tuple):
            return seen.layers
        layers = seen.layers()
        self.seen = seen._replace(layers=layers)
        return layers

    def take(self, new: Finding | Sighting) -> bool:
        """Take in a later one; return whether it is worse than any before."""
        severity = self.seen.severity
        if new.severity >= severity:
            self.seen = new
        self.first_step = min(self.first_step, new.first_step)
        self.last_step = new.last_step
        self._finding = None
        return new.severity > severity

    def finding(self, rule: Rule) -> Finding:
        """Return the finding as it stands, its sentences written now."""
        if self._finding is None:
            if not isinstance(self.seen, Finding):
                self.seen = _written(rule, self.seen, self.layers)
            self._finding = replace(self.seen, first_step=self.first_step, last_step=self.last_step)
        return self._finding


def _written(rule: Rule, seen: Sighting, layers: tuple[str, ...]) -> Finding:
    cause, remedy, message = seen.write()
    return Finding(
        code=rule.code,
        name=rule.name,
        severity=seen.severity,
        layers=layers,
        first_step=seen.first_step,
        last_step=seen.last_step,
        value=seen.value,
        threshold=seen.threshold,
        cause=cause,
        remedy=remedy,
        message=message,
    )


@dataclass
class _Entry:
    """What is kept about one rule."""

    rule: Rule
    memory: State = field(default_factory=dict)
    kept: dict[str, _Kept] = field(default_factory=dict)
    judged: bool = False
    reason: str = "not yet: no step was measured"
    confirming: bool = False
    confirmations: int = 0

    def take(self, verdict: Verdict) -> Sequence[_Kept]:
        """Take in a verdict; return what is new, or worse than before."""
        if verdict is HEALTHY:
            self.judged, self.reason, self.confirming = True, "", False
            return ()
        told = []
        for key in verdict.withdrawn:
            self.kept.pop(key, None)
        for key, seen in verdict.findings.items():
            kept = self.kept.get(key)
            if kept is None:
                kept = self.kept[key] = _Kept(seen)
                told.append(kept)
            elif kept.take(seen):
                told.append(kept)
        self.judged = (self.judged and not verdict.lapsed) or not verdict.unjudged
        self.reason = verdict.unjudged
        self.confirming = verdict.confirming and self.confirmations < _MOST_CONFIRMATIONS
        self.confirmations += self.confirming
        return told

    def to_dict(self) -> dict[str, Any]:
        return {
            "memory": plain({key: value for key, value in self.memory.items() if key != LOSSES}),
            "findings": {key: kept.finding(self.rule).to_dict() for key, kept in self.kept.items()},
            "judged": self.judged,
            "reason": self.reason,
            "confirming": self.confirming,
            "confirmations": self.confirmations,
        }

    @classmethod
    def from_dict(cls, rule: Rule, losses: Losses, data: Mapping[str, Any]) -> _Entry:
        return cls(
            rule,
            memory={**plain(data["memory"]), LOSSES: losses},
            kept={key: _Kept(Finding.from_dict(finding)) for key, finding in data["findings"].items()},
            judged=data["judged"],
            reason=data["reason"],
            confirming=data["confirming"],
            confirmations=data["confirmations"],
        )


class Evaluator:
    """Feeds records to rules and keeps what they found.

    Args:
        rules: rules in force, such as `resolve_rules` gives.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._losses = Losses()
        self._entries = {rule.code: _Entry(rule, {LOSSES: self._losses}) for rule in self.rules}
        self.confirming = False
        """Whether a rule has hit and lacks patience, so that the next step should be measured as well; asked at each step."""

    @_quietly
    def feed(self, record: StepRecord, info: RunInfo) -> tuple[Finding, ...]:
        """Judge one record, whose columns `info` describes; return the findings that are new or rose in severity.

        Each is to be told once: as a warning from severity WARNING on. Findings of severity INFO are returned too.
        """
        self._losses.note(record)
        told: list[Finding] = []
        for entry in self._entries.values():
            for kept in entry.take(entry.rule.judge(record, info, entry.memory)):
                told.append(kept.finding(entry.rule))  # noqa: PERF401 - a generator for each rule of each record takes longer
        self.confirming = self._wants_more()
        return (
            tuple(finding for finding in self.findings if replace(finding, consequence_of="") in told) if told else ()
        )

    @property
    @_quietly
    def findings(self) -> tuple[Finding, ...]:
        """All findings so far, each with its latest numbers; roots first, and each other one says whose consequence it is."""
        return relate(kept.finding(entry.rule) for entry in self._entries.values() for kept in entry.kept.values())

    @property
    def outline(self) -> tuple[tuple[Any, ...], ...]:
        """What makes findings worth telling again, and costs no writing: that their numbers go on is told at the end."""
        return tuple(
            (code, int(kept.seen.severity), kept.first_step, kept.layers)
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
            "rules": {code: entry.to_dict() for code, entry in self._entries.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; rules that weren't in force then start afresh.

        Raises:
            ValueError: the state is from another version.
        """
        if state.get("version") != _VERSION:
            raise ValueError(f"the monitor's state has version {state.get('version')!r}; this release reads {_VERSION}")
        saved = state["rules"]
        self._losses = Losses(state["losses"])
        self._entries = {
            rule.code: _Entry.from_dict(rule, self._losses, saved[rule.code])
            if rule.code in saved
            else _Entry(rule, {LOSSES: self._losses})
            for rule in self.rules
        }
        self.confirming = self._wants_more()

    def _wants_more(self) -> bool:
        return any(entry.confirming for entry in self._entries.values())


def replay(records: Iterable[StepRecord], infos: Mapping[str, RunInfo], rules: Sequence[Rule]) -> Evaluator:
    """Judge stored records as a live run would have; `infos` is keyed by layout.

    Raises:
        ValueError: a record's layout isn't described.
    """
    evaluator = Evaluator(rules)
    for record in records:
        info = infos.get(record.layout)
        if info is None:
            raise ValueError(
                f"the record of step {record.step} has layout {record.layout!r}, which the run doesn't describe"
            )
        evaluator.feed(record, info)
    return evaluator


def evaluate_records(
    records: Iterable[StepRecord], infos: Mapping[str, RunInfo], rules: Sequence[Rule]
) -> tuple[Finding, ...]:
    """Return the findings of stored records: those that a live run with the same rules reported."""
    return replay(records, infos, rules).findings
