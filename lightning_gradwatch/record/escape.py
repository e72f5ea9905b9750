r"""How text from a run is spelled where it is shown: a layer's name is the user's, and a log may come from anywhere.

One table has a row a place, and whatever is told goes through it. Everywhere what would steer a terminal, reorder or hide
text, or break a line is spelled out (``\x1b``). In what lands in the log of a CI job no line may start a command: GitHub's
runner takes ``::name::`` behind any blanks for one, and ``##[name]`` anywhere in a line (actions/runner, ActionCommand.cs);
``##vso[`` is Azure's and ``##teamcity[`` TeamCity's. A document keeps its names and spells such a sign in its own way.
"""

from __future__ import annotations

import json
import re
import unicodedata
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Place(Enum):
    """Where text is shown."""

    TERMINAL = "terminal"
    """A line or a cell of a report, or of an error."""
    WARNING = "warning"
    LOG = "log"
    JUNIT = "junit"
    """Text or an attribute of an XML document, before its own signs are spelled."""
    ANNOTATION = "annotation"
    """A line of the text of a GitHub command."""
    ANNOTATION_TITLE = "annotation title"
    SARIF = "sarif"
    """A message: it may hold links and placeholders."""
    SARIF_NAME = "sarif name"
    MARKDOWN = "markdown"
    """For GitHub's pages above all, which make links of much that stands bare."""
    TENSORBOARD = "tensorboard"
    """Markdown too, of a page that makes no links."""
    JSON = "json"
    """A string before JSON's own spelling: names stay as they are."""
    PICTURE = "picture"
    PAGE = "page"
    """A text of a web page, which its own scripts put there as text."""


# Cc, Cf: control and formatting (escape sequences, right-to-left marks). Cs: half a character, which no output encodes.
# Zl, Zp: line and paragraph separators. Co, Cn (private, unassigned) print as boxes and do no harm.
_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_AT_LINE_START = re.compile(r"(^|\s)::")
_ANYWHERE = re.compile(r"##(?=\w*\[)")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# What GitHub's Markdown makes links of where it stands bare. Some of it is done before character references are read: there
# a reference is enough. Mentions, issues, commits and emoji are looked for in the page: an empty comment takes them apart.
_MENTIONS = re.compile(
    r"(?P<at>@)(?=\w)"
    r"|(?P<issue>\#)(?=\d)|(?P<gh>\bGH)(?=-\d)"
    r"|(?P<commit>\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{4})(?=[0-9a-f]{3,36}\b)"
    r"|(?P<emoji>:)(?=[\w+-]+:)",
    re.IGNORECASE,
)
_LINKS = re.compile(r":(?=\S)|(?<=www)\.", re.IGNORECASE)
_PLAIN_SIGNS = frozenset(" .,:;/")


def escape(text: str, place: Place = Place.TERMINAL) -> str:
    r"""Spell out what would be more than text in a place.

    >>> escape("net\x1b[31m.0\n"), escape("::error::x"), escape("##[error]x")
    ('net\\x1b[31m.0\\n', '\\x3a:error::x', '#\\x23[error]x')
    >>> escape("[x](http://y) {0}", Place.SARIF), escape("a@b <b>", Place.MARKDOWN)
    ('\\[x\\](http://y) {{0}}', 'a&#64;<!-- -->b &#60;b&#62;')
    """
    return ESCAPES[place](text)


def uncut(text: str) -> str:
    """Return an escaped text that may be cut anywhere: no part of it starts a command."""
    return text.replace("::", r"\x3a:")


def is_command(line: str) -> bool:
    """Whether a line of a CI job's log would be taken for a command."""
    return _AT_LINE_START.match(line.lstrip()) is not None


def json_text(data: Any) -> str:
    """Return JSON in plain ASCII, which no line of can be a command."""
    return _ANYWHERE.sub(r"#\\u0023", json.dumps(data, indent=2, allow_nan=False))


def _spelled(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii") if unicodedata.category(character) in _UNSAFE else character
        for character in text
    )


def _line(text: str) -> str:
    spelled = _spelled(text)
    if "::" in spelled:
        spelled = _AT_LINE_START.sub(r"\1\\x3a:", spelled)
    return _ANYWHERE.sub(r"#\\x23", spelled) if "##" in spelled else spelled


def _junit(text: str) -> str:
    return _NOT_XML.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), _line(text))


def _annotation(text: str) -> str:
    return _line(text).replace("%", "%25")


def _annotation_title(text: str) -> str:
    return _annotation(text).replace(":", "%3A").replace(",", "%2C")


def _sarif(text: str) -> str:
    """As SARIF 2.1.0 has it in 3.11.5 (placeholders) and 3.11.6 (links)."""
    return re.sub(r"([\[\]\\])", r"\\\1", _spelled(text)).replace("{", "{{").replace("}", "}}")


def _markdown(text: str) -> str:
    """As character references, because Markdown's dialects differ in what a backslash escapes."""
    line = " ".join(_spelled(text).split())
    parts, end = [], 0
    for match in _MENTIONS.finditer(line):
        parts += [_referenced(line[end : match.end()]), "<!-- -->"]
        end = match.end()
    return "".join((*parts, _referenced(line[end:])))


def _tensorboard(text: str) -> str:
    return _referenced(_spelled(" ".join(text.split())))


def _referenced(text: str) -> str:
    linked = {match.start() for match in _LINKS.finditer(text)} | ({len(text) - 1} if text.endswith(":") else set())
    return "".join(
        f"&#{ord(sign)};"
        if sign.isascii() and not sign.isalnum() and (sign not in _PLAIN_SIGNS or at in linked)
        else sign
        for at, sign in enumerate(text)
    )


def _json(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


ESCAPES: Mapping[Place, Callable[[str], str]] = {
    Place.TERMINAL: _line,
    Place.WARNING: _line,
    Place.LOG: _line,
    Place.JUNIT: _junit,
    Place.ANNOTATION: _annotation,
    Place.ANNOTATION_TITLE: _annotation_title,
    Place.SARIF: _sarif,
    Place.SARIF_NAME: _spelled,
    Place.MARKDOWN: _markdown,
    Place.TENSORBOARD: _tensorboard,
    Place.JSON: _json,
    Place.PICTURE: _spelled,
    Place.PAGE: _spelled,
}
"""What each place needs."""
