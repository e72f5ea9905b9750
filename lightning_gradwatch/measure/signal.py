"""The signal δ = dL/dz of an activation call and the gradient dL/da that arrives at it, taken where autograd has them.

A hook on the node that the call made gets the gradients of that node's own inputs: δ through this activation only, even
where the tensor is also used elsewhere (a tensor hook would read the total) and even where the output is changed in
place afterwards (a module hook would fail). It gets the gradient of the node's output too, all of it. A hand-written
function makes several nodes; there dL/da arrives at the last of them, δ is the sum of what they pass on to z, and the
parts are held from the first to the last.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from lightning_gradwatch.measure.unobserved import dispatch_modes, unobserved
from lightning_gradwatch.record.activations import look_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.autograd.graph import Node
    from torch.utils.hooks import RemovableHandle

    from lightning_gradwatch.measure.faults import Faults
    from lightning_gradwatch.measure.units.site_stats import SiteStatistics

Grads: TypeAlias = "tuple[Tensor | None, ...]"

_LARGEST_COMPOSITE = 40
"""Nodes that a hand-written activation function has at most (the tanh form of GELU has ten)."""


class Origin:
    """Where gradients for a tensor go: to output `index` of a node, or into a leaf."""

    __slots__ = ("_index", "_leaf", "node")

    def __init__(self, tensor: Tensor) -> None:
        self.node = tensor.grad_fn
        self._index = tensor.output_nr
        # What is no leaf of the graph, as nothing of it is trained, isn't kept alive for the rest of the pass.
        self._leaf = weakref.ref(tensor) if tensor.grad_fn is None else None

    def takes(self, node: Node | None, index: int) -> bool:
        """Whether an edge of the graph leads to the tensor."""
        if node is None:
            return False
        if self._leaf is not None:
            return getattr(node, "variable", self) is self._leaf()
        return node is self.node and index == self._index


class SignalHooks:
    """The hooks of one step on nodes of the user's graph."""

    def __init__(self, faults: Faults, *, off: bool = False) -> None:
        self._faults = faults
        self._guard = faults.guard("signal")
        self._off = off
        self._handles: list[RemovableHandle] = []
        self.ignoring = False
        self.doubling = False
        """Whether the backward pass that is left out makes a graph, through which the step's own may come back."""

    @contextmanager
    def ignored(self, *, doubling: bool = False) -> Iterator[None]:
        """Leave out a backward pass that isn't the step's own, such as a gradient penalty's.

        Where it makes a graph, the step's own pass differentiates that too: what a derivative that depends on z gets of it
        goes to z past the activation's own node, so that its signal isn't all there.
        """
        before = self.ignoring, self.doubling
        self.ignoring, self.doubling = True, doubling
        try:
            yield
        finally:
            self.ignoring, self.doubling = before

    def watch(
        self, sums: SiteStatistics, output: Tensor, node: Node | None, origin: Origin, *, turn: int
    ) -> list[RemovableHandle]:
        """Add ‖δ‖ and ‖dL/da‖ of a call to `sums` when the backward pass gets there.

        Args:
            sums: The sums of the call's site.
            output: What the activation function returned.
            node: That the call made (see `node_of`).
            origin: Of its argument z, made before the call (an in-place function changes it).
            turn: The call's number (`SiteStatistics.turn`).

        Returns:
            The handles, for a call that turns out to be a step inside a larger function.
        """
        if self._off or not self._faults.on("signal"):
            return []
        if node is None:
            sums.signal_complete = sums.signal_complete and output.grad_fn is None
            return []
        edges = node.next_functions
        if node is not output.grad_fn or (len(edges) == 1 and origin.takes(*edges[0])):
            handle = node.register_hook(_Single(self, self._faults, sums, turn))
            self._handles.append(handle)
            return [handle]
        ends = _ends(node, origin)
        if not ends:
            sums.signal_complete = False
            return []
        seen = _Parts(sums, len(ends), turn)
        handles = [end.register_hook(self._hook(seen, places)) for end, places in ends]
        handles.append(node.register_hook(self._arriving_hook(sums)))
        self._handles += handles
        return handles

    def _arriving_hook(self, sums: SiteStatistics) -> Callable[[Grads, Grads], None]:
        """Return the hook of the last of several nodes; whether they fire twice is for the others to see."""

        def hook(grad_inputs: Grads, grad_outputs: Grads) -> None:
            del grad_inputs
            if self.ignoring or not self._faults.on("signal"):
                return
            with self._guard, unobserved():
                sums.add_arriving(grad_outputs[0])

        return hook

    def _hook(self, parts: _Parts, places: list[int]) -> Callable[[Grads, Grads], None]:
        def hook(grad_inputs: Grads, grad_outputs: Grads) -> None:
            del grad_outputs
            if self.ignoring or not self._faults.on("signal"):
                if self.doubling:
                    parts.spoil()
                return
            with self._guard, unobserved():
                parts.take([grad_inputs[place] for place in places])

        return hook

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def node_of(output: Tensor, *, in_place: bool) -> Node | None:
    """Return the node that an activation call made; None where there is none of its own.

    In place on a view it is the node of the view's base, which tells the call's part by itself only where the view is the
    whole of it, as what a linear layer makes of more than two dimensions is.
    """
    base = output._base if in_place else None  # noqa: SLF001 - of which it is a view; it has no public name
    if base is None:
        return output.grad_fn
    node = base.grad_fn
    whole = base.numel() == output.numel() and base.is_contiguous() and _is_dense(output)
    return node if whole and type(node).__name__ == "CopySlices" else None


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor's entries fill its memory, each its own place, in whatever order of axes."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


