"""TensorBoard's event files: writing one of our own, and into those of loggers. `event_reader` reads them."""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tensorboard.compat.proto import event_pb2

from lightning_gradwatch.crc32c import masked_crc32c
from lightning_gradwatch.event_reader import MAX_EVENT_BYTES, read_payloads
from lightning_gradwatch.numbering import Numbering, numbering_of

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["MAX_EVENT_BYTES", "EventFile", "masked_crc32c", "next_version_folder", "read_payloads", "write_to"]


class EventFile:
    """An event file of our own, for runs without a TensorBoard logger; also a context manager.

    Each event is on disk (in the system's cache) when `write` returns. There is no thread, as TensorBoard's writer has:
    a full disk is an OSError of the call that met it, and a killed process loses no queue.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Create the folder where needed and a new file in it.

        Raises:
            OSError: the folder or the file can't be written.
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
                self._file = self.path.open("xb", buffering=0)
            except FileExistsError:
                number += 1
        self._size = 0
        self.write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, event: Any) -> None:
        """Append an event.

        Raises:
            OSError: it can't be written; the file ends with the last event that could.
            ValueError: the file is closed.
        """
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        self._numbering.stamp(event)
        payload = event.SerializeToString()
        header = struct.pack("<Q", len(payload))
        frame = b"".join(
            (header, struct.pack("<I", masked_crc32c(header)), payload, struct.pack("<I", masked_crc32c(payload)))
        )
        rest = memoryview(frame)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._size)
            self._file.seek(self._size)
            raise
        self._size += len(frame)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def write_to(file_writer: Any, event: Any) -> None:
    """Append an event to the file of a logger's own `FileWriter`, torch's or tensorboardX's.

    tensorboardX takes only events of its own class, which lacks fields that ours have; as bytes they survive.
    """
    numbering_of(file_writer).stamp(event)
    own = getattr(sys.modules.get(type(file_writer).__module__), "event_pb2", event_pb2)
    converted = event if own.Event is type(event) else own.Event.FromString(event.SerializeToString())
    file_writer.add_event(converted, walltime=event.wall_time)


def next_version_folder(root: str | os.PathLike[str]) -> Path:
    """Return `<root>/gradwatch/version_N`, one above the highest N there is; it isn't created."""
    parent = Path(root) / "gradwatch"
    taken = [
        int(folder.name[8:]) for folder in parent.glob("version_*") if re.fullmatch(r"[0-9]{1,9}", folder.name[8:])
    ]
    return parent / f"version_{max(taken, default=-1) + 1}"
