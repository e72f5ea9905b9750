"""Which activation sites and layers feed which, read off the autograd graph at the end of each forward pass.

The whole graph of the pass is walked once, from the loss, at every measured step: a comparison with the step before could
not tell every change of a dynamic net, and the walk costs a hundredth of making the graph. Where it shows something new, a
second walk finds the places of layers and sites on the data's path. It is only looked at: no node is kept afterwards, none is
changed.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch.autograd.function import BackwardCFunction

from lightning_gradwatch.measure.model.autograd_graph import Walk, is_kernel
from lightning_gradwatch.measure.model.number_sets import EMPTY, among, members, single, union
from lightning_gradwatch.measure.model.path import FIRST, LOST, UNSEEN
from lightning_gradwatch.measure.trace.operands import tensors_in
from lightning_gradwatch.record.activations import function_of_node

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.autograd.graph import Node

    from lightning_gradwatch.measure.model.number_sets import Span
    from lightning_gradwatch.measure.model.path import Layer, Path, Site
    from lightning_gradwatch.measure.signal import Origin

_Leaf: type = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]  # noqa: SLF001 - it has no public name
_NEAR = 8
"""Nodes between a layer and its activation function at most, as of a view, a constant and a bias."""
_UNSEEN = single(UNSEEN)
"""In a set of sites: an activation function that isn't measured lies between. The sites' own numbers are above."""
_LOST = union(_UNSEEN, single(LOST))
"""The same, and the graph leads past it, so that what feeds it isn't known."""
_SUMS = ("Sub", "Rsub", "Add")
_MOVES = ("View", "UnsafeView", "Permute", "Transpose", "Squeeze", "Unsqueeze", "Clone", "ToCopy", "Slice", "Select")
_REDUCES = re.compile("(Mean|Sum|Var|Std|LinalgVectorNorm|Norm|Amax|Amin|Max|Min|Logsumexp|Prod|Cumsum|Median)Backward")
_NUMBER = re.compile("[0-9]+$")
_OTHERS = frozenset(("ErfBackward", "CompiledFunctionBackward"))
"""Nodes that are an activation function's inner step, or may hold one."""
_FUSED = re.compile("Rnn|Lstm|Gru|ScaledDotProduct")
"""In the names of nodes that hold some."""


class _Call(NamedTuple):
    site: Site
    span: Span
    """The site's number, as a set; of a site that is called several times, a number of the call's own."""
    turn: int
    """The call's number among the site's (`SiteStatistics.turn`); 0 for one of a pass before, whose graph is still there."""
    argument: Node | None
    """The node that made z; None for a leaf."""
    whole: bool
    """Whether this is the call of a hand-written function, not of a step inside it."""

    @property
    def counts(self) -> bool:
        """Whether it turned out to be a site's call, not that of a step inside a hand-written function."""
        return not self.site.part and (self.whole or self.site.composite is None)


