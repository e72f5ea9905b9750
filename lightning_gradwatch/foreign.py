"""What event files of other tools tell about gradients: Lightning's own `grad_2.0_norm/*` curves, from `grad_norm`.

They are norms of single parameters at logged steps: enough to say which layers lag behind, not enough for any rule. So a
run that has only them can't be judged, and is told what its curves show and what to add.
"""

from __future__ import annotations

import math
import re
from statistics import median
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
from tensorboard.compat.proto import event_pb2

from lightning_gradwatch.event_file import read_payloads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_TAG = re.compile(r"grad_([0-9.]+|inf)_norm/(.+)", flags=re.DOTALL)
_MARKER = b"_norm/"
_NAMED = 3


def gradient_curves(files: Iterable[Path]) -> dict[str, list[float]]:
    """Return the norms of each parameter that Lightning's `grad_norm` logged, in the order of the files."""
    curves: dict[str, list[float]] = {}
    for file in files:
        for tag, value in _scalars(file):
            match = _TAG.fullmatch(tag)
            if match:
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
        for _, payload in read_payloads(file, marker=_MARKER, problem=lambda _: None):
            try:
                event = event_pb2.Event.FromString(payload)
            except DecodeError:
                continue
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    yield value.tag, value.simple_value
                elif value.tensor.float_val:
                    yield value.tag, value.tensor.float_val[0]
    except OSError:
        return


def _comparable(value: float) -> float:
    """Return infinity for NaN, which has no order."""
    return math.inf if math.isnan(value) else value


def _listed(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
