"""Judges a run record by record. Live and replay are this one path, so that they can't disagree.

What it keeps is plain data, so that a checkpoint can carry it and a resumed run goes on where it stopped.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lightning_gradwatch.record import RunInfo, StepRecord
    from lightning_gradwatch.rules.protocol import Rule, State, Verdict

_VERSION = 1
_MOST_CONFIRMATIONS = 32  # a value that dances around its threshold must not have every step measured


@dataclass
class _Entry:
    """What is kept about one rule."""

    memory: State = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)
    judged: bool = False
    reason: str = "not yet: no step was measured"
    confirming: bool = False
    confirmations: int = 0

    def take(self, verdict: Verdict) -> list[Finding]:
        """Take in a verdict; return findings that are new, or worse than before."""
        for key in verdict.withdrawn:
            self.findings.pop(key, None)
        told = []
        for key, finding in verdict.findings.items():
            kept = self.findings.get(key)
            merged = finding if kept is None else _merge(kept, finding)
            self.findings[key] = merged
            if kept is None or merged.severity > kept.severity:
                told.append(merged)
        self.judged = self.judged or not verdict.unjudged
        self.reason = verdict.unjudged
        self.confirming = verdict.confirming and self.confirmations < _MOST_CONFIRMATIONS
        self.confirmations += self.confirming
        return told

    def to_dict(self) -> dict[str, Any]:
        return {
            "memory": copy.deepcopy(self.memory),
            "findings": {key: finding.to_dict() for key, finding in self.findings.items()},
            "judged": self.judged,
            "reason": self.reason,
            "confirming": self.confirming,
            "confirmations": self.confirmations,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> _Entry:
        return cls(
            memory=copy.deepcopy(data["memory"]),
            findings={key: Finding.from_dict(finding) for key, finding in data["findings"].items()},
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
        self._entries = {rule.code: _Entry() for rule in self.rules}

    def feed(self, record: StepRecord, info: RunInfo) -> tuple[Finding, ...]:
        """Judge one record, whose columns `info` describes; return the findings that are new or rose in severity.

        Each is to be told once: as a warning from severity WARNING on. Findings of severity INFO are returned too.
        """
        told: list[Finding] = []
        for rule in self.rules:
            entry = self._entries[rule.code]
            told.extend(entry.take(rule.judge(record, info, entry.memory)))
        return tuple(told)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings so far, by code, each with its latest numbers."""
        return tuple(finding for entry in self._entries.values() for finding in entry.findings.values())

    @property
    def confirming(self) -> bool:
        """Whether a rule has hit and lacks patience, so that the next step should be measured as well."""
        return any(entry.confirming for entry in self._entries.values())

    @property
    def unjudged(self) -> dict[str, str]:
        """Rules that couldn't judge any record so far, by code, with the reason."""
        return {code: entry.reason for code, entry in self._entries.items() if not entry.judged}

    def warning_for(self, finding: Finding) -> type[Warning]:
        """Return the class of the warning that tells a finding of one of these rules."""
        return next(rule.warning for rule in self.rules if rule.code == finding.code)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is kept, as plain data."""
        return {"version": _VERSION, "rules": {code: entry.to_dict() for code, entry in self._entries.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; rules that weren't in force then start afresh.

        Raises:
            ValueError: the state is from another version.
        """
        if state.get("version") != _VERSION:
            raise ValueError(f"the monitor's state has version {state.get('version')!r}; this release reads {_VERSION}")
        saved = state["rules"]
        self._entries = {
            rule.code: _Entry.from_dict(saved[rule.code]) if rule.code in saved else _Entry() for rule in self.rules
        }


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


def _merge(kept: Finding, new: Finding) -> Finding:
    """Keep the worst severity with the numbers that go with it, and the whole span of steps."""
    first = min(kept.first_step, new.first_step)
    if new.severity < kept.severity:
        return replace(kept, first_step=first, last_step=new.last_step)
    return replace(new, first_step=first)
