"""What a rule remembers of each layer or site: arrays while it judges, plain data by name in a checkpoint.

A rule visits each column of each record. In dictionaries by name that takes a hundred times as long as in arrays, and
arrays alone would be shifted by a layer that appears in mid-run: so an array knows the layout whose columns it has.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from itertools import compress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import FloatVector

State: TypeAlias = dict[str, Any]
"""A rule's memory."""
Mask: TypeAlias = npt.NDArray[np.bool_]


class Lasting(NamedTuple):
    """What has held for so many readings in a row that it counts."""

    where: Mask
    since: int
    """Step of the first reading of the longest streak."""
    columns: tuple[str, ...]
    """Names of all columns."""

    def names(self) -> tuple[str, ...]:
        """Return the names of those where it holds, along the path; a method, as seldom anyone asks."""
        return tuple(compress(self.columns, self.where.tolist()))


class Columns:
    """A few rows of numbers over the layers or sites of the newest layout.

    Names that only an older layout had keep their numbers, behind the newest layout's columns.
    """

    __slots__ = ("_all", "_fill", "blank", "derived", "hit", "layout", "names", "pattern", "rise", "values")

    def __init__(self, plain: Mapping[str, list[float | None]], rows: int, fill: float) -> None:
        """Take what `plain` gave; columns that aren't there hold `fill` in each row."""
        self.layout = ""
        self.names = tuple(plain)
        """Of the layout's columns, and behind them those that only older layouts had."""
        self._fill = fill
        self._all = np.full((rows, len(plain)), fill)
        for column, numbers in enumerate(plain.values()):
            self._all[:, column] = [np.nan if number is None else number for number in numbers]
        self.values = self._all[:, :0]
        """Shape [rows, columns of the layout]; a view, to be changed in place."""
        self.blank = not plain
        """Whether no column holds anything but `fill`; kept by who changes the values."""
        self.pattern: bytes | None = None
        """Of streaks: where they went on and where they ended in the last reading; most readings repeat the one before."""
        self.rise: FloatVector = np.empty(0)
        """Of streaks: what the pattern adds to each."""
        self.hit: Mask = np.empty((0, 0), dtype=bool)
        """Of streaks: where they went on in the last reading, shape [levels, columns]."""
        self.derived: dict[int | str, Any] = {}
        """Of streaks: what holds as long as the pattern does."""

    def align(self, layout: str, names: tuple[str, ...]) -> None:
        """Take over the columns of another layout."""
        before = self._all
        self.names, kept, places = _moved(self.names, names)
        self._all = aligned = np.full((len(before), len(self.names)), self._fill)
        aligned[:, kept] = before[:, places]
        self.values = aligned[:, : len(names)]
        self.blank = not self._told().any()
        self.pattern = None
        self.layout = layout

    def names_where(self, where: Mask) -> tuple[str, ...]:
        """Return the names of some of the layout's columns, along the path."""
        return tuple(compress(self.names, where.tolist()))

    def plain(self) -> dict[str, list[float | None]]:
        """Return the columns that hold something, by name: the same data whatever layouts there were."""
        return {
            self.names[column]: [None if np.isnan(number) else float(number) for number in self._all[:, column]]
            for column in np.flatnonzero(self._told()).tolist()
        }

    def _told(self) -> Mask:
        """Return which columns hold something, those of older layouts included."""
        same = np.isnan(self._all) if np.isnan(self._fill) else self._all == self._fill
        return np.asarray(~same.all(axis=0))


