"""The data's path through a model: which layers and sites feed which, as far as the passes so far showed.

All of them have a number, by first use. Sets of what feeds what grow from pass to pass, as a dynamic net shows another part
of itself in each. The order follows from the sets, so that a layer which is thawed, or no longer skipped, takes its place;
what they leave open is in the order of first use.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

from lightning_gradwatch.measure.model.number_sets import EMPTY, among, members, single, union
from lightning_gradwatch.record.segments import path_order, segment_starts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from lightning_gradwatch.measure.model.layers import Layer
    from lightning_gradwatch.measure.model.number_sets import Span
    from lightning_gradwatch.measure.model.sites import Site

    Stop: TypeAlias = Layer | Site

UNSEEN, LOST, FIRST = range(3)
"""What a walk finds where an activation function that isn't seen lies between, and where it can't tell what feeds it; then the
first number of a layer or site."""
_MOST_WAYS = 64


class Path:
    """What a run's passes showed; its layers and sites are the stops on it."""

    def __init__(self) -> None:
        self.connections = 0
        """How often it was learned that a site feeds another."""
        self._stops: list[Any] = [None] * FIRST
        self._layers = 0
        """The numbers of the layers, as bits."""
        self._before: dict[int, Span] = {}
        """By number, for each stop that was in a pass: those whose output reached it through no other, used before it."""
        self._around: dict[int, Span] = {}
        """The same for those used after it, which reached a later use of it."""
        self._shown: set[int] = set()
        """Those of them that some graph showed."""
        self._used_before: dict[int, Span] = {}
        """Of those that none did, and of their neighbours: what was used just before."""
        self.known = 0
        """How often something was added to these."""
        self._ways: set[tuple[int, ...]] = {()}
        """Orders in which passes used stops, so many at most."""
        self._ranked: tuple[int, int] = (0, 0)
        self._ranks: list[int] = []
        self._segments: tuple[object, dict[Site, Site]] = (None, {})

    @property
    def size(self) -> int:
        """A number above those of all layers and sites so far."""
        return len(self._stops)

    def add_layer(self, layer: Layer) -> int:
        """Add a layer, at its first use, and return its number."""
        self._layers |= 1 << len(self._stops)
        self._stops.append(layer)
        return len(self._stops) - 1

    def add_site(self, site: Site) -> int:
        """Add a site, at its first call, and return its number."""
        self._stops.append(site)
        return len(self._stops) - 1

    # -- the order

    def is_new(self, used: Iterable[int]) -> bool:
        """Whether no pass before used these stops in this order; a net that always takes another way isn't followed for ever."""
        way = tuple(used)
        if way in self._ways:
            return False
        if len(self._ways) < _MOST_WAYS:
            self._ways.add(way)
            return True
        return not self._before.keys() >= set(way)

    def take(self, used: Mapping[int, bool], before: Mapping[int, Span], around: Mapping[int, Span]) -> None:
        """Take in what the graph of a pass showed.

        Args:
            used: The numbers of the stops in it, in the order of their first use, each with whether the graph shows it.
            before: For each that the graph shows, those that lead to it through no other, used before it.
            around: The same, used after it.
        """
        for number, shown in used.items():
            self._add(self._before, number, before.get(number, EMPTY))
            if number in around:
                self._add(self._around, number, around[number])
            if shown:
                self._shown.add(number)

    def take_use(self, used: Iterable[int]) -> None:
        """Take in the order in which a pass used stops, of which some aren't shown by its graph."""
        for earlier, later in pairwise(used):
            if not (earlier in self._shown and later in self._shown):
                self._add(self._used_before, later, single(earlier))

    def _add(self, known: dict[int, Span], number: int, more: Span) -> None:
        before = known.get(number)
        known[number] = more if before is None else union(before, more)
        self.known += known[number] != before

    @property
    def ranks(self) -> Sequence[int]:
        """By number, the place of each stop in the order of the path."""
        if self._ranked != (len(self._stops), self.known):
            self._ranked = (len(self._stops), self.known)
            self._ranks = [0] * len(self._stops)
            before, around, guessed = (
                [members(known.get(number, EMPTY)) for number in range(len(self._stops))]
                for known in (self._before, self._around, self._used_before)
            )
            shown = [[*ways, *more] for ways, more in zip(before, around, strict=True)]
            everything = [[*ways, *more] for ways, more in zip(shown, guessed, strict=True)]
            for rank, number in enumerate(path_order(everything, shown, before)):
                self._ranks[number] = rank
        return self._ranks

    def first_fed(self, sites: Iterable[Site]) -> dict[Layer, Site]:
        """Return for each layer the first of some sites, in their order, that it feeds through no other site."""
        found: dict[Layer, Site] = {}
        left = self._layers
        for site in sites:
            waiting = [site.number]
            while waiting:
                for number in members(among(self._before.get(waiting.pop(), EMPTY), left)):
                    left &= ~(1 << number)
                    found[self._stops[number]] = site
                    waiting.append(number)
        return found

    def led_to_layers(self) -> Collection[int]:
        """Return the numbers of all that leads to a layer, past whatever lies between."""
        waiting = members((0, self._layers))
        found: set[int] = set()
        for number in waiting:
            for known in (self._before, self._around):
                for earlier in members(known.get(number, EMPTY)):
                    if earlier not in found:
                        found.add(earlier)
                        waiting.append(earlier)
        return found

    # -- which sites feed which

    def sites(self, numbers: Span) -> list[Site]:
        """Return the sites of a set of numbers."""
        return [self._stops[number] for number in members(numbers)]

    def led_to_unseen(self, site: Site) -> list[Site]:
        """Return the sites that feed one past activation functions that aren't seen."""
        found: dict[Site, None] = {}
        left = self._layers
        waiting = [site.number]
        while waiting:
            before = self._before.get(waiting.pop(), EMPTY)
            layers = members(among(before, left))
            waiting += layers
            for number in layers:
                left &= ~(1 << number)
            found.update(dict.fromkeys(self.sites(among(before, ~self._layers))))
        known = self.sites(site.feeding)
        return [each for each in found if each not in known]

    def feed(self, site: Site, feeding: Span) -> bool:
        """Take in which sites feed one through no other site; return whether that is news."""
        known = union(site.feeding, among(feeding, -1 << FIRST))
        site.past_unseen = site.past_unseen or bool(among(feeding, 1 << LOST)[1])
        if known == site.feeding:
            return False
        site.feeding = known
        self.connections += 1
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
                if start is not None and not among(feeds[site], 1 << UNSEEN)[1]
            }
            self._segments = key, found
        return self._segments[1]
