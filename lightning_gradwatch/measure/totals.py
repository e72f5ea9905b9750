"""What one measured step came to in this process, as numbers that add up over processes; a record follows from them alone.

A norm adds up as its square, all else as it is. So each metric is decided once, from sums, whether they are of one
process or of many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.record.metrics import OfLayer, OfSite

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_gradwatch.measure.gradients import OptimizerGradients
    from lightning_gradwatch.measure.measured import Measured
    from lightning_gradwatch.measure.model.path import Layer, Site
    from lightning_gradwatch.measure.transfer.host import Slot, Values
    from lightning_gradwatch.measure.units.silence import WindowEntry
    from lightning_gradwatch.measure.units.site_stats import SiteStatistics
    from lightning_gradwatch.measure.updates import WeightSnapshot
    from lightning_gradwatch.record.step import FloatVector

Rows: TypeAlias = npt.NDArray[np.float64]


@dataclass
class Totals:
    """The numbers of one step, by columns of layers and sites."""

    layers: npt.NDArray[np.float64]
    """Shape [L, len(OfLayer)]."""
    sites: npt.NDArray[np.float64]
    """Shape [S, len(OfSite)]."""
    chunks: Sequence[WindowEntry | None]
    """The counts of each site's units; None for one without, or that wasn't called."""
    starts: Sequence[int | None]
    """The column of the site at which the segment starts that a site's weight gain is of; None without one."""
    unreadable: bool = False
    """Whether some layer's gradients can't be measured, so that there is no global norm."""
    clipped: float = math.nan
    """Norm of all gradients as the step used them; NaN where nothing was clipped."""
    loss: float = math.nan
    scale: float = 1.0
    stepped: tuple[int, ...] = ()
    """Optimizers that stepped."""
    skipped: bool = False
    learning_rates: tuple[float, ...] = ()
    constant_answer: tuple[float, ...] = ()
    optimizer_losses: tuple[float, ...] = ()
    """See `StepRecord`."""


@dataclass
class Columns:
    """The layers and sites as they were when the step ended."""

    layout: str
    layers: Sequence[Layer]
    sites: Sequence[Site]
    frozen: Sequence[bool] = ()
    """Whether nothing of a layer was being trained."""
    used: Sequence[bool] = ()
    """Whether the step's forward pass used a layer."""
    known: Sequence[bool] = ()
    """Whether that of any measured step so far did."""
    place: dict[Layer | Site, int] = field(init=False)

    def __post_init__(self) -> None:
        self.place = {
            **{layer: place for place, layer in enumerate(self.layers)},
            **{site: place for place, site in enumerate(self.sites)},
        }


def tally(measured: Measured, values: Values, columns: Columns, optimizers: int) -> Totals:
    """Read a step's numbers off the transferred values; the run has so many `optimizers`."""
    of_layers = np.zeros((len(columns.layers), len(OfLayer)))
    of_layers[:, OfLayer.TRAINED] = [not frozen for frozen in columns.frozen]
    of_layers[:, OfLayer.USED] = columns.used
    of_layers[:, OfLayer.KNOWN] = columns.known
    clipped = [
        math.hypot(*step.clipped.read(values).norms) for step in measured.steps.values() if step.clipped is not None
    ]
    for step in measured.steps.values():
        if step.gradients is not None:
            used = step.clipped if step.clipped_by_hand else None
            _add_gradients(of_layers, step.gradients, values, columns, used=used)
        if step.snapshot is not None:
            _add_moves(of_layers, step.snapshot, values, columns, taken=step.taken(values))
    of_sites = np.zeros((len(columns.sites), len(OfSite)))
    chunks: list[WindowEntry | None] = [None] * len(columns.sites)
    starts: list[int | None] = [None] * len(columns.sites)
    # A step inside a hand-written function is no site.
    seen = [(place, sums) for sums in measured.sums if (place := columns.place.get(sums.site)) is not None]
    _add_sites(of_sites, seen, values, measured.chains)
    for place, sums in seen:
        chunks[place] = sums.chunk(values)
    for site, start in measured.segments.items():
        if (place := columns.place.get(site)) is not None:
            starts[place] = columns.place.get(start)
    scale = 1.0 if measured.scale is None else float(values[measured.scale][0])
    return Totals(
        layers=of_layers,
        sites=of_sites,
        chunks=chunks,
        starts=starts,
        unreadable=any(step.gradients is not None and step.gradients.unreadable for step in measured.steps.values()),
        clipped=math.hypot(*clipped) if clipped else math.nan,
        loss=math.fsum(float(values[slot][0]) for slot in measured.losses) / (scale if measured.scaled_losses else 1.0)
        if measured.losses and optimizers == 1
        else math.nan,
        constant_answer=_constant_answer(measured, values, scale) if optimizers == 1 else (),
        scale=scale,
        stepped=tuple(sorted(index for index, step in measured.steps.items() if step.taken(values))),
        skipped=any(not step.taken(values) for step in measured.steps.values()),
        learning_rates=tuple(
            measured.steps[index].learning_rate if index in measured.steps else math.nan for index in range(optimizers)
        ),
        optimizer_losses=_losses(measured, values, scale, optimizers) if optimizers > 1 else (),
    )


