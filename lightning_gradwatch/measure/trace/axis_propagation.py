"""Follows what is known of tensors through the calls of a forward pass, and notes the first use of each layer."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from torch import Tensor

from lightning_gradwatch.measure.trace import gates, pieces
from lightning_gradwatch.measure.trace.axes import axis_after, split_of
from lightning_gradwatch.measure.trace.cuts import MAXOUT, PIECES, argument_of
from lightning_gradwatch.measure.trace.fan_in import CHAINS, MATMULS, note_factors, note_inputs, note_sum
from lightning_gradwatch.measure.trace.handwritten import HandWritten, chain_of, combine, steps_of
from lightning_gradwatch.measure.trace.operands import EINSUMS, Operands
from lightning_gradwatch.measure.trace.product_axes import axes_of_products, axis_of_data
from lightning_gradwatch.measure.trace.tensor_state import (
    MAKES_FEATURES,
    MOVES,
    NO_UNITS,
    Op,
    Sources,
    TensorState,
    TensorStates,
    inner_call,
    unit_axis,
)
from lightning_gradwatch.measure.trace.uncovered import BY_HAND, FUSED
from lightning_gradwatch.measure.trace.written_out import STARTS, WrittenOut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lightning_gradwatch.measure.model.layers import Layers
    from lightning_gradwatch.measure.model.path import Layer
    from lightning_gradwatch.measure.signal import Origin
    from lightning_gradwatch.measure.trace.activation_calls import Activations
    from lightning_gradwatch.measure.trace.tensor_state import Axis, Ended, SiteCall

_ARITHMETIC = frozenset((Op.ARITHMETIC, Op.SHIFT, Op.POWER, Op.MULTIPLY, Op.ERF))
_PRODUCTS = MATMULS | CHAINS | {*EINSUMS}
_ARRANGES = frozenset((Op.RESHAPE, Op.TRANSPOSE, Op.LAST, Op.CHANNEL))
"""What may give the units another axis where a tensor keeps the number of its axes."""
_TAKES_DATA = re.compile("linear|conv|lstm|gru|rnn")
_MULTIPLY, _PIECE, _JOIN, _SHIFT = Op.MULTIPLY, Op.PIECE, Op.JOIN, Op.SHIFT
_KEEPS = frozenset((Op.KEEP, Op.PIECE, Op.ALIAS))
_TURNED = frozenset((*EINSUMS, "__rmatmul__"))
"""Products whose last argument isn't the right one."""
_PICKS = frozenset(("gather", "__getitem__", "index_select", "take_along_dim", "masked_select", "take"))
_LAST, _ERF = Op.LAST, Op.ERF  # by name, as in `tracer`
_OF_VALUES = frozenset((Op.COMPARE, Op.ZEROS, Op.ALIAS))


class _Kind(NamedTuple):
    """What the name of a function says of it."""

    takes_data: bool
    """Whether its first argument is what a layer is given."""
    is_layer: bool
    """Whether it makes nothing but features, where its operation says that it makes them."""
    is_fused: bool
    """Whether it holds activation functions."""


@cache
def _kind(name: str) -> _Kind:
    return _Kind(_TAKES_DATA.search(name) is not None, name not in _PRODUCTS and name not in _PICKS, name in FUSED)


def _is_trained(argument: object) -> TypeGuard[Tensor]:
    return isinstance(argument, Tensor) and argument.requires_grad


class Compared(list[Any]):
    """What `bound_of` finds in a comparison's arguments; empty where it finds nothing."""


