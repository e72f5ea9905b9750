"""Telling a person who trains: one warning a finding, one line at the start."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TYPE_CHECKING

from lightning_gradwatch.record.escape import Place, escape
from lightning_gradwatch.tell.coverage import coverage_line
from lightning_gradwatch.tell.terminal import check_command, ending, warning_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.judge.verdict import RunVerdict
    from lightning_gradwatch.record.finding import Finding
    from lightning_gradwatch.record.run_info import RunInfo

_INTERNAL = (
    "lightning_gradwatch.",
    "lightning.",
    "pytorch_lightning.",
    "lightning_fabric.",
    "torch.",
    "contextlib.",
    "multiprocessing.",
)

_log = logging.getLogger("lightning_gradwatch")


def warn(finding: Finding, category: type[Warning], led_to: Sequence[Finding] = ()) -> None:
    """Warn about a finding, and say what it led to.

    Raises:
        Warning: the user's filters turn warnings of this class into errors.
    """
    tell(warning_text(finding, led_to=led_to, before=f"{category.__name__}: "), category)


def tell(text: str, category: type[Warning]) -> None:
    """Warn from the user's own line (that of ``trainer.fit``).

    Python remembers per line which warnings it has shown; a fresh registry each time keeps it from swallowing ours in a
    second fit. The user's filters hold.

    Raises:
        Warning: the user's filters turn warnings of this class into errors.
    """
    frame = sys._getframe(1)  # noqa: SLF001 - what warnings itself does for its stacklevel
    while frame.f_back is not None and f"{frame.f_globals.get('__name__', '')}.".startswith(_INTERNAL):
        frame = frame.f_back
    warnings.warn_explicit(text, category, filename=frame.f_code.co_filename, lineno=frame.f_lineno, registry={})


def announce(info: RunInfo, where: str) -> None:
    """Say in one line what is measured and what isn't, and where it is written."""
    _inform(coverage_line(info, where=where))


def conclude(verdict: RunVerdict, path: str) -> None:
    """Say in one line what came out: healthy or not, how many rules judged, and what says more.

    Args:
        verdict: What a check of the run would say.
        path: Its folder; empty where nothing is written.
    """
    line = f"GradWatch: {ending(verdict)}"
    _inform(f"{line}. More: {check_command(path)}" if path else line)


def _inform(line: str) -> None:
    _have_a_handler()
    if _log.level == logging.NOTSET:
        _log.setLevel(logging.INFO)
    _log.info(escape(line, Place.LOG))


def tell_unwatched() -> None:
    """Say that a callback is asked for findings which has watched nothing: no finding is no good news then.

    A line in the log, as a warning would be an error to who makes errors of warnings, and has only looked.
    """
    _have_a_handler()
    _log.warning(
        "GradWatch: this callback has watched no fit, nor has a copy of it: that it has no findings says nothing. Was it passed on, "
        "as in Trainer(callbacks=[watch]), or was another one built from its settings?"
    )


def _have_a_handler() -> None:
    """As Lightning does for its own lines: without a handler an INFO line is never seen."""
    if not logging.getLogger().handlers and not _log.handlers:
        _log.addHandler(logging.StreamHandler())
        _log.propagate = False
