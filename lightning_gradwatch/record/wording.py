"""How numbers and names read in a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def number(value: float) -> str:
    """Format with three significant digits and a short exponent.

    >>> number(0.0030000001), number(2.3456e-26), number(0.0)
    ('0.003', '2.35e-26', '0')
    """
    text = f"{value:.3g}"
    mantissa, mark, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if mark else text


def percent(fraction: float) -> str:
    """Format a fraction as a percentage that never rounds up to 100.

    >>> percent(0.5), percent(0.9996), percent(1.0)
    ('50 %', '99.9 %', '100 %')
    """
    if 0.99 < fraction < 1:
        return f"{min(100 * fraction, 99.9):.1f} %"
    return f"{100 * fraction:.0f} %"


def listed(names: Sequence[str], noun: str = "layer") -> str:
    """Name up to three things, and only the ends and the number of more.

    >>> listed(["net.0"]), listed(["net.0", "net.2", "net.4", "net.6"])
    ('net.0', 'net.0 … net.6 (4 layers)')
    """
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]} ({counted(len(names), noun)})"


def either(names: Sequence[str]) -> str:
    """Name the things of which one is to be taken.

    >>> either(["ReLU"]), either(["ReLU", "LeakyReLU", "ELU"])
    ('ReLU', 'ReLU, LeakyReLU or ELU')
    """
    return " or ".join(each for each in (", ".join(names[:-1]), names[-1]) if each)


def ordinal(number: int) -> str:
    """Spell the place of something in a row.

    >>> [ordinal(number) for number in (1, 2, 3, 4, 11, 22, 113)]
    ['1st', '2nd', '3rd', '4th', '11th', '22nd', '113th']
    """
    ending = "th" if number % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def counted(count: int, noun: str) -> str:
    """Give a number with its noun in the right form.

    >>> counted(1, "layer"), counted(2, "layer")
    ('1 layer', '2 layers')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def mention(code: str) -> str:
    """Return how a sentence names another finding, so that it is one without as well.

    >>> f"It is too weak{mention('GW101')}."
    'It is too weak (GW101).'
    """
    return f" ({code})"


def mentioning_none_of(text: str, codes: Iterable[str]) -> str:
    """Return a text without its `mention` of some codes.

    >>> mentioning_none_of("It is too weak (GW101), not dead (GW201).", ["GW201"])
    'It is too weak (GW101), not dead.'
    """
    for code in codes:
        text = text.replace(mention(code), "")
    return text
