"""One fit as the monitor sees it: which steps are open, what became of them, who is told. Knows no Trainer."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.fit.schedule import Schedule
from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.judge.selection import settings_of
from lightning_gradwatch.judge.verdict import RunVerdict
from lightning_gradwatch.measure.faults import GivenUp
from lightning_gradwatch.measure.unobserved import unobserved
from lightning_gradwatch.record.checkpoint import StateError, mapping_of, places_of
from lightning_gradwatch.record.finding import Finding, GradWatchError, Severity
from lightning_gradwatch.record.wording import counted
from lightning_gradwatch.tell.terminal import finding_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.optim import Optimizer

    from lightning_gradwatch.fit.ranks.ranks import Ranks, SharedRecord
    from lightning_gradwatch.fit.writing.writer import Sinks
    from lightning_gradwatch.measure.assemble import PendingRecord, StepFacts
    from lightning_gradwatch.measure.faults import Faults, Part
    from lightning_gradwatch.measure.probe import Probe
    from lightning_gradwatch.measure.step import StepMeter
    from lightning_gradwatch.record.run_end import RunEnd
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord
    from lightning_gradwatch.tell.reporter import Reporter

_MOST_PASSES = 256
"""Micro-batches of a step whose activations are counted: what is kept of each until the step comes is bounded by it."""
_MOST_BATCHES = 1024
"""Batches after which an optimizer that was never seen to step isn't waited for any longer."""
_STATE_VERSION = 1
"""Of what a checkpoint holds; that of the first release had none."""
_HISTORY = 1000
"""Records kept in memory; all of them are in the event file."""


@dataclass
class OpenStep:
    """A step that is being measured."""

    meter: StepMeter
    step: int
    passes: int = 0
    """Micro-batches so far."""

    @property
    def traced(self) -> bool:
        """Whether the forward pass of the micro-batch that has begun is still to be watched."""
        return self.passes <= _MOST_PASSES

    def begin_pass(self) -> None:
        """Begin a micro-batch."""
        self.passes += 1
        if not self.traced:
            self.meter.cut_short()


