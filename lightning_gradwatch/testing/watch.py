"""The GradWatch that a test or a check adds: it must leave no trace in the user's loggers, checkpoints, log or folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_gradwatch.fit.callback import GradWatch
from lightning_gradwatch.fit.results import Outcome
from lightning_gradwatch.fit.strategies import leads
from lightning_gradwatch.fit.writing.writer import Sinks
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.tell.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lightning_gradwatch.fit.packages import AnyModule, AnyTrainer
    from lightning_gradwatch.judge.rule import Rule
    from lightning_gradwatch.measure.units.mask import Mask
    from lightning_gradwatch.record.finding import Finding


class Watch(GradWatch):
    """Measures and judges, and keeps it to itself; stands aside where the Trainer has a GradWatch of the user's.

    Args:
        every_n_steps: Measure every so many steps; None: the Trainer's ``log_every_n_steps``.
        rules: Rules that replace the default ones of the same code.
        ignore: Codes of rules to leave out, or prefixes of them.
        folder: Where an event file is written; None: nowhere.
        mask: As for `GradWatch`.
        deliver: Called once a fit and code with a new finding of severity warning or above and its warning's class.
    """

    def __init__(
        self,
        *,
        every_n_steps: int | None = 1,
        rules: Sequence[Rule] = (),
        ignore: Sequence[str] = (),
        folder: Path | None = None,
        mask: Callable[[Any], Mask | None] | None = None,
        deliver: Callable[[Finding, type[Warning]], None] | None = None,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps, rules=rules, ignore=ignore, mask=mask)
        self._folder = folder
        self._deliver = deliver
        self._delivered: set[str] = set()
        self._opened: Sinks | None = None

    @property
    def path(self) -> Path | None:
        """Folder of the run that was written; None where nothing was."""
        return self.outcome.path

    def on_train_start(self, trainer: AnyTrainer, pl_module: AnyModule) -> None:
        """Start, unless the user's own GradWatch does."""
        self._delivered.clear()
        # Only now is it known: a module can bring callbacks of its own (`configure_callbacks`).
        if any(isinstance(each, GradWatch) and each is not self for each in getattr(trainer, "callbacks", ())):
            self._fit, self._received = None, Outcome()
            return
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: AnyTrainer, pl_module: AnyModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the batch in, and deliver what was found."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.deliver_new()

    def on_train_end(self, trainer: AnyTrainer, pl_module: AnyModule) -> None:
        """Take in what is left, and deliver what was found."""
        super().on_train_end(trainer, pl_module)
        self.deliver_new()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a checkpoint that names a callback asks for it when it is loaded."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        # What a test listens with stays in its process: strategies that start others send them the callbacks.
        return super().__getstate__() | {"_deliver": None, "_opened": None}

    def deliver_new(self) -> None:
        """Deliver what was found since the last time."""
        if self._deliver is None:
            return
        for finding in self.findings:
            if finding.severity >= Severity.WARNING and finding.code not in self._delivered:
                self._delivered.add(finding.code)
                self._deliver(finding, next(rule.warning for rule in self._rules if rule.code == finding.code))

    def _make_sinks(self, trainer: AnyTrainer) -> Sinks | None:
        if self._folder is None or not leads(trainer):
            return None
        self._opened = Sinks((), self._folder, max_curves=self._max_curves, faults=self._faults)
        return self._opened

    @property
    def _has_watched(self) -> bool:
        return True  # who asks knows: this one may stand aside

    @property
    def _written_to(self) -> Path | None:
        return super()._written_to if self._opened is None else self._opened.path

    def _reporter(self, trainer: AnyTrainer) -> Reporter:
        del trainer
        return SILENT
