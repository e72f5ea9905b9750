"""Where records go: into the logger's own event file, into one of ours where there is none, and to other loggers.

A second event file beside a TensorBoard logger's own would stop viewers from reading the first, so ours are only for
runs without one. Loggers are told apart by what they can do: Lightning exists as two packages with two sets of classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lightning_gradwatch.columns import series
from lightning_gradwatch.event_file import EventFile, next_version_folder, write_to
from lightning_gradwatch.events import findings_event, heatmap_event, step_event
from lightning_gradwatch.heatmap import heatmap_png
from lightning_gradwatch.summaries import summaries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_gradwatch.findings import Finding
    from lightning_gradwatch.record import RunInfo, StepRecord


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
    """

    def __init__(self, loggers: Sequence[Any], folder: str | Path, *, max_curves: int | None) -> None:
        self._writers = [writer for writer in map(_file_writer, loggers) if writer is not None]
        self._others = [logger for logger in loggers if _file_writer(logger) is None]
        self._folder = Path(folder)
        self._max_curves = max_curves
        self._file: EventFile | None = None
        self._described_by: RunInfo | None = None
        self._described: set[str] = set()
        self._findings: tuple[Finding, ...] = ()
        self._outline: tuple[tuple[Any, ...], ...] = ()
        self._written = 0
        self.path: Path | None = None
        """Folder of the event file of our own; None where a logger's is used."""

    def write(self, records: Sequence[StepRecord], infos: Mapping[str, RunInfo], told: Told) -> None:
        """Write the last record: one event, which holds the run's description and the findings where those are new.

        Of a net that has too many layers for curves it holds the picture, each time there are twice as many records.
        """
        record = records[-1]
        info = infos[record.layout]
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
        self._send(event)
        if self._others:
            numbers = summaries(record, info)
            for logger in self._others:
                logger.log_metrics(numbers, step=record.step)

    def finish(
        self, records: Sequence[StepRecord], infos: Mapping[str, RunInfo], findings: tuple[Finding, ...]
    ) -> None:
        """Write what the end of a fit adds: the findings' last numbers, and the heatmap where there are no curves."""
        if not records:
            return
        if findings != self._findings:
            self._findings = findings
            self._send(findings_event(findings, step=records[-1].step))
        picture = self._picture(records, infos)
        if picture is not None:
            self._send(picture)

    def _picture(self, records: Sequence[StepRecord], infos: Mapping[str, RunInfo]) -> Any:
        """Return the event of the heatmap where the layers have no curves, None where they have."""
        names = [layer.name for layer in infos[records[-1].layout].layers if layer.weight]
        if self._max_curves is None or len(names) <= self._max_curves:
            return None
        steps, values = series(records, infos, "grad_norm", names)
        png = heatmap_png(steps, values, names, "gradient norm by layer")
        return heatmap_event(records[-1].step, png)

    def close(self) -> None:
        """Close a file of our own; the loggers' stay theirs."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _send(self, event: Any) -> None:
        for writer in self._writers:
            write_to(writer, event)
        if not self._writers:
            if self._file is None:
                self.path = self.path or next_version_folder(self._folder)
                self._file = EventFile(self.path)
            self._file.write(event)


def _is_news(now: Sequence[tuple[Any, ...]], told: Sequence[tuple[Any, ...]]) -> bool:
    """Tell whether findings differ by more than a few of their layers, as those at the edge come and go with the noise."""
    if [each[:-1] for each in now] != [each[:-1] for each in told]:
        return True
    pairs = [(set(new[-1]), set(old[-1])) for new, old in zip(now, told, strict=True)]
    return any(3 * len(new & old) < 2 * max(len(new), len(old)) for new, old in pairs)


def _file_writer(logger: Any) -> Any:
    """Return the writer of a TensorBoard logger's event file; None for any other logger."""
    get = getattr(getattr(logger, "experiment", None), "_get_file_writer", None)
    return None if get is None else get()
