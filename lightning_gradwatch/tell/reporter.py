"""Who is told what a fit finds: it is handed a reporter, which warns and announces, or listens, or is silent."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.record.escape import escape
from lightning_gradwatch.record.finding import GradWatchWarning
from lightning_gradwatch.tell.announce import announce, conclude, tell, warn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lightning_gradwatch.judge.verdict import RunVerdict
    from lightning_gradwatch.record.finding import Finding
    from lightning_gradwatch.record.run_info import RunInfo


def _note(text: str) -> None:
    tell(escape(text), GradWatchWarning)


def _say_nothing(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class Reporter:
    """What is done with what a fit has to say; by default it is said to the person who trains.

    What `warn` and `note` raise, as the user's filters may want, ends the fit.
    """

    warn: Callable[[Finding, type[Warning], Sequence[Finding]], None] = warn
    """A finding, as a warning of its rule's class, with what it led to."""
    note: Callable[[str], None] = _note
    """Something else that must be known, as a `GradWatchWarning`."""
    announce: Callable[[RunInfo, str], None] = announce
    """What is measured, and where it is written; once, with the first record."""
    conclude: Callable[[RunVerdict, str], None] = conclude
    """What came of it, and its folder; once, at the end."""


SILENT = Reporter(warn=_say_nothing, note=_say_nothing, announce=_say_nothing, conclude=_say_nothing)
_CURRENT = ContextVar("_CURRENT", default=Reporter())  # noqa: B039 - it is frozen


def current() -> Reporter:
    """Return the reporter of a fit that is started here."""
    return _CURRENT.get()


@contextmanager
def reporting(reporter: Reporter) -> Iterator[None]:
    """Have fits that are started in the block report to this one."""
    before = _CURRENT.set(reporter)
    try:
        yield
    finally:
        _CURRENT.reset(before)


def errors_only(reporter: Reporter) -> Reporter:
    """Return one for a process beside the one that reports: only what the user's filters make an error of comes out of it."""

    def warn_errors(finding: Finding, category: type[Warning], led_to: Sequence[Finding]) -> None:
        with warnings.catch_warnings(record=True):
            reporter.warn(finding, category, led_to)

    def note_errors(text: str) -> None:
        with warnings.catch_warnings(record=True):
            reporter.note(text)

    return Reporter(warn=warn_errors, note=note_errors, announce=_say_nothing, conclude=_say_nothing)
