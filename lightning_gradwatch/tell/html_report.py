"""The report as the page that shows it: charts of what was judged, in one file that loads nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lightning_gradwatch.judge.run import read_run
from lightning_gradwatch.page.html import html_page
from lightning_gradwatch.page.model import page_model
from lightning_gradwatch.page.redact import given_away
from lightning_gradwatch.page.runs import PageRun
from lightning_gradwatch.record.reasons import DATA_ERRORS, CannotJudgeError, reason_of
from lightning_gradwatch.tell.terminal import ending

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.judge.verdict import RunVerdict

IN_SHORT = "the page of gradwatch report: charts, in one file that loads nothing"
SHOWS_RUNS = True


def html_report(verdicts: Sequence[RunVerdict]) -> str:
    """Render verdicts as a page."""
    return page_of(verdicts)[0]


def page_of(verdicts: Sequence[RunVerdict], *, redact: bool = False) -> tuple[str, list[str]]:
    """Return the page of some runs that were judged, and what it tells of where they were made.

    Args:
        verdicts: The first is of the run that the others are compared with.
        redact: Leave out paths, host names and settings.
    """
    base = _baseline(verdicts)
    named = short_names([*([base] if base else []), *(verdict.path for verdict in verdicts)])
    runs = [_shown(verdict, name) for verdict, name in zip(verdicts, named[-len(verdicts) :], strict=True)]
    if base:
        runs.insert(0, _read(base, f"{named[0]} (baseline)"))
    model = page_model(runs, redact=redact)
    return html_page(model), given_away(model)


def short_names(paths: Sequence[str]) -> list[str]:
    """Call runs by what tells their paths apart.

    >>> short_names(["logs/a/version_0", "logs/b/version_0"]), short_names(["logs/good", "logs/ill"]), short_names(["x"])
    (['a/version_0', 'b/version_0'], ['good', 'ill'], ['x'])
    """
    parts = [[part for part in path.replace("\\", "/").split("/") if part] or [path] for path in paths]
    for kept in range(1, max(map(len, parts), default=1) + 1):
        named = ["/".join(each[-kept:]) for each in parts]
        if len(set(named)) == len(named):
            return named
    return list(paths)


def _baseline(verdicts: Sequence[RunVerdict]) -> str:
    """Return the run that all of them were held against; empty where there is none."""
    paths = {"" if each.comparison is None else each.comparison.baseline for each in verdicts}
    return paths.pop() if len(paths) == 1 else ""


def _read(path: str, name: str, verdict: RunVerdict | None = None) -> PageRun:
    """Return a run as the verdict on it has it, or as it is read, where there is none or it couldn't be judged."""
    try:
        run = read_run(path) if verdict is None or verdict.run is None else verdict.run
        return PageRun.of(run, name=name, findings=None if verdict is None else verdict.findings)
    except (CannotJudgeError, OSError, *DATA_ERRORS) as error:
        return PageRun.failed(name, reason_of(error), path=path)


def _shown(verdict: RunVerdict, name: str) -> PageRun:
    shown = _read(verdict.path, name, verdict)
    return replace(
        shown,
        findings=verdict.findings,
        verdict=ending(verdict),
        failure=verdict.failure or shown.failure,
        unjudged=verdict.unjudged,
        problems=verdict.problems,
        settings_file=verdict.settings_file,
        path=verdict.path,
    )
