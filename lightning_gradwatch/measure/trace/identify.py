"""Which activation function a torch call is, by every spelling that torch offers.

The spellings (function, method, in-place form, alias) are found by a row's name. `identify` is called for every torch
operation of a measured step, so what isn't in the table costs it one dictionary lookup; nothing here reads a tensor's
values.
"""

from __future__ import annotations

import inspect
import itertools
import types
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lightning_gradwatch.measure.units.activations import Call
from lightning_gradwatch.record.activations import ROWS, Activation, look_up, registered
from lightning_gradwatch.record.zones import Zones

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def identify(func: object, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Call | None:
    """Return which activation function a ``TorchFunctionMode`` handler was called for; None if it is none.

    None too for an input that is no tensor of real or complex floats. Never raises, and never waits for a device.
    """
    try:
        if (spelling := _SPELLINGS.get(func)) is None:
            return None
    except TypeError:  # an unhashable callable
        return None
    z = args[0] if args else kwargs.get("input") if kwargs else None
    if not isinstance(z, Tensor) or z.dtype not in FLOATS:
        return None
    if spelling.plain is not None and len(args) == 1 and (not kwargs or kwargs.keys() <= _IN_PLACE_ONLY):
        # The usual call, all parameters at their defaults: no dictionaries to build.
        return Call(spelling.plain, z, spelling.in_place or bool(kwargs and kwargs["inplace"]))
    given: dict[str, Any] = dict(zip(spelling.parameters, args[1:], strict=False))
    if kwargs:
        given.update(kwargs)
    key = tuple((name, _plain(given[name])) for name in spelling.wanted if name in given)
    zones = _zones(spelling.activation.name, key)
    if (dim := zones.gate_dim) is not None and not (-z.dim() <= dim < z.dim() and z.shape[dim] % 2 == 0):
        return None  # torch itself is about to refuse it
    return Call(zones, z, spelling.in_place or bool(_plain(given.get("inplace"))) or given.get("out") is not None)


def is_activation(func: object) -> bool:
    """Return whether a torch function is an activation function, by any of its spellings, and hardly ever anything else."""
    try:
        spelling = _SPELLINGS.get(func)
    except TypeError:  # an unhashable callable
        return False
    return spelling is not None and not spelling.activation.supposed


class _Spelling(NamedTuple):
    activation: Activation
    parameters: tuple[str, ...]
    """Names of the positional parameters after the input."""
    wanted: tuple[str, ...]
    """Names of those that the zones depend on."""
    in_place: bool
    plain: Zones | None
    """The zones of a call without parameters; None where z decides too (GLU)."""


_IN_PLACE_ONLY = frozenset(("inplace",))
FLOATS = frozenset(
    (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64, torch.complex128)
)


def _plain(value: object) -> float | str | None:
    """Return a number or a string as it is; None for what would have to be read from a tensor."""
    if isinstance(value, (int, float, str)):
        return value
    return float(value) if isinstance(value, Real) else None


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


@lru_cache(maxsize=1024)
def _zones(name: str, key: tuple[tuple[str, Any], ...]) -> Zones:
    given = dict(key)
    if None not in given.values():
        try:
            return look_up(name).judge(**given)
        except (ArithmeticError, TypeError, ValueError):  # torch itself is about to refuse it
            pass
    return Zones(name, fractions=False)


def _find_spellings() -> dict[object, _Spelling]:
    spellings: dict[object, _Spelling] = {}
    spaces = (functional, torch, torch.Tensor, torch.special, torch._C._nn)  # noqa: SLF001 - F.silu and others end there
    for row in ROWS:
        wanted = _parameters(row.judge)
        plain = row.usual if row.usual.gate_dim is None else None
        for name, space, suffix in itertools.product((row.name, *row.aliases), spaces, ("", "_")):
            found = getattr(space, name + suffix, None)
            if found is not None:
                # Builtins have no signature; theirs is the row's own.
                positional = _parameters(found)[1:] if isinstance(found, types.FunctionType) else wanted
                spellings[found] = _Spelling(row, positional, wanted, bool(suffix), plain)
    return spellings


_SPELLINGS = _find_spellings()


def _spelled(row: Activation) -> list[Any]:
    """Return the user's functions of a row, of an operator of the dispatcher each of its overloads, too."""
    packets = [each for each in row.functions if isinstance(each, torch._ops.OpOverloadPacket)]  # noqa: SLF001 - it has no public name
    return [*row.functions, *(getattr(packet, name) for packet in packets for name in packet.overloads())]  # type: ignore[no-untyped-call]  # torch leaves it untyped


_learnt: list[tuple[Activation, ...]] = [()]


def learn() -> frozenset[Any]:
    """Learn the functions of the user's own; return those that are spelled otherwise since this was called last.

    Calls of what isn't torch's own don't come to `identify`; who sees them asks `is_activation`.
    """
    rows = registered()
    if rows == _learnt[0]:
        return frozenset()
    changed = {function for row in (*_learnt[0], *rows) for function in _spelled(row)}
    for function in changed:
        _SPELLINGS.pop(function, None)
    for row in rows:
        _SPELLINGS.update(dict.fromkeys(_spelled(row), _Spelling(row, (), (), in_place=False, plain=row.usual)))
    _learnt[0] = rows
    _zones.cache_clear()
    return frozenset(changed)
