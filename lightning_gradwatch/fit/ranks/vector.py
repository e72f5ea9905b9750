"""One rank's tally as a vector that adds up over ranks, and back.

Norms travel as squares (of float64, so within their range for entries from 1e-45 to 1e38). The header has a row a rank,
which only that rank fills in; a row of zeros is a rank that has left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.measure.totals import Totals
from lightning_gradwatch.measure.units.silence import WindowEntry
from lightning_gradwatch.record.metrics import OfLayer, OfSite

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from lightning_gradwatch.fit.ranks.columns import Table
    from lightning_gradwatch.measure.faults import Part
    from lightning_gradwatch.record.step import FloatVector


_LAYER_NORMS = [each for each in OfLayer if each.is_norm]
_MEASURED = [each for each in OfLayer if each.part]
_SITE_NORMS = [each for each in OfSite if each.is_norm]
_ADD_UP = [each for each in OfSite if each.adds_up]
"""What adds up over ranks that have different units; they see the same observations."""


class Status(IntEnum):
    """What a rank's row says first."""

    LEFT = 0
    """The monitor of this rank has failed; it exchanges nothing more."""
    WAITING = 1
    """No optimizer stepped here."""
    STEPPED = 2


class Head(IntEnum):
    """Columns of the header; after them come, for each optimizer, whether it stepped, its learning rate and its loss."""

    STATUS = 0
    NEWS = 1
    """Bytes of a new description."""
    STEP = 2
    SCALE = 3
    LOSS = 4
    """NaN where there is none."""
    CLIPPED = 5
    SKIPPED = 6
    UNREADABLE = 7
    ANSWER = 8
    """The loss of a constant answer; NaN where it isn't known."""
    OUTPUT = 9
    TARGET = 10
    DEVIATION = 11


_OPTIMIZER = 3
"""Columns of the header for each optimizer."""


@dataclass(frozen=True)
class Layout:
    """Where everything is in the vector, for one state of the table."""

    ranks: int
    optimizers: int
    table: Table
    units: tuple[int, ...]
    """Of each site, on one rank."""
    layers: int

    @classmethod
    def of(cls, table: Table, optimizers: int) -> Layout:
        """Return the layout for the table as it is now."""
        return cls(
            ranks=len(table.latest),
            optimizers=optimizers,
            table=table,
            units=tuple(
                site.units // table.shards if split else site.units
                for site, split in zip(table.info.sites, table.split, strict=True)
            ),
            layers=len(table.info.layers),
        )

    def empty(self) -> Parts:
        """Return a vector of zeros, by its parts."""
        shards, sites = self.table.shards, len(self.units)
        head = self.ranks * (len(Head) + _OPTIMIZER * self.optimizers)
        sizes = [head, self.layers * len(OfLayer), shards * sites * _SITE, shards * sum(self.units) * 2]
        vector = np.zeros(sum(sizes))
        return self.parts(vector)

    def parts(self, vector: FloatVector) -> Parts:
        """Return views of a vector."""
        shards, sites = self.table.shards, len(self.units)
        width = len(Head) + _OPTIMIZER * self.optimizers
        ends = np.cumsum([self.ranks * width, self.layers * len(OfLayer), shards * sites * _SITE])
        head, layers, of_sites, units = np.split(vector, ends)
        return Parts(
            vector=vector,
            head=head.reshape(self.ranks, width),
            layers=layers.reshape(self.layers, len(OfLayer)),
            sites=of_sites.reshape(shards, sites, _SITE),
            units=units.reshape(shards, 2, -1),
        )


class _More(IntEnum):
    """Columns of a site in the vector, after those of `OfSite`."""

    CHUNKS = len(OfSite)
    """Ranks that have counts."""
    OBSERVATIONS = CHUNKS + 1
    BATCH_ELEMENTS = CHUNKS + 2
    SATURABLE = CHUNKS + 3
    """Ranks whose counts have saturated observations."""
    STARTS = CHUNKS + 4
    """Ranks on which a segment that ends here starts somewhere."""
    START = CHUNKS + 5
    START_SQUARED = CHUNKS + 6


