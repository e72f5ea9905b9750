"""The pages that users read, and what is in them: prose, links, headings, fenced blocks, tables."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = (README, *sorted(DOCS.glob("*.md")))

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")


class Block(NamedTuple):
    """A fenced block: its place among all of its page, its language and what is in it."""

    place: int
    language: str
    text: str


@cache
def read(page):
    return page.read_text(encoding="utf-8")


def title(page):
    """A page as a path from the root, which tests are named by."""
    return page.relative_to(ROOT).as_posix()


def blocks(page, language=None):
    found = [Block(place, *match.groups()) for place, match in enumerate(_FENCED.finditer(read(page)))]
    return [block for block in found if language in {None, block.language}]


def prose(page):
    """A page without its fenced blocks."""
    return _FENCED.sub("", read(page))


def inline(page):
    """The pieces of code in a page's prose."""
    return _CODE.findall(prose(page))


def links(page):
    """Where the links and pictures of a page lead."""
    return re.findall(r"\]\(([^)\s]+)\)", _CODE.sub("", prose(page)))


def anchors(page):
    """What GitHub makes of a page's headings: lower case, without punctuation, a hyphen for each space."""
    found = []
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        seen = sum(each == slug or re.fullmatch(re.escape(slug) + r"-\d+", each) is not None for each in found)
        found.append(f"{slug}-{seen}" if seen else slug)
    return found


def tables(page):
    """The tables of a page: each a list of rows, each a list of cells, the line under the header left out."""
    found = []
    for text in re.findall(r"(?:^\|.*\|\n?)+", prose(page), re.MULTILINE):
        rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])] for line in text.strip().splitlines()
        ]
        found.append([rows[0], *rows[2:]])
    return found


def table(page, first):
    """The table of a page whose header starts so, without its header."""
    (found,) = [each[1:] for each in tables(page) if each[0][: len(first)] == list(first)]
    return found
