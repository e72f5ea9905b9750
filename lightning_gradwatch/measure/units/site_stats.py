"""What one step measures at each site: on the device first, and as numbers once they were transferred."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from lightning_gradwatch.measure.units.silence import WindowEntry
from lightning_gradwatch.measure.unobserved import is_opaque

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lightning_gradwatch.measure.model.path import Site
    from lightning_gradwatch.measure.transfer.host import Slot, Values
    from lightning_gradwatch.measure.units.batched_reductions import BatchedReductions
    from lightning_gradwatch.measure.units.counting import Counter
    from lightning_gradwatch.measure.units.mask import Samples
    from lightning_gradwatch.measure.units.silence import UnitCounts
    from lightning_gradwatch.record.step import FloatVector


@dataclass(slots=True, eq=False)
class Masked:
    """What a site's calls under a mask have instead of plain numbers, which only the device knows."""

    observations: list[tuple[Slot, int]] = field(default_factory=list)
    """Of each call the samples, and how many observations each stands for."""
    of_pass: Slot | None = None
    """The samples of the micro-batch under way."""
    batch_elements: list[Slot] = field(default_factory=list)
    """The samples of each micro-batch."""
    output_entries: list[tuple[Slot, int]] = field(default_factory=list)
    """As `observations`."""


_MIXED = -1
Mark: TypeAlias = tuple[tuple[int, int, int, int, int], tuple[int, int, int]]
"""How much a site had of what it collects."""
_NOTHING: Mark = ((0, 0, 0, 0, 0), (0, 0, 0))


class SiteStatistics:
    """One site over the calls and micro-batches of a step.

    Each tensor is measured, or copied, when it is there, and here are the slots of what is measured. No tensor is kept, so
    whatever a program writes into it later makes no difference.
    """

    counts: tuple[tuple[Counter, Sequence[Slot]], ...] = ()
    """Of each call its counter and, for each of that one's regions, the observations a unit."""
    units = 0
    """How many these are; `_MIXED` where the calls don't agree."""
    observations = 0
    batch_elements = 0
    batch_of_pass = 0
    """Batch elements of the micro-batch under way: the calls of an unrolled loop see the same ones."""
    output: tuple[Slot, ...] = ()
    """Of each call the norm of its output a."""
    output_entries = 0
    signal: tuple[Slot, ...] = ()
    """Of each call ‖δ‖."""
    arriving: tuple[Slot, ...] = ()
    """Of each call ‖dL/da‖, the gradient that arrives at its output."""
    signal_turns: tuple[int, ...] = ()
    """Of each of these calls its number, as `turn` gave it: they come in the order of the backward pass."""
    turns = 0
    """How many calls were numbered."""
    signal_complete = True
    """False where a call's δ or dL/da can't be had, so that a sum over the others would be wrong."""
    masked: Masked | None = None
    """Of calls under a mask; None until there is one."""

    def __init__(self, site: Site, staging: BatchedReductions) -> None:
        self.site = site
        self.staging = staging

    def count(
        self,
        counter: Counter,
        z: Tensor,
        unit_axis: int,
        samples: Samples | None = None,
        *,
        columns: bool = False,
        rectified: bool = False,
    ) -> Slot | None:
        """Count the units in the argument of a call, of which under a mask some positions are `samples`.

        Args:
            counter: Of its kind.
            z: The argument.
            unit_axis: Its axis of units.
            samples: The positions that count; None: all.
            columns: Whether the batch is its last axis.
            rectified: Whether the call is ReLU's, and under no mask.

        Returns:
            Where the norm of the call's output will be, where that is known already.
        """
        if not counter.judges:
            return None
        units = counter.units(z)
        self.units = units if self.units in (0, units) else _MIXED
        counted = z if samples is None else samples.only(z, unit_axis, math.nan)
        counts, output = (
            self.staging.count_and_rectify(counter, counted)
            if rectified
            else (self.staging.count(counter, counted), None)
        )
        self.counts += ((counter, counts),)
        observations, batch_elements = counter.seen(z)
        if columns:
            batch_elements = z.shape[-1]
        if samples is None:
            self.observations += observations
            self.batch_of_pass = max(self.batch_of_pass, batch_elements)
        else:
            slot = self.staging.pack.add_once(samples.counts)
            masked = self._under_mask()
            masked.of_pass = slot
            masked.observations.append((slot, samples.each(observations)))
        return output

    def add_output(self, tensor: Tensor, unit_axis: int, samples: Samples | None = None) -> None:
        """Measure the output of a call, of which under a mask some positions are `samples`."""
        if samples is None:
            self.output += (self.staging.norm(tensor),)
            self.output_entries += tensor.numel()
        else:
            self.output += (self.staging.norm(samples.only(tensor, unit_axis, 0.0)),)
            slot = self.staging.pack.add_once(samples.counts)
            self._under_mask().output_entries.append((slot, samples.each(tensor.numel())))

    def add_norm_of_output(self, slot: Slot, entries: int) -> None:
        """Take in the norm of the output of a call, and how many entries it has."""
        self.output += (slot,)
        self.output_entries += entries

    def outputs(self) -> tuple[int, int, int]:
        """Return how much there is of outputs so far, for `outputs_back_to`."""
        return len(self.output), self.output_entries, 0 if self.masked is None else len(self.masked.output_entries)

    def outputs_back_to(self, before: tuple[int, int, int]) -> None:
        """Forget the outputs that were added since."""
        self.output = self.output[: before[0]]
        self.output_entries = before[1]
        if self.masked is not None:
            del self.masked.output_entries[before[2] :]

    def turn(self) -> int:
        """Return the number of a call that is about to be watched."""
        self.turns += 1
        return self.turns

    def add_signal(self, delta: Tensor | None, turn: int) -> None:
        """Measure the δ of a call of a number; None: none came."""
        if delta is not None and is_opaque(delta):
            self.signal_complete = False
        elif delta is not None:
            self.signal += (self.staging.norm(delta),)
            self.signal_turns += (turn,)

    def add_arriving(self, gradient: Tensor | None) -> None:
        """Measure the dL/da of a call; None: none came."""
        if gradient is not None and is_opaque(gradient):
            self.signal_complete = False
        elif gradient is not None:
            self.arriving += (self.staging.norm(gradient),)

    def end_pass(self) -> None:
        """Close a micro-batch."""
        self.batch_elements += self.batch_of_pass
        self.batch_of_pass = 0
        if self.masked is not None and self.masked.of_pass is not None:
            self.masked.batch_elements.append(self.masked.of_pass)
            self.masked.of_pass = None

    def mark(self) -> Mark:
        """Return how much was counted so far, for `back_to`."""
        masked = self.masked
        under = (0, 0, 0)
        if masked is not None:
            under = len(masked.observations), len(masked.batch_elements), len(masked.output_entries)
        return (
            (len(self.counts), self.observations, self.batch_elements, len(self.output), self.output_entries),
            under,
        )

    def back_to(self, mark: Mark) -> None:
        """Forget what was counted since, other than signals."""
        (counts, self.observations, self.batch_elements, outputs, self.output_entries), under = mark
        self.counts, self.output = self.counts[:counts], self.output[:outputs]
        self.batch_of_pass = 0
        if self.masked is not None:
            self.masked.of_pass = None
            del self.masked.observations[under[0] :]
            del self.masked.batch_elements[under[1] :]
            del self.masked.output_entries[under[2] :]

    def _under_mask(self) -> Masked:
        if self.masked is None:
            self.masked = Masked()
        return self.masked

    # -- after the transfer

    def chunk(self, values: Values) -> WindowEntry | None:
        """Return the step's counts for the site's window; None for a site without unit fractions."""
        if not self.counts or self.units != self.site.units:
            return None
        inactive: UnitCounts | None = None
        saturated: UnitCounts | None = None
        for counter, slots in self.counts:
            for place in counter.inactive:
                inactive = _plus(inactive, values[slots[place]])
            for place in counter.saturated:
                saturated = _plus(saturated, values[slots[place]])
        masked = self.masked
        return WindowEntry(
            inactive=np.zeros(self.site.units, dtype=np.int64) if inactive is None else inactive,
            saturated=saturated,
            observations=self.observations + (0 if masked is None else _entries(masked.observations, values)),
            batch_elements=self.batch_elements
            + (0 if masked is None else sum([int(values[slot][1]) for slot in masked.batch_elements])),
        )

    def either(self) -> list[Slot]:
        """Return where the counts are of the step's observations that are inactive or saturated."""
        return [slots[place] for counter, slots in self.counts for place in counter.either]

    def loops(self, chains: Sequence[Sequence[int]]) -> list[list[Slot]]:
        """Return ‖δ‖ of the calls of each chain of them that has several, the first call first.

        Args:
            chains: The numbers of calls that follow each other, as the turns of a loop over a sequence do.
        """
        if not chains:
            return []
        signal = dict(zip(self.signal_turns, self.signal, strict=True))
        found = [[signal[turn] for turn in chain if turn in signal] for chain in chains]
        return [calls for calls in found if len(calls) > 1]

    def all_output_entries(self, values: Values) -> int:
        """Return how many entries the site's output had over the step."""
        masked = self.masked
        return self.output_entries + (0 if masked is None else _entries(masked.output_entries, values))


