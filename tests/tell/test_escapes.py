"""Whatever a name is, each output shows it and does nothing else: over every format and every place there is."""

from __future__ import annotations

import html
import json
import logging
import re
import textwrap
import unicodedata
import warnings
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import markdown
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tell.samples import HOSTILE, hostile, make_finding, steers

from lightning_gradwatch.cli.command import main
from lightning_gradwatch.judge.run import RunError
from lightning_gradwatch.measure.faults import Faults
from lightning_gradwatch.record.escape import ESCAPES, Place, escape
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, NotCovered
from lightning_gradwatch.record.summaries import findings_markdown
from lightning_gradwatch.tell.announce import announce
from lightning_gradwatch.tell.cells import cells_of, wrapped
from lightning_gradwatch.tell.formats import FORMATS, render
from lightning_gradwatch.tell.terminal import summary_text, verdict_text, warning_text
from lightning_gradwatch.tell.training import training_text
from lightning_gradwatch.testing.plugin.report import failure

PIECES = [
    *HOSTILE,
    "::stop-commands::t",
    "::error file=a,line=1::f",
    "##[add-mask]e",
    "###[group]",
    "##vso[task.complete]",
    "##teamcity[x]",
    "https://evil.example/a?b=c&d",
    "http://x",
    "www.evil.example",
    "WWW.Evil.example",
    "mailto:a@b.c",
    "<https://evil.example>",
    "@octocat",
    "a@b.example",
    "#12",
    "GH-12",
    "o/r#1",
    "1a2b3c4d",
    ":tada:",
    "[x](http://y)",
    "[x](1)",
    r"\[x](1)",
    "![i](http://y)",
    "{0}",
    "{{1}}",
    "$x$",
    "`a`",
    "|",
    " ",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\u202e",
    "\u2066",
    "\u200b",
    "\x9b2J",
    "\x08\x08",
    "x" * 78,
    "-" * 79,
]
NAMES = (st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=6).map("".join) | st.text()).filter(bool)
often = settings(deadline=None, max_examples=60)


def commands(text):
    """Return the lines that a CI server would take for commands, known ones or not."""
    return [
        line
        for line in re.split(r"\r\n|\r|\n", text)
        if re.match(r"\s*::", line) or re.search(r"##(vso|teamcity)?\[", line)
    ]


def spelled(text):
    """Return text with what can't be shown spelled out, told by the character database alone."""
    return "".join(
        sign.encode("unicode_escape").decode() if unicodedata.category(sign) in {"Cc", "Cf", "Cs", "Zl", "Zp"} else sign
        for sign in text
    )


# -- every format of a report


@often
@given(NAMES, st.sampled_from(FORMATS))
def test_no_format_steers_a_terminal_or_starts_a_command(name, form):
    text = render([hostile(name), hostile(name)], form)
    assert not steers(text)
    text.encode()
    if form != "github":
        assert commands(text) == []
        return
    for line in text.split("\n"):
        assert re.fullmatch(r"::(error|warning|notice) title=[^:,]*::.*", line)
        assert "##[" not in line


class Page(HTMLParser):
    """What a page shows, by its list's labels and its table's cells; and its tags."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = set(), []
        self.feed(markdown.markdown(text, extensions=["tables"]))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag in ("li", "td"):
            self.texts.append("")

    def handle_data(self, data):
        if self.texts:
            self.texts[-1] += data


def sarif_message(text):
    return re.sub(r"\\([\[\]\\])", r"\1", text.replace("{{", "{").replace("}}", "}"))


def from_json(text, name):
    assert json.loads(text)["runs"][0]["findings"][0]["layers"] == [name.encode("utf-8", "backslashreplace").decode()]


def from_sarif(text, name):
    log = json.loads(text)["runs"][0]
    message = log["results"][0]["message"]["text"]
    assert not re.search(r"(?<!\{)(?:\{\{)*\{\d+\}", message)
    assert not re.search(r"(?<!\\)(?:\\\\)*\[", message)
    assert sarif_message(message) == " ".join([spelled(name)] * 3)
    (place,) = log["results"][0]["locations"][0]["logicalLocations"]
    assert place["fullyQualifiedName"] == spelled(name)


def from_junit(text, name):
    root = ET.fromstring(text.encode())
    assert {each.tag for each in root.iter()} <= {
        "testsuites",
        "testsuite",
        "properties",
        "property",
        "testcase",
        "failure",
        "error",
        "skipped",
        "system-out",
        "system-err",
    }
    assert len(root) == 1


def from_markdown(text, name):
    page = Page(text)
    assert page.tags <= {"h2", "h3", "h4", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "strong", "p"}
    shown = " ".join(spelled(name).split())
    assert page.texts[0].strip() == shown
    assert f"seen {shown}".strip() in [each.strip() for each in page.texts]
    for bare in (r"https?://", r"(?i)\bwww\.", r"@\w", r"(?<!&)#\d", r"(?i)\bGH-\d", r"(?i)mailto:"):
        assert not re.search(bare, text), bare
    for bare in (r"&#64;\w", r"&#35;\d", r"(?i)\bGH&#45;\d"):  # as a page is searched for mentions
        assert not re.search(bare, text), bare


class Document(HTMLParser):
    """What a document holds: its tags, what its elements of data say, and what is shown without scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.data = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag, given = self.tags[-1] if self.tags else ("", {})
        if tag == "script" and given.get("type") == "application/json":
            self.data += data
        elif tag not in {"script", "style"}:
            self.texts.append(data)


