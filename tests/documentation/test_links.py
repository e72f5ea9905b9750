"""README and docs are one whole: every link leads somewhere, every page is found, all of it is shipped."""

from __future__ import annotations

import re
import sys

import pytest
from documentation.pages import DOCS, PAGES, README, ROOT, anchors, links, prose, read, tables, title

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OTHERS = tuple(
    ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "tests/integration/SITUATIONS.md")
)
PROJECT = tomllib.loads(read(ROOT / "pyproject.toml"))


def is_address(link):
    return link.startswith(("https://", "http://"))


def target(page, link):
    """Return the file that a link leads to, and the heading in it."""
    path, _, anchor = link.partition("#")
    return (page.parent / path).resolve() if path else page, anchor


def test_the_readme_is_a_first_screen():
    assert len(read(README).splitlines()) <= 150


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=title)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in filter(lambda link: not is_address(link), links(page)):
        path, anchor = target(page, link)
        assert path.is_relative_to(ROOT), link
        assert path.is_file(), link
        assert not anchor or anchor in anchors(path), (link, anchors(path))


def test_headings_become_anchors_as_on_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Several processes (gloo, on a CPU)\n## `check` & more\n```sh\n# no heading\n```\n## Twice\n## Twice\n",
        encoding="utf-8",
    )
    assert anchors(page) == ["several-processes-gloo-on-a-cpu", "check--more", "twice", "twice-1"]


@pytest.mark.parametrize("index", [README, DOCS / "README.md"], ids=title)
def test_every_page_is_in_the_readme_and_in_the_index(index):
    linked = {target(index, link)[0] for link in links(index) if not is_address(link)}
    assert [title(page) for page in PAGES if page.name != "README.md" and page not in linked] == []


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_a_page_is_called_by_its_title_wherever_it_is_listed(page):
    """A reader who follows a link to a page finds the heading that the link was called by."""
    index = read(DOCS / "README.md")
    if page.parent == DOCS and page.name != "README.md":
        heading = re.search(r"^# (.+)$", read(page), re.MULTILINE)[1]
        assert f"[{heading}]({page.name})" in index
        assert f"[{heading}](docs/{page.name})" in read(README)


def test_docs_are_in_the_source_distribution_and_not_in_the_wheel():
    build = PROJECT["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["packages"] == ["lightning_gradwatch"]
    shipped = build["sdist"]["include"]
    assert "docs" in shipped
    for page in PAGES:
        for link in filter(lambda link: not is_address(link), links(page)):
            path = target(page, link)[0].relative_to(ROOT)
            assert path.parts[0] in shipped, (title(page), link)


def test_once_the_project_has_an_address_the_readmes_links_do_without_its_folder():
    """A package index shows the README alone: a relative link leads nowhere there."""
    assert PROJECT["project"]["readme"] == "README.md"
    if PROJECT["project"].get("urls"):
        assert [link for link in links(README) if not is_address(link)] == []
    else:  # there is nothing yet that a link could be made absolute by; a reader of the index sees the files' names
        assert all(is_address(link) or link.partition("#")[0].endswith((".md", ".png")) for link in links(README))


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_the_rows_of_a_table_have_as_many_cells_as_its_header(page):
    for rows in tables(page):
        assert [row for row in rows if len(row) != len(rows[0])] == []


def sentences(page):
    """A page's sentences of more than a few words, as they read."""
    text = re.sub(r"^\|.*$|^#.*$", "", prose(page), flags=re.MULTILINE)
    pieces = re.split(r"(?<=[.:!?])\s+|\n\n+|^- ", text, flags=re.MULTILINE)
    return [words for piece in pieces if len((words := " ".join(piece.split())).split()) > 8]


def test_nothing_is_said_in_two_places():
    where = {}
    for page in PAGES:
        for sentence in sentences(page):
            where.setdefault(sentence, []).append(title(page))
    assert {sentence: found for sentence, found in where.items() if len(found) > 1} == {}


FIELDS_WORDS = {
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\b(?:falls? )?ill\b": "failing, unhealthy",
    r"\bthe article(?:'s)?\b": "name what is meant: no article was introduced",
    r"\b(?:tells? of|told of|is told)\b": "report",
    r"\b(?:quarter|third|%|call|curve|event|line|fit) an? (?:layer|site|call|step|run|fit)\b": "per layer",
}


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_pages_use_the_words_of_the_field(page):
    text = re.sub(r"`[^`\n]+`", "", prose(page))
    for dialect, instead in FIELDS_WORDS.items():
        assert re.findall(dialect, text) == [], f"{instead}: {dialect}"