class Connections:
    """What the graphs of one step's passes show.

    Args:
        path: What those of all steps do.
        off: Look at none.
    """

    def __init__(self, path: Path, *, off: bool = False) -> None:
        self._path = path
        self._off = off
        self._pass = _Pass()
        self._feeds: dict[Site, Span] = {}
        self._entries: set[Site] = set()
        self._exits: Span = EMPTY
        self._chains: dict[Site, list[list[int]]] = {}
        self.lost = False
        """Whether a graph was too large to be seen to its end, so that nothing is told of what feeds what."""

    def called(self, site: Site, origin: Origin, node: Node | None, *, turn: int, whole: bool = False) -> None:
        """Note an activation call, at its end.

        Args:
            site: The call's site.
            origin: Of its argument, made before the call.
            node: That it made (see `signal.node_of`).
            turn: Its number among the site's.
            whole: Whether it is the last step of a hand-written function.
        """
        if self._off:
            return
        if node is None:
            self._pass.blind = True
            self._pass.used.setdefault(site.number, False)
            return
        self._feeds.setdefault(site, EMPTY)
        self._pass.calls[node] = _Call(site, single(site.number), turn, origin.node, whole)
        self._pass.used[site.number] = True

    def uses(self, layers: Sequence[Layer], node: Node | None) -> None:
        """Note an operation that takes parameters, at its end.

        Args:
            layers: Whose they are.
            node: That it made, whose output is the operation's.
        """
        if self._off:
            return
        for layer in layers:
            if layer.number and node is None:
                self._pass.used.setdefault(layer.number, False)
            elif layer.number:
                self._pass.used[layer.number] = True
        if node is not None:
            self._pass.uses[node] = layers

    def made_by_layer(self, node: Node | None) -> bool:
        """Whether a layer has made a tensor, given by its node, with nothing but constants, weights and moves of axes between."""
        return self._ends_near(node) == "layer"

    def made_by_two(self, node: Node | None) -> bool:
        """Whether a tensor is the sum or the difference of what two layers or activation functions have made, likewise."""
        for _ in range(_NEAR):
            if node is None or _REDUCES.match(type(node).__name__):
                return False
            both = [each for each, _ in node.next_functions if each is not None and not isinstance(each, _Leaf)]
            if len(both) != 1:
                summed = len(both) == 2 and type(node).__name__.startswith(_SUMS)
                return summed and all(self._ends_near(each) for each in both)
            (node,) = both
        return False

    def _ends_near(self, node: Node | None) -> Literal["", "layer", "call"]:
        """Say what has made a tensor, entry by entry; ``""`` for anything else than a layer or an activation function."""
        for _ in range(_NEAR):
            if node is None:
                return ""
            if node in self._pass.calls:
                return "call"
            if (layers := self._pass.uses.get(node)) is not None:
                return "" if any(layer.kind.startswith("Embedding") for layer in layers) else "layer"
            if _REDUCES.match(type(node).__name__):
                return ""
            before = [each for each, _ in node.next_functions if each is not None and not isinstance(each, _Leaf)]
            node = before[0] if len(before) == 1 else None
        return ""

    def of_weights(self, node: Node) -> None:
        """Note a node that makes weights of parameters: an activation function there is none that data goes through."""
        if hides_a_function(cast("Any", type(node))):
            self._pass.of_weights.add(node)

    def forget(self, node: Node | None) -> None:
        """Forget a call by its node: another one is its end."""
        if node is not None:
            self._pass.calls.pop(node, None)

    def end_pass(self, loss: Any = None, *, retained: bool = False) -> None:
        """Read the graph of a pass.

        Args:
            loss: What is about to be propagated back; None: nothing will be.
            retained: The user keeps the graph, so that the next pass may go on from it.
        """
        seen, self._pass = self._pass, _Pass()
        roots = [tensor.grad_fn for tensor in tensors_in((loss,)) if tensor.grad_fn is not None]
        own = {node: call for node, call in seen.calls.items() if call.counts}
        news = bool(own) and self._find_sites(own, roots, seen)
        if self._path.is_new(seen.used) or news:
            self._find_path(seen, roots)
        if not all(seen.used.values()):
            self._path.take_use(seen.used)
        if retained and roots:
            self._pass = seen
            seen.calls = {node: call._replace(turn=0) for node, call in own.items()}

    def _find_sites(self, own: dict[Node, _Call], roots: list[Node], seen: _Pass) -> bool:
        """Find which sites feed which in a pass; return whether that is news."""
        loops = _Loops(own, self._path.size)
        own = loops.calls
        walk = _SiteWalk(own, seen)
        exits = EMPTY
        for root in roots:
            exits = union(exits, walk.reached_from(root))
        # What this loss doesn't reach another one may, unseen.
        beyond = [(node, call) for node, call in own.items() if node not in walk.feeding]
        for node, call in beyond:
            walk.reached_from(node)
            exits = union(exits, call.span)
        self._exits = union(self._exits, loops.sites(union(exits, walk.exits)))
        if not walk.whole:
            self.lost = True
            return False
        news = False
        for node, call in own.items():
            feeding = loops.follow(call, walk.feeding[node])
            self._feeds[call.site] = union(self._feeds[call.site], feeding)
            if not among(feeding, -1 << FIRST)[1]:
                self._entries.add(call.site)
            news = self._path.feed(call.site, feeding) or news
        for site, chains in loops.chains.items():
            self._chains.setdefault(site, []).extend(chains.values())
        return news

    def _find_path(self, seen: _Pass, roots: list[Node]) -> None:
        """Find the places of a pass's layers and sites on the path."""
        if not self.lost:
            walk = _PathWalk(seen)
            for node in (*roots, *seen.uses, *seen.calls):
                walk.reached_from(node)
            if walk.whole:
                self._path.take(seen.used, walk.before, walk.around)
                return
        seen.used = dict.fromkeys(seen.used, False)
        self._path.take(seen.used, {}, {})

    def chains(self) -> Mapping[Site, Sequence[Sequence[int]]]:
        """Return for each site that a pass called several times the calls that follow each other, by their numbers."""
        return {} if self.lost else self._chains

    def segments(self) -> dict[Site, Site]:
        """Return for each site the one where the segment of its weight gain starts."""
        return {} if self.lost else self._path.segments(self._feeds, frozenset(self._entries), self._exits)


