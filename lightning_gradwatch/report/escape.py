"""Makes text from a run safe to print: a layer's name is the user's, and a log may come from anywhere."""

from __future__ import annotations

import unicodedata

# Cc, Cf: control and formatting (escape sequences, right-to-left marks). Cs: half a character, which no output encodes.
# Zl, Zp: line and paragraph separators. Co, Cn (private, unassigned) print as boxes and do no harm.
_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def escape(text: str) -> str:
    r"""Spell out what would steer a terminal or break a line.

    >>> escape("net\x1b[31m.0\n")
    'net\\x1b[31m.0\\n'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii") if unicodedata.category(character) in _UNSAFE else character
        for character in text
    )
