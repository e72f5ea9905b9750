"""What a callback of ours starts from: harmless hooks, and what it says of a fit, whichever process ran it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch

from lightning_gradwatch.fit.copies import Kin
from lightning_gradwatch.fit.packages import AnyCallback
from lightning_gradwatch.fit.results import Outcome, SpawnResult
from lightning_gradwatch.measure.faults import Faults, GivenUp
from lightning_gradwatch.measure.garbage import collecting_later
from lightning_gradwatch.record.finding import Finding, GradWatchError, GradWatchWarning
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.showing import contents_text, shown
from lightning_gradwatch.record.step import NotCovered, StepRecord
from lightning_gradwatch.tell.announce import tell_unwatched

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lightning_gradwatch.fit.fit import Fit


class Telling(AnyCallback):
    """Says what was seen in the current or last fit, also in one that other processes ran for this one."""

    def __init__(self) -> None:
        super().__init__()
        self._faults = Faults()
        self._fit: Fit | None = None
        self._live = self._outside = False
        self._handover = SpawnResult()
        self._received = Outcome()
        """What came from a fit in other processes; it counts where there is none in this one."""
        self._kin = Kin().belong_to(self)
        self._asked_in_vain = False

    def __repr__(self) -> str:
        # Of what is here already: taking over what other processes left is for who asks for it.
        fit, received = self._fit, self._received
        records, info = (received.records, received.info) if fit is None else (tuple(fit.records), fit.info)
        findings = received.findings if fit is None else fit.evaluator.findings
        return f"<{type(self).__name__}: {contents_text(records, info, findings)}>"

    def _repr_html_(self) -> str | None:
        """Show the page in a notebook."""
        return shown("of_watched", self.outcome)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings of the current or last fit, each with its latest numbers; and those of fits that copies of it watch."""
        if (shared := self._with_copies) is not None:
            return shared.findings
        if not (self._has_watched or self._asked_in_vain):
            self._asked_in_vain = True
            tell_unwatched()
        return self._own_findings

    @property
    def records(self) -> tuple[StepRecord, ...]:
        """The last measured steps (at most 1,000; the event file has all)."""
        if (shared := self._with_copies) is not None:
            return shared.records
        fit = self._last_fit
        return self._received.records if fit is None else tuple(fit.records)

    @property
    def info(self) -> RunInfo | None:
        """The description of the run; None until the first measured step has ended."""
        if (shared := self._with_copies) is not None:
            return shared.info
        fit = self._last_fit
        return self._received.info if fit is None else fit.info

    @property
    def infos(self) -> tuple[RunInfo, ...]:
        """One description for each list of layers and sites that records have (``record.layout``), the newest last."""
        return self.outcome.infos

    @property
    def coverage(self) -> tuple[NotCovered, ...]:
        """What isn't measured, and why."""
        return self.outcome.coverage

    @property
    def outcome(self) -> Outcome:
        """All of it."""
        return self._with_copies or self.own_outcome

    @property
    def own_outcome(self) -> Outcome:
        """All that it has seen itself."""
        fit = self._last_fit
        told = self._received
        if fit is not None:
            unjudged = dict(fit.evaluator.unjudged)
            judged = len(fit.evaluator.rules) - len(unjudged)
            coverage = () if fit.info is None else fit.info.coverage
            told = Outcome(
                self._own_findings,
                tuple(fit.records),
                fit.info,
                coverage,
                judged,
                unjudged,
                infos=tuple(fit.infos.values()),
            )
        unwritten = "" if fit is None else fit.unwritten
        faults = (NotCovered("", why) for why in (*self._faults.told, *([unwritten] if unwritten else [])))
        return replace(told, coverage=(*told.coverage, *faults), path=self._written_to)

    @property
    def _own_findings(self) -> tuple[Finding, ...]:
        fit = self._last_fit
        return self._received.findings if fit is None else fit.evaluator.findings

    @property
    def _with_copies(self) -> Outcome | None:
        """What it and its copies have seen; None where no copy has seen anything."""
        for each in self._kin.copies:
            each.take_over()
        return self._kin.merged(self.own_outcome) if self._kin.fits else None

    @property
    def _last_fit(self) -> Fit | None:
        try:
            arrived = self._handover.take()
        except (OSError, ValueError) as error:
            what = f"what the processes of this fit saw can't be taken over: {error}"
            self._faults.lose(what, warning=f"GradWatch: {what}")
            return self._fit
        if arrived is not None:
            self._received, self._fit, self._faults = arrived, None, Faults()
            self._kin.begin(self)
            self._kin.end(arrived)
        return self._fit

    def take_over(self) -> None:
        """Take over what other processes have seen for it, if they have left something."""
        _ = self._last_fit

    @property
    def _has_watched(self) -> bool:
        """Whether it has watched a fit, or somebody else knows that it didn't."""
        return self._kin.began

    @property
    def _written_to(self) -> Path | None:
        return self._received.path

    def _leave_outcome(self) -> None:
        """Leave what was seen to what this was copied from, and to the process that started this one, if there is such a one.

        All ranks have seen the same. The first leaves it, as the others are ended when one has failed; one that has written
        it to a file takes precedence.
        """
        with self._faults.guard("writing"):
            if self._kin.inherits:
                self._kin.end(self.own_outcome)
            if self._handover.wanted:
                self._handover.leave(self.own_outcome, first_only=self._written_to is None)