def _losses(measured: Measured, values: Values, scale: float, optimizers: int) -> tuple[float, ...]:
    """Return what each optimizer stepped for; where one has nothing of its own, another one has what may be its."""
    steps = measured.steps
    known = all(step.losses for step in steps.values())
    return tuple(
        math.fsum(float(values[slot][0]) for slot in steps[index].losses) / (scale if measured.scaled_losses else 1.0)
        if known and index in steps
        else math.nan
        for index in range(optimizers)
    )


def _constant_answer(measured: Measured, values: Values, scale: float) -> tuple[float, ...]:
    """Return the losses of a constant answer, without the scale, as `StepRecord.constant_answer`."""
    answer = measured.wiring.answer(values)
    return (answer[0] / scale, *answer[1:]) if answer and measured.scaled_losses else answer


def _add_gradients(
    rows: Rows, gradients: OptimizerGradients, values: Values, columns: Columns, *, used: OptimizerGradients | None
) -> None:
    """Add gradients as they were before clipping; whether they are 0 says what the optimizer has `used`."""
    rows[:, OfLayer.HELD] += _counted(rows, [columns.place[layer] for layer in gradients.layers])
    found = gradients.read(values)
    places = np.array([columns.place[layer] for layer in found.layers], dtype=np.int64)
    matrices = places[found.matrix]
    np.hypot.at(rows[:, OfLayer.GRADIENT], places, found.norms)
    np.hypot.at(rows[:, OfLayer.MATRICES], matrices, found.norms[found.matrix])
    rows[:, OfLayer.GRADIENTS] += _counted(rows, places)
    zero = found.zero
    if used is not None and len(after := used.read(values).zero) == len(zero):
        zero = after
    rows[:, OfLayer.NONZERO] += _counted(rows, places[~zero])
    rows[:, OfLayer.MATRIX_ENTRIES] += _counted(rows, matrices, found.entries[found.matrix])


def _counted(
    rows: Rows, places: Sequence[int] | npt.NDArray[np.int64], weights: FloatVector | None = None
) -> FloatVector:
    """Return how often each row is among the places, or the sum of its weights."""
    return np.bincount(np.asarray(places, dtype=np.int64), weights, len(rows)).astype(np.float64, copy=False)


def _add_moves(rows: Rows, snapshot: WeightSnapshot, values: Values, columns: Columns, *, taken: bool) -> None:
    for moves in snapshot.read(values):
        places = [columns.place[layer] for layer in moves.layers]
        np.hypot.at(rows[:, OfLayer.WEIGHT], places, moves.norms)
        np.hypot.at(rows[:, OfLayer.UPDATE], places, moves.moved if taken else math.nan)
        np.add.at(rows[:, OfLayer.WEIGHT_ENTRIES], places, moves.entries)


def _add_sites(
    rows: Rows,
    seen: Sequence[tuple[int, SiteStatistics]],
    values: Values,
    chains: Mapping[Site, Sequence[Sequence[int]]],
) -> None:
    places = [place for place, _ in seen]
    complete = [(place, sums) for place, sums in seen if sums.signal_complete]
    _add_norms(rows[:, OfSite.OUTPUT], [(place, sums.output) for place, sums in seen], values)
    _add_norms(rows[:, OfSite.SIGNAL], [(place, sums.signal) for place, sums in complete], values)
    _add_norms(rows[:, OfSite.GRAD_OUTPUT], [(place, sums.arriving) for place, sums in complete], values)
    rows[places, OfSite.OUTPUT_ENTRIES] = [sums.all_output_entries(values) for _, sums in seen]
    either = [(place, slot) for place, sums in seen for slot in sums.either()]
    rows[:, OfSite.INACTIVE_OR_SATURATED] += _counted(
        rows, [place for place, _ in either], values.sums([slot for _, slot in either])
    )
    rows[places, OfSite.SIGNALS] = [bool(sums.signal) and sums.signal_complete for _, sums in seen]
    rows[places, OfSite.GRAD_OUTPUTS] = [bool(sums.arriving) and sums.signal_complete for _, sums in seen]
    rows[places, OfSite.INCOMPLETE] = [not sums.signal_complete for _, sums in seen]
    rows[places, OfSite.SEEN] = 1
    for place, sums in complete:
        if loops := sums.loops(chains.get(sums.site, ())):
            _add_norms(rows[:, OfSite.FIRST_CALL], [(place, [calls[0] for calls in loops])], values)
            _add_norms(rows[:, OfSite.LAST_CALL], [(place, [calls[-1] for calls in loops])], values)
            rows[place, [OfSite.CALLS, OfSite.LOOPS]] = sum(map(len, loops)), len(loops)


def _add_norms(column: FloatVector, calls: Sequence[tuple[int, Sequence[Slot]]], values: Values) -> None:
    """Put the norms of each site's calls together; hypot scales, so that no square of the smallest ones vanishes."""
    places = [place for place, slots in calls for _ in slots]
    np.hypot.at(column, places, values.numbers([slot for _, slots in calls for slot in slots]))
