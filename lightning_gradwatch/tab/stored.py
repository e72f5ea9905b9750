"""Runs as TensorBoard's data provider has them: the tensors of an event, put together again. No file is opened here.

TensorBoard takes an event apart into series, keeps a random sample of each, and tells neither the order within an event nor how
many it dropped. So tensors are matched by step and wall time, and the event's own seal says whether they are all there: a step is
right or absent, and what is absent is said. Series of the same length have the same sample, so that of a long run nearly all
that is kept fits together.
"""

from __future__ import annotations

import contextlib
import re
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from tensorboard.data import provider

from lightning_gradwatch.judge.run import Run, RunError, assembled
from lightning_gradwatch.record.events import encoding
from lightning_gradwatch.record.events.decoding import DecodedEvent, open_description, open_event
from lightning_gradwatch.record.events.tags import FINDINGS_TAG, PREFIX, RUN_TAG, STEP_TAG, tensors_in_order
from lightning_gradwatch.record.run_files import Problems, Written
from lightning_gradwatch.record.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_MOST_POINTS = 100_000
_MOST_BYTES = 256 << 20
"""Of the tensors of a run that are asked for; TensorBoard's fast loader gives no more than that in one answer."""
_LEAST_POINTS = 64
_MOST_SERIES = 64
_LONGEST_RUN = 4096
_RUNS_KEPT = 4
_DEFAULT_SAMPLES = (10, 100)
"""What TensorBoard keeps of a series by itself: its own loader, and the fast one."""


class StoredRun(NamedTuple):
    """A run as far as TensorBoard has it."""

    run: Run
    sampled: bool
    """Whether TensorBoard dropped some of its events."""
    findings_lost: str = ""
    """Why what was found last isn't known; empty where it is."""


class ListedRun(NamedTuple):
    """A run that has steps of ours."""

    name: str
    version: str
    """Changes when steps come in."""


class StoredRuns:
    """Reads the runs of a TensorBoard server.

    Args:
        data_provider: TensorBoard's; None where it has none.
        samples: How many points of a series of ours it was told to keep; 0: all, None: unknown.
    """

    def __init__(self, data_provider: Any, *, samples: int | None = None) -> None:
        self._provider = data_provider
        self._samples = samples
        self._read: OrderedDict[tuple[str, ListedRun], StoredRun] = OrderedDict()
        self._lock = Lock()

    def listed(self, context: Any, experiment: str) -> list[ListedRun]:
        """Return the runs that have steps of ours, by name."""
        if self._provider is None:
            return []
        found = self._provider.list_tensors(
            context,
            experiment_id=experiment,
            plugin_name=encoding.PLUGIN,
            run_tag_filter=provider.RunTagFilter(tags=[STEP_TAG]),
        )
        return [
            ListedRun(name, f"{series[STEP_TAG].max_step}.{series[STEP_TAG].max_wall_time!r}")
            for name, series in sorted(found.items(), key=lambda item: _natural(item[0]))
            if STEP_TAG in series and len(name) <= _LONGEST_RUN
        ]

    def read(self, context: Any, experiment: str, listed: ListedRun) -> StoredRun:
        """Return a run as far as TensorBoard has it; the last few that were asked for are kept.

        Raises:
            RunError: nothing of it can be shown; the message says why.
        """
        key = experiment, listed
        with self._lock:
            if key in self._read:
                self._read.move_to_end(key)
                return self._read[key]
        found = self._assembled(context, experiment, listed.name)
        with self._lock:
            self._read[key] = found
            for old in [each for each in self._read if each[0] == experiment and each[1].name == listed.name]:
                if old != key:
                    del self._read[old]
            while len(self._read) > _RUNS_KEPT:
                self._read.popitem(last=False)
        return found

    def _assembled(self, context: Any, experiment: str, name: str) -> StoredRun:
        series = _Series(self._provider, context, experiment, name)
        problems = Problems()
        envelopes = sorted(series.points(STEP_TAG), key=lambda point: point.wall_time)
        sampled = self._is_sampled(len(envelopes))
        most = series.most_points()
        events, absent = _events(series, envelopes, most)
        shown = {event.record.step for event in events if event.record is not None}
        if sampled:
            problems.note(
                f"TensorBoard keeps {len(envelopes):,} of this run's events, drawn at random, and {counted(len(shown), 'measured step')} "
                "of them are shown: what lasts a single step may be missing. --samples_per_plugin=gradwatch=0 keeps all, and "
                "`gradwatch report` reads the files themselves"
            )
        elif len(envelopes) > most:
            problems.note(
                f"of {len(envelopes):,} steps {len(shown):,} are shown: all would take more than {_MOST_BYTES >> 20} MB"
            )
        elif missing := {step: why for step, why in absent.items() if step not in shown}:
            _tell_absent(missing, problems)
        partial = sampled or len(envelopes) > most
        if partial:
            events = _with_descriptions(events, series)
        lost = _lost_findings(series, events) if partial else ""
        run = assembled(Path(name), _written(events), problems)
        if run is None:
            reasons = "; ".join(problems.sentences)
            raise RunError(
                f"TensorBoard has no step of {name} that can be read{f': {reasons}' if reasons else ''}. "
                "`gradwatch check` on the folder reads the files themselves"
            )
        return StoredRun(run, partial, lost)

    def _is_sampled(self, points: int) -> bool:
        if self._samples is None:
            return points in _DEFAULT_SAMPLES
        return 0 < self._samples <= points