_Hook = TypeVar("_Hook", bound=Callable[..., None])


class _Guarded(Protocol):
    """What a guarded hook's callback has."""

    _faults: Faults
    _fit: Fit | None
    _live: bool
    """Whether a step is open; where steps are compiled, which would be compiled again if it changed, always True."""
    _outside: bool
    """Whether steps that are compiled are measured from outside."""

    def _release(self) -> None:
        """Take away what a measured batch puts in place."""

    def _stop(self) -> None:
        """End the fit's monitoring."""

    def _leave_outcome(self) -> None:
        """Leave what was seen to the process that started this one."""


@contextmanager
def _faults_told(self: _Guarded) -> Iterator[None]:
    """End the fit's monitoring after a fault of ours, and say so; what the user asked to be raised is raised."""
    try:
        yield
    except (GradWatchError, GradWatchWarning):
        self._release()
        self._leave_outcome()  # no hook is called any more in a process that was started for this fit
        raise
    except GivenUp as reason:
        self._stop()
        self._faults.give_up(reason)
    except Exception as error:  # noqa: BLE001 - contract: a monitor never breaks training; it is reported
        self._stop()
        self._faults.report("schedule", error)


def guarded(*, while_open: bool = False) -> Callable[[_Hook], _Hook]:
    """Make a hook harmless: a fault in it switches the monitor off for this fit, and training goes on.

    Lightning calls its hooks inside of the optimizer's step. Where that is compiled it is measured from outside, so that
    the compiler finds nothing in here. In other compiled code (a function of the user's) it is kept out.

    Args:
        while_open: Leave the hook out in steps that aren't measured, as nearly all are.
    """

    def guard(hook: _Hook) -> _Hook:
        def harmless(self: _Guarded, *args: Any, **kwargs: Any) -> None:
            fit = self._fit
            if (while_open and (fit is None or fit.open is None)) or not self._faults.on("schedule"):
                return
            with _faults_told(self), collecting_later():
                hook(self, *args, **kwargs)

        opaque = torch.compiler.disable(harmless)  # type: ignore[no-untyped-call]  # torch leaves it untyped

        @wraps(hook)
        def called(self: _Guarded, *args: Any, **kwargs: Any) -> None:
            if while_open and not self._live:
                return
            if not torch.compiler.is_compiling():
                harmless(self, *args, **kwargs)
            elif not self._outside:
                opaque(self, *args, **kwargs)

        return cast("_Hook", called)

    return guard
