"""Follows functions that are written out in arithmetic from their first step to the last, or to the layer that takes them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.measure.signal import Origin
from lightning_gradwatch.measure.trace.formulas import (
    CARRIES,
    POINTS,
    WHOLE,
    evaluate,
    is_unknown,
    may_start,
    recognise,
    wants_layer,
)
from lightning_gradwatch.measure.trace.operands import Operands
from lightning_gradwatch.measure.trace.tensor_state import (
    MAKES_FEATURES,
    MOVES,
    Formula,
    Op,
    Sources,
    Start,
    TensorState,
    TensorStates,
    is_in_place,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lightning_gradwatch.measure.model.path import Layer
    from lightning_gradwatch.measure.trace.activation_calls import Activations
    from lightning_gradwatch.measure.trace.formulas import Known

STARTS = frozenset((Op.FUNCTION, Op.POWER, Op.ERF))
"""What may begin one, as may the product of a tensor with itself."""
_MAY_END = frozenset((Op.SHIFT, Op.FUNCTION, Op.POWER, Op.MULTIPLY))
_DIVIDES = frozenset(("div", "true_divide", "divide", "truediv"))


class WrittenOut:
    """The formulas of one step's tensors."""

    def __init__(self, *, activations: Activations, tags: TensorStates, is_weight: Callable[[Tensor], bool]) -> None:
        self._activations = activations
        self._tags = tags
        self._is_weight = is_weight

    def follow(
        self, op: Op, func: Callable[..., Any], sources: Sources, arguments: Sequence[Tensor], new: TensorState
    ) -> Known | None:
        """Follow one through a call, or begin one; return which function it is, where this was the last step.

        Args:
            op: What the call does.
            func: The torch function.
            sources: Where its arguments come from.
            arguments: Its tensors.
            new: The tag of what it made, which gets the formula.
        """
        name = getattr(func, "__name__", "").strip("_")
        given = arguments.given if isinstance(arguments, Operands) else ()
        formula = sources.formula
        if formula is None:
            if not sources.users and may_start(name, given) and not is_in_place(func):
                new.formula = self._start(name, given, sources.tensor)
                if new.formula is not None and name in WHOLE:
                    return recognise(new.formula)
            return None
        if op in MAKES_FEATURES:
            if sources.user is not None and formula.start.named:
                self._activations.leaves_out_at(formula.start)
            return None
        if op in MOVES or name in CARRIES:
            new.formula = formula._replace(values=None)
            return None
        return self._step(op, name, formula, arguments, new) if isinstance(arguments, Operands) and given else None

    def _start(self, name: str, given: Sequence[Any], z: Tensor | None) -> Formula | None:
        """Return the formula whose first step is a call with a tensor, if that may be an activation function's."""
        tag = self._tags.get(z)
        if tag is None or z is None or tag.call is not None or not self._activations.are_features(z):
            return None
        if z.is_complex():  # its magnitude goes from complex numbers to real ones, of which a function may begin
            return None
        unknown = is_unknown(name, given)
        root = tag.root if name != "pow" else None  # both factors are functions of it: no mask, nor a step of another
        if unknown and not (
            (root is None or all(self._tags.is_of(each, root) for each in given)) and self._looks_on(tag.layer)
        ):
            return None
        direct = self._activations.are_of_layer(z)
        named = direct or self._activations.are_of_two(z)
        if not named and wants_layer(name):
            return None
        factor = 1.0 if tag.root is None else tag.factor
        of = self._tags.root(z)
        if factor is None or not (
            math.isfinite(factor) and factor
        ):  # shifted, or of another function: an argument of its own
            of, factor = Origin(z), 1.0
        start = Start(z, factor, tag, name=name, place=self._activations.place(), direct=direct, named=named)
        self._tags.hold(start)
        if unknown:
            return Formula(of, start, None)
        return Formula(
            of, start, evaluate(name, [start.factor * POINTS if each is z else each for each in given], of, self._tags)
        )

    @staticmethod
    def _looks_on(layer: Layer | None) -> bool:
        """Whether to follow what is made of a layer's output that can only turn out to be unknown: told once, in its first step."""
        if layer is None:
            return False
        layer.followed_from = layer.followed_from or layer.step
        return layer.followed_from == layer.step

    def _step(self, op: Op, name: str, formula: Formula, arguments: Operands, new: TensorState) -> Known | None:
        """Take one step of arithmetic."""
        if any(
            each.dim()
            and not self._is_of(each, formula)
            and not self._is_weight(each)
            and self._tags.comparisons.number(each) is None
            for each in arguments
        ):
            # Around a residual block; any other scales it, or is scaled by it.
            if op is Op.SHIFT or self._are_before(arguments, formula):
                new.formula = formula._replace(values=None)
            return None
        new.formula = formula._replace(values=evaluate(name, arguments.given, formula.of, self._tags))
        tags = map(self._tags.get, arguments)
        self._activations.are_steps([tag.call for tag in tags if tag is not None and tag.call is not None])
        return recognise(new.formula) if op in _MAY_END or name in _DIVIDES else None

    def _are_before(self, arguments: Sequence[Tensor], formula: Formula) -> bool:
        """Whether all are functions of what the formula's own argument is another function of: ``x * f(x - 1)``."""
        before = formula.start.tag.root
        return before is not None and all(
            self._is_of(each, formula) or self._tags.is_of(each, before) for each in arguments if each.dim()
        )

    def _is_of(self, tensor: Tensor, formula: Formula) -> bool:
        tag = self._tags.get(tensor)
        own = None if tag is None else tag.formula
        if tag is not None and tag.call is not None and tag.of is formula.of:
            return True
        return own.of is formula.of if own is not None else self._tags.is_of(tensor, formula.of)
