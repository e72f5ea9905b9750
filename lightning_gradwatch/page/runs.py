"""A run as the page is given it: what is read from a folder, watched live or handed over by TensorBoard looks alike here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lightning_gradwatch.judge.run import evaluate
from lightning_gradwatch.record.run_info import RunInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_gradwatch.judge.run import Run
    from lightning_gradwatch.record.finding import Finding
    from lightning_gradwatch.record.step import StepRecord


@dataclass(frozen=True, kw_only=True, eq=False)
class PageRun:
    """One run, and what was found in it."""

    name: str
    """What the page calls it."""
    info: RunInfo
    """The newest description."""
    infos: Mapping[str, RunInfo] = field(default_factory=dict)
    """By layout, in the order they were written; empty: `info` describes each record."""
    records: Sequence[StepRecord] = ()
    """By step, rising."""
    findings: Sequence[Finding] = ()
    verdict: str = ""
    """In one sentence, as a check ends; empty: told by the findings."""
    failure: str = ""
    """Why it can't be judged or shown; empty where it can."""
    unjudged: Mapping[str, str] = field(default_factory=dict)
    """Rules that couldn't judge, by code, with the reason."""
    problems: Sequence[str] = ()
    """What couldn't be read, a sentence each."""
    settings_file: str = ""
    """Which file of settings it was judged by; empty: by none."""
    path: str = ""
    """Where it lies; left out of a page that is redacted."""
    colour: str = ""
    """As the host shows the run elsewhere, such as ``#ff7043``; empty: the page chooses."""

    @classmethod
    def of(cls, run: Run, *, name: str = "", findings: Sequence[Finding] | None = None, colour: str = "") -> PageRun:
        """Take a run as it was read.

        Args:
            run: What `read_run` gave, or `Run.from_records`.
            name: What the page calls it; empty: the last part of its path.
            findings: None: it is judged, by the rules stored in it.
            colour: As the host shows it.

        Raises:
            RunError: it holds what can't be judged.
        """
        return cls(
            name=name or run.path.name or str(run.path),
            info=run.info,
            infos=run.infos,
            records=run.records,
            findings=evaluate(run) if findings is None else findings,
            problems=run.problems,
            path=str(run.path),
            colour=colour,
        )

    @classmethod
    def failed(cls, name: str, failure: str, *, path: str = "") -> PageRun:
        """Stand for a run that can't be read."""
        return cls(name=name, info=RunInfo(), failure=failure, path=path)

    @property
    def layouts(self) -> Mapping[str, RunInfo]:
        """Descriptions by layout."""
        return self.infos or {self.info.layout: self.info}
