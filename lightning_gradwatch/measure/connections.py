"""Which activation sites feed which, read off the autograd graph at the end of each forward pass.

The whole graph of the pass is walked once, from the loss, at every measured step: a comparison with the step before could
not tell every change of a dynamic net, and the walk costs a hundredth of making the graph. It is only looked at: no node is
kept afterwards, none is changed.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd.function import BackwardCFunction

from lightning_gradwatch.measure.graph import Walk
from lightning_gradwatch.measure.spans import EMPTY, single, union
from lightning_gradwatch.measure.tags import tensors_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.autograd.graph import Node

    from lightning_gradwatch.measure.path import Path
    from lightning_gradwatch.measure.signal import Origin
    from lightning_gradwatch.measure.sites import Site
    from lightning_gradwatch.measure.spans import Span

_Leaf: type = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]  # noqa: SLF001 - it has no public name
_UNSEEN = single(0)
"""In a set of sites: an activation function that isn't measured lies between. The sites' own numbers are above."""
_FUNCTION = re.compile(
    "^(Celu|Elu|Erf|Gelu|Glu|Hardshrink|Hardsigmoid|Hardswish|Hardtanh|LeakyRelu|LogSigmoid|LogSoftmax|Mish|PreluKernel"
    "|Relu|RreluWithNoise|Sigmoid|Silu|Softmax|Softplus|Softshrink|Tanh|Threshold|CompiledFunction)Backward[0-9]*$"
    "|Rnn|Lstm|Gru|ScaledDotProduct"
)
"""Names of the nodes that are an activation function's, or hold some."""


class _Call(NamedTuple):
    site: Site
    span: Span
    """The site's number, as a set."""
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
        self._calls: dict[Node, _Call] = {}
        self._blind = False
        """Whether a call of this pass has no node of its own, so that the graph leads past it."""
        self._feeds: dict[Site, Span] = {}
        self._entries: set[Site] = set()
        self._exits: Span = EMPTY
        self.lost = False
        """Whether a graph was too large to be seen to its end, so that nothing is told of what feeds what."""

    def called(self, site: Site, origin: Origin, node: Node | None, *, whole: bool = False) -> None:
        """Note an activation call, at its end.

        Args:
            site: The call's site.
            origin: Of its argument, made before the call.
            node: That it made (see `signal.node_of`).
            whole: Whether it is the last step of a hand-written function.
        """
        if self._off:
            return
        if node is None:
            self._blind = True
            return
        self._feeds.setdefault(site, EMPTY)
        self._calls[node] = _Call(site, single(site.number), origin.node, whole)

    def end_pass(self, loss: Any = None) -> None:
        """Read the graph of a pass, from the loss that is about to be propagated back; None: nothing will be."""
        calls, self._calls = self._calls, {}
        blind, self._blind = self._blind, False
        if not calls:
            return
        own = {node: call for node, call in calls.items() if call.counts}
        walk = _Walk(own, blind=blind)
        exits = EMPTY
        for tensor in tensors_in((loss,)):
            if tensor.grad_fn is not None:
                exits = union(exits, walk.reached_from(tensor.grad_fn))
        # What this loss doesn't reach another one may, unseen.
        beyond = [(node, call) for node, call in own.items() if node not in walk.feeding]
        for node, call in beyond:
            walk.reached_from(node)
            exits = union(exits, call.span)
        self._exits = union(self._exits, union(exits, walk.exits))
        if not walk.whole:
            self.lost = True
            return
        for node, call in own.items():
            feeding = walk.feeding[node]
            self._feeds[call.site] = union(self._feeds[call.site], feeding)
            if feeding in (EMPTY, _UNSEEN):
                self._entries.add(call.site)

    def segments(self) -> dict[Site, Site]:
        """Return for each site the one where the segment of its weight gain starts, and tell the path who feeds them."""
        if self.lost:
            return {}
        for site, feeding in self._feeds.items():
            self._path.feed(site, feeding)
        return self._path.segments(self._feeds, frozenset(self._entries), self._exits)


class _Walk:
    """One pass through the graph of one forward pass, each node once."""

    def __init__(self, calls: dict[Node, _Call], *, blind: bool) -> None:
        self.feeding: dict[Node, Span] = {}
        """For the node of each call that was reached: the sites that feed it."""
        self.exits: Span = EMPTY
        """Sites whose output goes where the graph leads past a call."""
        self._calls = calls
        self._blind = blind
        self._walk = Walk()
        self._seen: dict[Node, Span] = {}
        """By node: the sites that whoever takes its output gets it from."""

    @property
    def whole(self) -> bool:
        """Whether the graph was small enough to be seen to its end."""
        return self._walk.whole

    def reached_from(self, root: Node) -> Span:
        """Return the sites that lead to a node through no other site (itself, where it is a site's)."""
        return self._walk.gather(
            root, self._seen, following=self._before, leaf=_Leaf, nothing=EMPTY, union=union, finish=self._after
        )

    def _before(self, node: Node) -> Sequence[tuple[Node | None, int]]:
        call = self._calls.get(node)
        return node.next_functions if call is None else ((call.argument, 0),)

    def _after(self, node: Any, found: Span) -> Span:
        """Return the sites that reach a node, as whoever takes its output should see them."""
        call = self._calls.get(node)
        if call is not None:
            self.feeding[node] = found
            return call.span
        if self._blind and (isinstance(node, BackwardCFunction) or type(node).__name__ == "CopySlices"):
            self.exits = union(self.exits, found)
            return _UNSEEN
        return union(found, _UNSEEN) if _is_function(type(node).__name__) else found


@lru_cache(maxsize=1024)
def _is_function(name: str) -> bool:
    return _FUNCTION.search(name) is not None
