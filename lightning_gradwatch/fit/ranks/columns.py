"""The columns that all ranks agree on: what each of them describes, made one description.

Ranks may see different sites and use layers in another order (a branch by `if`), so a record of all ranks has the columns
of each, in an order that is as far as possible that of each. Every rank builds the table from the same messages in the same
order, so that it's the same on all of them.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.measure.coverage import NOT_CALLED, VARIES
from lightning_gradwatch.measure.model.names import FreeNames
from lightning_gradwatch.measure.trace.uncovered import NOT_PASSED
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.segments import path_order
from lightning_gradwatch.record.step import LayerInfo, NotCovered, SiteInfo, Wiring

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lightning_gradwatch.measure.faults import Part

_ROLES = ("gate", "hidden", "output")
"""The first of these that some rank saw a site play is its role: a branch not taken hides a consumer."""


@dataclass(frozen=True)
class Description:
    """What one rank says of itself."""

    replica: int
    """Which part of the data it sees; ranks of one part share the work on it (tensor parallel)."""
    info: RunInfo
    """The layers and sites as this rank orders and names them."""
    keys: tuple[str, ...] = ()
    """For each of those sites, where it is in the program; the same on all ranks."""
    features: tuple[int, ...] = ()
    """For each site, how many output features the layer before it has, over all ranks; 0 where that isn't known."""
    faults: Mapping[Part, str] = field(default_factory=dict)
    """What the rank switched off after internal errors since its last description, and why."""

    def to_bytes(self) -> bytes:
        """Return what is sent; `from_bytes` reads it."""
        return json.dumps(
            {
                "replica": self.replica,
                "info": self.info.to_dict(),
                "keys": self.keys,
                "features": self.features,
                "faults": dict(self.faults),
            }
        ).encode()

    @classmethod
    def from_bytes(cls, message: bytes) -> Description:
        """Build from what `to_bytes` gave."""
        data: dict[str, Any] = json.loads(message)
        return cls(
            replica=data["replica"],
            info=RunInfo.from_dict(data["info"]),
            keys=tuple(data["keys"]),
            features=tuple(data["features"]),
            faults=data["faults"],
        )


