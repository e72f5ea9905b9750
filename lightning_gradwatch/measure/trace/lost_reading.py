"""What the followed calls of a step show: at which operation a layer's gradient is lost, and why."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

import torch

from lightning_gradwatch.measure.trace.followed_calls import (
    MATRIX_PRODUCTS,
    NORMS,
    PRODUCTS,
    REACHED,
    SOFTMAX,
    both_zero,
    names_in,
)
from lightning_gradwatch.measure.trace.identify import is_activation
from lightning_gradwatch.record.activations import look_up
from lightning_gradwatch.record.step import LostGradient

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lightning_gradwatch.measure.model.path import Layer
    from lightning_gradwatch.measure.trace.followed_calls import Call, Operand, Trained, Value
    from lightning_gradwatch.measure.transfer.host import Slot, Values
    from lightning_gradwatch.record.step import LostKind

_KINDS: Mapping[LostKind, frozenset[str]] = {
    "clamped": names_in("clamp clamp_ clip clip_ clamp_min clamp_min_ clamp_max clamp_max_ maximum minimum"),
    "rounded": names_in(
        "round round_ floor floor_ ceil ceil_ trunc trunc_ fix sign sign_ sgn heaviside __floordiv__ floor_divide"
    ),
    "dropped": names_in("dropout dropout_ alpha_dropout feature_dropout dropout1d dropout2d dropout3d"),
    "masked": names_in("where masked_fill masked_fill_ masked_select masked_scatter"),
}
_BY_CHANCE = frozenset(("clamped", "dropped", "masked"))
"""What a few values may all be."""
_FEW = 1024
_MOST_LINES = 3
"""Calls that are named where several cut the ways to a loss."""
_DEEPEST = 32
"""Calls in a row that are looked through for the parameters that make a value 0."""


class _Stop(NamedTuple):
    """A call that a gradient reaches and that passes nothing but 0 on to a value."""

    call: Call
    value: Value


class Reading:
    """What the calls of a step show, with the numbers that belong to them."""

    def __init__(self, calls: Sequence[Call], escapes: Sequence[Call], values: Values, *, incomplete: bool) -> None:
        self._calls = calls
        self._escapes = frozenset(escapes)
        self._numbers = values
        self._incomplete = incomplete

    def explain(self, layer: Layer, arrivals: Sequence[Slot]) -> LostGradient | None:
        """Say why a layer has no gradient, or one of 0; None where that didn't show."""
        if self._any(arrivals):
            return LostGradient("discarded")
        calls = [call for call in self._calls if layer in call.layers]
        made = [value for call in calls for value in call.made]
        if not any(value.node is REACHED or value.arrived for value in made):
            return self._cut(made) if made else None
        fed = [call for call in calls if any(map(self._arrived, call.made))]
        if fed:
            return self._beside(fed)
        reasons = [self._reason(stop) for stop in self._stops(made)]
        return Counter(reasons).most_common(1)[0][0] if reasons else None

    def _beside(self, calls: Sequence[Call]) -> LostGradient:
        """Say why a layer has no gradient although one arrives at what it makes."""
        for call in calls:
            if factors := self.factors(call):
                return both_zero(call, factors)
        data = [each.anything for call in calls for each in call.operands if not each.layer]
        if data and not self._any(data):
            return LostGradient("zero-input", calls[0].name, calls[0].module, calls[0].lines)
        return LostGradient("discarded")

    def _stops(self, made: Sequence[Value]) -> list[_Stop]:
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
        if call.name in SOFTMAX or call.name == "scaled_dot_product_attention":
            sure = call.surest is not None and self._any([call.surest])
            kind = "softmax-of-one" if call.single else "softmax-certain" if sure else "other"
        elif call.name in NORMS:
            kind = "norm-of-one" if call.single else "other"
        elif kind in _BY_CHANCE and call.entries < _FEW:
            kind = "few"
        elif call.zero:
            kind = "times-zero"
        else:
            others = [each for each in call.operands if each.value is not stop.value]
            if others and not self._any([each.anything for each in others]):
                if factors := self.factors(call):
                    return both_zero(call, factors)
                layer = next((each.layer for each in others if each.layer), "")
                kind = "zero-weights" if layer else "zero-factor"
                return LostGradient(kind, call.name, layer or call.module, call.lines)
        return LostGradient(kind, call.name, call.module, call.lines)

    def factors(self, call: Call) -> list[Trained]:
        """Return the trained parameters whose zeros are multiplied in a product, the input's side first; none: there aren't two."""
        zero = [each for each in call.operands if not self._any([each.anything])]
        factors = self._factors_of(zero, call.name, _DEEPEST)
        return factors if len(factors) > 1 else []

    def _factors_of(self, zero: Sequence[Operand], name: str, depth: int) -> list[Trained]:
        if name in MATRIX_PRODUCTS and all(each.parameter is not None for each in zero):
            zero = zero[::-1]  # a weight that is made of two, as B @ A, is given its input from the right
        found = []
        for each in zero:
            behind = [each.parameter] if each.parameter is not None else self._behind(each.value, depth)
            if not behind:
                return []  # something else makes it 0
            found += behind
        return list(dict.fromkeys(found))

    def _behind(self, value: Value | None, depth: int) -> list[Trained]:
        """Return the trained parameters whose zeros make a value 0."""
        if value is None or not depth:
            return []
        call = value.made_by
        if call.name in PRODUCTS:
            zero = [each for each in call.operands if not self._any([each.anything])]
            return self._factors_of(zero, call.name, depth - 1)
        for given in call.given:
            if behind := self._behind(given, depth - 1):
                return behind
        return [known for known, anything in call.parameters if not self._any([anything])][:1]

    def _cut(self, made: Sequence[Value]) -> LostGradient | None:
        """Say where values go on that no gradient comes back from."""
        came_by: dict[Value, Value | None] = dict.fromkeys(made)
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
                    if after.node is REACHED:
                        cuts.append(self._first_cut(came_by, after))
                    else:
                        waiting.append(after)
        if cuts:
            lines = dict.fromkeys(line for each in cuts if each == cuts[0] for line in each.lines)
            return dataclasses.replace(cuts[0], lines=tuple(lines)[:_MOST_LINES])
        if self._incomplete:
            return None
        return LostGradient("left-out") if left is None else LostGradient("escaped", left.name, left.module, left.lines)

    def _first_cut(self, came_by: Mapping[Value, Value | None], end: Value) -> LostGradient:
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

    def _arrived(self, value: Value) -> bool:
        return self._any(value.arrived)

    def _any(self, slots: Iterable[Slot]) -> bool:
        return any(self._numbers[slot][0] != 0 for slot in slots)


def is_activation_name(name: str) -> bool:
    """Whether a function of that name is an activation function."""
    return bool(look_up(name).functions) or any(
        is_activation(found) for space in (torch.nn.functional, torch) if (found := getattr(space, name, None))
    )
