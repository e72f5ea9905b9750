"""Records ↔ TensorBoard events: the one place that knows tags, and with `wire` their format. No torch.

A measured step is one event, because each event costs a checksum over its bytes in pure Python. Vectors go in as tensors
of our own plugin that hold the record's float64 numbers bit for bit; what people look at without our dashboard goes in
as plain scalars and text.
TensorBoard's fast loader takes a series' metadata from its first value only and hides a tensor without a data class.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
from tensorboard.compat.proto import event_pb2, summary_pb2

from lightning_gradwatch import wire
from lightning_gradwatch.description import check_lengths
from lightning_gradwatch.findings import Finding
from lightning_gradwatch.record import LOOP_VECTORS, METRICS, RunInfo, StepRecord
from lightning_gradwatch.summaries import CURVES, DESCRIPTIONS, curve_tags, findings_markdown, summaries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_gradwatch.record import FloatVector

STEP_TAG = "gradwatch/step"
RUN_TAG = "gradwatch/run"
FINDINGS_TAG = "gradwatch/findings"
HEATMAP_TAG = "gradwatch/heatmap"

_PREFIX = f"{wire.PLUGIN}/"
_SITE_VECTORS = ("window_fill", "forward_rms")
_FRACTIONS = ("dead_fraction", "saturated_fraction", "inactive_share")
"""Metrics that are a count over another, so that fewer bits often hold all of them."""
_STATE_TAG, _FILL_TAG, _RMS_TAG = (_PREFIX + name for name in ("layer_state", *_SITE_VECTORS))
_VECTOR_TAGS = {name: _PREFIX + name for name in (*METRICS, *LOOP_VECTORS)}
_TAGS = frozenset((STEP_TAG, RUN_TAG, _STATE_TAG, _FILL_TAG, _RMS_TAG, *_VECTOR_TAGS.values()))
_SCALARS: dict[str, Any] = {"step": 0, "layout": ""} | {
    entry.name: entry.default for entry in dataclasses.fields(StepRecord) if entry.default is not dataclasses.MISSING
}
"""Fields of a record that are no vectors, each with a value of its type."""
_KINDS = {name: type(value) for name, value in _SCALARS.items()}


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
        wire.add_strings(values, RUN_TAG, [_json(info.to_dict())], wire.OURS)
    envelope: dict[str, Any] = {"record": {name: getattr(record, name) for name in _SCALARS}}
    if findings is not None:
        envelope["findings"] = [finding.to_dict() for finding in findings]
    _add_sealed(values, envelope)
    if findings is not None:
        wire.add_strings(values, FINDINGS_TAG, [findings_markdown(findings)], wire.TEXT)
    described = (set() if describe else None) if seen is None else seen
    for tag, value in summaries(record, info).items():
        wire.add_scalar(values, tag, value, DESCRIPTIONS[tag], described)
    for metric, description in CURVES.items():
        if metric in record.metrics:
            drawn = record.metrics[metric].tolist()
            for column, tag in curve_tags(metric, info, max_curves):
                wire.add_scalar(values, tag, drawn[column], description, described)
    return event


def findings_event(findings: Sequence[Finding], *, step: int) -> Any:
    """Return an event for findings that changed without a measured step, as at the end of a fit."""
    event = _event(step)
    _add_sealed(event.summary.value, {"findings": [finding.to_dict() for finding in findings]})
    wire.add_strings(event.summary.value, FINDINGS_TAG, [findings_markdown(findings)], wire.TEXT)
    return event


def heatmap_event(step: int, png: bytes) -> Any:
    """Return an event with the image that `heatmap.heatmap_png` drew."""
    width, height = struct.unpack(">II", png[16:24])
    image = summary_pb2.Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
    event = _event(step)
    event.summary.value.add(tag=HEATMAP_TAG, image=image)
    return event


@dataclass(frozen=True)
class DecodedEvent:
    """What one of our events holds; None for what it doesn't."""

    wall_time: float
    info: RunInfo | None
    record: StepRecord | None
    findings: tuple[Finding, ...] | None


