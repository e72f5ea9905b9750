"""Sets of whole numbers that lie close together, as those of what feeds what do in most nets.

A set is its lowest member and, from there on, a bit for each number. So a set of one takes no more room in a deep net than
in a small one, and where thousands feed one site, as along a residual stream, each is a bit.
"""

from __future__ import annotations

from typing import TypeAlias

Span: TypeAlias = tuple[int, int]

EMPTY: Span = (0, 0)


def single(number: int) -> Span:
    """Return the set of one number."""
    return (number, 1)


def union(one: Span, other: Span) -> Span:
    """Return the set of what is in either.

    >>> union((5, 0b1), (3, 0b11))
    (3, 7)
    """
    if one is other or not other[1]:
        return one
    if not one[1]:
        return other
    (low, mask), (low_too, mask_too) = one, other
    if low <= low_too:
        return (low, mask | mask_too << low_too - low)
    return (low_too, mask_too | mask << low - low_too)


def among(span: Span, allowed: int) -> Span:
    """Return the members of a set whose bits are set in `allowed`.

    >>> among((3, 0b111), 0b110000)
    (4, 3)
    """
    low, mask = span
    mask &= allowed >> low
    if not mask:
        return EMPTY
    shift = (mask & -mask).bit_length() - 1
    return (low + shift, mask >> shift)


def members(span: Span) -> list[int]:
    """Return the members of a set, in rising order.

    >>> members((3, 0b101))
    [3, 5]
    """
    low, mask = span
    found = []
    while mask:
        lowest = mask & -mask
        found.append(low + lowest.bit_length() - 1)
        mask ^= lowest
    return found
