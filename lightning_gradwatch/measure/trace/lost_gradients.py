"""Follows layers that get no gradient, call by call, to the operation that keeps it from them.

In a step that is followed, each torch call whose value depends on such a layer is noted, and whether a gradient other than 0
arrives at what it made. So the operation shows behind which it does arrive and before which it doesn't: a softmax over one
entry, a factor of 0, ``detach``. What reaches the loss by its values and not in the autograd graph was cut off; what doesn't
reach it at all was left out. Only a step or two of a run are followed, and only where a gradient is missing: nothing here
costs a net whose layers all have one.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lightning_gradwatch.measure.model.autograd_graph import Walk, edges
from lightning_gradwatch.measure.model.call_site import line_of_call, locate
from lightning_gradwatch.measure.model.layers import parameters_of
from lightning_gradwatch.measure.model.path import is_matrix
from lightning_gradwatch.measure.trace.identify import is_activation
from lightning_gradwatch.measure.trace.tensor_state import tensors_in
from lightning_gradwatch.measure.trace.tracer import Tracer
from lightning_gradwatch.measure.unobserved import is_traced, unobserved
from lightning_gradwatch.record.activations import Activation, look_up
from lightning_gradwatch.record.step import LostGradient

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
    from lightning_gradwatch.measure.transfer.host import Pack, Slot, Values
    from lightning_gradwatch.record.step import LostKind

MOST_STEPS = 16
"""Steps of a run that are followed at most."""
MOST_TRIES = 3
"""Steps in which a layer is followed at most, until it has had a gradient again."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BY_SHAPE = _names(
    "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty new_full size dim "
    "stride numel ndimension nelement element_size is_contiguous is_floating_point is_complex is_signed get_device data_ptr "
    "storage_offset __len__ __hash__ __repr__ __format__ register_hook retain_grad requires_grad_ zero_ fill_ grad"
)
"""Calls that look at the shape of what they are given, not at its values."""
_LIKE_ANOTHER = _names("expand_as view_as reshape_as type_as")
"""Of what these are given only the first is a value."""
_LEAVES = _names("item tolist numpy __array__ __float__ __int__ __bool__ __index__ __complex__")
"""Calls that hand values to the rest of Python."""
_ENTERS = _names("tensor as_tensor asarray from_numpy")
"""Calls that make a tensor of them."""
_PRODUCTS = _names(
    "mul mul_ multiply __mul__ __rmul__ __imul__ linear matmul __matmul__ __rmatmul__ mm bmm addmm baddbmm addbmm mv einsum bilinear "
    "linalg_multi_dot multi_dot chain_matmul "
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
)
_ADDING = _names("addmm baddbmm addbmm")
"""Products to which their first argument is added."""
_OF_MANY = _names("einsum linalg_multi_dot multi_dot chain_matmul")
"""Products of as many as they are given."""
_MATRIX_PRODUCTS = _names("matmul __matmul__ mm bmm mv")
_FACTORS = _names("mul mul_ multiply __mul__ __rmul__ __imul__")
_SOFTMAX = _names("softmax log_softmax softmin _softmax")
_NORMS = _names(
    "layer_norm group_norm instance_norm batch_norm rms_norm var std var_mean std_mean mean sum logsumexp amax max"
)
"""Norms, and what they are made of by hand."""
_KINDS: Mapping[LostKind, frozenset[str]] = {
    "clamped": _names("clamp clamp_ clip clip_ clamp_min clamp_min_ clamp_max clamp_max_ maximum minimum"),
    "rounded": _names(
        "round round_ floor floor_ ceil ceil_ trunc trunc_ fix sign sign_ sgn heaviside __floordiv__ floor_divide"
    ),
    "dropped": _names("dropout dropout_ alpha_dropout feature_dropout dropout1d dropout2d dropout3d"),
    "masked": _names("where masked_fill masked_fill_ masked_select masked_scatter"),
}
_BY_CHANCE = frozenset(("clamped", "dropped", "masked"))
"""What a few values may all be."""
_FEW = 1024
_MOST_LINES = 3
"""Calls that are named where several cut the ways to a loss."""
_DEEPEST = 32
"""Calls in a row that are looked through for the parameters that make a value 0."""


