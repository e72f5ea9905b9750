"""Which layer or site left its own range first in a row of readings, told in the order in which a step computes.

A step goes from its weights forward to the loss and back to the gradients, which change the weights. Of what leaves its
range in the same step, the earlier in that order is what the later may follow from.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lightning_gradwatch.judge.evidence.loss_jump import LEAST, RANGE
from lightning_gradwatch.judge.readings import broken_layers, masking_sites

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.judge.streaks import Mask
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import FloatVector, StepRecord

QUANTITIES = ("weight_rms", "forward_rms", "grad_norm", "update_ratio")
"""In the order in which a step computes them."""
_FACTORS = {"forward_rms": 2.0, "grad_norm": 3.0, "update_ratio": 3.0}
"""How many times the largest of the latest readings is out of range; with fewer than 8 of them, twice as many."""
_MOVED, _LEAST_MOVED = 4.0, math.log(1.25)
"""How many times the largest change a step so far the weights are changed by, and the least such change, as a logarithm."""
_ALIKE = 2.0
"""Layers that left it by nearly as much as the furthest left it alike: the first of them is named."""


class Reading(NamedTuple):
    """What is kept of a measured step."""

    step: int
    batch: int
    optimizers: tuple[int, ...]
    loss: float
    norm: float
    rates: tuple[float, ...]
    layers: tuple[str, ...]
    sites: tuple[str, ...]
    values: dict[str, FloatVector]
    """By quantity: over layers, `forward_rms` over sites; NaN where not measured, infinite where it isn't finite."""

    def of(self, quantity: str, names: tuple[str, ...]) -> FloatVector:
        """Return a quantity by the columns of those names."""
        own = self.sites if quantity == "forward_rms" else self.layers
        values = self.values.get(quantity)
        if values is None:
            return np.full(len(names), np.nan)
        if own == names:
            return values
        place = {name: column for column, name in enumerate(own)}
        padded = np.append(values, np.nan)
        return padded[[place.get(name, -1) for name in names]]


class Departure(NamedTuple):
    """What left its own range first."""

    place: int
    """Of the first bad reading."""
    quantity: str
    name: str
    """Of the layer or site; empty where nothing of the net left its range."""
    before: float
    """In the reading before; NaN where it wasn't measured."""
    after: float


def read_step(record: StepRecord, info: RunInfo) -> Reading:
    """Return what is kept of a record: its own vectors, none of which is copied unless something isn't finite."""
    values = {name: record.metrics[name] for name in QUANTITIES if name in record.metrics}
    if len(record.forward_rms):
        values["forward_rms"] = record.forward_rms
    if not math.isfinite(record.global_grad_norm):
        broken = broken_layers(record)
        if np.count_nonzero(broken):
            for name in ("weight_rms", "grad_norm", "update_ratio"):
                if name in values:
                    values[name] = np.where(broken & ~np.isfinite(values[name]), np.inf, values[name])
    return Reading(
        step=int(record.step),
        batch=int(record.batch_idx),
        optimizers=record.optimizers,
        loss=float(record.loss),
        norm=float(record.global_grad_norm),
        rates=record.learning_rates,
        layers=info.layer_names,
        sites=info.site_names,
        values=values,
    )


def is_broken(record: StepRecord) -> bool:
    """Tell whether the loss or a gradient isn't finite: a loss that is NaN while all gradients are finite isn't known."""
    if math.isinf(record.loss):
        return True
    return not math.isfinite(record.global_grad_norm) and bool(np.count_nonzero(broken_layers(record)))


def find_departure(readings: Sequence[Reading], info: RunInfo) -> Departure:
    """Return what left its own range first and has stayed out of it up to the last reading; that is the first bad one if nothing has.

    Args:
        readings: In the order of their steps; the last is where something shows.
        info: Of the last one's record.
    """
    own = [place for place, each in enumerate(readings) if each.optimizers == readings[-1].optimizers]
    names = {quantity: info.site_names if quantity == "forward_rms" else info.layer_names for quantity in QUANTITIES}
    tables = {
        quantity: np.array([readings[place].of(quantity, names[quantity]) for place in own]) for quantity in QUANTITIES
    }
    tables["forward_rms"][:, masking_sites(info)] = np.nan
    steps = np.array([readings[place].step for place in own], dtype=np.float64)
    with np.errstate(all="ignore"):
        for row in range(min(LEAST, len(own) - 1), len(own)):
            for quantity in QUANTITIES:
                beyond = _beyond(quantity, tables[quantity], steps, row)
                if np.count_nonzero(beyond > 0):
                    column = _first(quantity, beyond)
                    before = float(tables[quantity][row - 1, column]) if row else math.nan
                    after = float(tables[quantity][row, column])
                    return Departure(own[row], quantity, names[quantity][column], before, after)
    before = readings[own[-2]].loss if len(own) > 1 else math.nan
    return Departure(own[-1], "loss", "", before, readings[-1].loss)


