"""Compares the autograd graph of a pass with the torch calls that were seen: what made a node without one was out of sight.

Autograd numbers its nodes as it makes them, so a node belongs to the call during which its number was given. An activation
function's node outside of any call comes from a scripted function, a C++ extension or another thread; inside of a call that is none,
torch hides it there. A net shows this in its first measured step, so that is when it is looked for.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import BackwardCFunction

from lightning_gradwatch.measure.model.autograd_graph import GENERATED, Walk, edges, foreign_name, is_foreign
from lightning_gradwatch.measure.trace.compiled import COMPILED
from lightning_gradwatch.measure.trace.identify import is_activation
from lightning_gradwatch.measure.trace.operands import tensors_in
from lightning_gradwatch.measure.trace.tensor_state import Op, classify
from lightning_gradwatch.measure.trace.tracer import Tracer
from lightning_gradwatch.measure.trace.uncovered import FUSED, OUTSIDE, Note, Uncovered
from lightning_gradwatch.measure.unobserved import unobserved
from lightning_gradwatch.record.activations import function_of_node

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from torch.autograd.graph import Node

    from lightning_gradwatch.measure.model.layers import Layers

_KERNEL = "a kernel that isn't torch's: what it does inside isn't followed"
_CUSTOM = "a custom autograd function: what it does inside isn't followed"
UNSEEN_USE = "used out of sight, as where another thread runs it: neither its place in the net nor an activation behind it is seen"
_TORCHS_OWN = "builtins"
"""The module of the nodes that torch makes in C++."""
_COMPILED_NODE = "CompiledFunctionBackward"
_SCRIPTED = "DifferentiableGraphBackward"
_NUMBER = re.compile(r"[0-9]+$")


class Audit:
    """The torch calls of one step that made nodes, until the graphs of its passes were compared with them."""

    def __init__(self, unseen: Uncovered, layers: Layers) -> None:
        self._unseen = unseen
        self._layers = layers
        self._ends: list[int] = []
        self._calls: list[tuple[int, Callable[..., Any] | None]] = []

    def called(self, start: int, func: Callable[..., Any] | None) -> None:
        """Note a call that has just ended; None for what we ourselves looked away from."""
        end = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]  # noqa: SLF001 - it has no public name
        if end > start:
            self._ends.append(end)
            self._calls.append((start, func))

    def check(self, loss: Any) -> None:
        """Look for nodes of activation functions that no call of one made."""
        outside = []
        walk = Walk()
        made: list[Any] = [tensor.grad_fn for tensor in tensors_in((loss,)) if tensor.grad_fn is not None]
        nodes = list(walk.each(made, edges))
        # Each thread numbers its nodes by itself: a number that two of them have tells nothing of who made them.
        numbers = Counter(node._sequence_nr() for node in nodes)  # noqa: SLF001 - it has no public name
        shared = {number for number, count in numbers.items() if count > 1}
        claimed: set[int] = set()
        for node in nodes:
            kind: Any = type(node)
            name = node.name()
            if kind.__name__ == _COMPILED_NODE:
                self._note_compiled(node)
            elif name.endswith(_SCRIPTED):
                outside.append("…")
            elif is_foreign(kind) and not self._is_inside_activation(node):
                foreign = foreign_name(node)
                own = isinstance(node, BackwardCFunction) and not kind.__name__.startswith(GENERATED)
                self._unseen.note((OUTSIDE, foreign), Note(foreign, _CUSTOM if own else _KERNEL, 0))
            elif (function := function_of_node(_NUMBER.sub("", name))) is not None:
                maker = self._maker(node, shared)
                if maker is None:
                    if not self._claims(node, claimed):
                        outside.append(function)
                else:
                    self._note_inside(maker, function)
            elif kind.__module__ == _TORCHS_OWN and self._maker(node, shared) is None:
                self._note_unseen_layers(node)
        if outside:
            what = ", ".join(dict.fromkeys(outside))
            reason = (
                f"made out of sight of torch's calls, by a scripted function, a C++ extension or another thread: {what}"
            )
            self._unseen.note(OUTSIDE, Note("", reason, len(outside)))

    def _is_inside_activation(self, node: Node) -> bool:
        """Whether a node was made in a call of an activation function, as of one of the user's own."""
        maker = self._maker(node)
        return maker is not None and maker[0] is not None and is_activation(maker[0])

    def _claims(self, node: Node, claimed: set[int]) -> bool:
        """Whether a call of an activation function was seen when a node's number was given, and no other node is taken for its."""
        maker, number = self._maker(node), node._sequence_nr()  # noqa: SLF001 - it has no public name
        if maker is None or maker[0] is None or not is_activation(maker[0]) or number in claimed:
            return False
        claimed.add(number)
        return True

    def _note_unseen_layers(self, node: Node) -> None:
        """Note the layers whose parameters a node takes that no call was seen to make."""
        for leaf, _ in edges(node):
            owner = self._layers.owner(getattr(leaf, "variable", None))
            if owner is not None and not self._layers.uses(owner):
                self._unseen.note((owner.name, UNSEEN_USE), Note(owner.name, UNSEEN_USE, 0))

    def _maker(self, node: Node, shared: Collection[int] = ()) -> tuple[Callable[..., Any] | None] | None:
        number = node._sequence_nr()  # noqa: SLF001 - it has no public name
        if number in shared:
            return None
        place = bisect_right(self._ends, number)
        if place == len(self._ends) or self._calls[place][0] > number:
            return None
        return (self._calls[place][1],)

    def _note_inside(self, maker: tuple[Callable[..., Any] | None], function: str) -> None:
        (func,) = maker
        if func is None or is_activation(func) or classify(func) in (Op.GRAD, Op.BACKWARD):
            return
        name = getattr(func, "__name__", "")
        if name in FUSED or "loss" in name or "cross_entropy" in name:
            return
        self._unseen.note(func, Note(f":{name}", f"{name} is one call: its {function} isn't seen", 1))

    def _note_compiled(self, node: Any) -> None:
        if self._maker(node) is None:  # a function: for a compiled module we looked away, and it is named by itself
            self._unseen.note(_COMPILED_NODE, Note("", f"a function that is {COMPILED}", 0))


class AuditedTracer(Tracer):
    """One that also tells an audit which call made which nodes, and of each call before it runs."""

    def __init__(self, *, audit: Audit, sees: Callable[..., None], **settings: Any) -> None:
        super().__init__(**settings)
        self._audit = audit
        self._sees = sees
        self._paused_at = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a torch call, as `Tracer` does."""
        if torch.compiler.is_compiling():
            return func(*args, **(kwargs or {}))
        if self.recording and self._faults.on("wiring"):
            with self._faults.guard("wiring"), unobserved():
                self._sees(func, args, kwargs or {})
        start = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]  # noqa: SLF001 - as above
        try:
            return super().__torch_function__(func, types, args, kwargs)
        finally:
            self._note(start, func)

    def pause(self) -> None:
        """Look away; what is made meanwhile isn't held against anyone."""
        super().pause()
        self._paused_at = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]  # noqa: SLF001 - as above

    def resume(self, by: Callable[..., Any] | None = None) -> None:
        """Look again; what is made meanwhile is that function's."""
        super().resume(by)
        self._note(self._paused_at, by)

    def _note(self, start: int, func: Callable[..., Any] | None) -> None:
        try:
            self._audit.called(start, func)
        except Exception as error:  # noqa: BLE001 - a fault of ours
            self._faults.report("activations", error)
