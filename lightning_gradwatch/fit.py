"""One fit as the monitor sees it: which steps are open, what became of them, who is told. Knows no Trainer."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.findings import Finding, GradWatchError, Severity
from lightning_gradwatch.report.announce import announce, warn
from lightning_gradwatch.report.terminal import warning_text
from lightning_gradwatch.rules import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lightning_gradwatch.measure.assemble import PendingRecord, StepFacts
    from lightning_gradwatch.measure.faults import Faults, Part
    from lightning_gradwatch.measure.step import StepMeter
    from lightning_gradwatch.probe import Probe
    from lightning_gradwatch.record import RunInfo, StepRecord
    from lightning_gradwatch.rules import Evaluator
    from lightning_gradwatch.schedule import Schedule
    from lightning_gradwatch.sinks import Sinks

_HISTORY = 1000
"""Records kept in memory; all of them are in the event file."""


@dataclass
class OpenStep:
    """A step that is being measured."""

    meter: StepMeter
    step: int
    passes: int = 0
    """Micro-batches so far."""


class Fit:
    """Carries measured steps from the probe to rules, event file and warnings.

    Args:
        probe: Measures.
        schedule: Says which steps.
        evaluator: Judges.
        sinks: Writes; None on ranks that don't, and where nothing is to be written.
        describe: Adds what the training loop knows to a run's description.
        speaks: Whether this process warns and announces (one of all ranks does).
        fail_on: Severity from which on a finding ends the run.
    """

    def __init__(
        self,
        *,
        probe: Probe,
        schedule: Schedule,
        evaluator: Evaluator,
        sinks: Sinks | None,
        describe: Callable[[RunInfo], RunInfo],
        speaks: bool,
        fail_on: Severity | None,
    ) -> None:
        self.probe = probe
        self.evaluator = evaluator
        self.records: deque[StepRecord] = deque(maxlen=_HISTORY)
        self.infos: dict[str, RunInfo] = {}
        self.info: RunInfo | None = None
        self._described: RunInfo | None = None
        self.open: OpenStep | None = None
        self._schedule = schedule
        self._sinks = sinks
        self._describe = describe
        self._speaks = speaks
        self._fail_on = fail_on
        self._pending: deque[PendingRecord] = deque()

    @property
    def faults(self) -> Faults:
        """What was switched off."""
        return self.probe.faults

    def begin(self, step: int) -> OpenStep | None:
        """Open the step that a batch belongs to, if it is to be measured."""
        if self.open is not None and self.open.step == step:
            return self.open
        self.abort()
        if self._schedule.due(step, confirming=self.evaluator.confirming):
            self.open = OpenStep(self.probe.begin(), step)
        elif not self.probe.windows.full and self._schedule.fills_windows():
            self.open = OpenStep(self.probe.begin(activations_only=True), step)
        return self.open

    def end(self, facts: StepFacts) -> None:
        """Close the open step, and take in what has arrived of it and of earlier ones.

        Raises:
            GradWatchError: a finding reaches `fail_on`.
            GradWatchWarning: the user's filters turn it into an error.
        """
        self.open = None
        self._pending.append(self.probe.finish(facts))
        self.drain(wait=self._fail_on is not None)

    def abort(self) -> None:
        """Give up the open step."""
        self.open = None
        self.probe.abort()

    def drain(self, *, wait: bool) -> None:
        """Take in the measured steps whose numbers have arrived; with `wait`, all of them."""
        while self._pending and (wait or self._pending[0].arrived):
            pending = self._pending.popleft()
            if pending.measured.activations_only:
                pending.fill_windows()
            else:
                self._take(pending.resolve(), pending.info)

    def finish(self) -> None:
        """Take in what is left and complete the event file."""
        try:
            self.drain(wait=True)
        finally:
            if self._sinks is not None:
                sinks = self._sinks
                self._try("writing", lambda: sinks.finish(self.records, self.infos, self.evaluator.findings))
                self._try("writing", sinks.close)
                self._sinks = None

    def _take(self, record: StepRecord, described: RunInfo) -> None:
        if described is not self._described:
            self._described = described
            info = self._describe(replace(described, rules=settings_of(self.evaluator.rules)))
            if self._speaks and self.info is None:
                announce(info)
            self.info = self.infos[record.layout] = info
        info = self.infos[record.layout]
        self.records.append(record)
        told: list[Finding] = []
        self._try("rules", lambda: told.extend(self.evaluator.feed(record, info)))
        if self._sinks is not None:
            sinks = self._sinks
            self._try("writing", lambda: sinks.write(self.records, self.infos, self.evaluator))
        if self._speaks:
            for finding in told:
                if finding.severity >= Severity.WARNING:
                    warn(finding, self.evaluator.warning_for(finding))
        failing = [finding for finding in told if self._fail_on is not None and finding.severity >= self._fail_on]
        if failing:
            raise GradWatchError(
                "\n\n".join(["GradWatch stops this run (fail_on):", *map(warning_text, failing)]), failing
            )

    def _try(self, part: Part, action: Callable[[], Any]) -> None:
        if not self.faults.on(part):
            return
        with self.faults.guard(part):
            action()

    def state_dict(self) -> dict[str, Any]:
        """Return windows, verdicts and extra steps for a checkpoint; what is under way is waited for first."""
        self.drain(wait=True)
        return {
            "windows": self.probe.state_dict(),
            "rules": self.evaluator.state_dict(),
            "schedule": self._schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.probe.load_state_dict(state["windows"])
        self.evaluator.load_state_dict(state["rules"])
        self._schedule.load_state_dict(state["schedule"])
