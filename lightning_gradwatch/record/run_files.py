"""The event files of a run → what they hold, in the order in which it was written, and what of it is lost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lightning_gradwatch.record.events.decoding import SIGNS, DecodedEvent, Decoder
from lightning_gradwatch.record.events.encoding import PLUGIN
from lightning_gradwatch.record.events.reader import EventReader
from lightning_gradwatch.record.events.tags import Stamp
from lightning_gradwatch.record.step import SCHEMA_VERSION
from lightning_gradwatch.record.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from lightning_gradwatch.record.finding import Finding
    from lightning_gradwatch.record.run_end import RunEnd
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

_MOST_TOLD = 20
_LONGEST = 500
_UNSTAMPED = Stamp(-1, -1)
"""Of the first releases: written before any that has a number."""


class Problems:
    """Sentences on what couldn't be read; those beyond the first twenty are counted only."""

    def __init__(self) -> None:
        self._sentences: list[str] = []
        self.count = 0
        self.losses = 0

    def tell(self, sentence: str) -> None:
        """Add one on something that is lost."""
        self.losses += 1
        self.note(sentence)

    def note(self, sentence: str) -> None:
        """Add one on something that is left out, and no harm done."""
        self.count += 1
        if len(self._sentences) < _MOST_TOLD:
            self._sentences.append(sentence if len(sentence) <= _LONGEST else f"{sentence[:_LONGEST]}…")

    @property
    def sentences(self) -> tuple[str, ...]:
        """All that are told."""
        more = self.count - len(self._sentences)
        return (*self._sentences, *([f"and {more} problems more"] if more else []))


@dataclass
class Written:
    """What one fit wrote into one event file."""

    fit: int
    """Its number; below 0 in files of the first releases, which have none."""
    wall_time: float
    """Of its first event: where no number tells what is later, this does."""
    infos: list[RunInfo] = field(default_factory=list)
    records: list[StepRecord] = field(default_factory=list)
    findings: tuple[Finding, ...] | None = None
    """As reported last; None where there was no report."""
    end: RunEnd | None = None
    """How it ended; None where that wasn't written: it goes on, was killed, or is of a release that didn't tell."""

    @property
    def order(self) -> tuple[int, float]:
        """What is sorted by: names tell the time to the second only, and copying changes a file's own."""
        return self.fit, self.wall_time


def read_files(paths: Iterable[Path], problems: Problems) -> list[Written]:
    """Read event files; return what they hold, in the order in which it was written."""
    unknown: dict[str, str] = {}
    written = [part for path in paths for part in _read_file(path, problems, unknown)]
    written.sort(key=lambda part: part.order)
    newest = max((info.schema_version for part in written for info in part.infos), default=0)
    if newest > SCHEMA_VERSION:
        problems.note(f"written by a newer GradWatch (schema {newest}); what it added is left out")
    else:
        for thing, where in unknown.items():
            problems.note(f"{where}: GradWatch doesn't know {thing!r}, and it is left out")
    return written


def tell_missing_fits(written: Iterable[Written], problems: Problems) -> None:
    """Tell of fits whose files a folder had and has no more."""
    fits = {part.fit for part in written if part.fit >= 0}
    missing = max(fits, default=-1) + 1 - len(fits)
    if missing:
        verb = "is" if missing == 1 else "are"
        problems.tell(f"what {counted(missing, 'earlier fit')} wrote into this folder {verb} missing")


class _Entry(NamedTuple):
    """What is kept of an event, beside its findings: only those reported last are asked for."""

    beginnings: int
    """How many times the numbers have begun at 0."""
    stamp: Stamp
    info: RunInfo | None
    record: StepRecord | None


