"""One watched test: which fits there were, what was found, and which findings the test itself dealt with.

A test deals with a finding by taking its warning (`pytest.warns`, `recwarn`, a recording `warnings.catch_warnings`) or
the exception that its own GradWatch or filter raises. So warnings are delivered to whoever records them, and those that
nobody in the test took are found in the record that this class keeps around the test. Light until a Trainer is fitted.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.record.finding import GradWatchError, GradWatchWarning, Severity
from lightning_gradwatch.testing.plugin.trainers import hooked_trainers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lightning_gradwatch.fit.callback import GradWatch
    from lightning_gradwatch.record.finding import Finding
    from lightning_gradwatch.tell.reporter import Reporter
    from lightning_gradwatch.testing.plugin.options import Options


@dataclass
class Fitted:
    """What one fit came to."""

    measured: int = 0
    """Records there are."""
    judged: int = 0
    """Rules that could judge."""
    reasons: tuple[str, ...] = ()
    """Why something wasn't measured or judged."""
    findings: tuple[Finding, ...] = ()
    taken: dict[str, Warning | None] = field(default_factory=dict)
    """By code: the warning that the test took, or None where it was an exception."""


class WatchedTest:
    """Watches the Trainers that a test fits.

    Args:
        options: How.
        required: Whether the test must measure something.
        every_trainer: Watch all Trainers; False: only those that were given a callback from `make_watch`.
    """

    def __init__(self, options: Options, *, required: bool, every_trainer: bool) -> None:
        self.options = options
        self.required = required
        self.fits: list[Fitted] = []
        self._every_trainer = every_trainer
        self._current: list[Fitted] = []
        self._log: list[warnings.WarningMessage] = []
        self._ours: list[Warning] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the test and its fixtures are done; warnings that aren't ours are passed on then."""
        try:
            with warnings.catch_warnings(record=True) as log, hooked_trainers(self._around_fit):
                self._log = log
                yield
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("always")  # each has passed the filters once
                for entry in self._log:
                    if not any(entry.message is message for message in self._ours):
                        warnings.warn_explicit(
                            entry.message, entry.category, entry.filename, entry.lineno, source=entry.source
                        )

    def restart(self) -> None:
        """Forget an earlier attempt at the same test."""
        self.fits.clear()

    def make_watch(self, **changes: Any) -> GradWatch:
        """Return a callback; `changes` are GradWatch's arguments in place of the options'.

        Raises:
            TypeError, ValueError: an argument can't be used.
        """
        from lightning_gradwatch.testing.watch import Watch  # noqa: PLC0415 - torch, Lightning

        options = self.options
        settings = {"every_n_steps": options.every_n_steps, "rules": options.rules, "ignore": options.ignore}
        return Watch(**{**settings, **changes}, deliver=self._deliver)

    # -- what came of it

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings of the fits so far, in order."""
        return tuple(finding for fitted in self.fits for finding in fitted.findings)

    @property
    def dealt_with(self) -> tuple[Finding, ...]:
        """The findings at or above the level that the test itself took."""
        return tuple(finding for finding, taken in self._failing() if taken)

    @property
    def failing(self) -> tuple[Finding, ...]:
        """The findings at or above the level that it didn't."""
        return tuple(finding for finding, taken in self._failing() if not taken)

    @property
    def why_nothing(self) -> str:
        """Why the test can't be judged; empty where it can, or needn't be."""
        if not self.required or any(fitted.judged for fitted in self.fits) or self.findings:
            return ""
        if not self.fits:
            where = "" if self._every_trainer else " with a callback of the fixture: Trainer(callbacks=[gradwatch()])"
            return f"nothing was measured: no Trainer was fitted in this test's own process{where}"
        reasons = "; ".join(dict.fromkeys(reason for fitted in self.fits for reason in fitted.reasons))
        if not any(fitted.measured for fitted in self.fits):
            return f"nothing was measured: no optimizer step was completed{f' ({reasons})' if reasons else ''}"
        return f"nothing was judged: {reasons or 'no rule was in force'}"

    def _failing(self) -> Iterator[tuple[Finding, bool]]:
        level = Severity[self.options.fail_on.upper()]
        for fitted in self.fits:
            for finding in fitted.findings:
                if finding.severity >= level and not finding.code.startswith(self.options.ignore):
                    yield finding, finding.code in fitted.taken and not self._came_back(fitted.taken[finding.code])

    def _came_back(self, message: Warning | None) -> bool:
        """Whether a recorder passed a warning on, as `pytest.warns` does with those it wasn't asked for."""
        return message is not None and any(entry.message is message for entry in self._log)

    # -- during a fit

    def _around_fit(self, trainer: Any, fit: Callable[[], Any]) -> Any:
        from lightning_gradwatch.fit.callback import GradWatch  # noqa: PLC0415 - Lightning is there already
        from lightning_gradwatch.tell.reporter import current, reporting  # noqa: PLC0415 - as light as numpy
        from lightning_gradwatch.testing.watch import Watch  # noqa: PLC0415 - Lightning, too

        if not isinstance(getattr(trainer, "callbacks", None), list):  # a stand-in of the test's
            return fit()
        fitted = Fitted()
        added = self.make_watch() if self._every_trainer else None
        if added is not None and any(isinstance(each, Watch) for each in trainer.callbacks):
            added = None  # the fixture's, in a test that is watched anyway
        if added is not None:
            trainer.callbacks.insert(0, added)  # checkpoints stay last
        self._current.append(fitted)
        try:
            with reporting(self._noting(current())):
                return fit()
        except Exception as error:
            fitted.taken.update(dict.fromkeys(_codes_of(error, trainer)))
            raise
        finally:
            kind = GradWatch if self._every_trainer else Watch
            watches = [each for each in trainer.callbacks if isinstance(each, kind)]
            for watch in watches:
                if isinstance(watch, Watch):
                    watch.deliver_new()  # what other processes have found was delivered nowhere
                _read(watch, fitted)
            self._current.pop()
            if watches:
                self.fits.append(fitted)
            if added in trainer.callbacks:
                trainer.callbacks.remove(added)

    def _deliver(self, finding: Finding, category: type[Warning]) -> None:
        """Give a finding of a callback that the user didn't write to whoever records warnings, past all filters.

        Filters decide about the user's own callback; this one must neither end a fit nor fall silent.
        """
        from lightning_gradwatch.tell.terminal import warning_text  # noqa: PLC0415 - as light as numpy

        message = category(warning_text(finding))
        self._ours.append(message)
        self._show(finding.code, message, category, __file__, 0)

    def _noting(self, reporter: Reporter) -> Reporter:
        """Return one that reports as another does, and notes which warnings of the user's own callbacks the test hears."""

        def warn(finding: Finding, category: type[Warning], led_to: Sequence[Finding]) -> None:
            try:
                with warnings.catch_warnings(record=True) as heard:
                    reporter.warn(finding, category, led_to)  # by the user's filters
            except GradWatchWarning:
                self._current[-1].taken[finding.code] = None
                raise
            for entry in heard:
                message = entry.message if isinstance(entry.message, Warning) else entry.category(entry.message)
                self._show(finding.code, message, entry.category, entry.filename, entry.lineno)

        return replace(reporter, warn=warn)

    def _show(self, code: str, message: Warning, category: type[Warning], filename: str, lineno: int) -> None:
        before = len(self._log)
        warnings.showwarning(message, category, filename, lineno)
        if len(self._log) == before and self._current:
            self._current[-1].taken[code] = message


def _codes_of(error: Exception, trainer: Any) -> Iterator[str]:
    """Yield the codes of the findings for which a GradWatch ended a fit."""
    if isinstance(error, GradWatchError):
        yield from (finding.code for finding in error.findings)
    elif GradWatchError.__name__ in str(error):  # as a process that the fit has started raised it, in text
        from lightning_gradwatch.fit.callback import GradWatch  # noqa: PLC0415 - Lightning is there already

        for watch in trainer.callbacks:
            if isinstance(watch, GradWatch):
                yield from (finding.code for finding in watch.findings if finding.code in str(error))


def _read(watch: GradWatch, fitted: Fitted) -> None:
    outcome = watch.outcome
    fitted.measured += len(outcome.records)
    fitted.judged += outcome.judged
    fitted.findings += outcome.findings
    fitted.reasons += tuple(f"{code} {reason}" for code, reason in outcome.unjudged.items())
    fitted.reasons += tuple(entry.reason for entry in outcome.coverage if not entry.name)
