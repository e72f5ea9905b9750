"""An event's bytes → what GradWatch put into it. The other way is `step_events`.

A value of an event looks the same at each step of a run but for its numbers: what stands in front of these and behind is
compared with the event before, in C, and taken apart only where it differs.
"""

from __future__ import annotations

import json
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from lightning_gradwatch.record.events import encoding
from lightning_gradwatch.record.events.protobuf import BrokenMessageError, fields
from lightning_gradwatch.record.events.tags import (
    PREFIX,
    RUN_TAG,
    SCALARS,
    STEP_TAG,
    VECTOR_TAGS,
    Stamp,
    known_tags,
    read_stamp,
    seal,
)
from lightning_gradwatch.record.finding import Finding
from lightning_gradwatch.record.metrics import METRICS, RECORD_VECTORS
from lightning_gradwatch.record.reasons import reason_of
from lightning_gradwatch.record.run_end import RunEnd
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord
from lightning_gradwatch.record.validation import (
    check_description,
    check_end,
    check_finding,
    check_record,
    missing_key,
    unknown_keys,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


SIGNS = (
    b"\n%c%s" % (len(STEP_TAG), STEP_TAG.encode()),
    b"\n%c\n%c%s" % (len(encoding.PLUGIN) + 2, len(encoding.PLUGIN), encoding.PLUGIN.encode()),
)
"""Bytes that no event but ours contains: the tag of its envelope, and our plugin in a value's metadata."""

_MOST_PARTS = 64
"""Fields of an event, of a value, of a tensor: ours have three or four."""
_MOST_VALUES = 256
"""Values in front of the envelope: a vector each, and the description."""
_MOST_UNKNOWN = 20
_SMALL_TEXT = 1 << 16
_LARGEST_TEXT = 16 << 20
_SMALL_MEMORY = 4 << 20
_EXPANSION = 16
"""Bytes of memory a byte of JSON, beyond which it isn't ours: an empty list takes 64 bytes and is written in three."""

# Keys of fields: eight times the number plus the wire type.
_WALL_TIME, _STEP, _SUMMARY = 0x09, 0x10, 0x2A
_VALUE = 0x0A
_TAG, _NODE_NAME, _TENSOR, _METADATA = 0x0A, 0x3A, 0x42, 0x4A
_DTYPE, _CONTENT, _STRING = 0x08, 0x22, 0x42

_ENVELOPE = frozenset(("record", "findings", "end"))
_KINDS = {name: type(value) for name, value in SCALARS.items()}
_NAMES = tuple(_KINDS)
_WRITTEN = tuple(list if kind is tuple else kind for kind in _KINDS.values())
_LISTS = tuple(name for name, kind in _KINDS.items() if kind is tuple)
_FIRST_SCALARS = frozenset(
    (
        *(
            "step",
            "layout",
            "batch_idx",
            "optimizers",
            "loss",
            "learning_rates",
            "gradient_scale",
            "skipped",
            "partial",
        ),
        *("clip_factor", "global_grad_norm", "world_size"),
    )
)
"""What every release wrote: one that isn't there was changed. What comes later is its default where it isn't there."""


class DecodedEvent(NamedTuple):
    """What one of our events holds; None for what it doesn't."""

    wall_time: float
    info: RunInfo | None
    record: StepRecord | None
    findings: tuple[Finding, ...] | None
    stamp: Stamp | None = None
    """Its place among the others; None in files of the first releases."""
    unknown: tuple[str, ...] = ()
    """What this release can't read of it, and only a newer one would have written."""
    end: RunEnd | None = None
    """How the fit ended, in its last event; earlier releases didn't tell."""


def decode_event(payload: bytes) -> DecodedEvent | None:
    """Read the bytes of an event; None if it isn't GradWatch's.

    Only bytes that are there are ever turned into arrays: a shape that a tensor claims is never looked at.

    Raises:
        ValueError: the event is GradWatch's and damaged.
    """
    return Decoder().decode(payload)


def open_event(
    texts: Sequence[bytes], vectors: Mapping[str, tuple[int, bytes]], *, step: int, wall_time: float
) -> DecodedEvent:
    """Read what somebody else took out of an event's frame, as TensorBoard hands it to its plugins.

    Args:
        texts: Of the envelope: its JSON, and the seal.
        vectors: The type and the bytes of each tensor, by its tag, in the order of writing; that is what the seal is over.
        step: Of the event.
        wall_time: Of the event.

    Raises:
        ValueError: it is damaged, or some of it is missing.
    """
    with _damage_told():
        return _opened(_Value(STEP_TAG, True, 0, 0, 0, tuple(texts), b""), dict(vectors), step, wall_time)


def open_description(text: bytes) -> RunInfo:
    """Read the description of a run without the event that it came in, and so without a seal: its layout says if it fits a record.

    Raises:
        ValueError: it is damaged.
    """
    with _damage_told():
        return _read_info(text)[0]


@contextmanager
def _damage_told() -> Iterator[None]:
    """Turn whatever reading an event of anybody's can raise into a sentence.

    Raises:
        ValueError: it can't be read.
    """
    try:
        yield
    except (BrokenMessageError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{error}") from error
    except KeyError as error:
        raise ValueError(f"it lacks {error}") from error
    except (MemoryError, OverflowError, RecursionError) as error:
        raise ValueError(reason_of(error)) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"it holds what GradWatch doesn't write ({type(error).__name__}: {error})") from error


class _Value(NamedTuple):
    """A value of a summary."""

    tag: str
    ours: bool
    dtype: int
    start: int
    """Where the bytes of its tensor start."""
    size: int
    strings: tuple[bytes, ...]
    node_name: bytes


_Frame: TypeAlias = "tuple[bytes, bytes, int, str, int]"
"""What stands in front of the numbers of a vector and behind them, how many bytes these are, and the vector's tag and type."""


class Decoder:
    """Decodes the events of one file, one after the other."""

    def __init__(self) -> None:
        self._frames: list[_Frame | None] = []

    def decode(self, payload: bytes) -> DecodedEvent | None:
        """Read the bytes of an event, as `decode_event`.

        Raises:
            ValueError: the event is GradWatch's and damaged.
        """
        with _damage_told():
            wall_time, step, start, end = _outline(payload)
            vectors: dict[str, tuple[int, bytes]] = {}
            envelope, behind = self._take(payload, start, end, vectors)
            if envelope is None and not vectors:
                if any(sign in payload for sign in SIGNS):
                    raise ValueError("it bears GradWatch's marks, and nothing of it can be read")
                return None
            if envelope is None:
                raise ValueError(f"it has no {STEP_TAG}, which seals the rest")
            if payload.find(SIGNS[0], behind, end) >= 0:
                raise ValueError("it holds more than one step")
            return _opened(envelope, vectors, step, wall_time)

    def _take(
        self, payload: bytes, at: int, end: int, vectors: dict[str, tuple[int, bytes]]
    ) -> tuple[_Value | None, int]:
        """Take the vectors of a summary up to its envelope; return the envelope, and where it ends.

        Behind it are curves, and there may be hundreds.
        """
        frames, starts = self._frames, payload.startswith
        for place in range(_MOST_VALUES):
            if at >= end:
                break
            frame = frames[place] if place < len(frames) else None
            if frame is not None:
                head, tail, size, tag, dtype = frame
                if starts(head, at):
                    start = at + len(head)
                    stop = start + size
                    if starts(tail, stop):
                        vectors[tag] = dtype, payload[start:stop]
                        at = stop + len(tail)
                        continue
            value, behind = _value(payload, at, end)
            if value.tag == STEP_TAG:
                return value, behind
            frame = None
            if value.ours:
                stop = value.start + value.size
                vectors[value.tag] = value.dtype, payload[value.start : stop] or b"".join(value.strings)
                if value.size:
                    frame = payload[at : value.start], payload[stop:behind], value.size, value.tag, value.dtype
            frames[place : place + 1] = [frame]
            at = behind
        if at > end:
            raise BrokenMessageError("its framing inside is broken")
        return None, at


def _outline(payload: bytes) -> tuple[float, int, int, int]:
    """Return an event's wall time, its step, and where its summary starts and ends: nowhere, if it has none."""
    wall_time, step, start, end = 0.0, 0, 0, 0
    for key, number, first, last in fields(payload, 0, len(payload), most=_MOST_PARTS):
        if key == _SUMMARY:
            if end:
                raise BrokenMessageError("it holds more than one summary")
            start, end = first, last
        elif key == _STEP:
            step = number
        elif key == _WALL_TIME:
            (wall_time,) = struct.unpack_from("<d", payload, first)
    return wall_time, step, start, end


def _value(data: bytes, at: int, end: int) -> tuple[_Value, int]:
    """Return the value that starts at an offset within a summary, and the offset behind it."""
    key, _, first, last = next(fields(data, at, end, most=_MOST_PARTS))
    if key != _VALUE:
        return _Value("", False, 0, first, 0, (), b""), last
    tag = node_name = b""
    dtype, start, size, named = 0, last, 0, False
    strings: tuple[bytes, ...] = ()
    for part, _, begin, stop in fields(data, first, last, most=_MOST_PARTS):
        if part == _TAG:
            tag = data[begin:stop]
        elif part == _NODE_NAME:
            node_name = data[begin:stop]
        elif part == _TENSOR:
            dtype, start, size, strings = _tensor(data, begin, stop)
        elif part == _METADATA:
            named = data.find(SIGNS[1], begin, stop) >= 0
    text = tag.decode("utf-8", "replace") if len(tag) < 1000 else ""
    return _Value(
        text, text.startswith(PREFIX) and (named or text in known_tags()), dtype, start, size, strings, node_name
    ), last


def _tensor(data: bytes, at: int, end: int) -> tuple[int, int, int, tuple[bytes, ...]]:
    dtype, start, size = 0, at, 0
    strings: list[bytes] = []
    for key, number, first, last in fields(data, at, end, most=_MOST_PARTS):
        if key == _DTYPE:
            dtype = number
        elif key == _CONTENT:
            start, size = first, last - first
        elif key == _STRING:
            strings.append(data[first:last])
    return dtype, start, size, tuple(strings)


def _opened(envelope: _Value, vectors: dict[str, tuple[int, bytes]], step: int, wall_time: float) -> DecodedEvent:
    """Return what is in an event, once its seal is checked."""
    if len(envelope.strings) != 2:
        raise ValueError(f"{STEP_TAG} holds {len(envelope.strings)} texts; it has two, the second a checksum")
    text, checksum = envelope.strings
    if checksum != seal(text, vectors.items()):
        raise ValueError("its checksum is wrong")
    data = _parsed(text)
    unknown: list[str] = []
    if not (vectors.keys() <= known_tags() and data.keys() <= _ENVELOPE):
        unknown += (*(vectors.keys() - known_tags()), *(data.keys() - _ENVELOPE))
    stamp = read_stamp(envelope.node_name, checksum) if envelope.node_name else None
    if envelope.node_name and stamp is None:
        unknown.append("number")
    info = None
    if RUN_TAG in vectors:
        info, more = _read_info(vectors.pop(RUN_TAG)[1])
        unknown += more
    record = None
    if "record" in data:
        record = _read_record(data["record"], vectors, step)
        if not data["record"].keys() <= _KINDS.keys():
            unknown += [f"record.{name}" for name in data["record"] if name not in _KINDS]
    elif "findings" not in data or vectors:
        raise ValueError("it lacks 'record'")
    return DecodedEvent(
        wall_time=wall_time,
        info=info,
        record=record,
        findings=_read_findings(data["findings"]) if "findings" in data else None,
        stamp=stamp,
        unknown=tuple([f"{name:.100}" for name in unknown[:_MOST_UNKNOWN]]) if unknown else (),
        end=_read_end(data["end"]) if "end" in data else None,
    )


def _parsed(text: bytes) -> Any:
    """Read JSON that doesn't take much more memory than its text."""
    if len(text) > _SMALL_TEXT:
        taken = 56 * text.count(b"[") + 200 * text.count(b"{") + 64 * text.count(b":") + 8 * text.count(b",")
        if len(text) > _LARGEST_TEXT or taken > max(_EXPANSION * len(text), _SMALL_MEMORY):
            raise ValueError(f"it holds a text of {len(text):,} bytes that would take {taken / 1e6:,.0f} MB of memory")
    return json.loads(text.decode())


def _read_info(text: bytes) -> tuple[RunInfo, tuple[str, ...]]:
    data = _parsed(text)
    missing = missing_key(data)
    if missing is not None:
        raise ValueError(f"its description is damaged: it lacks {missing!r}")
    info = RunInfo.from_dict(data)
    check_description(info)
    return info, unknown_keys(data)


def _read_findings(data: Any) -> tuple[Finding, ...]:
    findings = tuple(map(Finding.from_dict, data))
    for finding in findings:
        check_finding(finding)
    return findings


def _read_end(data: Any) -> RunEnd:
    end = RunEnd.from_dict(data)
    check_end(end)
    return end


def _read_record(scalars: Mapping[str, Any], vectors: Mapping[str, tuple[int, bytes]], step: int) -> StepRecord:
    if not scalars.keys() >= _FIRST_SCALARS:
        raise ValueError(f"its record lacks {', '.join(sorted(_FIRST_SCALARS - scalars.keys()))}")
    if scalars["step"] != step:
        raise ValueError(f"it says step {scalars['step']!r} and step {step}")

    metrics = {name: encoding.vector_of(*held) for name in METRICS if (held := vectors.get(PREFIX + name)) is not None}
    beside: dict[str, Any] = {}
    for name, kind in RECORD_VECTORS.items():
        tag = VECTOR_TAGS[name]
        if tag in vectors or not kind.is_optional:
            dtype, raw = vectors[tag]
            beside[name] = np.frombuffer(raw, np.uint8) if kind.is_code else encoding.vector_of(dtype, raw)
    record = StepRecord(metrics=metrics, **beside, **_typed(scalars))
    check_record(record)
    return record


def _typed(scalars: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scalars of a record that are known, as the types of their fields."""
    if tuple(scalars) != _NAMES or tuple(map(type, scalars.values())) != _WRITTEN:  # as every record of this release
        return {name: _converted(name, value) for name, value in scalars.items() if name in _KINDS}
    return {**scalars, **{name: tuple(scalars[name]) for name in _LISTS}}


def _converted(name: str, value: Any) -> Any:
    """Return a scalar as the type of its field."""
    kind = _KINDS[name]
    if type(value) is kind:
        return value
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    if kind is float and isinstance(value, int):
        return float(value)
    raise TypeError(f"{name}={value!r:.100}")
