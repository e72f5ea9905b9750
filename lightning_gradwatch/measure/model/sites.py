"""Activation sites: which call belongs to which site, what a site is called, and which role it plays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.measure.model.autograd_graph import Walk, edges
from lightning_gradwatch.measure.model.names import SiteNames
from lightning_gradwatch.measure.model.path import Path, Site
from lightning_gradwatch.record.activations import look_up
from lightning_gradwatch.record.step import Role, SiteInfo
from lightning_gradwatch.record.stored_function import StoredFunction

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch.autograd.graph import Node

    from lightning_gradwatch.measure.model.call_site import CallSite
    from lightning_gradwatch.measure.model.path import Layer


class Sites:
    """All sites of a model, in the order of the data's path through it; a site once named keeps its name."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or Path()
        self._by_call: dict[tuple[Any, ...], Site] = {}
        self._names = SiteNames()
        self.ordered: list[Site] = []
        """Those with a name and a role."""
        self.places: dict[str, int] = {}
        """By name, how many sites were named before each; those of a checkpoint too."""
        self._fresh: dict[Site, None] = {}
        self.corrections = 0
        """How often a site turned out to be otherwise than its first pass showed: its role, or its size."""

    def infos(self) -> tuple[SiteInfo, ...]:
        """Describe the sites, column by column."""
        column = {site: place for place, site in enumerate(self.ordered)}
        return tuple(
            SiteInfo(
                name=site.name,
                function=site.composite or site.function,
                role=site.role or "hidden",
                units=site.units,
                predecessors=self._names_of(self._path.sites(site.feeding), column),
                past_unseen=self._names_of(self._path.led_to_unseen(site), column) if site.past_unseen else (),
                place=site.place if site.place != column[site] else None,
                own_function=StoredFunction.of(site.composite or site.function),
            )
            for site in self.ordered
        )

    def _names_of(self, sites: Iterable[Site], column: Mapping[Site, int]) -> tuple[str, ...]:
        return tuple(site.name for site in sorted(sites, key=column.__getitem__))

    def arrange(self) -> bool:
        """Put the sites in the order of the path; return whether that has changed.

        What a layer follows that was first used later is no output.
        """
        ranks = self._path.ranks
        ordered = sorted(self.ordered, key=lambda site: ranks[site.number])
        same = ordered == self.ordered
        self.ordered = ordered
        followed = self._path.led_to_layers() if any(site.role == "output" for site in ordered) else ()
        for site in ordered:
            if site.role == "output" and site.number in followed:
                self.correct(site, "hidden")
        return not same

    @property
    def unsettled(self) -> bool:
        """Whether some site still has no role, so that the pass must keep track of what consumes it."""
        return bool(self._fresh)

    def find(
        self, location: CallSite, function: str, layer: Layer | None, units: int, *, before: Layer | None = None
    ) -> Site:
        """Return the site of a call, a new one at its first call; `before` is the layer that was used last.

        The layer that produced the argument tells the turns of a loop over layers apart (a net written as ``for layer in
        layers: x = relu(layer(x))`` has a site a layer), while an unrolled loop, which reuses its layers, stays one site.
        """
        key = (location.module, location.place, location.inner, function, layer.name if layer else None)
        site = self._by_call.get(key)
        if site is None:
            source = layer or before
            site = self._by_call[key] = Site(
                location=location,
                function=function,
                units=units,
                layer=layer.name if layer else "",
                features=source.features if source else 0,
            )
            site.number = self._path.add_site(site)
            self._fresh[site] = None
        elif units not in (0, site.units) and not (site.varies or site.in_pieces):
            site.resize(units)
            self.corrections += 1
        return site

    def take_apart(self, site: Site) -> None:
        """Count no units of a site whose calls in a pass have other units each time."""
        site.in_pieces, site.units = True, 0
        self.corrections += 1

    def correct(self, site: Site, role: Role) -> None:
        """Give a site the role that a later pass showed."""
        if site.role != role:
            site.role = role
            self.corrections += 1

    def drop(self, site: Site) -> None:
        """Leave a site out that turned out to be a step inside a hand-written function."""
        if site in self._fresh:
            del self._fresh[site]
            site.part = True

    def settle(self, roles: Roles) -> list[Site]:
        """Give each new site its role and its name, at the end of the first forward pass that called it.

        Returns:
            Those that turned out to be none.
        """
        fresh = list(self._fresh)
        self._fresh.clear()
        for site in fresh:
            site.role = roles.of(site)
        none = [site for site in fresh if site.supposed and site.role == "output"]
        for site in none:
            site.part = True
        fresh = [site for site in fresh if not site.part]
        self._names.give(fresh)
        for site in fresh:
            site.place = self.places.setdefault(site.name, len(self.places))
        self.ordered += fresh
        return none


@dataclass(eq=False)
class Awaited:
    """A function by hand that is none of those known, and shows by what takes its output whether it is the net's."""

    function: str
    reason: str
    place: CallSite


class Roles:
    """What the forward pass showed of the consumers of each new site's output."""

    def __init__(self) -> None:
        self._gates: set[Site] = set()
        self._nodes: dict[Node, Site | Awaited] = {}
        self._consumers: list[Node] = []
        self._unseen: list[Site | Awaited] = []
        """Sites whose output has no node (recomputed by a reentrant checkpoint), in the order of their calls."""
        self._followed: set[Site | Awaited] = set()
        self._hidden: set[Site | Awaited] | None = None

    def called(self, site: Site | Awaited, node: Node | None) -> None:
        """Note the node of a site's output."""
        if node is None:
            self._unseen.append(site)
        else:
            self._nodes[node] = site

    def gates(self, site: Site) -> None:
        """Note that a site's output multiplies another tensor."""
        self._gates.add(site)

    def parameterised(self, node: Node | None) -> None:
        """Note the node of an operation that takes a parameter."""
        if node is not None:
            self._consumers.append(node)
        self._followed.update(self._unseen)
        self._unseen.clear()

    def of(self, site: Site | Awaited) -> Role:
        """Return the role of a site, once the forward pass is complete."""
        if site in self._gates or look_up(site.function).gating == "itself":
            return "gate"
        if self._hidden is None:
            self._hidden = self._find_hidden()
        return "hidden" if site in self._hidden or site in self._followed else "output"

    def _find_hidden(self) -> set[Site | Awaited]:
        """Return the sites from whose output gradient-carrying values flow into an operation that takes a parameter."""
        walk = Walk()
        before = (earlier for node in self._consumers for earlier, _ in edges(node) if earlier is not None)
        found = {self._nodes[node] for node in walk.each(before, edges) if node in self._nodes}
        return found if walk.whole else set(self._nodes.values())
