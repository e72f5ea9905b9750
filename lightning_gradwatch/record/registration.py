"""Rows of the user's own in the table of activation functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Real
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodType
from typing import Any, Literal, get_args

from lightning_gradwatch.record.activations import (
    ROWS,
    Activation,
    Method,
    add_row,
    is_known,
    look_up,
    registered,
)
from lightning_gradwatch.record.zones import Region, Zones

_TORCHS = frozenset(
    row.module
    for row in ROWS
    if row.module != row.name and row.usual.fractions and row.usual.gate_dim is None and row.name != "threshold"
)
"""Classes in ``torch.nn`` that may take the place of another function: made without arguments, they keep the units."""
_INNER = "erf"
"""What hand-written functions are made of, and no activation function by itself."""
_WATCHED = "a Python function, an nn.Module class, a torch.autograd.Function class, or an operator of torch's"


def register_activation(
    *functions: Callable[..., Any],
    name: str | None = None,
    inactive: Sequence[tuple[float, float]] = (),
    saturated: Sequence[tuple[float, float]] | None = None,
    steepest: float = 1.0,
    passes: float = 1.0,
    flat_middle: bool = False,
    gates: bool = False,
    initialization: Literal["xavier_normal_", "kaiming_normal_"] = "kaiming_normal_",
    replaced_by: Sequence[str] = (),
    nodes: Sequence[str] = (),
) -> None:
    """Make an activation function of yours known: its calls are then measured, judged and reported as torch's own are.

    Call it where the function is defined, so that each process that imports it knows it; before the first measured step is early
    enough, whether or not a monitor was made already. A function that is defined anew (a notebook's cell that is run again)
    takes the place of the earlier one.

    The argument is the first tensor that a call is given, its units lie along the axis that the layer before it has made, and
    nothing inside of the call is measured by itself. An interval ``(low, high)`` is a set of z, its ends are in it, and
    either end may be infinite.

    Args:
        functions: What computes it: one or more of a Python function, an ``nn.Module`` class (not an instance; its subclasses count,
            unless they have a ``forward`` of their own), a ``torch.autograd.Function`` class, an operator of torch's.
        name: What records and findings call it; None: the name of the first.
        inactive: The intervals of z in which the derivative is exactly 0: a unit that stays there is dead. Empty where there is
            no such interval.
        saturated: The intervals on an outer side, on which the function is bounded, in which its derivative is below 7 % of its
            maximum (``1 / cosh(2) ** 2``). Empty where no side is flat; None where that is no question, as for ReLU: then no
            saturated fraction is given.
        steepest: The largest absolute derivative. Below 1 the function takes away signal wherever its inputs lie.
        passes: The share of the signal that a layer passes back in a deep net that starts as `initialization` has it; 1 for about all.
        flat_middle: Whether the derivative is 0 at 0.
        gates: Whether it is a gate where its output multiplies another tensor, as a sigmoid's is.
        initialization: The function of ``torch.nn.init`` for the weights before it: Xavier's for a function that is close to linear
            around 0 and bounded on both sides, else He's.
        replaced_by: Classes in ``torch.nn`` that a remedy puts in its place, the best first. Empty: those for torch's own functions.
        nodes: The names of its autograd nodes without their numbers, where it may be called out of sight (from a script or an
            extension), so that it is missed there.

    Raises:
        TypeError: a function is of a kind whose calls can't be watched, such as an instance of a module or a ``functools.partial``;
            an interval isn't a pair of numbers, or another argument isn't of its type.
        ValueError: no function is given; the name is no identifier, or another function's; a function is known already, by
            another name or as torch's own; an interval is empty, all of z, or overlaps another one; a saturated one has two finite
            ends; a number is out of its range; a method or a replacement isn't known.
    """
    if not functions:
        raise ValueError(f"register_activation(): give the function that is to be known: {_WATCHED}")
    for function in functions:
        _require_watchable(function)
    name = _name_of(functions[0]) if name is None else name
    _require_new(name, functions)
    if initialization not in get_args(Method):
        raise ValueError(f"initialization={initialization!r} must be one of {', '.join(get_args(Method))}")
    zones = _zones(name, _intervals("inactive", inactive), saturated)
    steepest = _number("steepest", steepest)
    passes = _number("passes", passes, most=1.0)
    instead = _modules(replaced_by)
    row = Activation(
        name,
        name,
        lambda: zones,
        steepest=steepest,
        passes=passes,
        flat_middle=bool(flat_middle),
        initialization=initialization,
        nodes=_names("nodes", nodes),
        gating="products" if gates else "never",
        functions=functions,
    )
    add_row(row._replace(when_fading=instead, when_dead=instead) if instead else row)


def is_torchs_operator(function: object) -> bool:
    """Whether a callable is one of torch's own in C++, or an operator, whose calls torch tells of."""
    if isinstance(function, MethodDescriptorType):
        return function.__objclass__.__module__.startswith("torch")
    if isinstance(function, BuiltinFunctionType):
        return str(function.__module__).startswith("torch")
    return type(function).__module__ == "torch._ops"


def called_function(function: Any) -> FunctionType | None:
    """Return the Python function that runs where a registered one is called; None where there is none."""
    if isinstance(function, type):
        kind: Any = function
        of_autograd = hasattr(kind, "backward") and hasattr(kind, "apply")
        function = kind.apply if of_autograd else getattr(kind, "forward", None) or kind.__call__
    if isinstance(function, MethodType) and isinstance(function.__self__, type):
        function = function.__func__
    return function if isinstance(function, FunctionType) else None


def _require_watchable(function: Any) -> None:
    if not callable(function):
        raise TypeError(f"register_activation({function!r}): must be {_WATCHED}")
    if called_function(function) is not None or is_torchs_operator(function):
        return
    kind = type(function)
    if callable(getattr(kind, "forward", None)) and not isinstance(function, type):
        raise TypeError(
            f"register_activation({kind.__name__}(…)): give the class, {kind.__name__}, not an instance of it: what is known of a "
            "function holds for all of its modules"
        )
    raise TypeError(
        f"register_activation({function!r}): the calls of a {kind.__name__} can't be watched; give {_WATCHED}, which "
        "calls it"
    )


def _name_of(function: Any) -> str:
    owner = function.__self__ if isinstance(function, MethodType) else function
    return str(getattr(owner, "__name__", ""))


def _require_new(name: str, functions: Sequence[Any]) -> None:
    """Refuse a name or a function that is another row's; a function that is defined anew is its own."""
    _require_free(name, functions)
    for function in functions:
        own = str(getattr(function, "__name__", ""))
        if _defined(function)[0].startswith("torch") and look_up(own) in ROWS:
            raise ValueError(f"{own} is torch's own {look_up(own).module}, which is known")
        for row in registered():
            if function in row.functions and row is not look_up(name):
                raise ValueError(f"{own} is registered already, as {row.name}")
    if len(set(functions)) < len(functions):
        raise ValueError(f"register_activation(): a function of {name} is given twice")


def _require_free(name: str, functions: Sequence[Any]) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name={name!r} must be a str, not {type(name).__name__}")
    if not name.isidentifier():
        raise ValueError(f"name={name!r} must be an identifier, such as 'squareplus': give one by name=")
    if is_known(name):
        row = look_up(name)
        if row in ROWS:
            raise ValueError(f"name={name!r} is torch's own {row.module}, which is known: give another name")
        if not any(_defined(each) == _defined(row.functions[0]) for each in functions):
            raise ValueError(f"name={name!r} is that of another activation function: give one of its own by name=")
    elif name.lower() == _INNER:
        raise ValueError(f"name={name!r} is that of another function: give one of its own by name=")


def _defined(function: Any) -> tuple[str, str]:
    """Return in which module a function or class is defined, and as what."""
    owner = function.__self__ if isinstance(function, MethodType) else function
    home = owner.__objclass__ if isinstance(owner, MethodDescriptorType) else owner
    return str(getattr(home, "__module__", "")), str(getattr(owner, "__qualname__", id(owner)))


def _is_number(value: object) -> bool:
    return False if isinstance(value, bool) else isinstance(value, Real)


def _number(argument: str, value: Any, *, most: float = math.inf) -> float:
    if not _is_number(value):
        raise TypeError(f"{argument}={value!r} must be a number, not {type(value).__name__}")
    if not (0 < value <= most and math.isfinite(value)):
        limit = "" if most == math.inf else f", and at most {most:g}"
        raise ValueError(f"{argument}={value!r} must be above 0 and finite{limit}")
    return float(value)


def _names(argument: str, given: Sequence[str]) -> tuple[str, ...]:
    if isinstance(given, str) or not all(isinstance(each, str) for each in given):
        raise TypeError(f"{argument}={given!r} must be a sequence of str")
    return tuple(given)


def _modules(given: Sequence[str]) -> tuple[str, ...]:
    names = _names("replaced_by", given)
    if unknown := [each for each in names if each not in _TORCHS]:
        raise ValueError(f"replaced_by: {', '.join(unknown)} must be classes in torch.nn: {', '.join(sorted(_TORCHS))}")
    return names


# -- zones


def _intervals(argument: str, given: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return intervals in their order.

    Raises:
        TypeError, ValueError: as `register_activation`.
    """
    intervals = []
    try:
        pairs = [tuple(each) for each in given]
    except TypeError:
        raise TypeError(f"{argument}={given!r} must be pairs of numbers, such as [(-math.inf, 0.0)]") from None
    for each in pairs:
        if len(each) != 2 or not all(map(_is_number, each)):
            raise TypeError(f"{argument}: {each!r} must be two numbers, (low, high)")
        low, high = map(float, each)
        if not low < high:  # NaN, too
            raise ValueError(f"{argument}: ({low!r}, {high!r}) must rise from low to high")
        if math.isinf(low) and math.isinf(high):
            raise ValueError(f"{argument}: ({low!r}, {high!r}) is all of z: such a function passes nothing on")
        intervals.append((low, high))
    intervals.sort()
    for one, other in pairwise(intervals):
        if other[0] <= one[1]:
            raise ValueError(f"{argument}: {one!r} and {other!r} overlap: their ends are in them")
    return intervals


def _zones(name: str, inactive: list[tuple[float, float]], saturated: Sequence[tuple[float, float]] | None) -> Zones:
    """Return zones of regions that are the same or apart, as what is in two of them would be counted twice."""
    flat = None if saturated is None else _intervals("saturated", saturated)
    if flat is not None and any(not (math.isinf(low) or math.isinf(high)) for low, high in flat):
        raise ValueError(f"saturated={saturated!r}: each must reach to an infinite end, as only outer sides saturate")
    ends = sorted({end for low, high in (*inactive, *(flat or ())) for end in (low, math.nextafter(high, math.inf))})
    pieces = [(low, after if math.isinf(after) else math.nextafter(after, -math.inf)) for low, after in pairwise(ends)]

    def regions(intervals: list[tuple[float, float]]) -> tuple[Region, ...]:
        return tuple(
            _region(*piece) for piece in pieces if any(low <= piece[0] and piece[1] <= high for low, high in intervals)
        )

    return Zones(name, regions(inactive), None if flat is None else regions(flat))


def _region(low: float, high: float) -> Region:
    if math.isinf(high):
        return Region(">=", low)
    return Region("<=", high, lower=low)
