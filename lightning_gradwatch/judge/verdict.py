"""What a check says about a run, as data: each report format renders this and nothing else. No torch, no rendering."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.record.finding import Severity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_gradwatch.judge.run import Run
    from lightning_gradwatch.record.finding import Finding

HEALTHY, FOUND, CANNOT_JUDGE = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class IgnoredLayers:
    """Layers and sites that some rules were told to leave out."""

    rule: str
    """A code or the beginning of codes."""
    pattern: str
    """As in a shell: ``*`` is any text, dots included."""
    reason: str
    names: tuple[str, ...] = ()
    """Layers and sites of the run that the pattern matches; none as long as no run is judged."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One number that got worse than in the baseline."""

    metric: str
    name: str
    """Layer or site; empty for a number of the whole run."""
    base: float
    run: float
    """Medians over the compared steps."""
    noise: float
    """How far the baseline's own steps stray: as a factor of at least 1, for a fraction as a difference."""
    steps: int
    """Measured steps of the run that were compared."""

    @property
    def ratio(self) -> float:
        """How many times the baseline's; infinite where that is 0."""
        if self.base:
            return self.run / self.base
        return float("inf") if self.run else 1.0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A run beside a known good one."""

    baseline: str
    compared: str = ""
    """Which steps, and how many numbers."""
    changes: tuple[Change, ...] = ()
    """What got worse, worst first."""
    known: tuple[Finding, ...] = ()
    """Findings of the run that the baseline has as well."""
    gone: tuple[Finding, ...] = ()
    """Findings of the baseline that the run doesn't have."""
    only_baseline: tuple[str, ...] = ()
    only_run: tuple[str, ...] = ()
    """Layers and sites that one run has and the other hasn't."""
    failure: str = ""
    """Why the two can't be compared; empty where they can."""


@dataclass(frozen=True, kw_only=True)
class RunVerdict:
    """What a check says about one run."""

    path: str
    findings: tuple[Finding, ...] = ()
    unjudged: Mapping[str, str]
    """Rules that couldn't judge, by code, with the reason."""
    judged: int = 0
    """Number of rules that could judge."""
    measured: str = ""
    """Such as ``12 measured steps (0 to 99), 17 layers, 8 sites``."""
    problems: tuple[str, ...] = ()
    """What couldn't be read, and settings that had no effect."""
    failure: str = ""
    """Why the run can't be judged; empty where it can."""
    fault: str = ""
    """What went wrong where it should not have, and where: to be reported; empty where nothing did."""
    exit_code: int = HEALTHY
    fail_on: Severity = Severity.WARNING
    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Thresholds of the rules that could judge, by code."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """``steps``, ``first_step``, ``last_step``, ``layers``, ``sites``; empty where nothing could be read."""
    ignored: tuple[IgnoredLayers, ...] = ()
    comparison: Comparison | None = None
    settings_file: str = ""
    """The file that settings were read from; empty where none was."""
    run: Run | None = field(default=None, repr=False, compare=False)
    """The run as it was read, where its report shows the numbers."""

    def is_known(self, finding: Finding) -> bool:
        """Tell whether the baseline has the finding as well."""
        return self.comparison is not None and finding in self.comparison.known

    def fails(self, finding: Finding) -> bool:
        """Tell whether the finding makes the check fail."""
        return finding.severity >= self.fail_on and not self.is_known(finding)

    @property
    def changes_fail(self) -> bool:
        """Whether something got worse, and that makes the check fail: as a warning does."""
        return self.comparison is not None and bool(self.comparison.changes) and self.fail_on <= Severity.WARNING

    @property
    def sorted_findings(self) -> tuple[Finding, ...]:
        """New ones first, root causes first among them, and the worst first among these."""
        return tuple(
            sorted(self.findings, key=lambda each: (self.is_known(each), bool(each.consequence_of), -each.severity))
        )

    @property
    def outcome(self) -> str:
        """One word for machines: ``healthy``, ``passed`` (with findings), ``failed``, ``cannot-judge``."""
        if self.exit_code == CANNOT_JUDGE:
            return "cannot-judge"
        if self.exit_code == FOUND:
            return "failed"
        return "passed" if self.findings else "healthy"
