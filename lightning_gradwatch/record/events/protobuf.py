"""The fields of a protobuf message, read in place from its bytes.

protobuf's own parser makes an object of 150 bytes out of two bytes of a hostile event, takes the fields of two messages
that stand one behind the other for one message's, and keeps silent about what it doesn't know. Here nothing is made that
isn't asked for, and what isn't a message is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT, BYTES = 0, 2
"""Wire types; the others are of numbers of a fixed size."""

_FIXED = {1: 8, 5: 4}
_LEAST_KEY = 8
_MOST_VARINT_BYTES = 10
_BROKEN = "its framing inside is broken"


class BrokenMessageError(ValueError):
    """The bytes aren't those of a message."""


def fields(data: bytes, at: int, end: int, *, most: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the fields of the message between two offsets, at most so many.

    Yields:
        The field's key (number times 8 plus wire type), and of its contents the value (of a number, else 0), where they
        start and where they end.

    Raises:
        BrokenMessageError: the bytes aren't those of a message of so few fields.
    """
    while at != end:
        most -= 1
        try:
            key, start = _varint(data, at)
            value, start, at = _contents(data, start, key & 7)
        except IndexError as error:
            raise BrokenMessageError(_BROKEN) from error
        if at > end or key < _LEAST_KEY or most < 0:
            raise BrokenMessageError(_BROKEN)
        yield key, value, start, at


def _contents(data: bytes, at: int, wire: int) -> tuple[int, int, int]:
    """Return the value of a field's contents, where they start and where they end."""
    if wire == BYTES:
        length, start = _varint(data, at)
        return 0, start, start + length
    if wire == VARINT:
        value, end = _varint(data, at)
        return value, at, end
    if wire not in _FIXED:
        raise BrokenMessageError(_BROKEN)
    return 0, at, at + _FIXED[wire]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that starts at an offset, and the offset behind it."""
    number = data[at]
    if number < 0x80:
        return number, at + 1
    number &= 0x7F
    for place in range(1, _MOST_VARINT_BYTES):
        byte = data[at + place]
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    raise BrokenMessageError(_BROKEN)