class _Single:
    """The hook of a node whose one input is z, as nearly all activation functions have it.

    No closure, whose cells would be four times as many objects for the garbage collector to walk.
    """

    __slots__ = ("_faults", "_fired", "_hooks", "_sums", "_turn")

    def __init__(self, hooks: SignalHooks, faults: Faults, sums: SiteStatistics, turn: int) -> None:
        self._hooks = hooks
        self._faults = faults
        self._sums = sums
        self._turn = turn
        self._fired = False

    def __call__(self, grad_inputs: Grads, grad_outputs: Grads) -> None:
        if self._hooks.ignoring or not self._faults.on("signal"):
            if self._hooks.doubling and not look_up(self._sums.site.function).by_output:
                self._sums.signal_complete = False
            return
        try:  # not a guard: a deep net has hundreds of these
            if self._fired:  # see `_Parts.take`
                self._sums.signal_complete = False
            elif type(grad_inputs[0]) is Tensor and not dispatch_modes():
                self._measure(grad_inputs, grad_outputs)
            else:
                with unobserved():
                    self._measure(grad_inputs, grad_outputs)
            self._fired = True
        except Exception as error:  # noqa: BLE001 - a fault of ours
            self._faults.report("signal", error)

    def _measure(self, grad_inputs: Grads, grad_outputs: Grads) -> None:
        self._sums.add_signal(grad_inputs[0], self._turn)
        self._sums.add_arriving(grad_outputs[0])


class _Parts:
    """The gradients that a call's nodes pass on to z, until all of them came."""

    def __init__(self, sums: SiteStatistics, nodes: int, turn: int) -> None:
        self._sums = sums
        self._turn = turn
        self._missing = nodes
        self._delta: Tensor | None = None

    def spoil(self) -> None:
        """Note that a part of the signal will go another way."""
        self._sums.signal_complete = False

    def take(self, gradients: list[Tensor | None]) -> None:
        self._missing -= 1
        if self._missing < 0:
            # A second backward pass through the same graph: the norm of the sum isn't the sum of the norms.
            self._sums.signal_complete = False
            return
        for gradient in gradients:
            if gradient is not None:
                self._delta = gradient.detach() if self._delta is None else self._delta + gradient.detach()
        if self._missing == 0 and self._delta is not None:
            self._sums.add_signal(self._delta, self._turn)
            self._delta = None


def _ends(node: Node, origin: Origin) -> list[tuple[Node, list[int]]]:
    """Return the nodes below `node` that pass a gradient to the origin, each with the places of those gradients."""
    direct = [place for place, edge in enumerate(node.next_functions) if origin.takes(*edge)]
    if direct and len(direct) == sum(following is not None for following, _ in node.next_functions):
        return [(node, direct)]
    ends: list[tuple[Node, list[int]]] = []
    seen = {node}
    waiting = [node]
    while waiting:
        current = waiting.pop()
        places = []
        for place, (following, index) in enumerate(current.next_functions):
            if origin.takes(following, index):
                places.append(place)
            elif following is not None and following not in seen:
                if len(seen) > _LARGEST_COMPOSITE:
                    return []
                seen.add(following)
                waiting.append(following)
        if places:
            ends.append((current, places))
    return ends
