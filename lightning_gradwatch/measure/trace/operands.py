"""The tensors among the arguments of a call, with what else of these the kind of call is read by."""

from __future__ import annotations

import math
import string
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_gradwatch.measure.trace.comparisons import plain_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

EINSUMS = ("einsum", "tensordot", "inner")
"""Products whose sums over axes an equation has."""


class Operands(list["Tensor"]):
    """The tensors among the arguments of a call that computes values."""

    constant = math.nan
    """What its one tensor is multiplied by, or what is added to it; NaN where that is something else than a plain number."""
    sign = 1.0
    """-1 where the tensor is taken away from that number."""
    given: Sequence[Any] = ()
    """All arguments of the call, if they have no names."""


def operands_of(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Operands:
    """Return the tensors that an operation computes with, and the constant that one is multiplied by."""
    operands = Operands(tensors_in((*args, *kwargs.values()) if kwargs else args))
    if not kwargs:
        operands.given = args
    name = getattr(func, "__name__", "")
    if "neg" in name:
        operands.constant = -1.0
    elif "div" not in name and "mul" not in name and "add" not in name and "sub" not in name:
        operands.constant = 1.0  # a cast or a copy; of what else there is nobody asks
    elif len(args) == 2 and not kwargs and (number := _number_of(args)) is not None:
        operands.constant = (1.0 / number if number else math.nan) if "div" in name else number
        if "sub" in name:
            if "rsub" in name or not (isinstance(args[0], Tensor) and args[0].dim()):
                operands.sign = -1.0
            else:
                operands.constant = -number
    return operands


def _number_of(args: Sequence[Any]) -> float | None:
    """Return the number among two arguments of which the other is a tensor with axes; None where there is none that is known."""
    first, second = args
    number = second if isinstance(first, Tensor) and (first.dim() or not isinstance(second, Tensor)) else first
    return number if number.__class__ in (int, float) else plain_number(number)


class Einsum(list["Tensor"]):
    """The tensors of an ``einsum``, and what it does with their axes."""

    equation = ""


def einsum_of(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Einsum:
    """Return the operands of an ``einsum``, or of what could be written as one; without its equation where that isn't known."""
    operands = Einsum(tensors_in((*args, *kwargs.values()) if kwargs else args))
    if args and isinstance(args[0], str):
        operands.equation = args[0]
    elif func.__name__ == "tensordot":
        operands.equation = _equation_of(operands, kwargs.get("dims", args[2] if len(args) > 2 else _USUAL_DIMS))
    elif func.__name__ == "inner":
        operands.equation = _equation_of(operands, ([-1], [-1]))
    return operands


def _equation_of(operands: Sequence[Tensor], dims: Any) -> str:
    """Return the equation of ``tensordot``; empty where its axes aren't plain numbers, or aren't those of its tensors."""
    ranks = [each.dim() for each in operands]
    if len(ranks) != 2 or sum(ranks) > len(_LABELS):
        return ""
    try:
        return _spelled_equation(ranks, dims)
    except (LookupError, TypeError, ValueError):  # torch itself is about to refuse it
        return ""


def _spelled_equation(ranks: Sequence[int], dims: Any) -> str:
    one, other = _LABELS[: ranks[0]], _LABELS[ranks[0] : sum(ranks)]
    if isinstance(dims, int):
        dims = list(range(ranks[0] - dims, ranks[0])), list(range(dims))
    here_and_there = [each if isinstance(each, (tuple, list)) else (each,) for each in dims]
    shared = {other[there]: one[here] for here, there in zip(*here_and_there, strict=True)}
    named = "".join(shared.get(label, label) for label in other)
    left = "".join(label for label in one + named if label not in shared.values())
    return f"{one},{named}->{left}"


_LABELS = string.ascii_letters
_USUAL_DIMS = 2


def tensors_in(args: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among arguments, one level of lists and tuples deep."""
    found: list[Tensor] = []
    for arg in args:
        if isinstance(arg, Tensor):
            found.append(arg)
        elif isinstance(arg, (list, tuple)):
            found += [entry for entry in arg if isinstance(entry, Tensor)]
    return found
