"""Records → TensorBoard events, with `encoding` their format. The other way is `decoding`. No torch.

A measured step is one event, because each event costs a checksum over its bytes in pure Python. Vectors go in as tensors
of our own plugin that hold the record's float64 numbers bit for bit; what people look at without our dashboard goes in
as plain scalars and text.
TensorBoard's fast loader takes a series' metadata from its first value only and hides a tensor without a data class.
"""

from __future__ import annotations

import json
import struct
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2

from lightning_gradwatch.record.events import encoding
from lightning_gradwatch.record.events.decoding import DecodedEvent, decode_event
from lightning_gradwatch.record.events.tags import (
    FINDINGS_TAG,
    HEATMAP_TAG,
    PREFIX,
    RUN_TAG,
    SCALARS,
    STEP_TAG,
    VECTOR_TAGS,
    seal,
)
from lightning_gradwatch.record.metrics import METRICS, RECORD_VECTORS
from lightning_gradwatch.record.summaries import DESCRIPTIONS, curve_tags, findings_markdown, summaries
from lightning_gradwatch.record.validation import check_lengths

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from lightning_gradwatch.record.finding import Finding
    from lightning_gradwatch.record.run_end import RunEnd
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import FloatVector, StepRecord

__all__ = [
    "FINDINGS_TAG",
    "HEATMAP_TAG",
    "RUN_TAG",
    "STEP_TAG",
    "DecodedEvent",
    "decode_event",
    "findings_event",
    "heatmap_event",
    "step_event",
]


def step_event(
    record: StepRecord,
    info: RunInfo,
    *,
    max_curves: int | None = 64,
    describe: bool,
    findings: Sequence[Finding] | None = None,
    seen: set[str] | None = None,
) -> Any:
    """Return the event that holds a measured step.

    Args:
        record: What was measured.
        info: The description that has the record's layout.
        max_curves: Up to so many weight layers, and so many sites, get a curve each; None: any number.
        describe: Store `info` too; needed for the first record of a file and after the layout changed.
        findings: All findings so far, where they changed since the last event; None where they didn't.
        seen: Tags that have their description already, kept by the caller and added to here. A series that starts
            late (a window fills up) has its description only so. None: every series starts where `describe` is set.

    Raises:
        ValueError: the record has an unknown metric, or a vector whose length isn't the layout's.
    """
    event = _event(record.step)
    values = event.summary.value
    _add_vectors(values, record, info)
    if describe:
        if info.layout != record.layout:
            raise ValueError(f"record.layout={record.layout!r} is not info.layout={info.layout!r}")
        encoding.add_strings(values, RUN_TAG, [_json(info.to_dict())], encoding.OURS)
    envelope: dict[str, Any] = {"record": {name: getattr(record, name) for name in SCALARS}}
    if findings is not None:
        envelope["findings"] = [finding.to_dict() for finding in findings]
    _add_sealed(values, envelope)
    if findings is not None:
        encoding.add_strings(values, FINDINGS_TAG, [findings_markdown(findings)], encoding.TEXT)
    described = (set() if describe else None) if seen is None else seen
    for tag, value in summaries(record, info).items():
        encoding.add_scalar(values, tag, value, DESCRIPTIONS[tag], described)
    for metric in METRICS.values():
        if metric.is_curve and metric.name in record.metrics and (tags := curve_tags(metric.name, info, max_curves)):
            _add_curves(event.summary, tags, record.metrics[metric.name], metric.description, described)
    return event


def _add_curves(
    summary: Any, tags: tuple[tuple[int, str], ...], numbers: FloatVector, description: str, described: set[str] | None
) -> None:
    """Add a metric's number for each column that has a curve."""
    columns, curves = _curves(tags)
    if described is None or described.issuperset(tag for _, tag in tags):
        summary.MergeFromString(curves.of(numbers[columns]))
        return
    for column, tag in tags:
        encoding.add_scalar(summary.value, tag, float(numbers[column]), description, described)


@lru_cache(maxsize=8)
def _curves(tags: tuple[tuple[int, str], ...]) -> tuple[npt.NDArray[np.intp], encoding.Curves]:
    return np.array([column for column, _ in tags], np.intp), encoding.Curves([tag for _, tag in tags])


def findings_event(findings: Sequence[Finding], *, step: int, end: RunEnd | None = None, changed: bool = True) -> Any:
    """Return an event for what changed without a measured step, as at the end of a fit.

    Args:
        findings: All of them.
        step: Of the event.
        end: How the fit ended; None where it goes on.
        changed: Whether the findings did; those that didn't aren't shown once more.
    """
    event = _event(step)
    # An end never comes without findings: of an event that has neither these nor a step, earlier releases say that it is damaged.
    envelope: dict[str, Any] = {"findings": [finding.to_dict() for finding in findings]}
    if end is not None:
        envelope["end"] = end.to_dict()
    _add_sealed(event.summary.value, envelope)
    if changed:
        encoding.add_strings(event.summary.value, FINDINGS_TAG, [findings_markdown(findings)], encoding.TEXT)
    return event


def heatmap_event(step: int, png: bytes) -> Any:
    """Return an event with the image that `heatmap.heatmap_png` drew."""
    width, height = struct.unpack(">II", png[16:24])
    image = summary_pb2.Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
    event = _event(step)
    event.summary.value.add(tag=HEATMAP_TAG, image=image)
    return event


def _add_vectors(values: Any, record: StepRecord, info: RunInfo) -> None:
    if unknown := record.metrics.keys() - set(METRICS):
        raise ValueError(f"step {record.step}: unknown metrics {sorted(unknown)}; one of {', '.join(METRICS)}")
    check_lengths(record, info)
    for name, vector in record.metrics.items():
        # A share is a count over another, so that fewer bits often hold all of them.
        (encoding.add_narrow if METRICS[name].is_fraction else encoding.add_vector)(values, PREFIX + name, vector)
    for name, kind in RECORD_VECTORS.items():
        vector = getattr(record, name)
        if len(vector) or not kind.is_optional:
            (encoding.add_bytes if kind.is_code else encoding.add_narrow)(values, VECTOR_TAGS[name], vector)


def _event(step: int) -> Any:
    return event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary())


def _add_sealed(values: Any, envelope: Mapping[str, Any]) -> None:
    text = _json(envelope).encode()
    contents = {value.tag: encoding.content(value.tensor) for value in values}
    encoding.add_strings(values, STEP_TAG, [text, _seal(text, contents)], encoding.OURS)


def _seal(text: bytes, contents: Mapping[str, bytes]) -> bytes:
    return seal(text, ((tag, (0, content)) for tag, content in contents.items()))


def _json(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