class Fit:
    """Carries measured steps from the probe to rules, event file and warnings.

    Args:
        probe: Measures.
        schedule: Says which steps.
        evaluator: Judges.
        sinks: Writes; None on ranks that don't, and where nothing is to be written.
        describe: Adds what the training loop knows to a run's description.
        reporter: Says what is found, or doesn't.
        fail_on: Severity from which on a finding ends the run.
        ranks: The other processes that train the model; None where there are none.
        nowhere: Why nothing is written where there are no sinks.
    """

    def __init__(
        self,
        *,
        probe: Probe,
        schedule: Schedule,
        evaluator: Evaluator,
        sinks: Sinks | None,
        describe: Callable[[RunInfo], RunInfo],
        reporter: Reporter,
        fail_on: Severity | None,
        ranks: Ranks | None = None,
        nowhere: str = "",
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
        self._reporter = reporter
        self._fail_on = fail_on
        self._ranks = ranks
        self._pending: deque[PendingRecord | SharedRecord] = deque()
        self._begun_anew = self._announces = self._ended = False
        self._measured = self._first_step = 0
        self._path_of_run = ""
        self._end: RunEnd | None = None
        self._nowhere = nowhere
        self.unwritten = "" if sinks is None else sinks.refused
        """Why there is no event file; empty where there is one, and where none was wanted."""

    @property
    def meter(self) -> StepMeter:
        """What measures the open step."""
        assert self.open is not None
        return self.open.meter

    @property
    def faults(self) -> Faults:
        """What was switched off."""
        return self.probe.faults

    def begin(self, step: int, optimizers: Sequence[Optimizer]) -> OpenStep | None:
        """Open the step that a batch belongs to, if it is to be measured; it is trained by these optimizers."""
        if self._ranks is not None:
            self._ranks.batches += 1
            self.drain(wait=False)
        if self.open is not None and self.open.step == step:
            return self.open
        if self.open is not None:
            self.abort()
        if self.evaluator.confirming:
            self.drain(wait=True)  # what the last step showed decides what is looked for in this one
        if self._schedule.due(step, confirming=self.evaluator.confirming) or self._follows(step):
            self.open = OpenStep(self.probe.begin(optimizers=optimizers), step)
        elif self._watches_units(step):
            self.open = OpenStep(self.probe.begin(activations_only=True, optimizers=optimizers), step)
        return self.open

    def _follows(self, step: int) -> bool:
        """Whether a step that isn't due is measured as something has jumped shortly before; known to the schedule then."""
        if not self.evaluator.follows(step):
            return False
        self._schedule.note_measured(step)
        return True

    def _watches_units(self, step: int) -> bool:
        """Whether the units are watched in a step that isn't due: to fill the first windows, or as some may have died."""
        windows = self.probe.windows
        if not windows.full and self._schedule.fills_windows():
            return True
        if self._schedule.looks(step, windows.wanted):
            windows.look()
            return True
        return False

    def rest(self, step: int) -> int:
        """Return for how many batches from this one on none has to be looked at, this one having had that step; 0: each has.

        A batch is a step at most. With other ranks, each is counted.
        """
        if self.open is not None or self._pending or self._ranks is not None:
            return 0
        schedule, windows = self._schedule, self.probe.windows
        asked = (
            (self.evaluator.confirming and schedule.confirms)
            or (not windows.full and schedule.watches)
            or self.evaluator.follows(step + 1)
            or schedule.takes_turn(step + 1)
        )
        return 0 if asked else schedule.next_look(step, windows.wanted) - step

    def end(self, facts: StepFacts) -> None:
        """Close the open step, and take in what has arrived of it and of earlier ones.

        Raises:
            GradWatchError: a finding reaches `fail_on`.
            GradWatchWarning: the user's filters turn it into an error.
        """
        opened, self.open = self.open, None
        if opened is not None and self._ranks is None and facts.optimizers > 1 and not opened.meter.activations_only:
            self._schedule.note_stepped(opened.step, opened.meter.steps, facts.optimizers)
        pending = self.probe.finish(facts)
        self._pending.append(pending if self._ranks is None else self._ranks.share(pending))
        self.drain(wait=self._fail_on is not None)

    def skip(self) -> None:
        """Give up a step that is over without an optimizer's step here, which another rank may have taken."""
        if self.open is not None and self._ranks is not None:
            self._pending.append(self._ranks.skip(self.open.step))
        self.abort()
        self.drain(wait=self._fail_on is not None)

    def wait_for_step(self) -> None:
        """Keep a step open in which no optimizer has stepped yet, unless one has on another rank.

        Raises:
            GivenUp: none was seen to step in so many batches that none will be.
        """
        if self.open is not None and self._ranks is not None and not self._ranks.all_wait(self.open.step):
            self.abort()
        self.drain(wait=False)
        if self.open is not None and self.open.passes >= _MOST_BATCHES:
            raise GivenUp(
                f"no optimizer was seen to step in {_MOST_BATCHES:,} batches under manual optimization; step one of "
                "self.optimizers(), or a torch.optim.Optimizer that such a one holds"
            )

    def abort(self) -> None:
        """Give up the open step."""
        self.open = None
        self.probe.abort()

    def stop(self) -> None:
        """End it after a fault; on no other rank a step can be measured any more either."""
        try:
            self.abort()
        finally:
            if self._ranks is not None:
                self._ranks.leave()
            self._pending.clear()
            try:
                self._let_go(fails=False)
            finally:
                self._ended = True  # a warning has said why
                self._close()

    def drain(self, *, wait: bool) -> None:
        """Take in the measured steps whose numbers have arrived; with `wait`, all of them."""
        while self._pending and (wait or self._pending[0].arrived):
            pending = self._pending.popleft()
            with unobserved():
                record = pending.resolve()
            if record is not None:
                self._take(record, pending.info)

    def finish(self, end: RunEnd | None = None, *, alone: bool = False) -> None:
        """Take in what is left and complete the event file; `alone`: the other ranks may be elsewhere, or gone.

        Args:
            end: How it ended, where that is known; the first of several calls has it.
            alone: See above.

        Raises:
            GradWatchError: a finding reaches `fail_on`.
            GradWatchWarning: the user's filters turn it into an error.
        """
        if alone and self._ranks is not None:
            self._pending.clear()
        try:
            self.abort()
            self.drain(wait=True)
            self._end = self._end or end
            self._let_go(fails=not alone)
        finally:
            self._close()
        self._conclude()

    def _conclude(self) -> None:
        """Say once how it ended; of a fit that `fail_on` ended the exception has said it."""
        if self._ended:
            return
        self._ended = True
        unjudged = self.evaluator.unjudged
        judged = len(self.evaluator.rules) - len(unjudged)
        failure = "" if judged else "no rule could judge this run"
        if not self._measured:
            failure = "no step was measured"
        if not self.faults.on("rules"):
            failure = "the rules are switched off"
        first, last = self._first_step, self.records[-1].step if self.records else 0
        verdict = RunVerdict(
            path="",
            findings=self.evaluator.findings,
            unjudged=unjudged,
            judged=judged,
            measured=counted(self._measured, "measured step") + (f" ({first} to {last})" if last > first else ""),
            failure=failure,
        )
        self._reporter.conclude(verdict, self._path_of_run)

    def _close(self) -> None:
        if self._ranks is not None:
            self._ranks.close()
        if self._sinks is not None:
            sinks, self._sinks = self._sinks, None
            self._path_of_run = sinks.path_of_run
            try:
                self._try("writing", lambda: sinks.finish(self.records, self.infos, self.evaluator.findings, self._end))
            finally:
                with self.faults.guard("writing"):  # also where writing has been switched off: its file is open
                    sinks.close()

    def _take(self, record: StepRecord, described: RunInfo) -> None:
        if described is not self._described:
            self._described = described
            info = self._describe(replace(described, rules=settings_of(self.evaluator.rules)))
            self._announces = self.info is None
            self.info = self.infos[record.layout] = info
        info = self.infos[record.layout]
        self.records.append(record)
        self._first_step = record.step if not self._measured else self._first_step
        self._measured += 1
        told: list[Finding] = []
        self._try("rules", lambda: told.extend(self.evaluator.feed(record, info)))
        for reason in self.evaluator.begun_anew.values():
            self._tell_anew(reason)
        if self._ranks is not None and not self.faults.on("rules"):
            # The rules ask for more steps; a rank whose rules have failed doesn't know which.
            raise GivenUp("without its rules a rank can't keep step with the others")
        if self._sinks is not None:
            sinks = self._sinks
            self._try("writing", lambda: sinks.write(self.records, self.infos, self.evaluator))
        if self._announces:
            self._announces = False
            self._reporter.announce(info, self._nowhere if self._sinks is None else self._sinks.told)
        self._warn(told)
        self._fail()

    def _let_go(self, *, fails: bool) -> None:
        """Tell what the end brings, and what was kept back for a root that won't come any more; unless an exception has told it.

        Raises:
            GradWatchError: a finding of it reaches `fail_on`, and it `fails`: the run doesn't end by another exception.
            GradWatchWarning: the user's filters turn it into an error.
        """
        if self._ended:
            return
        told: list[Finding] = []
        self._try("rules", lambda: told.extend(self._judge_end()))
        self._warn(told)
        if fails and told:
            self._fail()

    def _judge_end(self) -> tuple[Finding, ...]:
        if self._end is None or not self.records:
            return self.evaluator.let_go()
        return self.evaluator.end(self._end, self.infos[self.records[-1].layout])

    def _fail(self) -> None:
        """End the run where the last record brought a finding to `fail_on`; its root is told first, however mild it is.

        Raises:
            GradWatchError: so it is.
        """
        risen, level = self.evaluator.risen, self._fail_on
        if level is None or risen is None or risen < level:
            return
        found = self.evaluator.findings
        failing = [finding for finding in found if finding.severity >= level]
        leading = {finding.consequence_of or finding.code for finding in failing}
        told = [each for each in found if each in failing or (not each.consequence_of and each.code in leading)]
        self._ended = True
        raise GradWatchError(
            "\n\n".join(
                [f"GradWatch stops this run (fail_on={level.label!r}):", *(text for _, text in finding_texts(told))]
            ),
            told,
        )

    def _warn(self, findings: list[Finding]) -> None:
        for finding in findings:
            if finding.severity >= Severity.WARNING:
                led_to = [each for each in findings if each.consequence_of == finding.code]
                self._reporter.warn(finding, self.evaluator.warning_for(finding), led_to)

    def _try(self, part: Part, action: Callable[[], Any]) -> None:
        if not self.faults.on(part):
            return
        with self.faults.guard(part):
            action()

    def state_dict(self) -> dict[str, Any]:
        """Return windows, verdicts and extra steps for a checkpoint; what is under way is waited for first."""
        self.drain(wait=True)
        state = {
            "version": _STATE_VERSION,
            "windows": self.probe.state_dict(),
            "rules": self.evaluator.state_dict(),
            "schedule": self._schedule.state_dict(),
        }
        places = self.probe.places
        return {**state, "places": places} if places else state

    def load_state_dict(self, state: Any) -> None:
        """Go on from a checkpoint, or begin anew where nothing can be done with what it holds, and say so.

        Raises:
            GradWatchWarning: the user's filters turn it into an error.
        """
        try:
            mapping_of(state, "it", required=("windows", "rules", "schedule"), optional=("version", "places"))
            if (version := state.get("version", _STATE_VERSION)) != _STATE_VERSION:
                raise StateError(f"it has version {version!r}; this release reads {_STATE_VERSION}")  # noqa: TRY301 - told as all that can be wrong with it
            self.probe.load_state_dict(state["windows"])
            self.evaluator.load_state_dict(state["rules"])
            self._schedule.load_state_dict(state["schedule"])
            self.probe.places = places_of(state.get("places", {}), "places")
        except Exception as error:  # noqa: BLE001 - it may hold anything
            self.probe.load_state_dict({})
            self.evaluator = Evaluator(self.evaluator.rules)
            self._schedule = Schedule(self._schedule.every_n_steps)
            self._tell_anew(str(error) if isinstance(error, StateError) else f"{type(error).__name__}: {error}")

    def _tell_anew(self, reason: str) -> None:
        """Say once why something of a checkpoint was left out."""
        if self._begun_anew:
            return
        self._begun_anew = True
        self._reporter.note(
            f"GradWatch begins anew: what the checkpoint holds of it is of another release, or damaged: {reason}. Training and "
            "measuring go on; what was found before may be told again."
        )