class _Pass:
    """What was noted in one forward pass."""

    def __init__(self) -> None:
        self.calls: dict[Node, _Call] = {}
        self.uses: dict[Node, Sequence[Layer]] = {}
        self.used: dict[int, bool] = {}
        """The numbers of its layers and sites, in the order of their first use, each with whether some node is theirs."""
        self.of_weights: set[Node] = set()
        """Nodes of activation functions of parameters."""
        self.blind = False
        """Whether a call has no node of its own, so that the graph leads past it."""


class _Loops:
    """The calls of a pass, of which those of sites that are called several times are told apart, by numbers of their own.

    Args:
        calls: All of them, in their order.
        size: A number above those of the sites.
    """

    def __init__(self, calls: dict[Node, _Call], size: int) -> None:
        self.calls = calls
        self.chains: dict[Site, dict[int, list[int]]] = {}
        """By site, of each sequence of calls that feed each other those that are the site's own."""
        self._size = size
        self._own: list[Site] = []
        self._all_of: dict[Site, int] = {}
        """By site its calls, as bits."""
        self._sequence: list[int] = []
        counts = Counter(call.site for call in calls.values())
        if len(counts) == len(calls):
            return
        self.calls = {}
        for node, call in calls.items():
            if counts[call.site] > 1:
                number = size + len(self._own)
                self._own.append(call.site)
                self._all_of[call.site] = self._all_of.get(call.site, 0) | 1 << number
                self.calls[node] = call._replace(span=single(number))
            else:
                self.calls[node] = call

    def sites(self, found: Span) -> Span:
        """Return the sites of a set of sites and calls."""
        calls = among(found, -1 << self._size)
        if not calls[1]:
            return found
        found = among(found, (1 << self._size) - 1)
        while calls[1]:
            site = self._own[calls[0] - self._size]
            found = union(found, single(site.number))
            calls = among(calls, ~self._all_of[site])
        return found

    def follow(self, call: _Call, feeding: Span) -> Span:
        """Put a call into the sequence of those that feed it, and return the sites that do; calls come in their order."""
        number = call.span[0] - self._size
        if number >= 0:
            low, mask = among(feeding, ((1 << number) - 1) << self._size)
            # What several sequences feed belongs to the latest: they are turned over one by one, or step by step.
            sequence = self._sequence[low + mask.bit_length() - 1 - self._size] if mask else number
            self._sequence.append(sequence)
            if call.turn:  # else of a pass before, in whose chains it is
                self.chains.setdefault(call.site, {}).setdefault(sequence, []).append(call.turn)
        return self.sites(feeding)


