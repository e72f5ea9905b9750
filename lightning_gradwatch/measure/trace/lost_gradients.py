"""Follows layers that get no gradient, call by call, to the operation that keeps it from them.

In a step that is followed, each torch call whose value depends on such a layer is noted, and whether a gradient other than 0
arrives at what it made. So the operation shows behind which it does arrive and before which it doesn't: a softmax over one
entry, a factor of 0, ``detach``. What reaches the loss by its values and not in the autograd graph was cut off; what doesn't
reach it at all was left out. Only a step or two of a run are followed, and only where a gradient is missing: nothing here
costs a net whose layers all have one.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_gradwatch.measure.model.autograd_graph import Walk, edges
from lightning_gradwatch.measure.model.call_site import line_of_call, locate
from lightning_gradwatch.measure.model.layers import parameters_of
from lightning_gradwatch.measure.model.path import is_matrix
from lightning_gradwatch.measure.trace.followed_calls import (
    BY_SHAPE,
    ENTERS,
    FACTORS,
    LEAVES,
    LIKE_ANOTHER,
    NORMS,
    PRODUCTS,
    REACHED,
    SOFTMAX,
    Call,
    Operand,
    Trained,
    Value,
    both_zero,
    is_over_one,
    operands_of,
)
from lightning_gradwatch.measure.trace.lost_reading import Reading
from lightning_gradwatch.measure.trace.operands import tensors_in
from lightning_gradwatch.measure.trace.tracer import Tracer
from lightning_gradwatch.measure.unobserved import is_traced, unobserved

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from torch.autograd.graph import Node
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

    from lightning_gradwatch.measure.faults import Faults
    from lightning_gradwatch.measure.model.call_site import ModuleNames
    from lightning_gradwatch.measure.model.layers import Layers
    from lightning_gradwatch.measure.model.path import Layer
    from lightning_gradwatch.measure.signal import Grads, SignalHooks
    from lightning_gradwatch.measure.transfer.host import HostTransfer, Slot, Values
    from lightning_gradwatch.record.activations import Activation
    from lightning_gradwatch.record.step import LostGradient

MOST_STEPS = 16
"""Steps of a run that are followed at most."""
MOST_TRIES = 3
"""Steps in which a layer is followed at most, until it has had a gradient again."""


class Trail:
    """What became of the values of some layers, and of the gradients that belong to them, in one step.

    Args:
        suspects: The layers.
        layers: Owns all parameters.
        pack: Takes numbers to the host.
        names: Those of the model's modules.
        hooks: Know which backward passes aren't the step's own.
        faults: What is switched off.
        optimizers: Those of the run.
    """

    def __init__(
        self,
        suspects: Collection[Layer],
        *,
        layers: Layers,
        pack: HostTransfer,
        names: ModuleNames,
        hooks: SignalHooks,
        faults: Faults,
        optimizers: Sequence[Optimizer],
    ) -> None:
        self._suspects = frozenset(suspects)
        self._layers = layers
        self._pack = pack
        self._names = names
        self._hooks = hooks
        self._faults = faults
        self._guard = faults.guard("signal")
        self._handles: list[RemovableHandle] = []
        self._values: dict[int, Value] = {}
        self._seen: dict[int, weakref.ref[Tensor]] = {}
        """All tensors that a call was seen to make."""
        self._calls: list[Call] = []
        self._escapes: list[Call] = []
        self._numbers: dict[float, Call] = {}
        """Numbers that were taken out, by value."""
        self._memory: dict[int, Call] = {}
        """Arrays that were, by where they are."""
        self._reached: set[Node] = set()
        """Nodes in the graph of a loss."""
        self._incomplete = False
        """Whether something was made out of sight, so that a way to the loss may be too."""
        self._arrivals: dict[Layer, list[Slot]] = {}
        self._leaves = [self._watch(layer) for layer in self._suspects]
        held = {id(each) for optimizer in optimizers for each in parameters_of(optimizer)}
        self._trained = {
            id(each): Trained(name, is_matrix(each))
            for name, each in layers.named()
            if each.requires_grad and id(each) in held
        }

    def _watch(self, layer: Layer) -> list[Node]:
        """Note what arrives at a layer's parameters; the nodes are the graph's as long as someone holds them."""
        slots = self._arrivals[layer] = []
        nodes = []
        for parameter in layer.parameters:
            if parameter.requires_grad and parameter.is_leaf:
                node: Any = torch.autograd.graph.get_gradient_edge(parameter).node
                self._handles.append(node.register_prehook(_Arrival(self, [(0, slots)])))
                nodes.append(node)
        return nodes

    # -- during the step

    def called(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Note a torch call that has just ended."""
        name = _name_of(func)
        if name not in BY_SHAPE:
            self.ran(name, (*args, *kwargs.values()), result)

    def ran(self, name: str, arguments: Sequence[Any], result: Any) -> None:
        """Note a call, by the name of its function, that has just ended."""
        tensors = tensors_in(arguments)
        made = (
            [result] if isinstance(result, Tensor) else tensors_in(result) if isinstance(result, (list, tuple)) else []
        )
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            made = [*made, *self._changed(tensors)]
        self._see(tensors, made)
        if name in LIKE_ANOTHER:
            tensors = tensors[:1]
        call = self._noted(name, arguments, tensors)
        if call is None or not (made or name in LEAVES):
            for tensor in made:
                self._values.pop(id(tensor), None)
        elif name in LEAVES:
            self._leave(call, tensors[0], result)
        else:
            self._describe(call, tensors, arguments, made)
            self._take(call, made)

    def _see(self, tensors: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        for tensor in tensors:
            self._incomplete |= tensor.grad_fn is not None and not self._is_seen(tensor)
        for tensor in made:
            self._seen[id(tensor)] = weakref.ref(tensor)

    def _noted(self, name: str, arguments: Sequence[Any], tensors: Sequence[Tensor]) -> Call | None:
        """Return a call that takes what depends on a followed layer; None for any other."""
        owners = tuple(
            {owner for each in tensors if each.requires_grad and (owner := self._layers.owner(each)) in self._suspects}
        )
        given = [value for each in tensors if (value := self._value(each)) is not None]
        back = self._come_back(name, arguments, tensors)
        given += [value for escape in back for value in escape.given]
        if not given and not owners:
            return None
        module, line = locate(self._names, above=2).module, line_of_call(self._names, above=2)
        call = Call(name, module, line, given, owners)
        call.back = back
        for value in given:
            value.taken_by.append(call)
        return call

    def _leave(self, call: Call, tensor: Tensor, result: Any) -> None:
        """Note a call that hands values to the rest of Python."""
        self._escapes.append(call)
        if type(result) is float and result not in (0.0, 1.0):
            self._numbers[result] = call
        if call.name == "numpy":
            self._memory[tensor.untyped_storage().data_ptr()] = call

    def _changed(self, tensors: Sequence[Tensor]) -> Iterable[Tensor]:
        """Yield what an in-place call changes: its first argument, and what that is a view of."""
        for tensor in tensors[:1]:
            yield tensor
            base = tensor._base  # noqa: SLF001 - of which it is a view; it has no public name
            if base is not None:
                yield base

    def _come_back(self, name: str, arguments: Sequence[Any], tensors: Sequence[Tensor]) -> list[Call]:
        """Return the calls that had taken values out of torch's tensors which now are in one again."""
        if not self._escapes:
            return []
        back = [self._numbers[each] for each in arguments if type(each) is float and each in self._numbers]
        for tensor in tensors if self._memory else ():
            if not self._is_seen(tensor) and tensor.layout is torch.strided:  # made of an array that shares its memory
                found = self._memory.get(tensor.untyped_storage().data_ptr())
                back += [] if found is None else [found]
        return back + (self._escapes if name in ENTERS else [])

    def _describe(
        self, call: Call, tensors: Sequence[Tensor], arguments: Sequence[Any], made: Sequence[Tensor]
    ) -> None:
        """Note what decides whether a gradient gets through a call."""
        call.entries = max(map(Tensor.numel, made), default=0)
        if call.name in PRODUCTS:
            call.zero = call.name in FACTORS and any(type(each) in (int, float) and each == 0 for each in arguments)
            for tensor in operands_of(call.name, tensors):
                owner = self._layers.owner(tensor)
                name = "" if owner is None or not owner.parameters else owner.name
                anything = self._pack.add(_is_anything(tensor))
                call.operands.append(Operand(self._value(tensor), name, anything, self._trained.get(id(tensor))))
            return
        call.parameters = [
            (known, self._pack.add(_is_anything(tensor)))
            for tensor in tensors
            if (known := self._trained.get(id(tensor))) is not None
        ]
        if call.name == "embedding" and len(tensors) > 1:
            padding = next((each for each in arguments if type(each) is int), None)
            if padding is not None:
                padding %= tensors[1].shape[0]
                call.operands.append(Operand(None, "", self._pack.add((tensors[0] != padding).any()), None))
        elif call.name in SOFTMAX and made and made[0].dim():
            dim = next((each for each in arguments if type(each) is int), None)
            call.single = dim is not None and made[0].shape[dim] == 1
            call.surest = self._pack.add(((made[0] == 0) | (made[0] == 1)).all())
        elif call.name in NORMS and tensors:
            call.single = is_over_one(call.name, tensors[0], arguments, made)
        elif call.name == "scaled_dot_product_attention" and len(tensors) > 1:
            call.single = tensors[1].shape[-2] == 1

    def _take(self, call: Call, made: Sequence[Tensor]) -> None:
        self._calls.append(call)
        arriving: dict[Node, list[tuple[int, list[Slot]]]] = {}
        for tensor in made:
            value = self._values[id(tensor)] = Value(tensor, call)
            call.made.append(value)
            if value.node is not None:
                arriving.setdefault(value.node, []).append((tensor.output_nr, value.arrived))
        for node, slots in arriving.items():
            self._handles.append(node.register_prehook(_Arrival(self, slots)))

    def _value(self, tensor: Tensor) -> Value | None:
        value = self._values.get(id(tensor))
        return value if value is not None and value.ref() is tensor else None

    def _is_seen(self, tensor: Tensor) -> bool:
        seen = self._seen.get(id(tensor))
        return seen is not None and seen() is tensor

    def note_loss(self, loss: Any) -> None:
        """Note which nodes are in the graph of a loss that is about to be propagated back."""
        made = [tensor.grad_fn for tensor in tensors_in((loss,)) if tensor.grad_fn is not None]
        walk = Walk()
        self._reached.update(walk.each(made, edges))
        self._incomplete |= not walk.whole

    def arrives(self, gradient: Tensor, slots: list[Slot]) -> None:
        """Take a gradient that has arrived, unless another backward pass than the step's own made it."""
        if self._hooks.ignoring or not self._faults.on("signal"):
            return
        with self._guard, unobserved():
            slots.append(self._pack.add(_is_anything(gradient)))

    def close(self) -> None:
        """Take every hook away and let go of the graph; fine to call again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._leaves.clear()
        for call in self._calls:
            for value in call.made:
                # What is asked of it later is whether the loss's graph has it.
                value.differentiable = value.differentiable and value.node is not None
                value.node = REACHED if value.node in self._reached else None
        self._reached.clear()
        self._values.clear()
        self._seen.clear()

    # -- after the transfer

    def explain(self, layer: Layer, values: Values) -> LostGradient | None:
        """Say why a layer has no gradient, or one of 0; None where that didn't show."""
        return Reading(self._calls, self._escapes, values, incomplete=self._incomplete).explain(
            layer, self._arrivals.get(layer, [])
        )

    def zero_factors(self, values: Values) -> list[LostGradient]:
        """Return the products of trained parameters that are all 0, each with the operation at which that shows."""
        reading = Reading(self._calls, self._escapes, values, incomplete=self._incomplete)
        found: dict[frozenset[str], LostGradient] = {}
        for call in self._calls:
            if factors := reading.factors(call):
                place = both_zero(call, factors)
                found.setdefault(frozenset(place.factors), place)
        return [place for whole, place in found.items() if not any(whole < other for other in found)]


class _Arrival:
    """The hook of a node: what arrives there."""

    __slots__ = ("_slots", "_trail")

    def __init__(self, trail: Trail, slots: list[tuple[int, list[Slot]]]) -> None:
        self._trail = trail
        self._slots = slots

    def __call__(self, grad_outputs: Grads) -> None:
        for index, slots in self._slots:
            gradient = grad_outputs[index] if index < len(grad_outputs) else None
            if gradient is not None:
                self._trail.arrives(gradient, slots)


class TrailedTracer(Tracer):
    """A tracer that also tells a trail of each call."""

    def __init__(self, *, trail: Trail, **settings: Any) -> None:
        super().__init__(**settings)
        self._trail = trail

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a torch call, as `Tracer` does."""
        result = super().__torch_function__(func, types, args, kwargs)
        if torch.compiler.is_compiling() or not self.recording or not self._faults.on("signal") or is_traced():
            return result
        with self._faults.guard("signal"), unobserved():
            self._trail.called(func, args, kwargs or {}, result)
        return result

    def run_own(
        self, row: Activation, function: Callable[..., Any], run: Callable[[], Any], arguments: Sequence[Any]
    ) -> Any:
        """Run an activation function of the user's own, as `Tracer` does."""
        result = super().run_own(row, function, run, arguments)
        if torch.compiler.is_compiling() or not self.recording or not self._faults.on("signal") or is_traced():
            return result
        with self._faults.guard("signal"), unobserved():
            self._trail.ran(row.name, arguments, result)
        return result


def _name_of(func: Callable[..., Any]) -> str:
    """Return the name of a torch function; of a property its own, such as ``data``."""
    name = getattr(func, "__name__", "")
    return getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else name


def _is_anything(tensor: Tensor) -> Tensor:
    """Return, on the device, whether any entry isn't 0; what can't be told counts as something."""
    if tensor.layout is not torch.strided:
        return torch.ones((), device=tensor.device)
    return (tensor.detach() != 0).any()