class _Series:
    """The series of one run."""

    def __init__(self, data_provider: Any, context: Any, experiment: str, run: str) -> None:
        self._provider, self._context, self._experiment, self._run = data_provider, context, experiment, run

    @cached_property
    def tags(self) -> list[str]:
        """The tags of our own plugin's data, in the order of writing, as far as that is known."""
        filtered = provider.RunTagFilter(runs=[self._run])
        found = self._provider.list_tensors(
            self._context, experiment_id=self._experiment, plugin_name=encoding.PLUGIN, run_tag_filter=filtered
        )
        held = [tag for tag in found.get(self._run, ()) if tag.startswith(PREFIX) and tag != STEP_TAG]
        place = {tag: number for number, tag in enumerate(tensors_in_order())}
        # What a newer release adds is taken to stand behind the others, before the description.
        return sorted(held, key=lambda tag: (tag == RUN_TAG, place.get(tag, len(place)), tag))[:_MOST_SERIES]

    def most_points(self) -> int:
        """Return how many points of each series may be asked for: the newest ones say how large they are."""
        sizes = [_size(self, tag) for tag in self.tags if tag != RUN_TAG]
        return max(_LEAST_POINTS, min(_MOST_POINTS, _MOST_BYTES // max(1, sum(sizes))))

    def points(self, tag: str, *, plugin: str = encoding.PLUGIN, most: int = _MOST_POINTS) -> Sequence[Any]:
        """Return what is kept of a series, at most so many points of it."""
        filtered = provider.RunTagFilter(runs=[self._run], tags=[tag])
        found = self._provider.read_tensors(
            self._context,
            experiment_id=self._experiment,
            plugin_name=plugin,
            downsample=most,
            run_tag_filter=filtered,
        )
        points: Sequence[Any] = found.get(self._run, {}).get(tag, ())
        return points


def _events(series: _Series, envelopes: Sequence[Any], most: int) -> tuple[list[DecodedEvent], dict[int, str]]:
    """Return the events that are whole, in the order of writing; and of which steps some is missing, with why."""
    tensors: dict[tuple[int, float], dict[str, tuple[int, bytes]]] = {}
    for tag in series.tags:
        for point in series.points(tag, most=most):
            tensors.setdefault((point.step, point.wall_time), {})[tag] = _encoded(point.numpy)
    events: list[DecodedEvent] = []
    absent: dict[int, str] = {}
    for point in envelopes:
        vectors = tensors.pop((point.step, point.wall_time), {})
        texts = [text for text in point.numpy.reshape(-1).tolist() if isinstance(text, bytes)][:3]
        try:
            events.append(open_event(texts, vectors, step=point.step, wall_time=point.wall_time))
        except ValueError as error:
            absent[point.step] = str(error)
    # Of two events of one step the fast loader hands on the later one's envelope, and both ones' tensors.
    absent |= {step: "another event has the same step" for step, _ in tensors if step not in absent}
    return events, absent


def _with_descriptions(events: Sequence[DecodedEvent], series: _Series) -> list[DecodedEvent]:
    """Return events with the descriptions whose own events were dropped; a series of its own has these, and few points."""
    whole = {event.wall_time for event in events if event.info is not None}
    found = [*events]
    for point in series.points(RUN_TAG):
        if point.wall_time not in whole:
            with contextlib.suppress(ValueError):
                info = open_description(_encoded(point.numpy)[1])
                found.append(DecodedEvent(wall_time=point.wall_time, info=info, record=None, findings=None))
    return sorted(found, key=lambda event: event.wall_time)


def _tell_absent(absent: Mapping[int, str], problems: Problems) -> None:
    step, why = next(iter(absent.items()))
    more = f", and {counted(len(absent) - 1, 'further step')} with it" if len(absent) > 1 else ""
    problems.tell(
        f"step {step} is left out{more}: {why}. It is damaged, or TensorBoard handed on some of it alone; `gradwatch report` reads "
        "the files themselves"
    )


def _size(series: _Series, tag: str) -> int:
    points = series.points(tag, most=1)
    return int(points[-1].numpy.nbytes) if points else 0


def _encoded(array: Any) -> tuple[int, bytes]:
    """Return the type and the bytes of a tensor as the event has them."""
    if array.dtype == object:
        return 0, b"".join(text for text in array.reshape(-1).tolist() if isinstance(text, bytes))
    try:
        return encoding.type_of(array), array.tobytes()
    except ValueError:
        return 0, array.tobytes()


def _written(events: Iterable[DecodedEvent]) -> list[Written]:
    """Return what events hold as what one fit wrote: whether there were several, TensorBoard doesn't tell."""
    part = Written(fit=-1, wall_time=0.0)
    for event in events:
        if event.info is not None:
            part.infos.append(event.info)
        if event.record is not None:
            part.records.append(event.record)
        if event.findings is not None:
            part.findings = event.findings
        if event.end is not None:
            part.end = event.end
    return [part]


def _lost_findings(series: _Series, events: Sequence[DecodedEvent]) -> str:
    """Return why what was found last isn't known, where TensorBoard didn't keep it; empty where it did.

    The text page's series has a point for each report, and its last one is always kept.
    """
    reports = series.points(FINDINGS_TAG, plugin="text", most=1)
    newest = max((point.wall_time for point in reports), default=None)
    if newest is None or any(event.findings is not None and event.wall_time >= newest for event in events):
        return ""
    return (
        f"what was found last, at step {max(point.step for point in reports)}, isn't among the events that TensorBoard kept; it "
        "stands as text under gradwatch/findings"
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Return what a name is sorted by: version_10 stands behind version_9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.findall(r"[0-9]{1,18}|[^0-9]+", name)]


def samples_of(hints: Mapping[str, Any] | None) -> int | None:
    """Return how many points of a series of ours TensorBoard was told to keep; None where nobody said."""
    given = (hints or {}).get(encoding.PLUGIN)
    return given if isinstance(given, int) else None