def _beyond(quantity: str, table: FloatVector, steps: FloatVector, row: int) -> FloatVector:
    """Return how far each column is out of its range from a row on, as a logarithm; 0 where it isn't, or comes back.

    What isn't finite, and was before, is infinitely far.
    """
    history, later = table[:row], table[row:]
    known = np.isfinite(history).any(axis=0) if row else np.ones(table.shape[1], dtype=bool)
    broken = known & np.isinf(later).all(axis=0)
    beyond = np.where(broken, np.inf, 0.0)
    if row < LEAST:
        return beyond
    if quantity == "weight_rms":
        return np.where(broken, beyond, _moved(table, steps, row))
    factor = _FACTORS[quantity] * (1 if row >= RANGE else 2)
    limit = factor * np.fmax.reduce(np.where(np.isfinite(history[-RANGE:]), history[-RANGE:], np.nan), axis=0)
    # What isn't measured later says nothing of whether it has come back.
    lowest = np.where(np.isnan(later[0]), np.nan, np.fmin.reduce(later, axis=0))
    out = (limit > 0) & (lowest > limit)
    return np.where(out & ~broken, np.log(later[0] / limit), beyond)


def _moved(table: FloatVector, steps: FloatVector, row: int) -> FloatVector:
    """Return how far the weights that a row starts with are from those of the row before, beyond what steps so far did to them."""
    logs = np.log(table)
    changes = np.abs(np.diff(logs[:row][-RANGE - 1 :], axis=0)) / np.diff(steps[:row][-RANGE - 1 :])[:, None]
    usual = np.fmax.reduce(np.where(np.isfinite(changes), changes, np.nan), axis=0)
    limit = np.fmax(_MOVED * usual * (steps[row] - steps[row - 1]), _LEAST_MOVED)
    moved = np.abs(logs[row:] - logs[row - 1])
    lowest = np.where(np.isnan(moved[0]), np.nan, np.fmin.reduce(moved, axis=0))
    return np.where(lowest > limit, moved[0] - limit, 0.0)


def _first(quantity: str, beyond: FloatVector) -> int:
    """Return the column that left its range first in a step."""
    out: Mask = beyond > 0
    if quantity == "forward_rms":
        return int(np.argmax(out))
    if quantity == "grad_norm":
        return int(np.flatnonzero(out)[-1])
    return int(np.argmax(beyond >= np.max(beyond) - math.log(_ALIKE)))


def plain_reading(reading: Reading) -> dict[str, Any]:
    """Return a reading as plain JSON data; its names are kept apart, as most have the same."""
    return {
        "step": reading.step,
        "batch": reading.batch,
        "optimizers": [*map(int, reading.optimizers)],
        "loss": _plain(reading.loss),
        "norm": _plain(reading.norm),
        "rates": [*map(_plain, reading.rates)],
        "values": {name: [*map(_plain, values.tolist())] for name, values in reading.values.items()},
    }


def reading_of(data: dict[str, Any], layers: tuple[str, ...], sites: tuple[str, ...]) -> Reading:
    """Build from what `plain_reading` gave.

    Raises:
        KeyError, TypeError, ValueError: it isn't that.
    """
    values = {
        name: np.array([math.nan if each is None else float(each) for each in data["values"][name]])
        for name in QUANTITIES
        if name in data["values"]
    }
    for name, vector in values.items():
        if len(vector) != len(sites if name == "forward_rms" else layers):
            raise ValueError(f"{name} has {len(vector)} columns")
    return Reading(
        step=int(data["step"]),
        batch=int(data["batch"]),
        optimizers=tuple(map(int, data["optimizers"])),
        loss=_number(data["loss"]),
        norm=_number(data["norm"]),
        rates=tuple(map(_number, data["rates"])),
        layers=layers,
        sites=sites,
        values=values,
    )


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
