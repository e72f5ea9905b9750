"""Records ↔ TensorBoard events: the one place that knows tags and wire format. No torch.

A measured step is one event, because each event costs a checksum over its bytes in pure Python. Vectors go in as tensors
of our own plugin, float64 and bit for bit; what people look at without our dashboard goes in as plain scalars and text.
TensorBoard's fast loader takes a series' metadata from its first value only and hides a tensor without a data class.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2

from lightning_gradwatch.description import check_lengths
from lightning_gradwatch.findings import Finding
from lightning_gradwatch.record import LOOP_VECTORS, METRICS, FloatVector, RunInfo, StepRecord
from lightning_gradwatch.summaries import CURVES, DESCRIPTIONS, curve_tags, findings_markdown, summaries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PLUGIN = "gradwatch"
STEP_TAG = "gradwatch/step"
RUN_TAG = "gradwatch/run"
FINDINGS_TAG = "gradwatch/findings"
HEATMAP_TAG = "gradwatch/heatmap"

_PREFIX = f"{PLUGIN}/"
_STATE = "layer_state"
_SITE_VECTORS = ("window_fill", "forward_rms")
_STATE_TAG, _FILL_TAG, _RMS_TAG = (_PREFIX + name for name in (_STATE, *_SITE_VECTORS))
_VECTOR_TAGS = {name: _PREFIX + name for name in (*METRICS, *LOOP_VECTORS)}
_TAGS = frozenset((STEP_TAG, RUN_TAG, _STATE_TAG, _FILL_TAG, _RMS_TAG, *_VECTOR_TAGS.values()))
_SCALARS: dict[str, Any] = {"step": 0, "layout": ""} | {
    entry.name: entry.default for entry in dataclasses.fields(StepRecord) if entry.default is not dataclasses.MISSING
}
"""Fields of a record that are no vectors, each with a value of its type."""
_KINDS = {name: type(value) for name, value in _SCALARS.items()}
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def _metadata(plugin: str, data_class: int, description: str = "") -> Any:
    return summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name=plugin),
        summary_description=description,
        data_class=data_class,
    )


_OURS = _metadata(PLUGIN, summary_pb2.DATA_CLASS_TENSOR)
_TEXT = _metadata("text", summary_pb2.DATA_CLASS_TENSOR)
_FLOAT64 = np.dtype("<f8")
_DTYPES: dict[int, np.dtype[Any]] = {
    types_pb2.DT_DOUBLE: _FLOAT64,
    types_pb2.DT_FLOAT: np.dtype("<f4"),
    types_pb2.DT_HALF: np.dtype("<f2"),
    types_pb2.DT_UINT8: np.dtype("|u1"),
}


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
        _add_strings(values, RUN_TAG, [_json(info.to_dict())], _OURS)
    envelope: dict[str, Any] = {"record": {name: getattr(record, name) for name in _SCALARS}}
    if findings is not None:
        envelope["findings"] = [finding.to_dict() for finding in findings]
    _add_sealed(values, envelope)
    if findings is not None:
        _add_strings(values, FINDINGS_TAG, [findings_markdown(findings)], _TEXT)
    described = (set() if describe else None) if seen is None else seen
    for tag, value in summaries(record, info).items():
        _add_scalar(values, tag, value, DESCRIPTIONS[tag], described)
    for metric, description in CURVES.items():
        if metric in record.metrics:
            drawn = record.metrics[metric].tolist()
            for column, tag in curve_tags(metric, info, max_curves):
                _add_scalar(values, tag, drawn[column], description, described)
    return event


def findings_event(findings: Sequence[Finding], *, step: int) -> Any:
    """Return an event for findings that changed without a measured step, as at the end of a fit."""
    event = _event(step)
    _add_sealed(event.summary.value, {"findings": [finding.to_dict() for finding in findings]})
    _add_strings(event.summary.value, FINDINGS_TAG, [findings_markdown(findings)], _TEXT)
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
        if tag in _TAGS or (tag.startswith(_PREFIX) and value.metadata.plugin_data.plugin_name == PLUGIN):
            tensors[tag] = value.tensor
            if tag == STEP_TAG:
                break  # the seal is of what stands before it; behind it are curves, and there may be hundreds
    if not tensors:
        return None
    try:
        text, seal = tensors.pop(STEP_TAG).string_val
        contents = {tag: _content(tensor) for tag, tensor in tensors.items()}
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
        _add_tensor(values, name, types_pb2.DT_DOUBLE, vector)
    _add_tensor(values, _STATE, types_pb2.DT_UINT8, record.layer_state)
    for name in (*_SITE_VECTORS, *(each for each in LOOP_VECTORS if len(getattr(record, each)))):
        _add_narrow_tensor(values, name, getattr(record, name))


def _event(step: int) -> Any:
    return event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary())


@lru_cache(maxsize=32)
def _shape(*sizes: int) -> Any:
    return tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in sizes])


# Each value is made where it stays, in the event: protobuf copies one that is handed over.


def _add_tensor(values: Any, name: str, dtype: int, vector: npt.NDArray[Any]) -> None:
    content = np.ascontiguousarray(vector, dtype=_DTYPES[dtype]).tobytes()
    tensor = tensor_pb2.TensorProto(dtype=dtype, tensor_shape=_shape(len(vector)), tensor_content=content)
    values.add(tag=_PREFIX + name, tensor=tensor, metadata=_OURS)


def _add_narrow_tensor(values: Any, name: str, vector: FloatVector) -> None:
    """Add a tensor of the narrowest type that holds the same bits: a window's fill is a count over a power of two."""
    bits = np.ascontiguousarray(vector, dtype="<f8").tobytes()
    for dtype in (types_pb2.DT_HALF, types_pb2.DT_FLOAT):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            narrow = vector.astype(_DTYPES[dtype])
        if narrow.astype("<f8").tobytes() == bits:
            return _add_tensor(values, name, dtype, narrow)
    return _add_tensor(values, name, types_pb2.DT_DOUBLE, vector)


def _add_strings(values: Any, tag: str, texts: Sequence[str | bytes], metadata: Any) -> None:
    # One text is a scalar: TensorBoard draws a vector of one as a table of one cell.
    shape = _shape(len(texts)) if len(texts) > 1 else _shape()
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=encoded)
    values.add(tag=tag, tensor=tensor, metadata=metadata)


def _add_scalar(values: Any, tag: str, value: float, description: str, described: set[str] | None) -> None:
    """Add a scalar unless TensorBoard can't draw it: NaN, and what is infinite in the float32 of a scalar."""
    if not abs(value) <= _FLOAT32_MAX:
        return
    if described is None or tag in described:
        values.add(tag=tag, simple_value=value)
    else:
        described.add(tag)
        metadata = _metadata("scalars", summary_pb2.DATA_CLASS_SCALAR, description)
        values.add(tag=tag, simple_value=value, metadata=metadata)


def _add_sealed(values: Any, envelope: Mapping[str, Any]) -> None:
    text = _json(envelope).encode()
    contents = {value.tag: _content(value.tensor) for value in values}
    _add_strings(values, STEP_TAG, [text, _seal(text, contents)], _OURS)


def _content(tensor: Any) -> bytes:
    content: bytes = tensor.tensor_content or b"".join(tensor.string_val)
    return content


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
        dtype = tensors[tag].dtype
        if dtype == types_pb2.DT_DOUBLE:
            return np.frombuffer(contents[tag], _FLOAT64)
        return np.frombuffer(contents[tag], _DTYPES[dtype]).astype(np.float64)

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