class Collected:
    """The sums of a step by site."""

    def __init__(self, staging: BatchedReductions) -> None:
        self._staging = staging
        self.sites: dict[Site, SiteStatistics] = {}
        self._supposed: dict[tuple[Site, str], SiteStatistics] = {}
        self._marks: dict[Site, Mark] = {}
        """At the end of the last micro-batch."""
        self._before: dict[Site, Mark] = {}
        """At the end of the one before it."""

    def of(self, site: Site) -> SiteStatistics:
        """Return a site's sums, empty ones at its first call and for a step inside a hand-written function."""
        if site.part:
            return SiteStatistics(site, self._staging)
        sums = self.sites.get(site)
        if sums is None:
            sums = self.sites[site] = SiteStatistics(site, self._staging)
        return sums

    def supposed(self, site: Site, function: str) -> SiteStatistics:
        """Return the sums of a new site in case that it turns out to compute that function, until the micro-batch ends."""
        return self._supposed.setdefault((site, function), SiteStatistics(site, self._staging))

    def end_pass(self) -> None:
        """Close a micro-batch."""
        self._supposed.clear()
        marks = {}
        for site, sums in self.sites.items():
            sums.end_pass()
            marks[site] = sums.mark()
        if marks != self._marks:  # it may be closed more than once
            self._before, self._marks = self._marks, marks

    def take_back(self) -> None:
        """Forget the last micro-batch, or the one under way: it is one that was counted already, for other weights."""
        if all(sums.mark() == self._marks.get(site, _NOTHING) for site, sums in self.sites.items()):
            self._marks = self._before
        for site, sums in self.sites.items():
            sums.back_to(self._marks.get(site, _NOTHING))


def _plus(counts: UnitCounts | None, more: FloatVector) -> UnitCounts:
    added = more.astype(np.int64)
    return added if counts is None else counts + added


def _entries(calls: Sequence[tuple[Slot, int]], values: Values) -> int:
    return sum([int(values[slot][0]) * each for slot, each in calls])