def from_html(text, name):
    """The names of a page are in its data, and in its table for readers without scripts: no more elements than without."""
    page = Document(text)
    plain = Document(render([hostile("plain")], "html"))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    finding = json.loads(page.data)["runs"][-1]["findings"][0]
    assert finding["layers"] == [spelled(name)]
    assert any(spelled(name) in each for each in page.texts) or not spelled(name).strip()


def from_github(text, name):
    data = text.split("\n")[0].split("::", 2)[2]
    assert not re.search(r"%(?!25|0A)", data)
    assert commands(data.replace("%0A", "\n").replace("%25", "%")) == []


def from_text(text, name):
    assert max(map(len, text.split("\n"))) <= 80


DOCUMENTS = {
    "text": from_text,
    "json": from_json,
    "junit": from_junit,
    "github": from_github,
    "sarif": from_sarif,
    "markdown": from_markdown,
    "html": from_html,
}


def test_every_format_says_how_it_is_read_again():
    """One that is new has a row above before it ships."""
    assert set(DOCUMENTS) == set(FORMATS)


@pytest.mark.parametrize("form", FORMATS)
@often
@given(name=NAMES)
def test_a_name_is_what_a_document_shows(form, name):
    DOCUMENTS[form](render([hostile(name)], form), name)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", PIECES)
def test_so_is_each_name_that_was_ever_thought_of(form, name):
    for each in (name, f"a {name} b", f"{'x' * 70} {name}", f"{'x' * 79}{name}{name}"):
        text = render([hostile(each)], form)
        assert not steers(text)
        assert form == "github" or commands(text) == []
        DOCUMENTS[form](text, each)


# -- every place


LINES = {Place.TERMINAL, Place.WARNING, Place.LOG, Place.JUNIT, Place.ANNOTATION, Place.ANNOTATION_TITLE}


@pytest.mark.parametrize("place", Place)
@often
@given(text=NAMES)
def test_every_place_has_a_row_and_nothing_in_it_steers(place, text):
    assert set(ESCAPES) == set(Place)
    found = escape(text, place)
    if place is not Place.JSON:  # which spells the rest itself
        assert not steers(found)
        assert "\n" not in found
    found.encode()
    if place in LINES:
        assert commands(found) == []
    if place in {Place.TERMINAL, Place.WARNING, Place.LOG, Place.JUNIT}:
        assert escape(found, place) == found  # what is told passes here more than once


@often
@given(NAMES, st.integers(21, 100))
def test_lines_are_as_wide_as_asked_wherever_a_word_is_cut(text, width):
    lines = wrapped(text, width, "  label  ", "         ")
    assert max(map(cells_of, lines), default=0) <= width  # a combining mark takes no cell
    assert commands("\n".join(lines)) == []


def test_ordinary_text_is_left_alone():
    for text in ("aten::linear isn't seen", "block.2:relu", "a b  c", "std::vector", "# x [y]", "блок.0 … 层 ü"):
        assert escape(text) == text
        assert wrapped(text, 80) == textwrap.wrap(text, 80)
    assert escape("net.0: not yet, 3/4 of it; see logs/x", Place.MARKDOWN) == "net.0: not yet, 3/4 of it; see logs/x"


# -- what is told besides reports


@often
@given(NAMES)
def test_texts_of_a_run_hold_no_command(name):
    finding = make_finding(layers=(name,), message=name, cause=name)
    info = RunInfo(
        layers=(LayerInfo(name, name, ((2, 2),), 4, weight=True),),
        coverage=(NotCovered(name, name), NotCovered("", name)),
    )
    report = training_text([], info, [finding], judged=1, unjudged={name: name}, ok=False)
    watched = SimpleNamespace(why_nothing=name, failing=(finding,), options=SimpleNamespace(fail_on="error"))
    for text in (
        warning_text(finding),
        verdict_text(hostile(name)),
        summary_text([hostile(name)] * 2),
        report,
        failure(watched),
        str(RunError(name)),
        findings_markdown([finding]),
        told_at_the_start(info),
        told_of_a_fault(name),
    ):
        assert not steers(text)
        assert commands(text) == []


def told_at_the_start(info):
    """Return the line as a handler gets it."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log = logging.getLogger("lightning_gradwatch")
    log.addHandler(handler)
    try:
        announce(info, f"written to {info.layers[0].name if info.layers else ''}")
    finally:
        log.removeHandler(handler)
    (line,) = lines
    assert "\n" not in line
    return line


def told_of_a_fault(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Faults().lose(name, warning=name)
    return str(caught[0].message)


@pytest.mark.parametrize("name", ["\n::error::x", "\x1b[31m", " ##[error]x"])
@pytest.mark.parametrize(
    "arguments", [["check", "--{}"], ["check", "{}"], ["explain", "{}"], ["check", "x", "--set", "{}"]]
)
def test_what_is_wrong_with_the_arguments_is_told_safely(name, arguments, capsys, tmp_path, monkeypatch):
    """They may be names of files that a glob has found."""
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(name) for argument in arguments]) == 2
    told = capsys.readouterr()
    assert commands(told.out + told.err) == []
    assert not steers(told.out + told.err)


def test_tensorboards_text_shows_the_name():
    text = findings_markdown([make_finding(layers=("https://x @y <b>",))])
    assert "https://x @y <b>" in html.unescape(text)
