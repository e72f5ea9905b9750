"""What one measured step came to in this process, as numbers that add up over processes; a record follows from them alone.

A norm adds up as its square, all else as it is. So each metric is decided once, from sums, whether they are of one
process or of many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.measure.collect import SiteSums
    from lightning_gradwatch.measure.gradients import OptimizerGradients
    from lightning_gradwatch.measure.layers import Layer
    from lightning_gradwatch.measure.sites import Site
    from lightning_gradwatch.measure.step import Measured
    from lightning_gradwatch.measure.windows import Chunk
    from lightning_gradwatch.record import FloatVector


class OfLayer(IntEnum):
    """Columns of `Tally.layers`; the first `LAYER_NORMS` are norms."""

    GRADIENT = 0
    """Of the gradients of all its parameters."""
    MATRICES = 1
    """Of the gradients of those of two or more dimensions."""
    WEIGHT = 2
    MOVED = 3
    """How far the step moved them; NaN where it wasn't taken."""
    MATRIX_ENTRIES = 4
    """Entries of the gradients in MATRICES."""
    WEIGHT_ENTRIES = 5
    """Entries of the weights that are compared."""
    GRADIENTS = 6
    """Parameters that have a gradient."""
    NONZERO = 7
    """Parameters whose gradient has an entry that isn't 0."""
    HELD = 8
    """Parameters in an optimizer that stepped."""
    TRAINED = 9
    """Whether something of it is being trained."""
    USED = 10
    """Whether the forward pass of this step used it."""
    KNOWN = 11
    """Whether that of any measured step so far did."""


class OfSite(IntEnum):
    """Columns of `Tally.sites`; the first `SITE_NORMS` are norms."""

    OUTPUT = 0
    SIGNAL = 1
    """δ, still multiplied by the gradient scale."""
    ARRIVING = 2
    """dL/da, in the same way."""
    OUTPUT_ENTRIES = 3
    EITHER = 4
    """Observations that are inactive or saturated, summed over the units."""
    SIGNALS = 5
    """Whether there is a signal."""
    ARRIVINGS = 6
    INCOMPLETE = 7
    """Whether a call's δ or dL/da couldn't be had."""
    SEEN = 8
    """Whether the site was called."""
    LOST = 9
    """Whether the numbers of several processes can't be put together."""


LAYER_NORMS, SITE_NORMS = 4, 3


@dataclass
class Tally:
    """The numbers of one step, by columns of layers and sites."""

    layers: npt.NDArray[np.float64]
    """Shape [L, len(OfLayer)]."""
    sites: npt.NDArray[np.float64]
    """Shape [S, len(OfSite)]."""
    chunks: Sequence[Chunk | None]
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


def tally(measured: Measured, values: list[FloatVector], columns: Columns, optimizers: int) -> Tally:
    """Read a step's numbers off the transferred values; the run has so many `optimizers`."""
    of_layers = np.zeros((len(columns.layers), len(OfLayer)))
    of_layers[:, OfLayer.TRAINED] = [not frozen for frozen in columns.frozen]
    of_layers[:, OfLayer.USED] = columns.used
    of_layers[:, OfLayer.KNOWN] = columns.known
    clipped = [
        math.hypot(*[gradient.norm for gradient in step.clipped.read(values)])
        for step in measured.steps.values()
        if step.clipped is not None
    ]
    for step in measured.steps.values():
        if step.gradients is not None:
            _add_gradients(of_layers, step.gradients, values, columns)
        if step.snapshot is not None:
            taken = step.taken(values)
            for layer, move in step.snapshot.read(values):
                row = of_layers[columns.place[layer]]
                row[OfLayer.WEIGHT] = math.hypot(row[OfLayer.WEIGHT], move.norm)
                row[OfLayer.MOVED] = math.hypot(row[OfLayer.MOVED], move.moved if taken else math.nan)
                row[OfLayer.WEIGHT_ENTRIES] += move.entries
    of_sites = np.zeros((len(columns.sites), len(OfSite)))
    chunks: list[Chunk | None] = [None] * len(columns.sites)
    starts: list[int | None] = [None] * len(columns.sites)
    for sums in measured.sums:
        place = columns.place.get(sums.site)
        if place is not None:  # a step inside a hand-written function is no site
            of_sites[place] = _of_site(sums, values)
            chunks[place] = sums.chunk(values)
    for site, start in measured.segments.items():
        if (place := columns.place.get(site)) is not None:
            starts[place] = columns.place.get(start)
    return Tally(
        layers=of_layers,
        sites=of_sites,
        chunks=chunks,
        starts=starts,
        unreadable=any(step.gradients is not None and step.gradients.unreadable for step in measured.steps.values()),
        clipped=math.hypot(*clipped) if clipped else math.nan,
        loss=math.fsum(float(values[slot][0]) for slot in measured.losses)
        if measured.losses and optimizers == 1
        else math.nan,
        scale=1.0 if measured.scale is None else float(values[measured.scale][0]),
        stepped=tuple(sorted(index for index, step in measured.steps.items() if step.taken(values))),
        skipped=any(not step.taken(values) for step in measured.steps.values()),
        learning_rates=tuple(
            measured.steps[index].learning_rate if index in measured.steps else math.nan for index in range(optimizers)
        ),
    )


def _add_gradients(
    rows: npt.NDArray[np.float64], gradients: OptimizerGradients, values: list[FloatVector], columns: Columns
) -> None:
    for layer in gradients.layers:
        rows[columns.place[layer], OfLayer.HELD] += 1
    for gradient in gradients.read(values):
        row = rows[columns.place[gradient.layer]]
        row[OfLayer.GRADIENT] = math.hypot(row[OfLayer.GRADIENT], gradient.norm)
        row[OfLayer.GRADIENTS] += 1
        row[OfLayer.NONZERO] += not gradient.zero
        if gradient.matrix:
            row[OfLayer.MATRICES] = math.hypot(row[OfLayer.MATRICES], gradient.norm)
            row[OfLayer.MATRIX_ENTRIES] += gradient.entries


def _of_site(sums: SiteSums, values: list[FloatVector]) -> list[float]:
    signal, arriving = sums.signal_norm(values), sums.arriving_norm(values)
    return [
        sums.output_norm(values),
        signal or 0.0,
        arriving or 0.0,
        sums.all_output_entries(values),
        sums.either(values),
        signal is not None,
        arriving is not None,
        not sums.signal_complete,
        1,
        0,
    ]
