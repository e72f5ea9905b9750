"""A run as it was stored: read it, look at it, judge it again. No torch.

A file may be cut off, damaged, foreign or hostile: what is good is kept, what is lost is said.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gradwatch import columns
from lightning_gradwatch.description import check_description, check_lengths
from lightning_gradwatch.event_file import read_payloads
from lightning_gradwatch.events import DecodedEvent, decode_event
from lightning_gradwatch.record import SCHEMA_VERSION, FloatVector, RunInfo, StepRecord
from lightning_gradwatch.report.escape import escape
from lightning_gradwatch.wire import PLUGIN

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from lightning_gradwatch.findings import Finding

_MOST_PROBLEMS = 20


class RunError(Exception):
    """There is no run that could be judged; the message says where and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(escape(message))  # it may be shown by Python itself, and names in it are anybody's


@dataclass(frozen=True, eq=False)
class Run:
    """A stored run."""

    path: Path
    info: RunInfo
    """The newest description."""
    infos: Mapping[str, RunInfo]
    """By layout, in the order they were written."""
    records: list[StepRecord]
    """By step, rising; where a resumed run measured a step again, its record."""
    findings: tuple[Finding, ...] = ()
    """As the live run reported them last."""
    problems: tuple[str, ...] = ()
    """What couldn't be read, a sentence each; empty for a sound file."""

    def names(self, metric: str) -> tuple[str, ...]:
        """Return a metric's columns: the newest layout's in order, then those that only older ones have.

        Raises:
            ValueError: no metric has that name.
        """
        older = (name for info in self.infos.values() for name in info.names(metric))
        return tuple(dict.fromkeys((*self.info.names(metric), *older)))

    def series(self, metric: str) -> tuple[npt.NDArray[np.int64], FloatVector]:
        """Return steps, int64[S], and values, float64[S, N], with columns `names(metric)`; NaN where not measured.

        Raises:
            ValueError: no metric has that name.
        """
        return columns.series(self.records, self.infos, metric, self.names(metric))


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read a run folder with all its event files, or one event file.

    Raises:
        RunError: there is no such run, no GradWatch record in it, or it is damaged before the first one.
    """
    path = Path(path)
    problems: list[str] = []
    paths = _event_files(path)
    files = [_read_file(file, problems) for file in paths]
    # By the time written inside: names tell it to the second only, and copying changes a file's own time.
    files.sort(key=lambda events: events[0].wall_time if events else 0.0)
    events = [event for found in files for event in found]
    infos: dict[str, RunInfo] = {}
    for event in events:
        if event.info is not None:
            infos.pop(event.info.layout, None)
            infos[event.info.layout] = event.info
    by_step = {event.record.step: event.record for event in events if event.record is not None}
    records = [by_step[step] for step in sorted(by_step) if _fits(by_step[step], infos, problems)]
    if len(problems) > _MOST_PROBLEMS:
        problems[_MOST_PROBLEMS:] = [f"and {len(problems) - _MOST_PROBLEMS} problems more"]
    if not records:
        raise RunError(_nothing(path, paths, problems))
    info = next(reversed(infos.values()))
    if info.schema_version > SCHEMA_VERSION:
        problems.append(f"written by a newer GradWatch (schema {info.schema_version}); what it added is left out")
    told = [event.findings for event in events if event.findings is not None]
    return Run(
        path=path,
        info=info,
        infos=infos,
        records=records,
        findings=told[-1] if told else (),
        problems=tuple(problems),
    )


def evaluate(run: Run, rules: Sequence[Any] | None = None) -> tuple[Finding, ...]:
    """Judge a stored run.

    Args:
        run: What `read_run` gave.
        rules: None: the rules and thresholds stored in the run, which gives the live findings again.
    """
    from lightning_gradwatch.rules import evaluate_records, rules_from_settings  # noqa: PLC0415 - reading needs no rules

    chosen = rules_from_settings(run.info.rules) if rules is None else tuple(rules)
    found: tuple[Finding, ...] = evaluate_records(run.records, run.infos, chosen)
    return found


def _event_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        siblings = path.parent.glob("*/*tfevents*")
        raise RunError(f"no such run: {path}{_hint(path.parent, siblings)}")
    if not path.is_dir():
        raise RunError(f"{path} is neither a folder nor a file")
    try:
        files = _named_events(path.iterdir())
    except OSError as error:
        raise RunError(f"{path} can't be read: {error.strerror}") from error
    if not files:
        below = itertools.chain(path.glob("*/*tfevents*"), path.glob("*/*/*tfevents*"))
        raise RunError(f"no TensorBoard event file in {path}{_hint(path, below)}")
    return files


def _named_events(paths: Any) -> list[Path]:
    # TensorBoard's own test; `is_file` leaves out pipes, which would block, and broken links.
    found = [path for path in paths if "tfevents" in path.name and path.is_file()]
    return sorted(found, key=lambda path: [int(part) for part in re.findall(r"[0-9]{1,18}", path.name)])


def _hint(path: Path, files: Iterable[Path]) -> str:
    folders = sorted({file.parent for file in files}, key=lambda folder: (len(folder.parts), folder.name))
    if len(folders) < 2:
        return f"; did you mean {folders[0]}?" if folders else ""
    named = ", ".join(str(folder) for folder in folders[-3:])
    return f"; did you mean one of the {len(folders)} below {path}, such as {named}?"


def _read_file(path: Path, problems: list[str]) -> list[DecodedEvent]:
    events: list[DecodedEvent] = []
    try:
        for start, payload in read_payloads(path, marker=PLUGIN.encode(), problem=problems.append):
            try:
                event = decode_event(payload)
                if event is not None and event.info is not None:
                    check_description(event.info)
            except ValueError as error:
                problems.append(f"{path.name}: the event at byte {start} is damaged: {error}")
                continue
            if event is not None:
                events.append(event)
    except OSError as error:
        problems.append(f"{path.name} can't be read: {error.strerror}")
    return events


def _fits(record: StepRecord, infos: Mapping[str, RunInfo], problems: list[str]) -> bool:
    info = infos.get(record.layout)
    if info is None:
        problems.append(f"step {record.step}: its layout {record.layout!r} is described nowhere")
        return False
    try:
        check_lengths(record, info)
    except ValueError as error:
        problems.append(str(error))
        return False
    return True


def _nothing(path: Path, files: Sequence[Path], problems: Sequence[str]) -> str:
    from lightning_gradwatch.foreign import describe_curves, gradient_curves  # noqa: PLC0415 - only where nothing is ours

    curves = gradient_curves(files)
    shown = f". {describe_curves(curves)}" if curves else ""
    if not any(file.stat().st_size for file in files):
        return f"nothing is written yet in {path}: {', '.join(file.name for file in files[:3])} is empty"
    if problems:
        return f"{path} has no GradWatch record that can be read: {'; '.join(problems)}{shown}"
    return f"no GradWatch records in {path}: add GradWatch() to the Trainer's callbacks{shown}"