class _File:
    """Collects what the events of one file hold.

    Numbers that begin at 0 once more are those of another file that was put behind: they are counted on their own.
    """

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self.in_order = True
        self._parts: dict[tuple[int, int], Written] = {}
        self._reported: dict[tuple[int, int], Stamp] = {}
        self._starts: set[Stamp] = set()
        self._stamp = _UNSTAMPED

    def take(self, event: DecodedEvent) -> bool:
        """Take an event; return whether it is the first that can't stand where it does."""
        disorder = False
        if event.stamp is not None:  # else it is of the first releases, or damaged: its place is where it stands
            if event.stamp.number == 0 and event.stamp not in self._starts:
                self._starts.add(event.stamp)
            else:
                disorder = self.in_order and event.stamp[:2] <= self._stamp[:2]
                self.in_order = self.in_order and not disorder
            if self._stamp is _UNSTAMPED and self.entries:
                self._adopt(event.stamp.fit)
            self._stamp = event.stamp
        key = len(self._starts), self._stamp.fit
        if key not in self._parts:
            earliest = max((part.wall_time for part in self._parts.values()), default=-math.inf)
            wall_time = event.wall_time if math.isfinite(event.wall_time) else 0.0
            self._parts[key] = Written(self._stamp.fit, max(wall_time, earliest))
        if event.findings is not None and self._stamp >= self._reported.get(key, _UNSTAMPED):
            self._parts[key].findings, self._reported[key] = event.findings, self._stamp
        if event.end is not None:
            self._parts[key].end = event.end
        self.entries.append(_Entry(key[0], self._stamp, event.info, event.record))
        return disorder

    def _adopt(self, fit: int) -> None:
        """Count the events so far, whose numbers are damaged, as those of the first fit whose number isn't."""
        key = len(self._starts), fit
        stamp = Stamp(fit, -1)
        ((_, part),) = self._parts.items()
        part.fit = fit
        self._parts = {key: part}
        self._reported = {key: stamp} if self._reported else {}
        self.entries = [entry._replace(beginnings=key[0], stamp=stamp) for entry in self.entries]

    def written(self) -> list[Written]:
        """Return what each fit wrote, in the order of writing."""
        if not self.in_order:
            self.entries.sort(key=lambda entry: entry[:2])
        for beginnings, stamp, info, record in self.entries:
            part = self._parts[beginnings, stamp.fit]
            if info is not None:
                part.infos.append(info)
            if record is not None:
                part.records.append(record)
        return list(self._parts.values())


def _read_file(path: Path, problems: Problems, unknown: dict[str, str]) -> list[Written]:
    """Read one file.

    Args:
        path: The file.
        problems: What is lost is told here.
        unknown: What this release can't read, with the first place where it stands; added to here.
    """
    told = problems.count
    file = _File()
    for start, event in _events(path, problems):
        if file.take(event):
            problems.tell(f"{path.name}: from byte {start} on, events stand twice or not in the order of writing")
        for thing in event.unknown:
            if len(unknown) < _MOST_TOLD:
                unknown.setdefault(thing, f"{path.name}: the event at byte {start}")
    written = file.written()
    _tell_missing_events(path, file.entries, problems, problems.count - told)
    return written


def _events(path: Path, problems: Problems) -> Iterator[tuple[int, DecodedEvent]]:
    """Yield the events of ours in a file that can be read, and tell of the others."""
    reader = EventReader(path, marker=PLUGIN.encode(), problem=problems.tell, signs=SIGNS)
    decoder = Decoder()
    try:
        for start, payload in reader:
            if not start:
                problems.tell(f"{path.name}: its first bytes are missing, with which every event file begins")
            try:
                event = decoder.decode(payload)
            except ValueError as error:
                problems.tell(f"{path.name}: the event at byte {start} is damaged: {error}")
                if not reader.is_sound():  # its header may be what is wrong
                    reader.read_within()
                continue
            if event is not None:
                yield start, event
            elif not reader.is_sound():  # it was more than a mention, perhaps
                problems.tell(f"{path.name}: the event at byte {start} mentions GradWatch and is damaged")
                reader.read_within()
    except OSError as error:
        problems.tell(f"{path.name} can't be read: {error.strerror}")


def _tell_missing_events(path: Path, entries: Iterable[_Entry], problems: Problems, told: int) -> None:
    """Tell how many events a file lacks by their numbers, if these are more than the damages that were told of it."""
    lost, first = 0, None
    before = (0, _UNSTAMPED.fit), _UNSTAMPED.number
    step: int | None = None
    for beginnings, stamp, _, record in entries:
        counted_with = beginnings, stamp.fit
        gap = stamp.number - (before[1] if counted_with == before[0] else -1) - 1
        if gap > 0:
            first = first if lost else step
            lost += gap
        before = counted_with, stamp.number
        step = step if record is None else record.step
    if lost > told:
        place = "before its first step" if first is None else f"the first behind step {first}"
        verb = "is" if lost == 1 else "are"
        problems.tell(f"{path.name}: {counted(lost, 'event')} that GradWatch wrote {verb} missing, {place}")