class AxisPropagation:
    """The tags of one step's tensors, call by call."""

    def __init__(self, *, layers: Layers, activations: Activations, tags: TensorStates) -> None:
        self._layers = layers
        self._activations = activations
        self._tags = tags
        self._written_out = WrittenOut(activations=activations, tags=tags, is_weight=self.is_weight)
        self._puts_together: tuple[str, str, Origin | None] | None = None
        """The function whose pieces the call that is running puts together, why it isn't counted, and of which value it is one."""
        self._kept: Tensor | None = None
        """The argument of an error function that is being computed in place."""

    def before_in_place(self, op: Op, arguments: Sequence[Tensor]) -> None:
        """Take what has to be known of the arguments of a call that is about to change one of them."""
        for argument in arguments:
            self._tags.root(argument)
        self._kept = arguments[0].detach().clone() if op is _ERF and arguments else None

    def leaves_out(self, function: str, reason: str, arguments: Iterable[Any]) -> None:
        """Note a call about to run that may be an activation function, and isn't known; with the calls whose outputs it puts together."""
        if reason is MAXOUT:
            self._puts_together = function, reason, None
            return
        if reason is not PIECES:
            self._activations.leaves_out(function, reason)
            return
        calls = (inner_call(self._tags.get(each)) for each in arguments)
        self._activations.are_steps(each for call in calls if call is not None for each in chain_of(call))
        of = next((argument_of(each, self._tags) for each in arguments if _is_trained(each)), None)
        self._puts_together = function, reason, of

    def use(self, arguments: Iterable[Any]) -> list[Layer]:
        """Note the layers whose parameters are among arguments, and return them."""
        owner = self._layers.owner
        used = [layer for argument in arguments if (layer := owner(argument)) is not None]
        for layer in used:
            if layer.step != self._layers.step:
                self._layers.use(layer)
        return used

    def follow(self, op: Op, func: Callable[..., Any], arguments: Sequence[Any], result: Any) -> None:
        """Hand what is known of a call's arguments on to its results."""
        comparisons = self._tags.comparisons
        if op in _OF_VALUES:
            if self._takes_values(op, func, arguments, result):
                return
        elif comparisons.masks and arguments:
            comparisons.cast(func, arguments[0], result)
        results = (result,) if isinstance(result, Tensor) else result
        if not isinstance(results, (list, tuple)):
            self._assigned(func, arguments, result)
            return
        kind = _kind(getattr(func, "__name__", "")) if op in MAKES_FEATURES else None
        if kind is not None and kind.is_fused and op is _LAST:
            self._hides(func, results)
        # A parameter that a layer takes for its input, as learned queries are, is data.
        sources = self._sources(arguments, weights=kind is None or not kind.takes_data)
        if sources.tag is None and sources.user is None and op not in _ARITHMETIC and op not in MAKES_FEATURES:
            return
        plainly = kind is not None and kind.is_layer and self._is_plain(sources)
        for each in results:
            if isinstance(each, Tensor) and plainly:
                self._make(op, func, sources, arguments, each)
            elif isinstance(each, Tensor):
                self._hand_on(op, func, sources, arguments, each)

    def _takes_values(self, op: Op, func: Callable[..., Any], arguments: Sequence[Any], result: Any) -> bool:
        """Note what a call makes of values alone; whether that is all there is to it."""
        comparisons = self._tags.comparisons
        if op is not Op.ALIAS:
            comparisons.take(func, arguments if op is Op.COMPARE else None, result)
            return True
        source = arguments[0] if arguments else None
        comparisons.detached(source, result)
        # Reading a parameter's `data`, as an average of weights does, is no use of a layer.
        return func.__name__ == "__get__" and self._layers.owner(source) is not None

    def _hides(self, func: Callable[..., Any], results: Sequence[Any]) -> None:
        """Note a call of a function that holds activation functions."""
        trained = any(isinstance(each, Tensor) and each.requires_grad for each in results)
        self._activations.hides(func.__name__, trained=trained)

    def _is_plain(self, sources: Sources) -> bool:
        """Whether a layer makes something of which nothing goes on, and no piece of anything."""
        tags = self._tags
        return sources.user is not None and sources.formula is None and not (tags.pieces and tags.apart)

    def _make(
        self, op: Op, func: Callable[..., Any], sources: Sources, arguments: Sequence[Tensor], result: Tensor
    ) -> None:
        """Tag what a layer has made, of which nothing goes on: what `_hand_on` would, for most calls of most nets."""
        axis = axis_after(op, func, sources.tensor, None, result)
        new = TensorState(result, axis, sources.user)
        self._note_inputs(func, sources, arguments)
        new.weights_only = sources.weights_only
        self._tags.put(result, new)
        self._note_weights(sources, result)

    def _assigned(self, func: Callable[..., Any], arguments: Sequence[Tensor], result: Any) -> None:
        """Note an assignment to a part of a tensor, which may be an activation function: ``x[x < 0] = 0``."""
        if result is not None or not arguments or getattr(func, "__name__", "") != "__setitem__":
            return
        z, *others = arguments
        if any(self._tags.comparisons.cuts(each, z) for each in others) and self._activations.are_features(z):
            self._activations.leaves_out("setitem", BY_HAND)
        pieces.assigned(self._tags, func, arguments)

    def _hand_on(
        self, op: Op, func: Callable[..., Any], sources: Sources, arguments: Sequence[Tensor], result: Tensor
    ) -> None:
        tag = sources.tag
        axis, piece = self._units(op, func, sources, arguments, result)
        new = TensorState(result, axis, sources.user or (None if tag is None else tag.layer))
        new.piece = piece
        new.weights_only = sources.weights_only
        if tag is not None and tag.columns and op not in MAKES_FEATURES:
            new.columns = op not in MOVES
        self._note_products(op, func, sources, arguments, new=new, result=result)
        # Before the result has its tag: it may be an argument, changed in place.
        done = self._computes(op, arguments, new, result)
        if sources.gates and not (sources.user is not None and op in MAKES_FEATURES):
            new.gate = self._gates(op, func, arguments, result) if done is None else gates.of_hand_written(done)
        known = None
        if done is None and (
            sources.formula is not None
            or (op in STARTS and result.dim() > 1)
            or (op is _MULTIPLY and len(arguments) == 2 and new.root is not None and new.factor is None)
        ):
            known = self._written_out.follow(op, func, sources, arguments, new)
        self._tags.put(result, new)
        if self._puts_together is not None:
            function, reason, of = self._puts_together
            self._puts_together = None
            self._activations.may_leave_out(function, reason, result)
            if of is not None:
                new.root, new.factor = of, None
                self._tags.named.add(of)
        if sources.user is not None or sources.weights_only:
            self._note_weights(sources, result)
        if known is not None and new.formula is not None:
            self._activations.written_out(new.formula, known, result)
        elif done is not None:
            self._activations.complete(done, result, unit_axis(result, new), new.layer)
        elif tag is not None and (tag.call is not None or tag.picked is not None):
            self._keep_call(op, func, tag, new, result)

    def _note_products(
        self,
        op: Op,
        func: Callable[..., Any],
        sources: Sources,
        arguments: Sequence[Tensor],
        *,
        new: TensorState,
        result: Tensor,
    ) -> None:
        """Note what a product of weights and data shows of both."""
        if sources.users and not sources.weights_only:
            if op in MAKES_FEATURES and getattr(func, "__name__", "") in _PRODUCTS:
                self._turn(new, sources.users, arguments, result)
                self._note_inputs(func, sources, arguments)
            elif op is _MULTIPLY:
                note_factors(sources.users, arguments, new, self._made_by)
        if sources.tag is not None and sources.tag.product is not None and sources.tensor is not None:
            note_sum(sources.tag.product, func, sources.tensor, result)

    @staticmethod
    def _keep_call(op: Op, func: Callable[..., Any], tag: TensorState, new: TensorState, result: Tensor) -> None:
        """Note that a result is an activation function's output all the same, or a choice of its entries."""
        if op in MOVES or (op in _KEEPS and result._is_view()):  # noqa: SLF001 - the documented test for a view has no public name
            new.call, new.picked = tag.call, tag.picked
        elif getattr(func, "__name__", "") in _PICKS and not tag.shifted and tag.scale == 1:
            new.picked = tag.call or tag.picked
        elif "dropout" in getattr(func, "__name__", ""):
            new.within = tag.call

    def _note_weights(self, sources: Sources, result: Tensor) -> None:
        """Note what parameters have a part in."""
        if sources.weights_only:
            self._activations.of_weights(result)
        else:
            self._activations.parameterised(result, sources.users)

    def _units(
        self, op: Op, func: Callable[..., Any], sources: Sources, arguments: Sequence[Tensor], result: Tensor
    ) -> tuple[Axis | None, int]:
        """Return where the units of a result lie (None: nothing is known), and which of their layer's they are."""
        tag, source = sources.tag, sources.tensor
        axis = None if tag is None else tag.axis
        if op in _ARRANGES or source is None or result.dim() != source.dim():
            if axis is None and source is not None and op in MOVES:
                axis = unit_axis(source, tag)
            axis = axis_after(op, func, source, axis, result)
        makes = op in MAKES_FEATURES
        if makes and tag is not None and sources.user is None:
            axis = self._of_data(func, arguments, axis, result)
        if op is _JOIN:
            return pieces.joined(self._tags, arguments, axis, result)
        if op is _PIECE:
            return pieces.taken(self._tags, arguments, axis, result)
        if not self._tags.pieces:
            return axis, 0
        if tag is not None and not makes:
            return axis, tag.piece
        if sources.user is not None and not self._tags.apart:
            return axis, 0
        return axis, pieces.made(self._tags, arguments, sources)

    def _of_data(
        self, func: Callable[..., Any], arguments: Sequence[Tensor], axis: Axis | None, result: Tensor
    ) -> Axis | None:
        """Return where the units of a product of data lie, or of what else makes features without parameters."""
        name = getattr(func, "__name__", "")
        if name not in _PRODUCTS:
            return axis
        known = [self._tags.get(each) for each in arguments]
        last = known[-1]
        if last is not None and last.axis == arguments[-1].dim() - 1 and name not in _TURNED:
            return axis  # as most: the values of attention, the features of a graph's nodes
        axes = [
            NO_UNITS if tag is None or tag.layer is None else unit_axis(each, tag)
            for each, tag in zip(arguments, known, strict=True)
        ]
        return axis_of_data(name, arguments, axes, result)

    def _computes(self, op: Op, arguments: Sequence[Tensor], new: TensorState, result: Tensor) -> HandWritten | None:
        """Note what arithmetic makes of one tensor; return the hand-written function of which it is the last step."""
        if op is _ERF:
            kept, self._kept = self._kept, None
            tag = self._tags.get(arguments[0])
            new.of, new.u = self._tags.root(arguments[0]), arguments[0].detach() if kept is None else kept
            new.u_factor = 1.0 if tag is None else tag.factor
            new.within = inner_call(tag)
        elif isinstance(arguments, Operands):
            if op is _SHIFT and len(arguments) > 1 and (steps := steps_of(arguments, self._tags)):
                if any(each.of in self._tags.named for each in steps):
                    self._activations.are_steps(steps)
                else:
                    self._activations.are_pieces(steps, result)
            if (ended := self._awaits(op, arguments)) is None:
                done = combine(op, arguments, new, self._tags)
                if done is None or done.function or done.call is None:
                    return done
                self._activations.are_pieces(chain_of(done.call), result)
                return None
            self._activations.extend(ended, result)
            ended.missing /= arguments.constant
            new.ended = ended if not math.isclose(ended.missing, 1.0, rel_tol=1e-3) else None
        return None

    def _gates(
        self, op: Op, func: Callable[..., Any], arguments: Sequence[Tensor], result: Tensor
    ) -> tuple[SiteCall, ...]:
        """Note which sites gate; return the calls that the result is a function of, if it is one of them alone."""
        gating, calls = gates.follow(op, func, arguments, self._tags, result)
        for site in gating:
            self._activations.gates(site)
        return calls

    def _note_inputs(self, func: Callable[..., Any], sources: Sources, arguments: Sequence[Tensor]) -> None:
        """Note how many inputs the matrices of layers add up, at their first products with data."""
        for layer in sources.users if not sources.weights_only else ():
            if layer.seeks:
                note_inputs(layer, func, arguments, self._made_by)

    def _made_by(self, tensor: Tensor) -> Layer | None:
        tag = self._tags.get(tensor)
        return tag.layer if tag is not None and tag.weights_only else None

    def _turn(self, new: TensorState, users: Sequence[Layer], arguments: Sequence[Tensor], result: Tensor) -> None:
        """Find the features of a product of weights and data where its form says that they aren't last."""
        weights = [self._layers.owner(each) is not None or self._made_of_weights(each) for each in arguments]
        entries = max((each.numel() for layer in users for each in layer.parameters), default=0)
        axes = axes_of_products(arguments, weights, result, entries)
        if len(axes) == 1:
            (new.axis,) = axes
            new.columns = axes == (0,) and result.dim() == 2
        elif axes:
            new.axis = split_of(result.shape, axes)

    def _made_of_weights(self, tensor: Tensor) -> bool:
        tag = self._tags.get(tensor)
        return tag is not None and tag.weights_only

    def _awaits(self, op: Op, arguments: Operands) -> Ended | None:
        """Return the hand-written function that still wants a constant, of which a call multiplies one in, if it does."""
        if op is Op.SHIFT or op is Op.POWER or op is Op.FUNCTION or len(arguments) != 1:
            return None
        tag = self._tags.get(arguments[0])
        ended = None if tag is None else tag.ended
        known = ended is not None and math.isfinite(ended.missing / (arguments.constant or math.nan))
        return ended if known and arguments.constant != 1 else None

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter, or made from parameters, buffers and numbers alone."""
        tag = self._tags.get(tensor)
        return self._layers.owner(tensor) is not None if tag is None else tag.weights_only

    def _sources(self, arguments: Sequence[Tensor], *, weights: bool) -> Sources:
        """Return where arguments come from, which may be `weights` alone."""
        users: dict[Layer, None] = {}
        found: TensorState | None = None
        tensor: Tensor | None = None
        gates, formula = False, None
        weights_only = weights and bool(arguments)
        owner, step = self._layers.owner, self._layers.step
        for argument in arguments:
            layer = owner(argument)
            if layer is not None:
                # Without a sample there is no use: an expert that got no token, a mask that is empty.
                if layer.step != step and all(map(Tensor.numel, arguments)):
                    self._layers.use(layer)
            else:
                tag = self._tags.get(argument)
                if tag is None:
                    weights_only = weights_only and self._layers.is_constant(argument)
                elif tag.weights_only:
                    layer = tag.layer
                else:
                    weights_only = False
                    gates = gates or bool(tag.gate)
                    formula = formula or tag.formula
                    if found is None:
                        found, tensor = tag, argument
            if layer is not None:
                users[layer] = None
        return Sources(next(iter(users), None), tuple(users), found, tensor, weights_only, gates, formula)