_SITE = max(_More) + 1


@dataclass(frozen=True)
class Parts:
    """Views of one vector."""

    vector: FloatVector
    head: npt.NDArray[np.float64]
    layers: npt.NDArray[np.float64]
    sites: npt.NDArray[np.float64]
    units: npt.NDArray[np.float64]


def fill(parts: Parts, layout: Layout, rank: int, tally: Totals) -> None:
    """Put a rank's tally into a vector; what the table doesn't know yet is left out."""
    head, table = parts.head[rank], layout.table
    head[Head.SCALE], head[Head.LOSS], head[Head.CLIPPED] = tally.scale, tally.loss, tally.clipped
    head[Head.SKIPPED], head[Head.UNREADABLE] = tally.skipped, tally.unreadable
    head[_ANSWER] = tally.constant_answer or (math.nan,) * 4
    for optimizer, rate in enumerate(tally.learning_rates):
        loss = tally.optimizer_losses[optimizer] if tally.optimizer_losses else math.nan
        head[len(Head) + _OPTIMIZER * optimizer :][:_OPTIMIZER] = optimizer in tally.stepped, rate, loss
    places = table.places_of_layers(rank)
    rows = tally.layers[: len(places)].copy()
    rows[:, _LAYER_NORMS] **= 2
    parts.layers[places] = rows
    shard = table.shard(rank)
    sites, units = parts.sites[shard], parts.units[shard]
    starts = np.cumsum([0, *layout.units])
    places = table.places_of_sites(rank)
    for local, place in enumerate(places):
        row = sites[place]
        row[: len(OfSite)] = tally.sites[local]
        row[_SITE_NORMS] **= 2
        start = tally.starts[local]
        if start is not None:
            column = places[start]
            row[[_More.STARTS, _More.START, _More.START_SQUARED]] = 1, column, column**2
        chunk = tally.chunks[local]
        if chunk is not None and chunk.inactive.size == layout.units[place]:  # else it isn't of this size on each rank
            row[[_More.CHUNKS, _More.OBSERVATIONS, _More.BATCH_ELEMENTS]] = 1, chunk.observations, chunk.batch_elements
            row[_More.SATURABLE] = chunk.saturated is not None
            mine = slice(starts[place], starts[place + 1])
            units[0, mine] = chunk.inactive
            units[1, mine] = 0 if chunk.saturated is None else chunk.saturated


def read(parts: Parts, layout: Layout) -> tuple[Totals, list[int]]:
    """Return the tally of all ranks, by the table's columns, and the columns of sites that can't be combined.

    Every strategy that is measured averages over the parts of the data (see `fit.strategies`), so that the loss that is
    minimised is the mean of the ranks' losses, and δ of that is a rank's own divided by their number (for equal batches: δ
    of the whole batch's mean).
    """
    head, table = parts.head, layout.table
    parts.layers[np.ix_(table.of_some, _MEASURED)] = 0
    parts.layers[:, _LAYER_NORMS] = np.sqrt(parts.layers[:, _LAYER_NORMS])
    joined = list(_joined(parts, layout))
    sites = np.array([row for row, _ in joined]).reshape(-1, _SITE)
    sites[:, _SITE_NORMS] = np.sqrt(sites[:, _SITE_NORMS])
    sites[:, [OfSite.SIGNAL, OfSite.GRAD_OUTPUT]] /= table.replicas
    losses = head[:, Head.LOSS]
    losses = losses[~np.isnan(losses)]
    of_optimizers = head[:, len(Head) :].reshape(layout.ranks, layout.optimizers, _OPTIMIZER)
    tally = Totals(
        layers=parts.layers,
        sites=sites[:, : len(OfSite)],
        chunks=[_chunk(row, units) for row, units in zip(sites, (units for _, units in joined), strict=True)],
        starts=[_start(sites, place) for place in range(len(sites))],
        unreadable=bool(head[:, Head.UNREADABLE].any() or table.of_some),
        clipped=math.hypot(*head[:, Head.CLIPPED]),
        loss=float(losses.mean()) if losses.size else math.nan,
        scale=float(head[0, Head.SCALE]),
        stepped=tuple(np.flatnonzero(of_optimizers[:, :, 0].any(axis=0)).tolist()),
        skipped=bool(head[:, Head.SKIPPED].any()),
        learning_rates=tuple(of_optimizers[0, :, 1].tolist()),
        constant_answer=_answer(head),
        optimizer_losses=tuple(of_optimizers[:, :, 2].mean(axis=0).tolist()) if layout.optimizers > 1 else (),
    )
    return tally, [place for place, (_, units) in enumerate(joined) if units is None]


