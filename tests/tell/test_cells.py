"""Tables, wrapping and colour in a terminal's cells, whatever script the layers' names are in."""

from __future__ import annotations

import doctest
import io
import re

import pytest

from lightning_gradwatch.judge.verdict import RunVerdict
from lightning_gradwatch.record.finding import Finding, Remedy, Severity
from lightning_gradwatch.tell import cells
from lightning_gradwatch.tell.cells import Cell, cells_of, cut, paint, table_lines, widths_of, wrapped, write
from lightning_gradwatch.tell.table import rule_table, runs_table
from lightning_gradwatch.tell.terminal import verdict_text

# Counted by hand on a terminal; the first is written in two characters of one cell each and an accent on the second.
WIDE = [
    ("ne\u0301.0", 4),
    ("层.0", 4),
    ("가나.1", 6),
    ("\u1112\u1161\u11ab.1", 4),
    ("\uff46.0", 4),
    ("🔥.0", 4),
    ("блок.0", 6),
]


@pytest.mark.parametrize(("text", "width"), WIDE)
def test_a_character_takes_the_cells_that_a_terminal_gives_it(text, width):
    assert cells_of(text) == width


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("text", [text * 3 for text, _ in WIDE])
def test_what_is_cut_fits(text, width):
    told = cut(text, width)
    assert cells_of(told) <= width
    assert told == text or (told.endswith("…") and text.startswith(told[:-1]))


def test_columns_stand_below_each_other_in_any_script():
    rows = [[Cell(text), Cell("1.5")] for text, _ in WIDE]
    lines = table_lines(("name", "number"), rows, widths_of(("name", "number"), rows), right=(1,))
    assert lines[0] == "name    number"
    assert {cells_of(line) for line in lines} == {14}
    assert {cells_of(line.removesuffix("1.5").rstrip()) for line in lines[1:]} == {4, 6}


def test_a_name_neither_steers_the_terminal_nor_passes_as_markup():
    rows = [[Cell("\x1b[31m"), Cell("[red]a[/]\n")]]
    (line,) = table_lines(("a", "b"), rows, widths_of(("a", "b"), rows))[1:]
    assert line == "\\x1b[31m  [red]a[/]\\n"


def test_colour_goes_on_words_and_changes_nothing_else():
    rows = [[Cell("a", "red"), Cell("", "green"), Cell("b")]]
    heads = ("one", "two", "three")
    plain, coloured = (table_lines(heads, rows, [3, 3, 5], colour=colour) for colour in (False, True))
    assert coloured[1] == "\x1b[31ma\x1b[0m         b"
    assert [re.sub(r"\x1b\[[\d;]*m", "", line) for line in coloured] == plain
    assert not paint("", "red")


@pytest.mark.parametrize("width", [10, 20, 40])
@pytest.mark.parametrize("text", ["short", "多个 层 的 名字 " * 8, "层" * 50, "a " + "层" * 30 + " b", "word " * 30])
def test_lines_are_wrapped_to_what_a_terminal_has_room_for(text, width):
    lines = wrapped(text, width, "  first ", "    ")
    assert all(cells_of(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "first" + "".join(text.split())
    assert lines[0].startswith("  first ")
    assert all(line.startswith("    ") for line in lines[1:])


def test_nothing_is_wrapped_to_nothing():
    assert wrapped("", 10, "  ", "  ") == []


def test_wide_names_break_no_report():
    finding = Finding(
        code="GW101",
        name="vanishing-gradient",
        severity=Severity.ERROR,
        layers=("编码器.层.0", "编码器.层.1"),
        first_step=16,
        last_step=18,
        value=1e-9,
        threshold=0.003,
        cause="层 " * 60,
        remedy=Remedy("层" * 100),
        message="m",
    )
    verdict = RunVerdict(path="运行/版本_0" * 12, findings=(finding,), unjudged={}, judged=1, exit_code=1)
    for width in (40, 60, 80, 100):
        assert max(map(cells_of, verdict_text(verdict, width=width).splitlines())) <= width
        assert all(cells_of(line) <= width for line in runs_table([(verdict, "failed: 1")], width=width, colour=False))
    head, row = rule_table(verdict, width=100, colour=False)
    assert cells_of(head[: head.index("since")]) + 3 == cells_of(row[: row.index("16  ")])


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)],
)
def test_colours_are_for_terminals_whose_users_want_them(environment, wanted, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cells.wants_colour(Terminal()) is wanted
    assert not cells.wants_colour(io.StringIO())


def test_what_a_terminal_cant_spell_is_spelled_out():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    write(stream, "层 …\n")
    stream.flush()
    assert stream.buffer.getvalue() == b"\\u5c42 \\u2026\n"


def test_examples_in_docstrings_are_true():
    result = doctest.testmod(cells)
    assert result.attempted
    assert not result.failed
