"""Judges a stored run again, from its event file alone, and compares with what the live run said."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from benchmarks.galleries.cases import CASES, HALF_OF
from benchmarks.galleries.peer_rules import Alarm, judge_as_peers
from benchmarks.galleries.runner import load, run_folder
from lightning_gradwatch import DEFAULT_RULES, CauseKind, Finding, Severity, evaluate, read_run
from lightning_gradwatch.judge.evaluator import Evaluator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.galleries.runner import Result
    from benchmarks.galleries.spec import Case, Half
    from lightning_gradwatch import Run

_EARLY_STEPS = 60
_EARLY_SHARE = 0.1


@dataclass(frozen=True)
class Judged:
    """A run, its outcome, and what is said of it."""

    case: Case
    result: Result
    findings: tuple[Finding, ...]
    """By the default rules of this release."""
    warned: int | None
    """The first step after which a warning is out."""
    differs: str
    """How the replay differs from the live run; empty where it doesn't."""
    peers: Mapping[str, tuple[Alarm, ...]]

    @property
    def half(self) -> Half:
        """The half of the gallery it belongs to."""
        return HALF_OF[self.case.name]

    @property
    def ill(self) -> bool:
        """Whether it is counted as ill: it was meant so and didn't learn."""
        return self.case.ill and not self.result.outcome.learned

    @cached_property
    def alarms(self) -> tuple[Finding, ...]:
        """Findings that warn."""
        return tuple(finding for finding in self.findings if finding.severity >= Severity.WARNING)

    @property
    def root(self) -> Finding | None:
        """The root cause: of what isn't a consequence of another finding, the first of the highest severity."""
        roots = [finding for finding in self.alarms if not finding.consequence_of]
        return max(roots, key=lambda finding: finding.severity, default=None)

    @property
    def named(self) -> bool:
        """Whether the root cause is the one that was built in."""
        return self.root is not None and self.root.code in self.case.roots

    def is_early(self, step: int) -> bool:
        """Tell whether a step is in the first tenth of the run, or among the first 60."""
        return step <= max(_EARLY_SHARE * self.case.training.steps, _EARLY_STEPS)


def judge_all(names: Sequence[str], seeds: Sequence[int], runs: Path, arithmetics: Sequence[str]) -> list[Judged]:
    """Judge stored runs, case by case."""
    return [judge(name, seed, runs, arithmetic) for name in names for arithmetic in arithmetics for seed in seeds]


def judge(name: str, seed: int, runs: Path, arithmetic: str = "") -> Judged:
    """Judge a stored run.

    Raises:
        FileNotFoundError: there is no such run.
    """
    result, readings = load(runs, name, seed, arithmetic)
    run = read_run(run_folder(runs, name, seed, arithmetic))
    findings, warned = _replay(run)
    return Judged(
        case=CASES[name],
        result=result,
        findings=findings,
        warned=warned,
        differs=_difference(result.findings, evaluate(run), run.findings),
        peers=judge_as_peers(readings, result.outcome.needed),
    )


def _replay(run: Run) -> tuple[tuple[Finding, ...], int | None]:
    """Feed the records one by one, as the live run did, to see when the first warning comes."""
    evaluator = Evaluator(DEFAULT_RULES)
    warned = None
    for record in run.records:
        told = evaluator.feed(record, run.infos[record.layout])
        if warned is None and any(finding.severity >= Severity.WARNING for finding in told):
            warned = int(record.step)
    if run.end is not None and run.records:
        last = run.records[-1]
        told = evaluator.end(run.end, run.infos[last.layout])
        if warned is None and any(finding.severity >= Severity.WARNING for finding in told):
            warned = int(last.step)
    return evaluator.findings, warned


def _difference(live: tuple[Finding, ...], replayed: tuple[Finding, ...], stored: tuple[Finding, ...]) -> str:
    if not any(finding.causes for finding in live):  # runs of releases that stored no causes as data
        replayed = tuple(replace(finding, cause_kind=CauseKind.UNKNOWN, causes=()) for finding in replayed)
    if live == replayed == stored:
        return ""
    codes = [
        sorted(f"{finding.code} {finding.severity.label}" for finding in each) for each in (live, replayed, stored)
    ]
    if codes[0] == codes[1] == codes[2]:
        return f"the same codes ({', '.join(codes[0])}), other numbers or words"
    return f"live {codes[0]}, replayed {codes[1]}, stored {codes[2]}"
