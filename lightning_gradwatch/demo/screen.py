"""Where the demo writes: a terminal, with a line that shows how far it is; or a file, as plain text."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from lightning_gradwatch.tell.cells import cells_of, cut, paint, wants_colour, wrapped, write

if TYPE_CHECKING:
    from collections.abc import Iterator

_WIDTH = 100
"""Cells up to which lines read well."""
_BAR = 40
"""Cells of a bar where there is room."""
_SECONDS = 0.1
"""Between two drawings of a bar: more often nobody sees."""
_ERASE = "\r\x1b[2K"


class Screen:
    """Prints lines, wrapped to the room there is, in colour where the terminal's user wants it.

    Args:
        stream: Where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Bar | None = None
        self.width = min(shutil.get_terminal_size().columns, _WIDTH)
        self.colour = wants_colour(stream)
        self.ascii_only = not (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")

    def say(self, text: str, style: str = "") -> None:
        """Print a text, wrapped."""
        for line in wrapped(text, self.width):
            self.put(self.painted(line, style))

    def put(self, line: str = "") -> None:
        """Print a line as it is."""
        self._write(f"{line}\n")

    def painted(self, text: str, style: str) -> str:
        """Return a text in a style, where there are any."""
        return paint(text, style) if self.colour else text

    @contextmanager
    def bar(self, name: str, total: int) -> Iterator[Bar]:
        """Show how much of `total` steps is done, on a terminal; a log file has no use for it."""
        live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        bar = Bar(name, total, self.width - 1, ascii_only=self.ascii_only)  # the last cell may begin another line
        self._bar = bar if live else None
        try:
            yield bar
        finally:
            self.redraw()
            if self._bar is not None:
                self.put()
            self._bar = None

    def redraw(self) -> None:
        """Bring the bar up to date, if there is one."""
        if self._bar is not None:
            self._write(_ERASE + self._bar.line())

    def clear(self) -> None:
        """Make room for what others print, where a bar is; it comes back when it is drawn again."""
        if self._bar is not None:
            self._write(_ERASE)

    def _write(self, text: str) -> None:
        write(self._stream, text)
        self._stream.flush()  # what goes to stderr next comes after it, in a file too


class Bar:
    """How far something is.

    Args:
        name: Of what is done.
        total: Its steps.
        width: Cells it takes at most.
        ascii_only: Draw what any terminal can spell.
    """

    def __init__(self, name: str, total: int, width: int, *, ascii_only: bool) -> None:
        self._name, self._total, self._width, self._ascii_only = name, total, width, ascii_only
        self._done, self._told = 0, ""
        self._started = self._drawn = time.monotonic()

    def advance(self, told: str) -> bool:
        """Count one more step, of which something is told; whether it is time to draw the bar again."""
        self._done, self._told = self._done + 1, told
        now = time.monotonic()
        due = now - self._drawn >= _SECONDS
        if due:
            self._drawn = now
        return due

    def line(self) -> str:
        """Return it as a line."""
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        numbers = f"{self._done}/{self._total}  {self._told}  {minutes}:{seconds:02}"
        room = max(min(_BAR, self._width - cells_of(f"{self._name}    {numbers}")), 0)
        done = min(room * self._done // max(self._total, 1), room)
        full, empty = "#-" if self._ascii_only else "━╌"
        return cut(f"{self._name}  {full * done}{empty * (room - done)}  {numbers}", self._width)