def _answer(head: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Return the mean of what the losses of those ranks that have one would be of a constant answer, as of the losses."""
    answers = head[~np.isnan(head[:, Head.LOSS])][:, _ANSWER]
    return tuple(answers.mean(axis=0).tolist()) if len(answers) and not np.isnan(answers[:, 0]).any() else ()


def leave_out(tally: Totals, parts: Iterable[Part]) -> None:
    """Make the numbers absent that some rank couldn't measure: those of the others are no number of all."""
    for part in parts:
        if part in {"gradients", "updates"}:
            tally.layers[:, [each for each in OfLayer if each.part == part]] = 0
            tally.unreadable = tally.unreadable or part == "gradients"
        else:
            tally.sites[:, [OfSite.SIGNALS, OfSite.GRAD_OUTPUTS]] = 0
            if part == "activations":
                tally.sites[:, OfSite.NOT_COMBINABLE] = 1
                tally.chunks = [None] * len(tally.chunks)


_ANSWER = [Head.ANSWER, Head.OUTPUT, Head.TARGET, Head.DEVIATION]


def _joined(parts: Parts, layout: Layout) -> Iterator[tuple[FloatVector, FloatVector | None]]:
    """Yield each site's row and its units' counts, [2, U], as one of all ranks that share the work on a part of the data."""
    starts = np.cumsum([0, *layout.units])
    for place, split in enumerate(layout.table.split):
        rows, units = parts.sites[:, place], parts.units[:, :, starts[place] : starts[place + 1]]
        if split:
            row = rows[0].copy()
            row[_ADD_UP] = rows[:, _ADD_UP].sum(axis=0)
            yield row, np.concatenate([*units], axis=1)
        elif np.allclose(rows, rows[0], rtol=_SAME, atol=0, equal_nan=True) and (units == units[0]).all():
            yield rows[0], units[0]
        else:
            row = np.zeros(_SITE)
            row[[OfSite.NOT_COMBINABLE, OfSite.INCOMPLETE]] = 1
            yield row, None


_SAME = 1e-6
"""Ranks that do the same work get the same numbers to rounding; those that have different positions never so many digits."""


def _chunk(row: FloatVector, units: FloatVector | None) -> WindowEntry | None:
    if units is None or not units.size or row[OfSite.NOT_COMBINABLE] or not row[_More.CHUNKS]:
        return None
    inactive, saturated = np.rint(units).astype(np.int64)
    return WindowEntry(
        inactive=inactive,
        saturated=saturated if row[_More.SATURABLE] else None,
        observations=round(row[_More.OBSERVATIONS]),
        batch_elements=round(row[_More.BATCH_ELEMENTS]),
    )


def _start(sites: npt.NDArray[np.float64], place: int) -> int | None:
    """Return where a site's segment starts, if it is the same on all ranks that saw one of its ends."""
    count, total, squares = sites[place, [_More.STARTS, _More.START, _More.START_SQUARED]]
    if not count or count * squares != total**2:
        return None
    start = round(total / count)
    return start if count == sites[place, OfSite.SEEN] == sites[start, OfSite.SEEN] else None
