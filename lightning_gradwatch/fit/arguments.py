"""How GradWatch's arguments are checked: an error names the argument, the value and what would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

_Choice = TypeVar("_Choice")


def check_count(argument: str, value: Any, *, least: int, none: str) -> int | None:
    """Return an integer argument or None.

    Raises:
        TypeError: it is neither.
        ValueError: it is below `least`.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"GradWatch({argument}={value!r}): must be an integer of at least {least}, or None ({none})")
    if value < least:
        raise ValueError(f"GradWatch({argument}={value!r}): must be at least {least}, or None ({none})")
    return value


def check_choice(argument: str, value: _Choice, choices: Sequence[_Choice]) -> _Choice:
    """Return an argument that is one of a few values.

    Raises:
        ValueError: it is none of them.
    """
    if value not in choices:
        raise ValueError(f"GradWatch({argument}={value!r}): must be one of {', '.join(map(repr, choices))}")
    return value


def check_function(argument: str, value: _Choice) -> _Choice:
    """Return an argument that is a function or None.

    Raises:
        TypeError: it is neither.
    """
    if value is not None and not callable(value):
        raise TypeError(f"GradWatch({argument}=…): is {type(value).__name__}, must be a function of the batch, or None")
    return value
