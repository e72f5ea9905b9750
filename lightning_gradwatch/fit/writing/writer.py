"""Where records go: into the logger's own event file, into one of ours where there is none, and to other loggers.

A second event file beside a TensorBoard logger's own would stop viewers from reading the first, so ours are only for
runs without one. Loggers are told apart by what they can do: Lightning exists as two packages with two sets of classes.
A place that can't be written to any more is dropped, with a warning that says from which step on; the others go on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lightning_gradwatch.fit.writing.destinations import Destination, NoDestination, NotWritten, OwnFile, reason_of
from lightning_gradwatch.fit.writing.logger_files import AppendedFile, QueuedFile, appended_path
from lightning_gradwatch.fit.writing.number_loggers import OtherLogger
from lightning_gradwatch.measure.faults import Faults
from lightning_gradwatch.record.events.step_events import findings_event, heatmap_event, step_event
from lightning_gradwatch.record.heatmap import heatmap_png
from lightning_gradwatch.record.remote import is_remote, local_path
from lightning_gradwatch.record.run_info import series
from lightning_gradwatch.record.summaries import summaries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lightning_gradwatch.record.finding import Finding
    from lightning_gradwatch.record.run_end import RunEnd
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord


_FIRST_PICTURE = 8
"""Records from which on a heatmap shows something."""


class Told(Protocol):
    """Where findings come from."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All so far, with their latest numbers."""

    @property
    def outline(self) -> tuple[tuple[Any, ...], ...]:
        """What makes findings worth another entry: that their numbers go on is told once, at the end."""


