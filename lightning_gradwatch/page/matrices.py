"""A run's numbers as the page takes them: thinned to what a screen shows, and packed.

A screen is less than 2,000 pixels wide. Of several steps that share a column the last is shown, but what was exactly 0 or not
finite in any of them is, and so are the highest and the lowest value that a curve ever had. Columns end at the steps that a
finding names, so that what stands there is what was measured there.

Packed is a matrix as base64, row after row. ``float64`` is exact. Where that would be too long it is ``log16`` or ``linear16``:
two bytes a value, which is one of 65,531 levels between the lowest and the highest of the matrix; the first five codes stand
for what has no place on such a scale, and are `CODES`.
"""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import FloatVector, StepRecord

CODES = ("absent", "zero", "infinity", "-infinity", "below")
"""What the first codes of a packed matrix stand for; *below*: a number below 0 on a log scale."""
_LEVELS = 65535 - len(CODES)


class Columns:
    """Which steps share a column of the page.

    Args:
        steps: Measured steps, rising.
        most: Columns; more only where `kept` has more.
        kept: Steps at which a column ends.
    """

    def __init__(self, steps: Sequence[int], most: int, kept: Collection[int] = ()) -> None:
        count = len(steps)
        bins = min(count, max(most, 1))
        ends = set((np.arange(1, bins + 1) * count // max(bins, 1) - 1).tolist())
        if bins < count:
            wanted = set(kept)
            ends |= {place for place, step in enumerate(steps) if step in wanted}
        self.last = np.array(sorted(ends), dtype=np.int64)
        """Place of each column's last step among the measured ones."""
        self.first = np.concatenate(([0], self.last[:-1] + 1)).astype(np.int64) if count else self.last
        self._whole = len(self.last) == count
        taken = np.asarray(steps, dtype=np.int64)
        self.first_steps: list[int] = taken[self.first].tolist()
        self.last_steps: list[int] = taken[self.last].tolist()

    def __len__(self) -> int:
        return len(self.last)

    def thin(self, values: FloatVector, *, log: bool = True) -> FloatVector:
        """Return values, shape [steps, N], as [columns, N]; of a share, `log` being false, a 0 is a value as any other."""
        if self._whole or not values.size:
            return values[self.last] if len(values) else values
        thinned = values[self.last]
        measured = np.isfinite(values) & ((values != 0) | (not log))
        for extreme, unknown in ((np.argmax, -np.inf), (np.argmin, np.inf)):
            place = extreme(np.where(measured, values, unknown), axis=0)
            column = np.searchsorted(self.last, place)
            every = np.arange(values.shape[1])
            seen = measured[place, every]
            thinned[column[seen], every[seen]] = values[place[seen], every[seen]]
        # What was measured once in a column is no gap; of what alarms, the worse is written last.
        gaps = np.isnan(thinned)
        if gaps.any():
            filled = np.fmax.reduceat(values, self.first, axis=0)
            thinned[gaps] = filled[gaps]
        for alarm in (*((0.0,) if log else ()), -math.inf, math.inf):
            thinned[np.logical_or.reduceat(values == alarm, self.first, axis=0)] = alarm
        return thinned

    def thin_codes(self, codes: npt.NDArray[np.uint8], alarms: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return codes, shape [steps, N], as [columns, N]: the last of each column, but one of `alarms` if there is any."""
        if not codes.size:
            return codes
        thinned = codes[self.last]
        for alarm in alarms:
            thinned[np.logical_or.reduceat(codes == alarm, self.first, axis=0)] = alarm
        return thinned


def values_of(
    records: Sequence[StepRecord], infos: Mapping[str, RunInfo], metric: str, names: Sequence[str]
) -> FloatVector:
    """Return a metric, float64[steps, names], with columns matched by name; NaN where it wasn't measured."""
    values = np.full((len(records), len(names)), np.nan)
    matched = _Matched(names)
    for row, record in enumerate(records):
        vector = record.metrics.get(metric)
        if vector is not None:
            matched.put(vector, values[row], record.layout, infos[record.layout].names(metric))
    return values


def states_of(
    records: Sequence[StepRecord], infos: Mapping[str, RunInfo], names: Sequence[str]
) -> npt.NDArray[np.uint8]:
    """Return the layers' states, uint8[steps, names]."""
    states = np.zeros((len(records), len(names)), dtype=np.uint8)
    matched = _Matched(names)
    for row, record in enumerate(records):
        matched.put(record.layer_state, states[row], record.layout, infos[record.layout].layer_names)
    return states


class _Matched:
    """Puts vectors of any layout where their names stand; which those are is looked up once a layout."""

    def __init__(self, names: Sequence[str]) -> None:
        self._column = {name: place for place, name in enumerate(names)}
        self._places: dict[str, tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]] = {}

    def put(self, vector: npt.NDArray[Any], target: npt.NDArray[Any], layout: str, names: Sequence[str]) -> None:
        """Put a vector with columns `names` into `target`."""
        if layout not in self._places:
            known = [(place, self._column[name]) for place, name in enumerate(names) if name in self._column]
            pairs = np.array(known, dtype=np.intp).reshape(-1, 2)
            self._places[layout] = pairs[:, 0], pairs[:, 1]
        source, place = self._places[layout]
        if len(vector) < len(names):  # a damaged one
            within = source < len(vector)
            source, place = source[within], place[within]
        target[place] = vector[source]


def pack(values: FloatVector, *, log: bool, exact: bool) -> dict[str, Any]:
    """Pack values, shape [columns, N], curve after curve."""
    turned = np.ascontiguousarray(values.T, dtype=np.float64)
    if exact:
        return {"encoding": "float64", "data": _base64(turned.astype("<f8").tobytes())}
    codes = np.zeros(turned.shape, dtype="<u2")
    usable = np.isfinite(turned) & ((turned > 0) | (not log))
    codes[turned == 0] = CODES.index("zero")
    codes[turned == math.inf] = CODES.index("infinity")
    codes[turned == -math.inf] = CODES.index("-infinity")
    codes[np.isfinite(turned) & (turned < 0) & log] = CODES.index("below")
    usable &= turned != 0
    levels = np.log10(turned[usable]) if log else turned[usable]
    low, high = (float(levels.min()), float(levels.max())) if levels.size else (0.0, 0.0)
    span = high - low or 1.0
    if not math.isfinite(span):  # the two ends of what a double holds
        return {"encoding": "float64", "data": _base64(turned.astype("<f8").tobytes())}
    codes[usable] = np.rint((levels - low) / span * (_LEVELS - 1)).astype(np.uint16) + len(CODES)
    encoding = "log16" if log else "linear16"
    return {"encoding": encoding, "low": low, "span": span, "levels": _LEVELS - 1, "data": _base64(codes.tobytes())}


def pack_codes(codes: npt.NDArray[np.uint8]) -> str:
    """Pack codes, shape [columns, N], row after row of [N, columns]."""
    return _base64(np.ascontiguousarray(codes.T).tobytes())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