@lru_cache(maxsize=8)
def _moved(
    before: tuple[str, ...], names: tuple[str, ...]
) -> tuple[tuple[str, ...], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return all names with those of a new layout in front, which of them there were before, and where; for all rules at once."""
    among = frozenset(names)
    joined = (*names, *(name for name in before if name not in among))
    place = {name: index for index, name in enumerate(before)}
    kept = [index for index, name in enumerate(joined) if name in place]
    return joined, np.array(kept, np.intp), np.array([place[joined[index]] for index in kept], np.intp)


def columns(
    state: State, key: str, info: RunInfo, of: Literal["layers", "sites"], *, rows: int, fill: float = 0.0
) -> Columns:
    """Return a rule's columns, in the layout of `info`; new ones where there are none yet."""
    held = state.get(key)
    if not isinstance(held, Columns):
        held = state[key] = Columns(held or {}, rows, fill)
    if held.layout != info.layout:
        held.align(info.layout, info.layer_names if of == "layers" else info.site_names)
    return held


def plain(state: Any) -> Any:
    """Return a rule's memory as plain JSON data that shares nothing with it."""
    if isinstance(state, Columns):
        return state.plain()
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return copy.deepcopy(state)


def streaks(state: State, key: str, info: RunInfo, of: Literal["layers", "sites"], *, levels: int = 1) -> Columns:
    """Return how many readings in a row something has held, and since which step, by level and column."""
    return columns(state, key, info, of, rows=2 * levels)


def counts(held: Columns) -> FloatVector:
    """Return the readings in a row so far, shape [levels, columns]."""
    return held.values[: len(held.values) // 2]


def count_hits(held: Columns, hit: Mask, ended: Mask, step: int) -> None:
    """Count one more reading in a row where `hit`, and none where `ended`; what is neither wasn't read.

    Args:
        held: Streaks, changed in place.
        hit: By column, or shape [levels, columns].
        ended: The same shape; where `hit`, it's False.
        step: Of the reading.
    """
    if held.blank and not np.count_nonzero(hit):
        return
    pattern = hit.tobytes() + ended.tobytes()
    if pattern != held.pattern:
        count, since = both = held.values.reshape(2, len(held.values) // 2, held.values.shape[1])
        held.pattern, held.rise, held.hit = pattern, hit.astype(np.float64), hit.reshape(count.shape)
        held.derived.clear()
        np.copyto(both, 0, where=ended)
        np.copyto(since, step, where=hit & (count == 0))
        held.blank = not (np.count_nonzero(hit) or np.count_nonzero(count))
    count = counts(held)
    count += held.rise


def lasting(held: Columns, patience: int, level: int = 0) -> Lasting | None:
    """Return where the reading that was counted last is the `patience`-th in a row, or a later one; None: nowhere."""
    if held.blank:
        return None
    if level in held.derived:
        found: Lasting | None = held.derived[level]
        return found
    hit = held.hit[level]
    where = hit & (counts(held)[level] >= patience)
    count = np.count_nonzero(where)
    found = Lasting(where, first_step(held, where, level), held.names) if count else None
    if count == np.count_nonzero(hit):
        held.derived[level] = found
    return found


def holds(held: Columns, level: int = 0) -> bool:
    """Tell whether a streak is under way: also one whose column the latest readings didn't have."""
    return not held.blank and bool(np.count_nonzero(counts(held)[level]))


def first_step(held: Columns, where: Mask, level: int = 0) -> int:
    """Return the first step of the oldest of some streaks that are under way."""
    return int(np.minimum.reduce(held.values[len(held.values) // 2 + level][where]))


def shift_in(held: Columns, reading: FloatVector) -> None:
    """Add a reading a column as the last row, and drop the first; NaN is no reading."""
    values = held.values
    known = reading == reading  # noqa: PLR0124 - NaN is the one value that differs from itself
    if np.count_nonzero(known) == len(known):
        values[:-1] = values[1:]
        values[-1] = reading
    else:
        values[:-1, known] = values[1:, known]
        values[-1, known] = reading[known]
    held.blank = False


def has_gone(state: State, key: str, *, holds: bool, patience: int) -> bool:
    """Tell whether what was found is gone for good: for as many readings in a row as it took to be told.

    Args:
        state: A rule's memory.
        key: Of the finding.
        holds: Whether the latest reading shows it.
        patience: So many readings.
    """
    if holds:
        state.setdefault("clear", {})[key] = 0
        return False
    clear = state.get("clear", {})
    if key not in clear:
        return False
    clear[key] += 1
    if clear[key] < patience:
        return False
    del clear[key]
    return True


def count_hit(among: State, name: str, step: int) -> int:
    """Count one more reading in a row in which something holds; the streak remembers its first step."""
    streak = among.get(name)
    if streak is None:
        streak = among[name] = {"count": 0, "since": int(step)}
    streak["count"] += 1
    return int(streak["count"])
