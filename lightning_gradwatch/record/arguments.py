"""How arguments are checked that a user gives: an error names the call, the argument, the value and what would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

_Value = TypeVar("_Value")


def check_count(of: str, argument: str, value: Any, *, least: int, also: str = "") -> int:
    """Return an integer argument.

    Args:
        of: What is called, as the user wrote it.
        argument: The name of the argument.
        value: What was given.
        least: The smallest that will do.
        also: What else would do, or an example.

    Raises:
        TypeError: it is none.
        ValueError: it is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{of}({argument}={value!r}): must be an integer of at least {least}{also}")
    if value < least:
        raise ValueError(f"{of}({argument}={value!r}): must be at least {least}{also}")
    return value


def check_count_or_none(of: str, argument: str, value: Any, *, least: int, none: str) -> int | None:
    """Return an integer argument or None, which stands for `none`.

    Raises:
        TypeError, ValueError: as `check_count`.
    """
    return None if value is None else check_count(of, argument, value, least=least, also=f", or None ({none})")


def check_choice(of: str, argument: str, value: _Value, choices: Sequence[_Value]) -> _Value:
    """Return an argument that is one of a few values.

    Raises:
        ValueError: it is none of them.
    """
    if value not in choices:
        raise ValueError(f"{of}({argument}={value!r}): must be one of {', '.join(map(repr, choices))}")
    return value


def check_flag(of: str, argument: str, value: Any) -> bool:
    """Return an argument that is True or False.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{of}({argument}={value!r}): must be True or False")
    return value


def check_function(of: str, argument: str, value: _Value) -> _Value:
    """Return an argument that is a function or None.

    Raises:
        TypeError: it is neither.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{of}({argument}=…): is {type(value).__name__}, must be a function of the batch, or None")
    return value