class Table:
    """The columns of all ranks, which only grow.

    Args:
        ranks: How many there are.
        replicas: Into how many parts the data is split.
    """

    def __init__(self, ranks: int, replicas: int) -> None:
        self.shards = ranks // replicas
        """How many ranks share the work on one part of the data."""
        self.replicas = replicas
        self.latest: list[Description | None] = [None] * ranks
        self.info = RunInfo()
        """The description of the run as all ranks have it."""
        self.split: list[bool] = []
        """For each site whether the ranks of one part of the data have different units of it."""
        self.of_some: list[int] = []
        """Columns of layers that only some of the ranks hold, so that nobody knows how many numbers make one."""
        self.off: dict[Part, str] = {}
        """What some rank has switched off, and so all have, and why."""
        self._notes: dict[NotCovered, None] = {}
        self._layers: dict[str, int] = {}
        """The column of each layer by name, and of each site by its key; in the order in which they were told."""
        self._sites: dict[str, int] = {}
        self._names: dict[str, str] = {}
        """What each site is called, by its key."""
        self._free = FreeNames()
        self._layer_places: dict[str, int] = {}
        """By which number the curves of each layer go, and of each site by its key: as the first rank had it that told."""
        self._site_places: dict[str, int] = {}

    def update(self, described: Sequence[Description | None]) -> None:
        """Take in what ranks say anew, in the order of the ranks; None for those that have nothing to say."""
        self.latest = [new or old for new, old in zip(described, self.latest, strict=True)]
        for rank, new in enumerate(described):
            for part, why in () if new is None else new.faults.items():
                self.off.setdefault(part, f"on rank {rank}: {why}")
        for each in self._known():
            for layer, place in zip(each.info.layers, each.info.layer_places, strict=True):
                self._layers.setdefault(layer.name, len(self._layers))
                self._layer_places.setdefault(layer.name, place)
            for site, key, place in zip(each.info.sites, each.keys, each.info.site_places, strict=True):
                if key not in self._sites:
                    self._sites[key] = len(self._sites)
                    self._names[key] = self._free.take(site.name.partition("#")[0])
                    self._site_places[key] = place
        used = [[layer.name for layer in each.info.layers if layer.used is not False] for each in self._known()]
        self._layers = _in_one_order(self._layers, used)
        self._sites = _in_one_order(self._sites, [each.keys for each in self._known()])
        self._describe()

    def note(self, name: str, reason: str) -> None:
        """Add to what isn't measured."""
        entry = NotCovered(name, reason)
        if entry not in self._notes:
            self._notes[entry] = None
            self._describe()

    def shard(self, rank: int) -> int:
        """Return the place of a rank among those that share the work on one part of the data."""
        mine = self.latest[rank]
        return sum(
            each is not None and mine is not None and each.replica == mine.replica for each in self.latest[:rank]
        )

    def places_of_layers(self, rank: int) -> list[int]:
        """Return the column of each layer that a rank has described."""
        mine = self.latest[rank]
        return [] if mine is None else [self._layers[layer.name] for layer in mine.info.layers]

    def places_of_sites(self, rank: int) -> list[int]:
        """Return the column of each site that a rank has described."""
        mine = self.latest[rank]
        return [] if mine is None else [self._sites[key] for key in mine.keys]

    def _known(self) -> list[Description]:
        return [each for each in self.latest if each is not None]

    def _describe(self) -> None:
        known = self._known()
        layers: dict[int, LayerInfo] = {}
        sites: dict[int, SiteInfo] = {}
        features: dict[int, int] = {}
        for each in known:
            named = {site.name: self._names[key] for site, key in zip(each.info.sites, each.keys, strict=True)}
            for layer in each.info.layers:
                place = self._layers[layer.name]
                layer = replace(  # noqa: PLW2901 - the same, by the names and numbers that all ranks use
                    layer,
                    feeds=named.get(layer.feeds, ""),
                    place=_place(self._layer_places[layer.name], place),
                )
                layers[place] = _merge_layers(layers.get(place, layer), layer)
            for site, key, before in zip(each.info.sites, each.keys, each.features, strict=True):
                place = self._sites[key]
                site = replace(  # noqa: PLW2901 - as above
                    site,
                    name=named[site.name],
                    predecessors=tuple(named[name] for name in site.predecessors),
                    past_unseen=tuple(named[name] for name in site.past_unseen),
                    place=_place(self._site_places[key], place),
                )
                sites[place] = _merge_sites(sites.get(place, site), site)
                features[place] = features.get(place, 0) or before
        order = [sites[place] for place in range(len(sites))]
        self.split = [
            bool(site.units) and self.shards > 1 and features[place] == site.units * self.shards
            for place, site in enumerate(order)
        ]
        held = Counter(layer.name for each in known for layer in each.info.layers)
        self.of_some = [place for name, place in self._layers.items() if held[name] < len(known)]
        self.info = replace(
            known[0].info,
            layers=tuple(layers[place] for place in range(len(layers))),
            sites=tuple(
                replace(site, units=site.units * self.shards) if split else site
                for site, split in zip(order, self.split, strict=True)
            ),
            coverage=self._coverage(),
            wiring=tuple(dict.fromkeys(self._wiring())),
        )

    def _wiring(self) -> Iterator[Wiring]:
        """Yield what is wired wrongly on some rank, by the names that all ranks use."""
        for each in self._known():
            named = {site.name: self._names[key] for site, key in zip(each.info.sites, each.keys, strict=True)}
            for fact in each.info.wiring or ():
                yield replace(fact, names=tuple(named.get(name, name) for name in fact.names))

    def _coverage(self) -> tuple[NotCovered, ...]:
        """Return what isn't measured; what holds for some ranks only says so."""
        where: dict[NotCovered, list[int]] = {}
        for rank, each in enumerate(self.latest):
            for entry in () if each is None else each.info.coverage:
                where.setdefault(entry, []).append(rank)
        entries = []
        for entry, on in where.items():
            if len(on) == len(self._known()):
                entries.append(entry)
            elif entry.reason not in _OF_THE_PATH:
                entries.append(replace(entry, reason=f"{entry.reason} (on {_ranks(on)})"))
        sizes: dict[str, set[int]] = {}
        for each in self._known():
            for site, key in zip(each.info.sites, each.keys, strict=True):
                sizes.setdefault(key, set()).add(site.units)
        differ = (NotCovered(self._names[key], VARIES) for key, found in sizes.items() if len(found) > 1)
        apart = (NotCovered(name, _OF_SOME) for name, place in self._layers.items() if place in self.of_some)
        return (*dict.fromkeys((*entries, *differ, *apart)), *self._notes)


_OF_SOME = "only some of the ranks hold it, as in a pipeline: what each measures of it can't be put together"
_OF_THE_PATH = (NOT_CALLED, NOT_PASSED)
"""What some ranks didn't come by, others did."""


def _in_one_order(columns: Mapping[str, int], orders: Sequence[Sequence[str]]) -> dict[str, int]:
    """Return the columns in an order that keeps what each rank has one after the other; of what contradicts, the first told.

    Args:
        columns: By name, in the order in which they were told.
        orders: Those of each rank that have a place on its path; any others come last.
    """
    names = list(columns)
    number = {name: place for place, name in enumerate(names)}
    before: list[list[int]] = [[] for _ in names]
    for order in orders:
        for earlier, later in pairwise(order):
            before[number[later]].append(number[earlier])
    placed = {number[name] for order in orders for name in order}
    ordered = sorted(path_order(before), key=lambda each: each not in placed)
    found = {names[each]: column for column, each in enumerate(ordered)}
    return {name: found[name] for name in names}


def _place(place: int, column: int) -> int | None:
    return place if place != column else None


def _merge_layers(one: LayerInfo, other: LayerInfo) -> LayerInfo:
    chosen = other if (other.used and not one.used) or (other.feeds and not one.feeds) else one
    return replace(chosen, lost=one.lost or other.lost)


def _merge_sites(one: SiteInfo, other: SiteInfo) -> SiteInfo:
    return replace(
        one,
        role=min(one.role, other.role, key=_ROLES.index),
        units=one.units if one.units == other.units else 0,
        predecessors=tuple(dict.fromkeys((*one.predecessors, *other.predecessors))),
        past_unseen=tuple(dict.fromkeys((*one.past_unseen, *other.past_unseen))),
    )


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:8]))}{', …' if len(ranks) > 8 else ''}"