def decode_event(payload: bytes) -> DecodedEvent | None:
    """Read the bytes of an event; None if it isn't GradWatch's.

    Only bytes that are there are ever turned into arrays: a shape that a tensor claims is never looked at.

    Raises:
        ValueError: the event is GradWatch's and damaged.
    """
    try:
        event = event_pb2.Event.FromString(payload)
    except DecodeError as error:
        raise ValueError("its framing inside is broken") from error
    tensors = {}
    for value in event.summary.value:  # its metadata takes longer to look at than all the rest of it
        tag = value.tag
        if tag in _TAGS or (tag.startswith(_PREFIX) and value.metadata.plugin_data.plugin_name == wire.PLUGIN):
            tensors[tag] = value.tensor
            if tag == STEP_TAG:
                break  # the seal is of what stands before it; behind it are curves, and there may be hundreds
    if not tensors:
        return None
    try:
        text, seal = tensors.pop(STEP_TAG).string_val
        contents = {tag: wire.content(tensor) for tag, tensor in tensors.items()}
        if seal != _seal(text, contents):
            raise ValueError("its checksum is wrong")
        envelope = json.loads(text.decode())
        return DecodedEvent(
            wall_time=event.wall_time,
            info=RunInfo.from_dict(json.loads(contents[RUN_TAG])) if RUN_TAG in contents else None,
            record=_read_record(envelope["record"], tensors, contents, event.step) if "record" in envelope else None,
            findings=tuple(Finding.from_dict(entry) for entry in envelope["findings"])
            if "findings" in envelope
            else None,
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _add_vectors(values: Any, record: StepRecord, info: RunInfo) -> None:
    if unknown := record.metrics.keys() - set(METRICS):
        raise ValueError(f"step {record.step}: unknown metrics {sorted(unknown)}; one of {', '.join(METRICS)}")
    check_lengths(record, info)
    for name, vector in record.metrics.items():
        (wire.add_narrow if name in _FRACTIONS else wire.add_vector)(values, _VECTOR_TAGS[name], vector)
    wire.add_bytes(values, _STATE_TAG, record.layer_state)
    for name in (*_SITE_VECTORS, *(each for each in LOOP_VECTORS if len(getattr(record, each)))):
        wire.add_narrow(values, _PREFIX + name, getattr(record, name))


def _event(step: int) -> Any:
    return event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary())


def _add_sealed(values: Any, envelope: Mapping[str, Any]) -> None:
    text = _json(envelope).encode()
    contents = {value.tag: wire.content(value.tensor) for value in values}
    wire.add_strings(values, STEP_TAG, [text, _seal(text, contents)], wire.OURS)


def _seal(text: bytes, contents: Mapping[str, bytes]) -> bytes:
    """Return a checksum that C computes; the file's own takes Python a hundred times as long, so readers skip it."""
    crc = crc32(text)
    for tag, content in contents.items():
        crc = crc32(content, crc32(tag.encode(), crc))
    return b"%08x" % crc


def _json(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def _read_record(
    scalars: Mapping[str, Any], tensors: Mapping[str, Any], contents: Mapping[str, bytes], step: int
) -> StepRecord:
    if scalars["step"] != step:
        raise ValueError(f"it says step {scalars['step']!r} and step {step}")

    def vector(tag: str) -> FloatVector:
        return wire.vector_of(tensors[tag], contents[tag])

    vectors: dict[str, Any] = {name: vector(tag) for name, tag in _VECTOR_TAGS.items() if tag in contents}
    return StepRecord(
        **{name: vectors.pop(name) for name in LOOP_VECTORS if name in vectors},
        metrics=vectors,
        layer_state=np.frombuffer(contents[_STATE_TAG], np.uint8),
        window_fill=vector(_FILL_TAG),
        forward_rms=vector(_RMS_TAG),
        **{
            name: value if type(value) is _KINDS[name] else _converted(name, value)
            for name, value in scalars.items()
            if name in _KINDS
        },
    )


def _converted(name: str, value: Any) -> Any:
    """Return a scalar as the type of its field."""
    kind = _KINDS[name]
    if kind is tuple and all(isinstance(entry, (int, float)) for entry in value):
        return tuple(value)
    if kind is float and isinstance(value, int):
        return float(value)
    raise TypeError(f"{name}={value!r}")
