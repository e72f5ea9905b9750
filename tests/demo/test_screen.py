"""The demo's progress on a terminal: a line that is written over, and makes room for a warning."""

from __future__ import annotations

import io
import re

import pytest

from lightning_gradwatch.demo import screen as module
from lightning_gradwatch.demo.screen import Bar, Screen
from lightning_gradwatch.demo.table import _lines
from lightning_gradwatch.tell.cells import Cell, cells_of


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True

    def shown(self):
        """What stands on the terminal: what is behind the last erasure of each line."""
        return [re.sub(r"\x1b\[[\d;]*m", "", line.rpartition("\r\x1b[2K")[2]) for line in self.getvalue().split("\n")]


@pytest.fixture
def clock(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: seconds[0])
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return seconds


def test_a_bar_is_written_over_ten_times_a_second_and_stays_when_it_is_full(clock):
    terminal = Terminal()
    screen = Screen(terminal)
    with screen.bar("fixed", 200) as bar:
        for step in range(200):
            clock[0] += 0.01
            if bar.advance(f"loss {step / 100:.3f}"):
                screen.redraw()
    assert terminal.getvalue().count("\r") in range(19, 22)
    assert terminal.shown() == [f"fixed  {'━' * 25}  200/200  loss 1.990  0:02", ""]
    assert cells_of(terminal.shown()[0]) <= 59


def test_a_warning_stands_on_lines_of_its_own(clock):
    terminal = Terminal()
    screen = Screen(terminal)
    with screen.bar("failing", 10) as bar:
        clock[0] += 1
        assert bar.advance("loss 2.000")
        screen.redraw()
        screen.clear()
        terminal.write("VanishingGradientWarning\n")
    assert terminal.shown()[0] == "VanishingGradientWarning"
    assert "1/10" in terminal.shown()[1]


@pytest.mark.parametrize("way", ["a file", "TERM=dumb"])
def test_there_is_no_bar_in_a_file(way, clock, monkeypatch):
    stream = Terminal() if way == "TERM=dumb" else io.StringIO()
    monkeypatch.setenv("TERM", "dumb" if way == "TERM=dumb" else "xterm")
    screen = Screen(stream)
    with screen.bar("fixed", 2) as bar:
        clock[0] += 1
        bar.advance("loss 2.000")
        screen.redraw()
        screen.clear()
    assert not stream.getvalue()
    screen.say("word " * 20, "bold")
    assert stream.getvalue() == f"{' '.join(['word'] * 12)}\n{' '.join(['word'] * 8)}\n"


@pytest.mark.parametrize("width", [3, 20, 40, 80])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_bar_fits_its_line(width, ascii_only, clock):
    bar = Bar("a" * 12, 7, width, ascii_only=ascii_only)
    for _ in range(9):
        bar.advance("loss 2.000")
        assert cells_of(bar.line()) <= width
    assert bar.line().isascii() or not ascii_only or width < 40


def test_bars_of_a_table_give_way_on_a_narrow_terminal_and_numbers_dont():
    columns = [("layer", [Cell("1")]), ("0 to 1", [Cell("###")]), ("signal", [Cell("1e-3")]), ("", [Cell("#####")])]
    told = {width: _lines(list(columns), bars={"0 to 1", ""}, width=width, colour=False) for width in (30, 25, 15, 5)}
    assert told[30] == ["layer  0 to 1  signal", "    1  ###       1e-3  #####"]
    assert told[25] == ["layer  0 to 1  signal", "    1  ###       1e-3"]
    assert told[15] == told[5] == ["layer  signal", "    1    1e-3"]
