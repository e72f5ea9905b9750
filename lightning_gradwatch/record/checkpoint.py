"""What a checkpoint holds of the monitor, taken in with care: it may be another release's, damaged, or made to do harm.

Each function returns a value as it is, or says what is wrong with it. What passes here can still be nonsense to a rule: that
shows when the rule first reads it (see `rules.evaluator`).
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

_DEEPEST = 12
_MOST_ENTRIES = 2_000_000
_MOST_CHUNKS = 1 << 16
_MOST_NAMES = 100_000


class StateError(ValueError):
    """A saved state can't be used; its text says why."""


def mapping_of(value: Any, what: str, *, required: Iterable[str], optional: Iterable[str] = ()) -> Mapping[str, Any]:
    """Check for a mapping of these keys, and of no others."""
    if not isinstance(value, Mapping):
        raise StateError(f"{what} is {reprlib.repr(value)}, no mapping")
    required = frozenset(required)
    if missing := sorted(required - value.keys()):
        raise StateError(f"{what} has no {missing[0]!r}")
    if unknown := sorted(map(str, value.keys() - required - frozenset(optional))):
        raise StateError(f"{what} has an unknown {reprlib.repr(unknown[0])}")
    return value


def named(value: Any, what: str) -> Mapping[str, Any]:
    """Check for a mapping from names."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise StateError(f"{what} is {reprlib.repr(value)}, no mapping from names")
    return value


def count_of(value: Any, what: str, *, most: int = 1 << 53) -> int:
    """Check for a whole number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise StateError(f"{what} is {reprlib.repr(value)}, no whole number from 0 to {most}")
    return value


def instance_of(value: Any, what: str, kind: type) -> Any:
    """Check for a value of a type."""
    if not isinstance(value, kind):
        raise StateError(f"{what} is {reprlib.repr(value)}, no {kind.__name__}")
    return value


def numbers_of(value: Any, what: str, *, most: int, whole: bool = False) -> Sequence[float]:
    """Check for a list of finite numbers."""
    if not isinstance(value, (list, tuple)) or len(value) > most:
        raise StateError(f"{what} is {reprlib.repr(value)}, no list of at most {most} numbers")
    for number in value:
        if whole:
            count_of(number, what)
        elif isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise StateError(f"{what} holds {reprlib.repr(number)}, no finite number")
    return value


def places_of(value: Any, what: str) -> Mapping[str, Sequence[str]]:
    """Check for the names of layers and of sites, in the order by which their curves are numbered."""
    places = mapping_of(value, what, required=(), optional=("layers", "sites"))
    for kind, names in places.items():
        if not isinstance(names, (list, tuple)) or len(names) > _MOST_NAMES:
            raise StateError(f"the {kind} of {what} are {reprlib.repr(names)}, no list of at most {_MOST_NAMES} names")
        for name in names:
            instance_of(name, f"a name among the {kind} of {what}", str)
    return places


def plain_of(value: Any, what: str) -> Any:
    """Check for plain data: numbers, texts, lists and mappings from texts, nested no deeper and no longer than ours is."""
    layer, entries = [value], 0
    for _ in range(_DEEPEST):
        inside: list[Any] = []
        for entry in layer:
            if isinstance(entry, dict):
                inside += named(entry, what).values()
            elif isinstance(entry, (list, tuple)):
                inside += entry
            elif entry is not None and not isinstance(entry, (bool, int, float, str)):
                raise StateError(f"{what} holds {reprlib.repr(entry)}, no plain data")
        entries += len(inside)
        if entries > _MOST_ENTRIES:
            raise StateError(f"{what} has more than {_MOST_ENTRIES} entries")
        if not inside:
            return value
        layer = inside
    raise StateError(f"{what} is nested more than {_DEEPEST} deep")


def window_of(value: Any, what: str, *, like: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check for the state of a window over the observations of U units.

    Args:
        value: The state.
        what: Whose it is.
        like: A state of this release, whose keys may be there.
    """
    window = mapping_of(value, what, required=("chunks",), optional=like)
    chunks = window["chunks"]
    if not isinstance(chunks, (list, tuple)) or len(chunks) > _MOST_CHUNKS:
        raise StateError(f"{what} has {reprlib.repr(chunks)} for chunks, no list of at most {_MOST_CHUNKS}")
    kinds = set()
    for chunk in chunks:
        mapping_of(chunk, what, required=("inactive", "saturated", "observations", "batch_elements"))
        observations = count_of(chunk["observations"], f"the observations of {what}")
        count_of(chunk["batch_elements"], f"the batch elements of {what}")
        saturated = chunk["saturated"]
        counts = [_counts_of(chunk["inactive"], what, most=observations)]
        if saturated is not None:
            counts.append(_counts_of(saturated, what, most=observations))
        kinds.add((saturated is None, *(len(each) for each in counts)))
    if len(kinds) > 1:
        raise StateError(f"{what} has chunks of different units")
    for key in window.keys() - {"chunks"}:
        if (rest := window[key]) is not None and not isinstance(rest, (Mapping, int, float)):
            _counts_of(rest, what, most=1 << 53, units=max((units for _, units, *_ in kinds), default=None))
        elif isinstance(rest, float) and not math.isfinite(rest):
            raise StateError(f"the {key} of {what} is {rest}")
    return window


def _counts_of(value: Any, what: str, *, most: int, units: int | None = None) -> Any:
    """Check for an array of counts, shape [U]."""
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "biu" or (units is not None and len(array) != units):
        raise StateError(f"{what} has counts of shape {list(array.shape)} and type {array.dtype}, not one a unit")
    if array.size and not 0 <= array.min() <= array.max() <= most:
        raise StateError(f"{what} has counts from {array.min()} to {array.max()} of {most} observations")
    return array
