"""What a callback of ours starts from: the Callback of every installed Lightning package at once, and harmless hooks.

And what it says of a fit, whichever process ran it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch

from lightning_gradwatch.findings import GradWatchError, GradWatchWarning
from lightning_gradwatch.measure.faults import Faults, GivenUp
from lightning_gradwatch.outcome import Handover, Outcome
from lightning_gradwatch.record import NotCovered

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytorch_lightning import Callback

    from lightning_gradwatch.findings import Finding
    from lightning_gradwatch.fit import Fit
    from lightning_gradwatch.record import RunInfo, StepRecord

    class AnyCallback(Callback):
        """As far as types go, one package is enough."""

else:

    def _find_bases() -> tuple[type, ...]:
        """Return the Callback class of each package there is: each package's Trainer accepts only its own."""
        bases = []
        for name in ("lightning.pytorch", "pytorch_lightning"):
            try:
                bases.append(importlib.import_module(name).Callback)
            except ImportError:
                continue
        if not bases:
            raise ImportError("GradWatch needs PyTorch Lightning: pip install pytorch-lightning (or lightning)")
        return tuple(bases)

    class AnyCallback(*_find_bases()):
        """What a callback for any of the packages derives from."""


class Telling(AnyCallback):
    """Says what was seen in the current or last fit, also in one that other processes ran for this one."""

    def __init__(self) -> None:
        super().__init__()
        self._faults = Faults()
        self._fit: Fit | None = None
        self._live = self._outside = False
        self._handover = Handover()
        self._received = Outcome()
        """What came from a fit in other processes; it counts where there is none in this one."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings of the current or last fit, each with its latest numbers."""
        fit = self._last_fit
        return self._received.findings if fit is None else fit.evaluator.findings

    @property
    def records(self) -> tuple[StepRecord, ...]:
        """The last measured steps (at most 1,000; the event file has all)."""
        fit = self._last_fit
        return self._received.records if fit is None else tuple(fit.records)

    @property
    def info(self) -> RunInfo | None:
        """The description of the run; None until the first measured step has ended."""
        fit = self._last_fit
        return self._received.info if fit is None else fit.info

    @property
    def coverage(self) -> tuple[NotCovered, ...]:
        """What isn't measured, and why."""
        fit = self._last_fit
        told = self._received.coverage
        if fit is not None and fit.info is not None:
            told = fit.info.coverage
        return (*told, *(NotCovered("", why) for why in self._faults.told))

    @property
    def outcome(self) -> Outcome:
        """All of it."""
        fit = self._last_fit
        judged, unjudged = self._received.judged, self._received.unjudged
        if fit is not None:
            unjudged = dict(fit.evaluator.unjudged)
            judged = len(fit.evaluator.rules) - len(unjudged)
        return Outcome(self.findings, self.records, self.info, self.coverage, judged, unjudged, self._written_to)

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
        return self._fit

    @property
    def _written_to(self) -> Path | None:
        return self._received.path

    def _leave_outcome(self) -> None:
        """Leave what was seen to the process that started this one, if there is such a one.

        All ranks have seen the same. The first leaves it, as the others are ended when one has failed; one that has written
        it to a file takes precedence.
        """
        if self._handover.wanted:
            with self._faults.guard("writing"):
                self._handover.leave(self.outcome, first_only=self._written_to is None)


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
            with _faults_told(self):
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