class Sinks:
    """Writes the records of one fit, on the rank that writes.

    Args:
        loggers: The Trainer's loggers.
        folder: Where a run without a TensorBoard logger gets a folder of its own.
        max_curves: Up to so many weight layers, or sites, get curves of their own; None: any number.
        faults: Where is told what couldn't be written.
    """

    def __init__(
        self, loggers: Sequence[Any], folder: str | Path, *, max_curves: int | None, faults: Faults | None = None
    ) -> None:
        self._destinations: list[Destination] = [_destination_of(logger) for logger in loggers]
        self._own: OwnFile | None = None
        self._refused = ""
        if not any(each.takes_events for each in self._destinations):
            if is_remote(folder):
                # Appending is what keeps a run that is killed; what is stored remotely can only be written as a whole.
                self._refused = (
                    f"no event file is written: {folder} is remote, where a file can't grow by appending; give the Trainer a "
                    "local default_root_dir, or a TensorBoardLogger"
                )
            else:
                self._own = OwnFile(local_path(folder))
                self._destinations.insert(0, self._own)
        self._max_curves = max_curves
        self._faults = Faults() if faults is None else faults
        self._described_by: RunInfo | None = None
        self._described: set[str] = set()
        self._findings: tuple[Finding, ...] = ()
        self._outline: tuple[tuple[Any, ...], ...] = ()
        self._written = 0

    @property
    def told(self) -> str:
        """Where records go, or why nowhere."""
        others = ", ".join(each.where for each in self._destinations if not each.takes_events)
        files = ", ".join(each.where for each in self._destinations if each.takes_events)
        numbers = f"summaries go to {others}" if others else ""
        return "; ".join(
            filter(None, (f"written to {files}" if files else self._refused or "written nowhere", numbers))
        )

    @property
    def refused(self) -> str:
        """Why there is no event file; empty where there is one."""
        return self._refused

    @property
    def path_of_run(self) -> str:
        """The folder on this machine that `gradwatch check` reads; empty where there is none."""
        for each in self._destinations:
            if each.takes_events and each.is_local and Path(each.where).is_dir():
                return each.where
        return ""

    @property
    def path(self) -> Path | None:
        """Folder of the event file of our own; None where a logger's is used, and where it isn't there any more."""
        return None if self._own is None else self._own.path

    def write(self, records: Sequence[StepRecord], infos: Mapping[str, RunInfo], told: Told) -> None:
        """Write the last record: one event, which holds the run's description and the findings where those are new.

        Of a net that has too many layers for curves it holds the picture, each time there are twice as many records.
        """
        if not self._destinations:
            return
        record = records[-1]
        info = infos[record.layout]
        if any([each.begins() for each in self._destinations]):  # noqa: C419 - each is to be asked
            self._described_by = None
            self._described.clear()
        outline = told.outline
        changed = outline != self._outline and _is_news(outline, self._outline)
        findings = told.findings if changed else None
        event = step_event(
            record,
            info,
            max_curves=self._max_curves,
            describe=info is not self._described_by,
            findings=findings,
            seen=self._described,
        )
        self._described_by = info
        if findings is not None:
            self._findings = findings
            self._outline = outline
        self._written += 1
        if self._written >= _FIRST_PICTURE and self._written & (self._written - 1) == 0:
            picture = self._picture(records, infos)
            if picture is not None:
                event.summary.value.extend(picture.summary.value)
        numbers = {} if all(each.takes_events for each in self._destinations) else summaries(record, info)
        self._each(lambda each: each.send(event, numbers, record.step), step=record.step)

    def finish(
        self,
        records: Sequence[StepRecord],
        infos: Mapping[str, RunInfo],
        findings: tuple[Finding, ...],
        end: RunEnd | None = None,
    ) -> None:
        """Write what the end of a fit adds: how it ended, the findings' last numbers, the heatmap where there are no curves."""
        if not records or not self._destinations:
            return
        events = []
        changed = findings != self._findings
        if changed or end is not None:
            self._findings = findings
            # Behind the last step: of two events of one step TensorBoard's fast loader hands on the later one alone.
            events.append(findings_event(findings, step=records[-1].step + 1, end=end, changed=changed))
        picture = self._picture(records, infos)
        if picture is not None:
            events.append(picture)

        def send(destination: Destination) -> None:
            for event in events if destination.takes_events else ():
                destination.send(event, {}, records[-1].step)

        self._each(send, step=None)

    def _picture(self, records: Sequence[StepRecord], infos: Mapping[str, RunInfo]) -> Any:
        """Return the event of the heatmap where the layers have no curves, None where they have."""
        names = [layer.name for layer in infos[records[-1].layout].layers if layer.weight]
        if self._max_curves is None or len(names) <= self._max_curves:
            return None
        steps, values = series(records, infos, "grad_norm", names)
        try:
            png = heatmap_png(steps, values, names, "gradient norm by layer")
        except OSError as error:  # what draws it can't be read: too many open files
            self._max_curves = None
            what = f"no heatmap is drawn: {reason_of(error)}"
            self._faults.lose(what, warning=f"GradWatch: {what}")
            return None
        return heatmap_event(records[-1].step, png)

    def close(self) -> None:
        """Close a file of our own; the loggers' stay theirs.

        Raises:
            GradWatchWarning: the user's filter turns our warnings into errors.
        """
        try:
            self._each(lambda each: each.close(), step=None)
        finally:
            self._destinations = []

    def _each(self, action: Callable[[Destination], None], *, step: int | None) -> None:
        """Do something with each destination; drop those that take no more.

        Args:
            action: What to do.
            step: The step that is missing where it can't be done; None: only what the end of a fit adds.
        """
        failed: dict[Destination, NotWritten] = {}
        for destination in self._destinations:
            try:
                action(destination)
            except NotWritten as reason:
                failed[destination] = reason
        shortage = next((reason for each, reason in failed.items() if reason.shortage and each.is_local), None)
        if shortage is not None:  # what is lacking is lacking for all that is written on this machine
            then = NotWritten(shortage.error, since=None if step is None else step + 1)
            failed |= {each: then for each in self._destinations if each.is_local and each not in failed}
        if failed:
            self._drop(failed, step)

    def _drop(self, failed: Mapping[Destination, NotWritten], step: int | None) -> None:
        """Write no more to some destinations, and say in one warning what they will lack."""
        self._destinations = [each for each in self._destinations if each not in failed]
        lacking: dict[int | None, list[str]] = {}
        for destination, reason in failed.items():
            since = reason.since
            try:
                destination.close()
            except NotWritten as withdrawn:
                since = withdrawn.since
            lacking.setdefault(step if since is None else since, []).append(destination.where)
        places = ", ".join(each.where for each in failed)
        what = f"writing to {places}" if self._destinations else "writing"
        reasons = "; ".join(dict.fromkeys(map(str, failed.values())))
        lost = "; ".join(_lost(since, ", ".join(where)) for since, where in lacking.items())
        self._faults.lose(
            f"{what} switched off: {reasons}; {lost}",
            warning=f"GradWatch switched its {what} off: {reasons}. What is lost: {lost}. Training goes on.",
        )


def _lost(since: int | None, where: str) -> str:
    return f"what the end of the fit adds to {where}" if since is None else f"all from step {since} on in {where}"


def _is_news(now: Sequence[tuple[Any, ...]], told: Sequence[tuple[Any, ...]]) -> bool:
    """Tell whether findings differ by more than a few of their layers, as those at the edge come and go with the noise."""
    if [each[:-1] for each in now] != [each[:-1] for each in told]:
        return True
    pairs = [(set(new[-1]), set(old[-1])) for new, old in zip(now, told, strict=True)]
    return any(3 * len(new & old) < 2 * max(len(new), len(old)) for new, old in pairs)


def _destination_of(logger: Any) -> Destination:
    """Return where a logger's part of the records goes."""
    try:
        get = getattr(getattr(logger, "experiment", None), "_get_file_writer", None)
        if get is None:
            return OtherLogger(logger)
        writer = get()
        path = appended_path(writer)
        return QueuedFile(writer) if path is None else AppendedFile(logger, writer, path)
    except Exception as error:  # noqa: BLE001 - it is the user's code, and the fit goes on without it
        return NoDestination(logger, error)