class _Finds:
    """One pass through the graph of one forward pass, each node once, for sets of numbers."""

    def __init__(self, calls: dict[Node, _Call]) -> None:
        self._calls = calls
        self._walk = Walk()
        self._seen: dict[Node, Span] = {}
        """By node: what whoever takes its output gets it from."""

    @property
    def whole(self) -> bool:
        """Whether the graph was small enough to be seen to its end."""
        return self._walk.whole

    def reached_from(self, root: Node) -> Span:
        """Return the numbers of what leads to a node through nothing else that has one (its own, where it has one)."""
        return self._walk.gather(
            root, self._seen, following=self._before, leaf=_Leaf, nothing=EMPTY, union=union, finish=self._after
        )

    def _before(self, node: Node) -> Sequence[tuple[Node | None, int]]:
        call = self._calls.get(node)
        return node.next_functions if call is None else ((call.argument, 0),)

    def _after(self, node: Any, found: Span) -> Span:
        """Return the numbers of what reaches a node, as whoever takes its output should see them."""
        raise NotImplementedError


class _SiteWalk(_Finds):
    """Finds which sites feed which."""

    def __init__(self, calls: dict[Node, _Call], seen: _Pass) -> None:
        super().__init__(calls)
        self.feeding: dict[Node, Span] = {}
        """For the node of each call that was reached: the sites that feed it."""
        self.exits: Span = EMPTY
        """Sites whose output goes where the graph leads past a call."""
        self._blind = seen.blind
        self._of_weights = seen.of_weights

    def _after(self, node: Any, found: Span) -> Span:
        call = self._calls.get(node)
        if call is not None:
            self.feeding[node] = found
            return call.span
        if self._blind and (isinstance(node, BackwardCFunction) or type(node).__name__ == "CopySlices"):
            self.exits = union(self.exits, found)
            return _LOST
        kind: Any = type(node)
        if hides_a_function(kind) and node not in self._of_weights:
            return union(found, _UNSEEN)
        return found


class _PathWalk(_Finds):
    """Finds what leads to each layer and site through no other; parameters themselves aren't data, and so lead nowhere."""

    def __init__(self, seen: _Pass) -> None:
        super().__init__({node: call for node, call in seen.calls.items() if call.counts})
        self.before: dict[int, Span] = {}
        """By number, of what leads to it that which was used before it."""
        self.around: dict[int, Span] = {}
        """The rest, which leads to a later use of the same."""
        self._uses = seen.uses
        self._turn = {number: turn for turn, number in enumerate(seen.used)}
        uses = Counter(call.site.number for call in self._calls.values())
        uses.update(layer.number for layers in seen.uses.values() for layer in layers)
        self._again = {number for number, count in uses.items() if count > 1}

    def _after(self, node: Any, found: Span) -> Span:
        layers, call = self._uses.get(node), self._calls.get(node)
        numbers = [layer.number for layer in layers if layer.number] if layers else ()
        if numbers:
            found = reduce(union, [self._pass(number, found) for number in numbers])
        return found if call is None else self._pass(call.site.number, found)

    def _pass(self, number: int, found: Span) -> Span:
        """Take in what leads to a use of a layer or site, and return what that passes on."""
        if number not in self._again:
            self.before[number] = found
            return single(number)
        turn = self._turn[number]
        earlier, later = EMPTY, EMPTY
        for each in members(found):
            if self._turn[each] < turn:
                earlier = union(earlier, single(each))
            elif each != number:
                later = union(later, single(each))
        self.before[number] = union(self.before.get(number, EMPTY), earlier)
        self.around[number] = union(self.around.get(number, EMPTY), later)
        # What is between two uses of it leads on through the second.
        return union(single(number), later)


@lru_cache(maxsize=1024)
def hides_a_function(kind: Any) -> bool:
    """Whether nodes of a type are, or may hold, an activation function; asked of each node of a walk."""
    name = _NUMBER.sub("", kind.__name__)
    return function_of_node(name) is not None or name in _OTHERS or _FUSED.search(name) is not None or is_kernel(kind)
