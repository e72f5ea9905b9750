"""The event file of a TensorBoard logger: how ours get into it without what is the user's depending on them.

The logger's writer has one thread, whose first error ends the fit at the next flush. So our events don't go through it:
where it opens its file anew for each event, as TensorBoard's own does, ours are appended to the same file beside it. Other
writers (TensorFlow's, tensorboardX's, those for remote files) keep their file to themselves: there ours go through the
queue, after a look at whether its thread lives and the file has room.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.fit.writing.destinations import NotWritten, reason_of
from lightning_gradwatch.record.disk_space import (
    SET_ASIDE,
    check_disk,
    check_handles,
    check_limit,
    check_writable,
    set_aside,
)
from lightning_gradwatch.record.events.file import append, file_id, framed, write_to
from lightning_gradwatch.record.events.numbering import numbering_of

if TYPE_CHECKING:
    from collections.abc import Mapping


_APPEND = os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
"""Without making a file, and without waiting for a reader where a pipe has taken its place."""


class AppendedFile:
    """The event file of a TensorBoard logger, whose own writer opens it anew for each of its events."""

    takes_events = is_local = True

    def __init__(self, logger: Any, writer: Any, path: Path) -> None:
        self._logger, self._writer, self._path = logger, writer, path
        self._end = self._taken = self._set_aside = 0

    @property
    def where(self) -> str:
        return str(self._path.parent)

    def begins(self) -> bool:
        if _is_closed(self._writer):
            # Lightning closes a logger when SLURM asks for a requeue, and what is logged afterwards starts a file.
            current = None
            with contextlib.suppress(Exception):  # a logger of the user's that can't be asked is written on as it was
                current = getattr(self._logger.experiment, "file_writer", None)
            path = None if current is None else appended_path(current)
            if path is not None and path != self._path:
                self._writer, self._path = current, path
                self._end = self._taken = self._set_aside = 0
        return not self._taken

    def send(self, event: Any, numbers: Mapping[str, float], step: int) -> None:
        del numbers, step
        _check_alive(self._writer)
        numbering_of(self._writer).stamp(event)
        frame = framed(event.SerializeToString())
        try:
            self._append(frame)
        except OSError as error:
            raise NotWritten(error) from error

    def _append(self, frame: bytes) -> None:
        handle = os.open(self._path, _APPEND)
        with open(handle, "ab", buffering=0) as file:  # noqa: PTH123 - Path's would make the file where it is gone
            found = os.fstat(handle)
            # Shorter than it was: no number tells, as disks give a removed file's to the next, and some change them.
            if found.st_size < self._end:
                raise FileNotFoundError(errno.ENOENT, "another file has taken its place", str(self._path))
            check_disk(self._path.parent, more=len(frame), taken=self._taken, handle=handle)
            check_limit(self._path, size=found.st_size, more=len(frame), taken=self._taken, shared=True)
            append(file, frame)
            self._taken += len(frame)
            self._end = file.tell()
            if self._end + SET_ASIDE // 2 > self._set_aside:
                self._set_aside = set_aside(handle, self._end)

    def close(self) -> None:
        pass  # no handle is held


class QueuedFile:
    """An event file that only its writer can write to, a TensorBoard logger's; through the writer's queue."""

    takes_events = True

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._path = _path_of(writer)
        self._file_id = None if self._path is None else file_id(self._path.stat())
        self._taken = self._set_aside = 0
        self._begins = True

    @property
    def where(self) -> str:
        return str(self._path.parent if self._path else self._writer.get_logdir())

    @property
    def is_local(self) -> bool:
        return self._path is not None

    def begins(self) -> bool:
        begins, self._begins = self._begins, False
        return begins

    def send(self, event: Any, numbers: Mapping[str, float], step: int) -> None:
        del numbers, step
        _check_alive(self._writer)
        try:
            self._look(more=event.ByteSize())
            write_to(self._writer, event)
        except OSError as error:
            raise NotWritten(error) from error
        self._taken += event.ByteSize()

    def _look(self, *, more: int) -> None:
        if self._path is None:
            return
        found = self._path.stat()
        if file_id(found) != self._file_id:
            raise FileNotFoundError(errno.ENOENT, "another file has taken its place", str(self._path))
        check_writable(self._path)
        check_handles(self._path.parent)
        # Of what went into the queue none may have arrived yet.
        more += self._taken
        check_disk(self._path.parent, more=more, taken=self._taken)
        check_limit(self._path, size=found.st_size, more=more, taken=self._taken, shared=True)
        if found.st_size + more + SET_ASIDE // 2 > self._set_aside:
            with self._path.open("ab") as file:
                self._set_aside = set_aside(file.fileno(), found.st_size + more)

    def close(self) -> None:
        pass  # it is the logger's


def appended_path(file_writer: Any) -> Path | None:
    """Return the path of the file that a writer opens anew for each event; None for any other writer.

    So does TensorBoard's own for local files. Where a program has put its own function in the place of `add_event`, to
    see what is written, events go that way.
    """
    stub = sys.modules.get("tensorboard.compat.tensorflow_stub.io.gfile")
    event_writer = getattr(file_writer, "event_writer", None)
    stream: Any = getattr(event_writer, "_general_file_writer", None)
    if (
        stub is None
        or type(stream) is not stub.GFile
        or type(stream.fs) is not stub.LocalFileSystem
        or not stream.write_started
        or not (_is_untouched(file_writer) and _is_untouched(event_writer))
    ):
        return None
    return Path(os.fsdecode(stream.filename))


def _is_untouched(writer: Any) -> bool:
    function = getattr(writer.add_event, "__func__", None)
    home = sys.modules.get(type(writer).__module__)
    return function is not None and function.__code__.co_filename == getattr(home, "__file__", None)


def _worker_of(file_writer: Any) -> Any:
    event_writer = getattr(file_writer, "event_writer", file_writer)
    return getattr(getattr(event_writer, "_async_writer", event_writer), "_worker", None)


def _is_closed(file_writer: Any) -> bool:
    event_writer = getattr(file_writer, "event_writer", file_writer)
    return bool(getattr(getattr(event_writer, "_async_writer", event_writer), "_closed", False))


def _check_alive(file_writer: Any) -> None:
    """Check that a writer's thread hasn't failed.

    Raises:
        NotWritten: it has.
    """
    worker = _worker_of(file_writer)
    error = getattr(worker, "exception", None)
    if error is not None:
        raise NotWritten(f"the logger's own writer has failed: {reason_of(error)}")
    if worker is not None and not worker.is_alive() and not _is_closed(file_writer):
        raise NotWritten("the logger's own writer has ended")


def _path_of(file_writer: Any) -> Path | None:
    """Return the local file of a writer; None where it has none that is known."""
    event_writer = getattr(file_writer, "event_writer", None)
    for holder in (event_writer, getattr(event_writer, "_ev_writer", None)):
        name = getattr(holder, "_file_name", None)
        if isinstance(name, (str, bytes)) and os.path.exists(name):  # noqa: PTH110 - bytes too
            return Path(os.fsdecode(name))
    return None
