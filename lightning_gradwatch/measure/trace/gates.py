"""Which activation calls gate: what their output multiplies is another tensor, of which something is learned through it.

The output of a call is followed through whatever is a function of it alone, or of several such outputs (a mean, a clamp, a
slice, a dropout, a sum of gates), until it meets other data. A product makes a gate of it; a sum, as around a residual block,
ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from lightning_gradwatch.measure.trace.tensor_state import Op
from lightning_gradwatch.record.activations import look_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from lightning_gradwatch.measure.model.path import Site
    from lightning_gradwatch.measure.trace.handwritten import HandWritten
    from lightning_gradwatch.measure.trace.tensor_state import SiteCall, TensorState, TensorStates

_DIVISIONS = frozenset(
    ["div", "true_divide", "divide", "div_", "divide_", "__truediv__", "__itruediv__", "__rtruediv__", "__div__"]
)
_PRODUCTS = frozenset(["outer", "ger", "kron"])
_LIKE_ANOTHER = frozenset(("type_as", "to"))
"""Calls that take another argument for what it is like, as those that change the shape do."""
_LERP_TO = 3
"""Arguments of a linear interpolation whose weight, the last of them, is a tensor."""
_SUMMING = frozenset(
    ["einsum", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "dot", "vdot", "inner", "tensordot"]
)


_MOST = 8
"""Activation calls that one tensor is made of, as far as they are followed."""


class _Made(NamedTuple):
    function: str
    """Of the site."""
    shape: torch.Size
    """Of what the call made."""


def may_gate(site: Site) -> bool:
    """Whether a site computes a function that gates."""
    return _gates(site.function)


def _gates(function: str) -> bool:
    return look_up(function).gating not in ("never", "itself")


def of_hand_written(done: HandWritten) -> tuple[SiteCall, ...]:
    """Return the call whose output may gate, as of what a hand-written function has made of it."""
    return (done.call,) if done.call is not None and _gates(done.function) else ()


def follow(
    op: Op, func: Callable[..., Any], arguments: Sequence[Tensor], tags: TensorStates, result: Tensor
) -> tuple[list[Site], tuple[SiteCall, ...]]:
    """Follow the outputs of activation calls through a call.

    Args:
        op: What the call does to the unit axis.
        func: The torch function.
        arguments: Its tensors, of which at least one is made of an activation call's output.
        tags: What is known of them.
        result: What it made.

    Returns:
        The sites that turn out to gate, and the activation calls that the result is a function of, if it's one of them alone.
    """
    name = getattr(func, "__name__", "")
    if op is Op.RESHAPE or name in _LIKE_ANOTHER:
        arguments = arguments[:1]
    known = [tags.get(argument) for argument in arguments]
    data = [place for place, each in enumerate(arguments) if each.dim() and not _is_weight(each, known[place])]
    calls = {place: tag.gate for place in data if (tag := known[place]) is not None and tag.gate}
    others = {place: [other for other in data if calls.get(other) != each] for place, each in calls.items()}
    if not any(others.values()):
        return [], next(iter(calls.values()), ())
    gating = [
        call.site
        for place, each in calls.items()
        for call in each
        if any(
            _multiplies(op, name, (place, other), arguments, _Made(call.site.function, result.shape))
            and not (name in _DIVISIONS and other in calls and set(calls[other]) < set(each))  # a part's share of a sum
            and (
                _learns(arguments[other], other, result)
                or not torch.is_grad_enabled()
                or look_up(call.site.function).gating == "scales"
            )
            for other in others[place]
        )
    ]
    if gating:
        return gating, ()
    # What gets no gradient, as a padding mask or a dropout's, lets nothing be learnt through the factor beside it.
    learned = any(place not in calls and _learns(arguments[place], place, result) for place in data)
    return [], () if learned or not torch.is_grad_enabled() else _all_of(calls.values())


def _learns(argument: Tensor, place: int, result: Tensor) -> bool:
    """Whether an argument got a gradient before the call too, which may have been in place."""
    if argument is not result or result.grad_fn is None:
        return argument.requires_grad
    edges = result.grad_fn.next_functions
    return place >= len(edges) or edges[place][0] is not None


def _all_of(calls: Iterable[tuple[SiteCall, ...]]) -> tuple[SiteCall, ...]:
    """Return the calls that something is made of; none where a site's turns are among them, as of states that are looked at."""
    found = tuple(dict.fromkeys(call for each in calls for call in each))
    return found if len({call.site for call in found}) == len(found) <= _MOST else ()


def _multiplies(op: Op, name: str, pair: tuple[int, int], arguments: Sequence[Tensor], made: _Made) -> bool:
    """Whether a call multiplies a pair of its arguments, the first of which is made of a site's output."""
    place, other = pair
    if name in _SUMMING:
        each = made.shape == arguments[place].shape == arguments[other].shape
        return look_up(made.function).gating == "sums" or (name == "einsum" and each)
    return (
        op is Op.MULTIPLY
        or name in _PRODUCTS
        or (name in _DIVISIONS and (place == 1 or name == "__rtruediv__"))
        or (name.startswith("addcmul") and {place, other} == {1, 2})
        or (name.startswith("addcdiv") and (place, other) == (2, 1))
        or (name.startswith("lerp") and len(arguments) == _LERP_TO and 2 in (place, other))
    )


def _is_weight(tensor: Tensor, tag: TensorState | None) -> bool:
    return isinstance(tensor, nn.Parameter) or (tag is not None and tag.weights_only)
