"""The data's path through a model: which sites feed which, as far as the passes so far showed.

Every site has a number, by first use. Sets of what feeds what grow from pass to pass, as a dynamic net shows another part of
itself in each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.measure.spans import among, members, union
from lightning_gradwatch.segments import segment_starts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_gradwatch.measure.sites import Site
    from lightning_gradwatch.measure.spans import Span

FIRST = 1
"""The first number; 0 is what a walk finds where it can't tell what feeds something."""


class Path:
    """What a run's passes showed."""

    def __init__(self) -> None:
        self.changes = 0
        """How often something was added to who feeds whom."""
        self._sites: list[Site | None] = [None]
        self._segments: tuple[object, dict[Site, Site]] = (None, {})

    def number(self, site: Site) -> int:
        """Add a site, at its first call, and return its number."""
        self._sites.append(site)
        return len(self._sites) - 1

    def sites(self, numbers: Span) -> list[Site]:
        """Return the sites of a set of numbers."""
        return [site for number in members(numbers) if (site := self._sites[number]) is not None]

    def feed(self, site: Site, feeding: Span) -> bool:
        """Take in which sites feed one through no other site; return whether that is news."""
        known = union(site.feeding, among(feeding, -1 << FIRST))
        if known == site.feeding:
            return False
        site.feeding = known
        self.changes += 1
        return True

    def segments(self, feeds: Mapping[Site, Span], entries: frozenset[Site], exits: Span) -> dict[Site, Site]:
        """Return for each of a step's sites the one where the segment of its weight gain starts.

        Args:
            feeds: By site, the numbers of those that feed it in this step.
            entries: The sites that some way reaches from the input through no other site.
            exits: The numbers of those from which some way reaches the loss through no other site.
        """
        key = (feeds, entries, exits)
        if key != self._segments[0]:
            place = {site.number: place for place, site in enumerate(feeds)}
            sites = list(feeds)
            starts = segment_starts(
                [[place[number] for number in members(feeding) if number in place] for feeding in feeds.values()],
                [place[site.number] for site in feeds if site in entries],
                {place[number] for number in members(exits) if number in place},
            )
            found = {
                site: sites[start]
                for site, start in zip(sites, starts, strict=True)
                if start is not None and not among(feeds[site], (1 << FIRST) - 1)[1]
            }
            self._segments = key, found
        return self._segments[1]
