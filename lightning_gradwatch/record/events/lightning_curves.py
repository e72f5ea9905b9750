"""What event files of other tools tell about gradients: Lightning's own `grad_2.0_norm/*` curves, from `grad_norm`.

They are norms of single parameters at logged steps: enough to say which layers lag behind, not enough for any rule. So a
run that has only them can't be judged, and is told what its curves show and what to add.
"""

from __future__ import annotations

import math
import re
from statistics import median
from struct import unpack_from
from typing import TYPE_CHECKING

from lightning_gradwatch.record.events.protobuf import BrokenMessageError, fields
from lightning_gradwatch.record.events.reader import EventReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_NORM = re.compile(r"grad_([0-9.]+|inf)_norm/(.+)", flags=re.DOTALL)
_MARKER = b"_norm/"
_NAMED = 3
_MOST_CURVES = 100_000
_MOST_PARTS = 64
"""Fields of a message: a logger's event is one scalar."""
_LONGEST_TAG = 4096

# Keys of fields: eight times the number plus the wire type.
_SUMMARY, _VALUE, _TAG, _SIMPLE_VALUE, _TENSOR = 0x2A, 0x0A, 0x0A, 0x15, 0x42
_FLOATS, _FLOAT = 0x2A, 0x2D


def gradient_curves(files: Iterable[Path]) -> dict[str, list[float]]:
    """Return the norms of each parameter that Lightning's `grad_norm` logged, in the order of the files."""
    curves: dict[str, list[float]] = {}
    for file in files:
        for tag, value in _scalars(file):
            match = _NORM.fullmatch(tag)
            if match and (match[2] in curves or len(curves) < _MOST_CURVES):
                curves.setdefault(match[2], []).append(value)
    return curves


def describe_curves(curves: dict[str, list[float]]) -> str:
    """Say what the curves show: which parameters had no gradient, or how far the smallest lies below the largest.

    >>> describe_curves({"a.weight": [0.0, 0.0], "b.weight": [1.0, 3.0]})
    "Lightning's own grad_*_norm curves of 2 parameters are there; in the median over their steps no gradient reaches a.weight"
    """
    levels = {name: median(map(_comparable, values)) for name, values in curves.items()}
    start = f"Lightning's own grad_*_norm curves of {len(levels)} parameters are there; in the median over their steps"
    broken = [name for name, level in levels.items() if not math.isfinite(level)]
    if broken:
        return f"{start} the gradient of {_listed(broken)} isn't finite"
    unreached = [name for name, level in levels.items() if level == 0]
    if unreached:
        return f"{start} no gradient reaches {_listed(unreached)}"
    low, high = min(levels, key=lambda name: levels[name]), max(levels, key=lambda name: levels[name])
    return (
        f"{start} the smallest norm is {levels[low]:.3g} at {low}, the largest {levels[high]:.3g} at {high}: a ratio of "
        f"{levels[low] / levels[high]:.3g}"
    )


def _scalars(file: Path) -> Iterator[tuple[str, float]]:
    try:
        for _, payload in EventReader(file, marker=_MARKER, problem=lambda _: None):
            try:
                yield from _scalars_of(payload)
            except BrokenMessageError:
                continue
    except OSError:
        return


def _scalars_of(payload: bytes) -> Iterator[tuple[str, float]]:
    for key, _, start, end in fields(payload, 0, len(payload), most=_MOST_PARTS):
        if key == _SUMMARY:
            for part, _, first, last in fields(payload, start, end, most=_MOST_PARTS):
                scalar = _scalar(payload, first, last) if part == _VALUE else None
                if scalar is not None:
                    yield scalar


def _scalar(payload: bytes, start: int, end: int) -> tuple[str, float] | None:
    """Return tag and number of a summary's value; None where it isn't a scalar."""
    tag, at = b"", -1
    for key, _, first, last in fields(payload, start, end, most=_MOST_PARTS):
        if key == _TAG:
            tag = payload[first : min(last, first + _LONGEST_TAG)]
        elif key == _SIMPLE_VALUE:
            at = first
        elif key == _TENSOR:
            floats = (
                begin
                for part, _, begin, stop in fields(payload, first, last, most=_MOST_PARTS)
                if part == _FLOAT or (part == _FLOATS and stop - begin >= 4)
            )
            at = next(floats, at)
    return None if at < 0 else (tag.decode("utf-8", "replace"), unpack_from("<f", payload, at)[0])


def _comparable(value: float) -> float:
    """Return infinity for NaN, which has no order."""
    return math.inf if math.isnan(value) else value


def _listed(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
