"""What is kept of a finding over a run's records: the worst that was seen, from when on, and whether it has healed.

It is plain data in the end, so that a checkpoint can carry it, and its sentences are written only where they are read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.record.checkpoint import StateError, instance_of, mapping_of
from lightning_gradwatch.record.finding import CauseKind, Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_gradwatch.judge.rule import LazyFinding, Rule


class Kept:
    """A finding over all records: the worst severity with the numbers that go with it, and the whole span of steps."""

    __slots__ = ("_finding", "first_step", "healed", "held", "last_step", "seen", "told")

    def __init__(self, seen: Finding | LazyFinding, *, told: Severity | None = None) -> None:
        self.seen = seen
        self.first_step = seen.first_step
        self.last_step = seen.last_step
        self.told = seen.severity if told is None else told
        """The worst it has ever been."""
        self.healed: tuple[int, str] | None = None
        """The step that showed it gone, and what shows it."""
        self.held = False
        """Whether nobody was told yet, as the root that it follows from may be on its way."""
        self._finding: Finding | None = None

    @property
    def severity(self) -> Severity:
        """How bad it is now: what has healed is information."""
        return self.seen.severity if self.healed is None else Severity.INFO

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

    def take(self, new: Finding | LazyFinding) -> bool:
        """Take in a later one; return whether it is worse than any before."""
        if self.healed is not None:  # it is back: what it was before is over
            self.seen, self.first_step, self.healed = new, new.first_step, None
        elif new.severity >= self.seen.severity:
            self.seen = new
        self.first_step = min(self.first_step, new.first_step)
        self.last_step = new.last_step
        self._finding = None
        before, self.told = self.told, max(self.told, new.severity)
        return self.told > before

    def heal(self, step: int, shown_by: str) -> None:
        """Note that it no longer holds."""
        if self.healed is None:
            self.healed = step, shown_by
            self._finding = None

    def finding(self, rule: Rule) -> Finding:
        """Return the finding as it stands, its sentences written now."""
        if self._finding is None:
            if not isinstance(self.seen, Finding):
                self.seen = _written(rule, self.seen, self.layers)
            self._finding = replace(self.seen, first_step=self.first_step, last_step=self.last_step)
            if self.healed is not None:
                step, shown_by = self.healed
                self._finding = replace(
                    self._finding,
                    severity=Severity.INFO,
                    message=f"{self._finding.message} It has healed: {shown_by}.",
                    evidence=f"{self._finding.evidence} It has healed: {shown_by}.".lstrip(),
                    healed_step=step,
                )
        return self._finding

    def to_dict(self, rule: Rule) -> dict[str, Any]:
        """Return plain data; `from_dict` reads it back."""
        now, self.healed = self.healed, None
        self._finding = None
        whole = self.finding(rule).to_dict()
        self.healed, self._finding = now, None
        return {
            "finding": whole,
            "told": int(self.told),
            "healed": None if now is None else [*now],
            "held": self.held,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Kept:
        """Build from what `to_dict` gave."""
        kept = cls(Finding.from_dict(data["finding"]), told=Severity(data["told"]))
        if data["healed"] is not None:
            step, shown_by = data["healed"]
            kept.healed = int(step), str(shown_by)
        kept.held = instance_of(data["held"], "whether it is held back", bool)
        return kept


def _written(rule: Rule, seen: LazyFinding, layers: tuple[str, ...]) -> Finding:
    cause, remedy, message, causes, headline = seen.write()
    evidence = " ".join(part for part in (message, "" if seen.first_bad is None else seen.first_bad.sentence) if part)
    message = " ".join(part for part in (f"{headline}." if headline else "", evidence) if part)
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
        cause_kind=causes[0].kind if causes else CauseKind.UNKNOWN,
        causes=causes,
        first_bad=seen.first_bad,
        headline=headline,
        evidence=evidence,
    )


def read_kept(data: Any, rule: Rule) -> Kept:
    """Build what is kept of a finding of a rule from plain data.

    Raises:
        StateError: it isn't that.
    """
    mapping_of(data, f"a finding of {rule.code}", required=("finding", "told", "healed", "held"))
    try:
        kept = Kept.from_dict(data)
    except (AttributeError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise StateError(f"a finding of {rule.code} can't be read ({type(error).__name__}: {error})") from error
    finding = kept.seen
    if (
        not isinstance(finding, Finding)
        or finding.code != rule.code
        or finding.to_dict() != _as_read(data["finding"], finding)
    ):
        raise StateError(f"a finding of {rule.code} isn't one")
    return kept


def _as_read(data: Mapping[str, Any], finding: Finding) -> dict[str, Any]:
    """Return a finding's data as this release has them: another one may know other causes, or none."""
    causes = [{**cause, "kind": CauseKind.read(cause["kind"]).value} for cause in data.get("causes", ())]
    kind = CauseKind.read(data.get("cause_kind", CauseKind.UNKNOWN.value)).value
    onset = None if finding.first_bad is None else finding.first_bad.to_dict()
    read = {"consequence_of": finding.consequence_of, "cause_kind": kind, "causes": causes, "first_bad": onset}
    read |= {"headline": finding.headline, "evidence": finding.evidence}
    return {**data, **read}
