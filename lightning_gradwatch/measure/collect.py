"""What one step gathers of each site, on the device, until it is packed for the transfer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.measure.norms import l2_norm
from lightning_gradwatch.measure.windows import Chunk

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lightning_gradwatch.measure.counting import Counts
    from lightning_gradwatch.measure.mask import Samples
    from lightning_gradwatch.measure.pack import Pack, Slot
    from lightning_gradwatch.measure.sites import Site
    from lightning_gradwatch.record import FloatVector


@dataclass
class SiteSums:
    """The sums of one site over the calls and micro-batches of a step."""

    counted: bool = False
    inactive: Tensor | None = None
    saturated: Tensor | None = None
    either: Tensor | None = None
    observations: int = 0
    batch_elements: int = 0
    batch_of_pass: int = 0
    """Batch elements of the micro-batch under way: the calls of an unrolled loop see the same ones."""
    output_entries: int = 0
    output_norms: list[Tensor] = field(default_factory=list)
    signal_norms: list[Tensor] = field(default_factory=list)
    arriving_norms: list[Tensor] = field(default_factory=list)
    """Of dL/da, the gradient that arrives at each call's output a."""
    lost: bool = False
    """Whether something of a forward pass can't be counted any more."""
    signal_complete: bool = True
    """False where a call's δ or dL/da can't be had, so that a sum over the others would be wrong."""

    masked: list[tuple[Samples, int]] = field(default_factory=list)
    """Of calls under a mask, instead of `observations`: the samples, and how many observations each stands for."""
    masked_of_pass: Samples | None = None
    masked_elements: list[Samples] = field(default_factory=list)
    masked_outputs: list[tuple[Samples, int]] = field(default_factory=list)
    """Instead of `output_entries`."""

    def count(self, counts: Counts, batch_elements: int, samples: Samples | None = None) -> None:
        """Add the counts of one call, of which under a mask some are `samples`."""
        self.counted = True
        self.inactive = _sum(self.inactive, counts.inactive)
        self.saturated = _sum(self.saturated, counts.saturated)
        self.either = _sum(self.either, counts.either)
        if samples is None:
            self.observations += counts.observations
            self.batch_of_pass = max(self.batch_of_pass, batch_elements)
        else:
            self.masked.append((samples, samples.each(counts.observations)))
            self.masked_of_pass = samples

    def output(self, tensor: Tensor, unit_axis: int = 0, samples: Samples | None = None) -> None:
        """Add the norm of one call's output, of which under a mask some positions are `samples`."""
        if samples is None:
            self.output_norms.append(l2_norm(tensor))
            self.output_entries += tensor.numel()
        else:
            self.output_norms.append(l2_norm(samples.only(tensor, unit_axis, 0.0)))
            self.masked_outputs.append((samples, samples.each(tensor.numel())))

    def end_pass(self) -> None:
        """Close a micro-batch."""
        self.batch_elements += self.batch_of_pass
        self.batch_of_pass = 0
        if self.masked_of_pass is not None:
            self.masked_elements.append(self.masked_of_pass)
            self.masked_of_pass = None


@dataclass(slots=True)
class SiteSlots:
    """Where a site's numbers are in a transfer."""

    site: Site
    sums: SiteSums
    inactive: Slot | None
    saturated: Slot | None
    either_slot: Slot | None
    output: list[Slot]
    signal: list[Slot]
    arriving: list[Slot]
    masks: Mapping[Samples, Slot]

    def chunk(self, values: list[FloatVector]) -> Chunk | None:
        """Return the step's counts for the site's window; None for a site without unit fractions."""
        if not self.sums.counted or self.sums.lost or self.site.units == 0:
            return None
        return Chunk(
            inactive=np.zeros(self.site.units, dtype=np.int64)
            if self.inactive is None
            else values[self.inactive].astype(np.int64),
            saturated=None if self.saturated is None else values[self.saturated].astype(np.int64),
            observations=self.observations(values),
            batch_elements=self.sums.batch_elements
            + sum(int(values[self.masks[samples]][1]) for samples in self.sums.masked_elements),
        )

    def observations(self, values: list[FloatVector]) -> int:
        """Return how many observations of each unit the step has."""
        return self.sums.observations + self._masked(self.sums.masked, values)

    def _masked(self, calls: list[tuple[Samples, int]], values: list[FloatVector]) -> int:
        return sum(int(values[self.masks[samples]][0]) * each for samples, each in calls)

    def either(self, values: list[FloatVector]) -> float:
        """Return how many of the step's observations are inactive or saturated, over all units."""
        for slot in (self.either_slot, self.inactive, self.saturated):
            if slot is not None:
                return float(np.add.reduce(values[slot]))
        return 0.0

    def output_entries(self, values: list[FloatVector]) -> int:
        """Return how many entries the site's output had over the step."""
        return self.sums.output_entries + self._masked(self.sums.masked_outputs, values)

    def output_norm(self, values: list[FloatVector]) -> float:
        """Return the norm of the site's output over the step."""
        return _combined(values, self.output)

    def signal_norm(self, values: list[FloatVector]) -> float | None:
        """Return ‖δ‖ over all calls and micro-batches of the step, still multiplied by the gradient scale."""
        return _combined(values, self.signal) if self.signal and self.sums.signal_complete else None

    def arriving_norm(self, values: list[FloatVector]) -> float | None:
        """Return ‖dL/da‖ in the same way, still multiplied by the gradient scale."""
        return _combined(values, self.arriving) if self.arriving and self.sums.signal_complete else None


class Collected:
    """The sums of a step by site."""

    def __init__(self) -> None:
        self.sites: dict[Site, SiteSums] = {}

    def of(self, site: Site) -> SiteSums:
        """Return a site's sums, empty ones at its first call."""
        sums = self.sites.get(site)
        if sums is None:
            sums = self.sites[site] = SiteSums()
        return sums

    def end_pass(self) -> None:
        """Close a micro-batch."""
        for sums in self.sites.values():
            sums.end_pass()

    def pack(self, pack: Pack) -> list[SiteSlots]:
        """Hand everything over for the transfer."""
        known: dict[int, Slot] = {}

        def slot(tensor: Tensor | None) -> Slot | None:
            # One mask can be two counts (Hardtanh's outer sides are inactive and saturated): it travels once.
            if tensor is None:
                return None
            place = known.get(id(tensor))
            if place is None:
                place = known[id(tensor)] = pack.add(tensor)
            return place

        used = (samples for sums in self.sites.values() for samples, _ in (*sums.masked, *sums.masked_outputs))
        masks = {samples: pack.add(samples.counts) for samples in dict.fromkeys(used)}
        return [
            SiteSlots(
                site=site,
                sums=sums,
                inactive=slot(sums.inactive),
                saturated=slot(sums.saturated),
                either_slot=slot(sums.either),
                output=[pack.add(norm) for norm in sums.output_norms],
                signal=[pack.add(norm) for norm in sums.signal_norms],
                arriving=[pack.add(norm) for norm in sums.arriving_norms],
                masks=masks,
            )
            for site, sums in self.sites.items()
        ]


def _sum(total: Tensor | None, counts: Tensor | None) -> Tensor | None:
    if total is None or counts is None:
        return counts if total is None else total
    return total + counts


def _combined(values: list[FloatVector], slots: list[Slot]) -> float:
    # hypot scales, so that squares of the smallest float64 values don't vanish.
    return math.hypot(*[values[slot].item() for slot in slots])