class _Trained(NamedTuple):
    """A parameter that an optimizer holds."""

    name: str
    matrix: bool


class _Operand(NamedTuple):
    """What a product is of."""

    value: _Value | None
    """Of one that depends on a followed layer."""
    layer: str
    """Its layer's name, if that is or was trained."""
    anything: Slot
    """Whether it isn't all 0."""
    parameter: _Trained | None
    """That it is itself."""


class _Value:
    """A tensor that depends on a followed layer."""

    __slots__ = ("arrived", "differentiable", "made_by", "node", "ref", "taken_by")

    def __init__(self, tensor: Tensor, made_by: _Call) -> None:
        self.ref = weakref.ref(tensor)
        self.node: Node | None = tensor.grad_fn
        self.differentiable = tensor.requires_grad
        self.made_by = made_by
        self.taken_by: list[_Call] = []
        self.arrived: list[Slot] = []
        """Whether the gradients that arrived have an entry that isn't 0."""


class _Call:
    """A torch call that made such tensors, or took values out of them."""

    __slots__ = (
        "back",
        "entries",
        "given",
        "layers",
        "lines",
        "made",
        "module",
        "name",
        "operands",
        "parameters",
        "recorded",
        "single",
        "surest",
        "zero",
    )

    def __init__(self, name: str, module: str, line: str, given: list[_Value], layers: tuple[Layer, ...]) -> None:
        self.name = name
        self.module = module
        self.lines = (line,) if line else ()
        self.given = given
        self.layers = layers
        """The followed layers whose parameters it takes itself."""
        self.made: list[_Value] = []
        self.back: Sequence[_Call] = ()
        """Calls that had taken out the values which this one takes in."""
        self.entries = 0
        """Of the largest tensor that it made."""
        self.recorded = torch.is_grad_enabled()
        self.operands: list[_Operand] = []
        """Of a product."""
        self.parameters: list[tuple[_Trained, Slot]] = []
        """Of any other call: the trained parameters that it takes itself, and whether each isn't all 0."""
        self.single = False
        """Whether a softmax or a norm is over a single entry."""
        self.surest: Slot | None = None
        """Of a softmax: whether each of its outputs is exactly 0 or 1."""
        self.zero = False
        """Whether the plain number 0 is a factor."""


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
        pack: Pack,
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
        self._values: dict[int, _Value] = {}
        self._seen: dict[int, weakref.ref[Tensor]] = {}
        """All tensors that a call was seen to make."""
        self._calls: list[_Call] = []
        self._escapes: list[_Call] = []
        self._numbers: dict[float, _Call] = {}
        """Numbers that were taken out, by value."""
        self._memory: dict[int, _Call] = {}
        """Arrays that were, by where they are."""
        self._reached: set[Node] = set()
        """Nodes in the graph of a loss."""
        self._incomplete = False
        """Whether something was made out of sight, so that a way to the loss may be too."""
        self._arrivals: dict[Layer, list[Slot]] = {}
        self._leaves = [self._watch(layer) for layer in self._suspects]
        held = {id(each) for optimizer in optimizers for each in parameters_of(optimizer)}
        self._trained = {
            id(each): _Trained(name, is_matrix(each))
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
        if name not in _BY_SHAPE:
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
        if name in _LIKE_ANOTHER:
            tensors = tensors[:1]
        call = self._noted(name, arguments, tensors)
        if call is None or not (made or name in _LEAVES):
            for tensor in made:
                self._values.pop(id(tensor), None)
        elif name in _LEAVES:
            self._leave(call, tensors[0], result)
        else:
            self._describe(call, tensors, arguments, made)
            self._take(call, made)

    def _see(self, tensors: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        for tensor in tensors:
            self._incomplete |= tensor.grad_fn is not None and not self._is_seen(tensor)
        for tensor in made:
            self._seen[id(tensor)] = weakref.ref(tensor)

    def _noted(self, name: str, arguments: Sequence[Any], tensors: Sequence[Tensor]) -> _Call | None:
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
        call = _Call(name, module, line, given, owners)
        call.back = back
        for value in given:
            value.taken_by.append(call)
        return call

    def _leave(self, call: _Call, tensor: Tensor, result: Any) -> None:
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

    def _come_back(self, name: str, arguments: Sequence[Any], tensors: Sequence[Tensor]) -> list[_Call]:
        """Return the calls that had taken values out of torch's tensors which now are in one again."""
        if not self._escapes:
            return []
        back = [self._numbers[each] for each in arguments if type(each) is float and each in self._numbers]
        for tensor in tensors if self._memory else ():
            if not self._is_seen(tensor) and tensor.layout is torch.strided:  # made of an array that shares its memory
                found = self._memory.get(tensor.untyped_storage().data_ptr())
                back += [] if found is None else [found]
        return back + (self._escapes if name in _ENTERS else [])

    def _describe(
        self, call: _Call, tensors: Sequence[Tensor], arguments: Sequence[Any], made: Sequence[Tensor]
    ) -> None:
        """Note what decides whether a gradient gets through a call."""
        call.entries = max(map(Tensor.numel, made), default=0)
        if call.name in _PRODUCTS:
            call.zero = call.name in _FACTORS and any(type(each) in (int, float) and each == 0 for each in arguments)
            for tensor in _operands(call.name, tensors):
                owner = self._layers.owner(tensor)
                name = "" if owner is None or not owner.parameters else owner.name
                anything = self._pack.add(_is_anything(tensor))
                call.operands.append(_Operand(self._value(tensor), name, anything, self._trained.get(id(tensor))))
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
                call.operands.append(_Operand(None, "", self._pack.add((tensors[0] != padding).any()), None))
        elif call.name in _SOFTMAX and made and made[0].dim():
            dim = next((each for each in arguments if type(each) is int), None)
            call.single = dim is not None and made[0].shape[dim] == 1
            call.surest = self._pack.add(((made[0] == 0) | (made[0] == 1)).all())
        elif call.name in _NORMS and tensors:
            call.single = _over_one(call.name, tensors[0], arguments, made)
        elif call.name == "scaled_dot_product_attention" and len(tensors) > 1:
            call.single = tensors[1].shape[-2] == 1

    def _take(self, call: _Call, made: Sequence[Tensor]) -> None:
        self._calls.append(call)
        arriving: dict[Node, list[tuple[int, list[Slot]]]] = {}
        for tensor in made:
            value = self._values[id(tensor)] = _Value(tensor, call)
            call.made.append(value)
            if value.node is not None:
                arriving.setdefault(value.node, []).append((tensor.output_nr, value.arrived))
        for node, slots in arriving.items():
            self._handles.append(node.register_prehook(_Arrival(self, slots)))

    def _value(self, tensor: Tensor) -> _Value | None:
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
                value.node = _REACHED if value.node in self._reached else None
        self._reached.clear()
        self._values.clear()
        self._seen.clear()

    # -- after the transfer

    def explain(self, layer: Layer, values: Values) -> LostGradient | None:
        """Say why a layer has no gradient, or one of 0; None where that didn't show."""
        return _Reading(self._calls, self._escapes, values, incomplete=self._incomplete).explain(
            layer, self._arrivals.get(layer, [])
        )

    def zero_factors(self, values: Values) -> list[LostGradient]:
        """Return the products of trained parameters that are all 0, each with the operation at which that shows."""
        reading = _Reading(self._calls, self._escapes, values, incomplete=self._incomplete)
        found: dict[frozenset[str], LostGradient] = {}
        for call in self._calls:
            if factors := reading.factors(call):
                place = _both_zero(call, factors)
                found.setdefault(frozenset(place.factors), place)
        return [place for whole, place in found.items() if not any(whole < other for other in found)]


_REACHED: Any = object()
"""Stands for the node of a value that is in a loss's graph."""


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


class _Stop(NamedTuple):
    """A call that a gradient reaches and that passes nothing but 0 on to a value."""

    call: _Call
    value: _Value


class _Reading:
    """What the calls of a step show, with the numbers that belong to them."""

    def __init__(self, calls: Sequence[_Call], escapes: Sequence[_Call], values: Values, *, incomplete: bool) -> None:
        self._calls = calls
        self._escapes = frozenset(escapes)
        self._numbers = values
        self._incomplete = incomplete

    def explain(self, layer: Layer, arrivals: Sequence[Slot]) -> LostGradient | None:
        if self._any(arrivals):
            return LostGradient("discarded")
        calls = [call for call in self._calls if layer in call.layers]
        made = [value for call in calls for value in call.made]
        if not any(value.node is _REACHED or value.arrived for value in made):
            return self._cut(made) if made else None
        fed = [call for call in calls if any(map(self._arrived, call.made))]
        if fed:
            return self._beside(fed)
        reasons = [self._reason(stop) for stop in self._stops(made)]
        return Counter(reasons).most_common(1)[0][0] if reasons else None

    def _beside(self, calls: Sequence[_Call]) -> LostGradient:
        """Say why a layer has no gradient although one arrives at what it makes."""
        for call in calls:
            if factors := self.factors(call):
                return _both_zero(call, factors)
        data = [each.anything for call in calls for each in call.operands if not each.layer]
        if data and not self._any(data):
            return LostGradient("zero-input", calls[0].name, calls[0].module, calls[0].lines)
        return LostGradient("discarded")

    def _stops(self, made: Sequence[_Value]) -> list[_Stop]:
        """Return the calls at which gradients end, nearest first."""
        stops, waiting, seen = [], deque(made), set(made)
        while waiting:
            value = waiting.popleft()
            for call in value.taken_by:
                if any(map(self._arrived, call.made)):
                    stops.append(_Stop(call, value))
                    continue
                new = [each for each in call.made if each not in seen]
                seen.update(new)
                waiting.extend(new)
        return stops

    def _reason(self, stop: _Stop) -> LostGradient:
        call = stop.call
        kind: LostKind = next((kind for kind, names in _KINDS.items() if call.name in names), "other")
        if is_activation_name(call.name):
            kind = "inactive"
        if call.name in _SOFTMAX or call.name == "scaled_dot_product_attention":
            sure = call.surest is not None and self._any([call.surest])
            kind = "softmax-of-one" if call.single else "softmax-certain" if sure else "other"
        elif call.name in _NORMS:
            kind = "norm-of-one" if call.single else "other"
        elif kind in _BY_CHANCE and call.entries < _FEW:
            kind = "few"
        elif call.zero:
            kind = "times-zero"
        else:
            others = [each for each in call.operands if each.value is not stop.value]
            if others and not self._any([each.anything for each in others]):
                if factors := self.factors(call):
                    return _both_zero(call, factors)
                layer = next((each.layer for each in others if each.layer), "")
                kind = "zero-weights" if layer else "zero-factor"
                return LostGradient(kind, call.name, layer or call.module, call.lines)
        return LostGradient(kind, call.name, call.module, call.lines)

    def factors(self, call: _Call) -> list[_Trained]:
        """Return the trained parameters whose zeros are multiplied in a product, the input's side first; none: there aren't two."""
        zero = [each for each in call.operands if not self._any([each.anything])]
        factors = self._factors_of(zero, call.name, _DEEPEST)
        return factors if len(factors) > 1 else []

    def _factors_of(self, zero: Sequence[_Operand], name: str, depth: int) -> list[_Trained]:
        if name in _MATRIX_PRODUCTS and all(each.parameter is not None for each in zero):
            zero = zero[::-1]  # a weight that is made of two, as B @ A, is given its input from the right
        found = []
        for each in zero:
            behind = [each.parameter] if each.parameter is not None else self._behind(each.value, depth)
            if not behind:
                return []  # something else makes it 0
            found += behind
        return list(dict.fromkeys(found))

    def _behind(self, value: _Value | None, depth: int) -> list[_Trained]:
        """Return the trained parameters whose zeros make a value 0."""
        if value is None or not depth:
            return []
        call = value.made_by
        if call.name in _PRODUCTS:
            zero = [each for each in call.operands if not self._any([each.anything])]
            return self._factors_of(zero, call.name, depth - 1)
        for given in call.given:
            if behind := self._behind(given, depth - 1):
                return behind
        return [known for known, anything in call.parameters if not self._any([anything])][:1]

    def _cut(self, made: Sequence[_Value]) -> LostGradient | None:
        """Say where values go on that no gradient comes back from."""
        came_by: dict[_Value, _Value | None] = dict.fromkeys(made)
        waiting, left, cuts = deque(made), None, []
        while waiting:
            value = waiting.popleft()
            for call in value.taken_by:
                if call in self._escapes:
                    left = left or call
                for after in call.made:
                    if after in came_by:
                        continue
                    came_by[after] = value
                    if after.node is _REACHED:
                        cuts.append(self._first_cut(came_by, after))
                    else:
                        waiting.append(after)
        if cuts:
            lines = dict.fromkeys(line for each in cuts if each == cuts[0] for line in each.lines)
            return dataclasses.replace(cuts[0], lines=tuple(lines)[:_MOST_LINES])
        if self._incomplete:
            return None
        return LostGradient("left-out") if left is None else LostGradient("escaped", left.name, left.module, left.lines)

    def _first_cut(self, came_by: Mapping[_Value, _Value | None], end: _Value) -> LostGradient:
        way = [end]
        while (before := came_by[way[-1]]) is not None:
            way.append(before)
        way.reverse()
        broken = next((value for value in way if not value.differentiable), end)
        call = broken.made_by
        if not call.recorded:
            return LostGradient("cut", "no_grad", call.module, call.lines)
        by = call.back[0] if call.back else call
        return LostGradient("cut", by.name, by.module, by.lines)

    def _arrived(self, value: _Value) -> bool:
        return self._any(value.arrived)

    def _any(self, slots: Iterable[Slot]) -> bool:
        return any(self._numbers[slot][0] != 0 for slot in slots)


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


def is_activation_name(name: str) -> bool:
    """Whether a function of that name is an activation function."""
    return bool(look_up(name).functions) or any(
        is_activation(found) for space in (torch.nn.functional, torch) if (found := getattr(space, name, None))
    )


def _operands(name: str, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return what a product is of, among the tensors that it is given."""
    if name in _ADDING:
        return tensors[1:]
    return tensors if name in _OF_MANY else tensors[:2]


def _both_zero(call: _Call, factors: Sequence[_Trained]) -> LostGradient:
    """Say that a product is of several that are 0; those that can be drawn at random first."""
    names = tuple(each.name for each in sorted(factors, key=lambda each: not each.matrix))
    return LostGradient("zero-factors", call.name, call.module, call.lines, names)


def _name_of(func: Callable[..., Any]) -> str:
    """Return the name of a torch function; of a property its own, such as ``data``."""
    name = getattr(func, "__name__", "")
    return getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else name


def _is_anything(tensor: Tensor) -> Tensor:
    """Return, on the device, whether any entry isn't 0; what can't be told counts as something."""
    if tensor.layout is not torch.strided:
        return torch.ones((), device=tensor.device)
    return (tensor.detach() != 0).any()


def _over_one(name: str, z: Tensor, arguments: Sequence[Any], made: Sequence[Tensor]) -> bool:
    """Tell whether a norm, or a variance, is taken over single entries."""
    if name in ("layer_norm", "rms_norm"):
        shape = next((each for each in arguments if isinstance(each, (tuple, list, torch.Size))), ())
        return math.prod(shape) == 1
    if name == "group_norm":
        groups = next((each for each in arguments if type(each) is int), 1)
        return z.numel() == z.shape[0] * groups
    if name == "instance_norm":
        return z.dim() > 2 and math.prod(z.shape[2:]) == 1
    if name == "batch_norm":
        return z.numel() == z.shape[1]
    return bool(made) and made[0].numel() == z.numel()
