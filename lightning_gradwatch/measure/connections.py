"""Which activation sites feed which, read off the autograd graph at the end of each forward pass.

The whole graph of the pass is walked once, from the loss, at every measured step: a comparison with the step before could
not tell every change of a dynamic net, and the walk costs a hundredth of making the graph. It is only looked at: no node is
kept afterwards, none is changed.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch.autograd.function import BackwardCFunction

from lightning_gradwatch.measure.graph import Walk, is_kernel
from lightning_gradwatch.measure.tags import tensors_in
from lightning_gradwatch.segments import bits, segment_starts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.autograd.graph import Node

    from lightning_gradwatch.measure.signal import Origin
    from lightning_gradwatch.measure.sites import Site

_Leaf: type = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]  # noqa: SLF001 - it has no public name
_UNSEEN = 1
"""In a set of sites: an activation function that isn't measured lies between. The sites are the bits from the next on."""
_FUNCTION = re.compile(
    "^(Celu|Elu|Erf|Gelu|Glu|Hardshrink|Hardsigmoid|Hardswish|Hardtanh|LeakyRelu|LogSigmoid|LogSoftmax|Mish|PreluKernel"
    "|Relu|RreluWithNoise|Sigmoid|Silu|Softmax|Softplus|Softshrink|Tanh|Threshold|CompiledFunction)Backward[0-9]*$"
    "|Rnn|Lstm|Gru|ScaledDotProduct"
)
"""Names of the nodes that are an activation function's, or hold some."""


class _Call(NamedTuple):
    site: Site
    bit: int
    argument: Node | None
    """The node that made z; None for a leaf."""
    whole: bool
    """Whether this is the call of a hand-written function, not of a step inside it."""


class Connections:
    """What the graphs of one step's passes show."""

    def __init__(self, *, off: bool = False) -> None:
        self._off = off
        self._calls: dict[Node, _Call] = {}
        self._blind = False
        """Whether a call of this pass has no node of its own, so that the graph leads past it."""
        self._places: dict[Site, int] = {}
        self._feeds: list[int] = []
        self._entries = 0
        self._exits = 0
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
        place = self._places.setdefault(site, len(self._places))
        self._calls[node] = _Call(site, 2 << place, origin.node, whole)

    def forget(self, node: Node | None) -> None:
        """Forget a call by its node: another one is its end."""
        if node is not None:
            self._calls.pop(node, None)

    def end_pass(self, loss: Any = None) -> None:
        """Read the graph of a pass, from the loss that is about to be propagated back; None: nothing will be."""
        calls, self._calls = self._calls, {}
        blind, self._blind = self._blind, False
        if not calls:
            return
        own = {
            node: call
            for node, call in calls.items()
            if not call.site.part and (call.whole or call.site.composite is None)
        }
        walk = _Walk(own, blind=blind)
        for tensor in tensors_in((loss,)):
            if tensor.grad_fn is not None:
                self._exits |= walk.reached_from(tensor.grad_fn)
        self._feeds += [0] * (len(self._places) - len(self._feeds))
        # What this loss doesn't reach another one may, unseen.
        beyond = [(node, call) for node, call in own.items() if node not in walk.feeding]
        for node, call in beyond:
            walk.reached_from(node)
            self._exits |= call.bit
        self._exits |= walk.exits
        if not walk.whole:
            self.lost = True
            return
        for node, call in own.items():
            feeding = walk.feeding[node]
            self._feeds[self._places[call.site]] |= feeding
            if feeding <= _UNSEEN:
                self._entries |= call.bit

    def segments(self) -> dict[Site, Site]:
        """Return for each site the one where the segment of its weight gain starts, and tell the sites who feeds them."""
        if self.lost:
            return {}
        sites = list(self._places)
        for site, feeding in zip(sites, self._feeds, strict=True):
            site.predecessors.update(sites[place] for place in bits(feeding >> 1))
        starts = segment_starts(tuple(feeding >> 1 for feeding in self._feeds), self._entries >> 1, self._exits >> 1)
        return {
            site: sites[start]
            for site, start, feeding in zip(sites, starts, self._feeds, strict=True)
            if start is not None and not feeding & _UNSEEN
        }


class _Walk:
    """One pass through the graph of one forward pass, each node once."""

    def __init__(self, calls: dict[Node, _Call], *, blind: bool) -> None:
        self.feeding: dict[Node, int] = {}
        """For the node of each call that was reached: the sites that feed it."""
        self.exits = 0
        """Sites whose output goes where the graph leads past a call."""
        self._calls = calls
        self._blind = blind
        self._walk = Walk()
        self._seen: dict[Node, int] = {}
        """By node: the sites that whoever takes its output gets it from."""

    @property
    def whole(self) -> bool:
        """Whether the graph was small enough to be seen to its end."""
        return self._walk.whole

    def reached_from(self, root: Node) -> int:
        """Return the sites that lead to a node through no other site (itself, where it is a site's)."""
        return self._walk.gather(root, self._seen, following=self._before, leaf=_Leaf, finish=self._after)

    def _before(self, node: Node) -> Sequence[tuple[Node | None, int]]:
        call = self._calls.get(node)
        return node.next_functions if call is None else ((call.argument, 0),)

    def _after(self, node: Any, found: int) -> int:
        """Return the sites that reach a node, as whoever takes its output should see them."""
        call = self._calls.get(node)
        if call is not None:
            self.feeding[node] = found
            return call.bit
        if self._blind and (isinstance(node, BackwardCFunction) or type(node).__name__ == "CopySlices"):
            self.exits |= found
            return _UNSEEN
        return found | _UNSEEN if _hides_a_function(cast("Any", type(node))) else found


@lru_cache(maxsize=1024)
def _hides_a_function(kind: Any) -> bool:
    """Whether nodes of a type are, or may hold, an activation function; asked of each node of a walk."""
    return _FUNCTION.search(kind.__name__) is not None or is_kernel(kind)
