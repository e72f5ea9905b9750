"""What a rule remembers of each layer or site: arrays while it judges, plain data by name in a checkpoint.

A rule visits each column of each record. In dictionaries by name that takes a hundred times as long as in arrays, and
arrays alone would be shifted by a layer that appears in mid-run: so an array knows the layout whose columns it has.
"""

from __future__ import annotations

import copy
from itertools import compress
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_gradwatch.record import FloatVector, RunInfo
    from lightning_gradwatch.rules.protocol import State

Mask: TypeAlias = npt.NDArray[np.bool_]

_MOST_NAMED = 8


class Columns:
    """A few rows of numbers over the layers or sites of the newest layout.

    Names that only an older layout had keep their numbers, behind the newest layout's columns.
    """

    __slots__ = ("_all", "_fill", "_names", "blank", "layout", "named", "oldest", "pattern", "values")

    def __init__(self, plain: Mapping[str, list[float | None]], rows: int, fill: float) -> None:
        """Take what `plain` gave; columns that aren't there hold `fill` in each row."""
        self.layout = ""
        self._names = tuple(plain)
        self._fill = fill
        self._all = np.full((rows, len(plain)), fill)
        for column, numbers in enumerate(plain.values()):
            self._all[:, column] = [np.nan if number is None else number for number in numbers]
        self.values = self._all[:, :0]
        """Shape [rows, columns of the layout]; a view, to be changed in place."""
        self.blank = not plain
        """Whether no column holds anything but `fill`; kept by who changes the values."""
        self.pattern = b""
        """Of streaks: where they went on and where they ended in the last reading; most readings repeat the one before."""
        self.oldest: dict[tuple[int, bytes], int] = {}
        """Of streaks: first steps that were looked up since the pattern changed."""
        self.named: dict[bytes, tuple[str, ...]] = {}
        """Names that were looked up in this layout, by mask."""

    def align(self, layout: str, names: tuple[str, ...]) -> None:
        """Take over the columns of another layout."""
        before = dict(zip(self._names, self._all.T, strict=True))
        self._names = (*names, *(name for name in self._names if name not in frozenset(names)))
        aligned = np.full((len(self._all), len(self._names)), self._fill)
        for column, name in enumerate(self._names):
            if name in before:
                aligned[:, column] = before[name]
        self._all = aligned
        self.values = aligned[:, : len(names)]
        self.blank = not self._told().any()
        self.pattern = b""
        self.named.clear()
        self.layout = layout

    def names_where(self, where: Mask) -> tuple[str, ...]:
        """Return the names of some of the layout's columns, in execution order; an ill run asks for the same ones again."""
        key = where.tobytes()
        found = self.named.get(key)
        if found is None:
            if len(self.named) >= _MOST_NAMED:
                self.named.clear()
            found = self.named[key] = tuple(compress(self._names, where.tolist()))
        return found

    def plain(self) -> dict[str, list[float | None]]:
        """Return the columns that hold something, by name: the same data whatever layouts there were."""
        return {
            self._names[column]: [None if np.isnan(number) else float(number) for number in self._all[:, column]]
            for column in np.flatnonzero(self._told()).tolist()
        }

    def _told(self) -> Mask:
        """Return which columns hold something, those of older layouts included."""
        same = np.isnan(self._all) if np.isnan(self._fill) else self._all == self._fill
        return np.asarray(~same.all(axis=0))


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
    count = counts(held)
    pattern = hit.tobytes() + ended.tobytes()
    if pattern == held.pattern:
        count += hit
        return
    held.pattern = pattern
    held.oldest.clear()
    since = held.values[len(count) :]
    np.putmask(since, hit & (count == 0), step)
    count += hit
    np.putmask(count, ended, 0)
    np.putmask(since, ended, 0)
    held.blank = not np.count_nonzero(count)


def first_step(held: Columns, where: Mask, level: int = 0) -> int:
    """Return the first step of the oldest of some streaks that are under way."""
    key = level, where.tobytes()
    step = held.oldest.get(key)
    if step is None:
        step = held.oldest[key] = int(held.values[len(held.values) // 2 + level][where].min())
    return step


def shift_in(held: Columns, reading: FloatVector) -> None:
    """Add a reading a column as the last row, and drop the first; NaN is no reading."""
    values = held.values
    known = reading == reading  # noqa: PLR0124 - NaN is the one value that differs from itself
    if known.all():
        values[:-1] = values[1:]
        values[-1] = reading
    else:
        values[:-1, known] = values[1:, known]
        values[-1, known] = reading[known]
    held.blank = False
