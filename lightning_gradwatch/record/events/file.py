"""TensorBoard's event files: writing one of our own, and into those of loggers. `reader` reads them."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tensorboard.compat.proto import event_pb2

from lightning_gradwatch.record.disk_space import check_disk, check_limit
from lightning_gradwatch.record.events.crc32c import masked_crc32c
from lightning_gradwatch.record.events.numbering import Numbering, numbering_of
from lightning_gradwatch.record.events.reader import MAX_EVENT_BYTES, read_payloads

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["MAX_EVENT_BYTES", "EventFile", "masked_crc32c", "next_version_folder", "read_payloads", "write_to"]

_CREATE = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_MOST_AT_ONCE = 10_000
"""Versions that other processes may take while one is looking for its own."""


class EventFile:
    """An event file of our own, for runs without a TensorBoard logger; also a context manager.

    Each event is on disk (in the system's cache) when `write` returns. There is no thread, as TensorBoard's writer has:
    a full disk is an OSError of the call that met it, and a killed process loses no queue.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Create the folder where needed and a new file in it.

        Raises:
            OSError: the folder or the file can't be written; there is no file then.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._numbering = Numbering(folder)
        start = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file: BinaryIO | None = None
        number = 0
        while self._file is None:
            self.path = folder / f"{start}.{number}"
            try:
                self._file = open(os.open(self.path, _CREATE, 0o666), "ab", buffering=0)  # noqa: PTH123, SIM115 - of a handle; closed in `close`
            except FileExistsError:
                number += 1
        self._handle = self._file.fileno()
        self._file_id = file_id(os.fstat(self._handle))
        self._taken = 0
        try:
            self.write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        except OSError:
            self.close()
            self.path.unlink(missing_ok=True)
            raise

    def write(self, event: Any) -> None:
        """Append an event.

        Raises:
            OSError: it can't be written: the file isn't there any more, or others would have no room left. The file ends
                with the last event that could be.
            ValueError: the file is closed.
        """
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        self._numbering.stamp(event)
        frame = framed(event.SerializeToString())
        found = os.stat(self.path)  # noqa: PTH116 - Path's takes twice as long
        if file_id(found) != self._file_id or found.st_size < self._taken:
            raise FileNotFoundError(errno.ENOENT, "another file has taken its place", str(self.path))
        check_disk(self.path.parent, more=len(frame), taken=self._taken, handle=self._handle)
        check_limit(self.path, size=found.st_size, more=len(frame), taken=self._taken, shared=False)
        append(self._file, frame)
        self._taken += len(frame)

    def close(self) -> None:
        """Close the file; a second time does nothing.

        Raises:
            OSError: what was written didn't reach it, as some network disks say only now.
        """
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def framed(payload: bytes) -> bytes:
    """Return an event's bytes as a record: its length, the data, and a checksum of each."""
    header = struct.pack("<Q", len(payload))
    return b"".join(
        (header, struct.pack("<I", masked_crc32c(header)), payload, struct.pack("<I", masked_crc32c(payload)))
    )


def file_id(found: os.stat_result) -> tuple[int, int]:
    """Return what tells one file from another that has taken its name."""
    return found.st_dev, found.st_ino


def append(file: BinaryIO, frame: bytes) -> None:
    """Append a record to a file that is open unbuffered and for appending, whole or not at all.

    Others may append to it at the same time; the system puts one write behind the other.

    Raises:
        OSError: it can't be written.
    """
    rest, done = memoryview(frame), 0
    try:
        while rest:
            done += (count := file.write(rest))
            rest = rest[count:]
    except OSError:
        end = file.seek(0, os.SEEK_CUR)
        if done and file.seek(0, os.SEEK_END) == end:  # else somebody's record stands behind it
            file.truncate(end - done)
        raise


def write_to(file_writer: Any, event: Any) -> None:
    """Append an event to the file of a logger's own `FileWriter`, torch's or tensorboardX's.

    tensorboardX takes only events of its own class, which lacks fields that ours have; as bytes they survive.
    """
    numbering_of(file_writer).stamp(event)
    own = getattr(sys.modules.get(type(file_writer).__module__), "event_pb2", event_pb2)
    converted = event if own.Event is type(event) else own.Event.FromString(event.SerializeToString())
    file_writer.add_event(converted, walltime=event.wall_time)


def next_version_folder(root: str | os.PathLike[str]) -> Path:
    """Make `<root>/gradwatch/version_N`, N above the highest there is, and return it; no other process gets the same.

    Raises:
        OSError: it can't be made.
    """
    parent = Path(root) / "gradwatch"
    parent.mkdir(parents=True, exist_ok=True)
    taken = [
        int(folder.name[8:]) for folder in parent.glob("version_*") if re.fullmatch(r"[0-9]{1,9}", folder.name[8:])
    ]
    first = max(taken, default=-1) + 1
    for number in range(first, first + _MOST_AT_ONCE):
        folder = parent / f"version_{number}"
        # Making it is what tells: between looking for a number and using it another process may have taken it.
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise FileExistsError(errno.EEXIST, "no version is free", str(folder))
