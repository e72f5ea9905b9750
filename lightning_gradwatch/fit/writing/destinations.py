"""What every place has that a fit's records go to, and the one that is ours.

Nothing of the user's may fail because of ours: each looks before it writes, and what it can't write is `NotWritten`.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Protocol

from lightning_gradwatch.record.events.file import EventFile, next_version_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SHORTAGES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


class NotWritten(Exception):  # noqa: N818 - it is no error of ours
    """Nothing more can be written to a place, for a reason that lies outside of us.

    Args:
        error: What it met, or a sentence.
        since: The first step that isn't there; None: the one that was to be written.
    """

    def __init__(self, error: BaseException | str, *, since: int | None = None) -> None:
        super().__init__(reason_of(error) if isinstance(error, BaseException) else error)
        self.error, self.since = error, since
        self.shortage = isinstance(error, OSError) and error.errno in _SHORTAGES
        """Whether it holds for whatever is written on this machine."""


class Destination(Protocol):
    """A place that records go to."""

    takes_events: bool
    """Whether it takes events; other loggers take numbers."""

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""

    @property
    def where(self) -> str:
        """What a person calls it."""

    def begins(self) -> bool:
        """Whether what is written next is the first of its file, which then needs the run's description."""

    def send(self, event: Any, numbers: Mapping[str, float], step: int) -> None:
        """Write a step.

        Raises:
            NotWritten: it can't be, nor can what comes.
        """

    def close(self) -> None:
        """Give back what is held; what can't be stored any more is withdrawn.

        Raises:
            NotWritten: something that was sent was withdrawn, or didn't arrive.
        """


class OwnFile:
    """An event file of our own, in a version folder that is made for the first event."""

    takes_events = is_local = True

    def __init__(self, root: Path) -> None:
        self.path: Path | None = None
        """The version folder."""
        self._root, self._existed = root, root.is_dir()
        self._file: EventFile | None = None

    @property
    def where(self) -> str:
        return str(self.path or self._root / "gradwatch")

    def begins(self) -> bool:
        return self._file is None

    def send(self, event: Any, numbers: Mapping[str, float], step: int) -> None:
        del numbers, step
        try:
            if self._file is None:
                self._open()
            assert self._file is not None
            self._file.write(event)
        except OSError as error:
            raise NotWritten(error) from error

    def _open(self) -> None:
        if self._existed and not self._root.is_dir():  # made again, it would change what becomes of the user's logging
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._root))
        self.path = next_version_folder(self._root)
        try:
            self._file = EventFile(self.path)
        except OSError:
            self.path.rmdir()
            self.path = None
            raise

    def close(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                raise NotWritten(error) from error
        if self.path is not None and not self.path.exists():
            self.path = None


class NoDestination:
    """A logger that can't even be asked where it writes."""

    takes_events = is_local = False

    def __init__(self, logger: Any, error: Exception) -> None:
        self.where = type(logger).__name__
        self._error = error

    def begins(self) -> bool:
        return False

    def send(self, event: Any, numbers: Mapping[str, float], step: int) -> None:
        del event, numbers, step
        raise NotWritten(self._error) from self._error

    def close(self) -> None:
        pass


def reason_of(error: BaseException) -> str:
    """Say in words what an error of the system's, or of somebody's code, is."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {os.fsdecode(error.filename)}" if isinstance(error.filename, (str, bytes)) else "")
    return f"{type(error).__name__}: {error}"
