"""The data's path through a model: which layers and sites feed which, as far as the passes so far showed.

All of them have a number, by first use. Sets of what feeds what grow from pass to pass, as a dynamic net shows another part
of itself in each. The order follows from the sets, so that a layer which is thawed, or no longer skipped, takes its place;
what they leave open is in the order of first use. A layer and a site are told here, as the path is made of both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn
from torch.nn.parameter import UninitializedParameter

from lightning_gradwatch.measure.model.call_site import spelled
from lightning_gradwatch.measure.model.number_sets import EMPTY, among, members, single, union
from lightning_gradwatch.record.segments import path_order, segment_starts
from lightning_gradwatch.record.step import TURNED_KIND, LayerInfo, usual_inputs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from lightning_gradwatch.measure.model.call_site import CallSite
    from lightning_gradwatch.measure.model.number_sets import Span
    from lightning_gradwatch.record.step import LostGradient, Role

_SEEKS = 16
"""Calls that take parameters of a layer, in which it is looked for how many inputs its matrices add up."""


@dataclass(eq=False)
class Layer:
    """A module that directly owns trainable parameters."""

    name: str
    kind: str
    normalizes: bool = False
    """Whether it is an embedding or a norm, whose matrices are no weight layer's."""
    parameters: list[nn.Parameter] = field(default_factory=list)
    """Those that were being trained at some time; none of a layer that has been frozen from the start."""
    outputs: int = 0
    """Rows of the first matrix of a layer that has been frozen from the start."""
    used: bool = False
    step: int = 0
    """The measured step (`Layers.step`) whose forward pass used it last."""
    number: int = 0
    """By which the `Path` knows it; 0 until a forward pass used it."""
    place: int = 0
    """How many layers were listed before it; its curves are numbered so, as its column may change."""
    feeds: Site | None = None
    """The first site on the path that it feeds through no other."""
    lacks: bool = False
    """Whether it had no gradient, or one of 0, in the last measured step that it was in."""
    partly: bool = False
    """Whether it had a gradient there, and one of its parameters had none but 0."""
    looked_at: bool = False
    """Whether a step was followed for that."""
    lost: LostGradient | None = None
    """Where its gradient is lost, if that was seen."""
    inputs: dict[int, int] = field(default_factory=dict)
    """How many inputs an output of each matrix adds up, as a product with data has shown; by the `id` of the parameter."""
    seeks: int = _SEEKS
    """In how many calls more it is looked for; 0 once all of it is known."""
    followed_from: int = 0
    """The first measured step in which what its output goes into was followed that can only turn out to be unknown; 0: none."""
    followed: int = 0
    """In how many steps that was looked for since it last had one."""

    def note(self, *, lacks: bool) -> None:
        """Note whether it has no gradient, or one of 0."""
        self.lacks = lacks
        if not lacks:
            self.lost, self.followed = None, 0

    def seek(self, *, again: bool) -> None:
        """Look for what isn't known of `inputs` in some calls, `again` from now on, or in one call less."""
        known = all(id(matrix) in self.inputs for matrix in self.matrices)
        self.seeks = 0 if known else _SEEKS if again else self.seeks - 1

    @property
    def frozen(self) -> bool:
        """Whether nothing of it is being trained."""
        return not any(parameter.requires_grad for parameter in self.parameters)

    @property
    def weight(self) -> bool:
        """Whether it is a weight layer."""
        return not self.normalizes and bool(self.matrices)

    @property
    def matrices(self) -> list[nn.Parameter]:
        """The parameters of two or more dimensions."""
        return [parameter for parameter in self.parameters if is_matrix(parameter)]

    @property
    def features(self) -> int:
        """How many output features it makes, as its first matrix has it; 0 without one."""
        first = next(iter(self.matrices), None)
        if first is None:
            return self.outputs
        shown = self.inputs.get(id(first), 0)
        return first.numel() // shown if shown > 0 else first.shape[-1 if self.kind == TURNED_KIND else 0]

    def info(self, column: int, *, seen: bool) -> LayerInfo:
        """Describe the layer, in a column; `seen` says whether the forward pass can be watched at all."""
        known = [parameter for parameter in self.parameters if not is_lazy(parameter)]
        return LayerInfo(
            name=self.name,
            kind=self.kind,
            shapes=tuple(tuple(parameter.shape) for parameter in known),
            parameters=sum(parameter.numel() for parameter in known),
            weight=self.weight,
            used=True if self.used else (False if seen else None),
            lost=self.lost,
            feeds=self.feeds.name if self.feeds is not None else "",
            place=self.place if self.place != column else None,
            inputs=self._shown_inputs(known),
        )

    def _shown_inputs(self, parameters: Sequence[nn.Parameter]) -> tuple[int, ...]:
        """Return `LayerInfo.inputs`."""
        shown = tuple(self.inputs.get(id(each), 0) for each in parameters)
        if self.kind.startswith("ConvTranspose"):
            return ()
        usual = (usual_inputs(self.kind, each.shape) if is_matrix(each) else 0 for each in parameters)
        return () if all(own in (0, by_kind) for own, by_kind in zip(shown, usual, strict=True)) else shown


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether a parameter has two or more dimensions."""
    return not is_lazy(parameter) and parameter.dim() > 1


def is_lazy(parameter: nn.Parameter) -> bool:
    """Whether a parameter gets its shape in the first forward pass; it stays the same object then."""
    # Asked of each parameter at each step; torch has this `isinstance` run in Python.
    return type(parameter) is not nn.Parameter and isinstance(parameter, UninitializedParameter)


_MOST_SIZES = 4
"""A net that is grown, or fine-tuned with another head, has few."""


@dataclass(eq=False)
class Site:
    """One place where an activation function is called."""

    location: CallSite
    function: str
    units: int
    """Size of the unit axis; 0 without unit fractions."""
    in_pieces: bool = False
    """Whether each of its calls in a pass takes other units of a layer, as one for each head does."""
    sizes: int = 1
    """How many times it had another size than before, and one."""
    layer: str = ""
    """Name of the layer that produced its argument, as far as the first call showed."""
    features: int = 0
    """How many output features the layer before it has; 0 where there is none."""
    role: Role | None = None
    """None until the first forward pass that called it has ended."""
    composite: str | None = None
    """The function that the place turned out to compute, such as ``silu`` for ``x * sigmoid(x)``."""
    part: bool = False
    """Whether it turned out to be a step inside a hand-written function, and so no site."""
    supposed: bool = False
    """Whether it is none unless a layer takes its output: such a function serves for much else, as in a loss."""
    name: str = ""
    place: int = 0
    """How many sites were named before it; its curves are numbered so, as its column may change."""
    number: int = 0
    """By which the `Path` knows it."""
    feeding: Span = EMPTY
    """Numbers of the sites whose outputs reached this one's argument through no other site, in any step so far."""
    past_unseen: bool = False
    """Whether something that isn't seen lay between, in any step so far."""

    @property
    def key(self) -> str:
        """Text that tells this place from any other, in each process that runs the program."""
        module, _, place, inner = self.location
        return "|".join((module, spelled(place), spelled(inner), self.function, self.layer))

    @property
    def varies(self) -> bool:
        """Whether its size depends on what the net is given, so that none of its units is the same one for long."""
        return self.sizes > _MOST_SIZES

    def resize(self, units: int) -> None:
        """Take another size; as the layers of attention over positions have it with each batch."""
        self.sizes += 1
        self.units = 0 if self.varies else units


Stop: TypeAlias = "Layer | Site"

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
