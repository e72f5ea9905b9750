"""TensorBoard's event files as bytes: writing one, reading those that others wrote, damaged ones included.

Reading checks the checksum of each record's header and not that of its data: in pure Python that is the difference
between a second and a minute. Our events carry a checksum of their own. After damage TensorBoard's readers stop; this
one looks for the next header, so that one torn record doesn't cost the rest of a run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import struct
import sys
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto import event_pb2

from lightning_gradwatch.room import check_disk, check_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from typing_extensions import Self

MAX_EVENT_BYTES = 64 << 20
"""A larger event isn't ours; it is stepped over without being read."""

_HEADER_BYTES = 12
_FRAME_BYTES = 16
_BLOCK_BYTES = 1 << 20
_WALL_TIME_KEY = 0x09
_CREATE = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_MOST_AT_ONCE = 10_000
"""Versions that other processes may take while one is looking for its own."""


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_CRC_TABLE = _crc_table()
_CRC_BLOCK = 256
_CRC_LONG = 4 * _CRC_BLOCK


def _crc_by_bytes(data: bytes) -> int:
    table, crc = _CRC_TABLE, 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


@cache
def _crc_shifts() -> npt.NDArray[np.uint32]:
    """Return the register that each byte, at each place of a block, leaves behind at the block's end."""
    table = np.array(_CRC_TABLE, dtype=np.uint32)
    shifts = [table]
    while len(shifts) < _CRC_BLOCK:
        shifts.append(table[shifts[-1] & 0xFF] ^ (shifts[-1] >> 8))
    return np.stack(shifts[::-1])


def _crc_by_blocks(data: bytes) -> int:
    # A CRC is linear: the register after a block is the XOR of what each of its bytes alone leaves, with the register
    # before XORed into its first four. Zeros in front change nothing as long as the register is 0.
    shifts = _crc_shifts()
    padding = -len(data) % _CRC_BLOCK
    padded = np.zeros(padding + len(data), np.uint8)
    padded[padding:] = np.frombuffer(data, np.uint8)
    padded[padding : padding + 4] ^= 0xFF
    blocks = padded.reshape(-1, _CRC_BLOCK)
    first = shifts[:4].tolist()
    crc = 0
    for alone in np.bitwise_xor.reduce(shifts[np.arange(_CRC_BLOCK), blocks], axis=1).tolist():
        crc = (
            alone ^ first[0][crc & 0xFF] ^ first[1][crc >> 8 & 0xFF] ^ first[2][crc >> 16 & 0xFF] ^ first[3][crc >> 24]
        )
    return crc


def masked_crc32c(data: bytes) -> int:
    """Return the checksum of the TFRecord format: CRC-32C, rotated and shifted.

    Not TensorBoard's own function: importing it takes longer than the rest of this package. A byte at a time: a table
    for two falls out of the processor's cache and is slower. What is longer than a few blocks goes through numpy.
    """
    crc = (_crc_by_blocks if len(data) > _CRC_LONG else _crc_by_bytes)(data) ^ 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


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


def read_payloads(path: Path, *, marker: bytes, problem: Callable[[str], None]) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and the data of each event that contains the marker.

    Args:
        path: An event file, possibly of gigabytes, possibly damaged, possibly still being written.
        marker: Bytes that an event of interest contains; others cost a read and a search in C.
        problem: Called with a sentence about each stretch that can't be read.

    Raises:
        OSError: the file can't be opened or read.
    """
    crcs: dict[bytes, bytes] = {}
    with path.open("rb", buffering=_BLOCK_BYTES) as file:
        size = os.fstat(file.fileno()).st_size
        start = last = 0
        while start < size:
            header = file.read(_HEADER_BYTES)
            length = _length(header, crcs)
            if length is None or start + _FRAME_BYTES + length > size:
                # From behind the last good header: a record that was torn has swallowed the next one's first bytes.
                found = _next_record(file, last + 1 if length is None and last < start else start + 1, size)
                problem(_lost(path.name, start, size, length, found))
                if found is None:
                    return
                start = last = found
                file.seek(start)
                continue
            last = start
            start += _FRAME_BYTES + length
            if length > MAX_EVENT_BYTES:
                file.seek(start)
                continue
            payload = file.read(length)
            file.read(4)  # its checksum
            if len(payload) == length and marker in payload:
                yield last, payload


def _length(header: bytes, crcs: dict[bytes, bytes]) -> int | None:
    """Return the length that a header states; None unless its checksum is right."""
    head = header[:8]
    crc = crcs.get(head)
    if crc is None:
        crc = struct.pack("<I", masked_crc32c(head))
        if len(crcs) < 1 << 16:
            crcs[head] = crc
    return int.from_bytes(head, "little") if len(header) == _HEADER_BYTES and header[8:] == crc else None


def _next_record(file: BinaryIO, start: int, size: int) -> int | None:
    """Return the offset of the first whole record at or behind `start`."""
    while start + _FRAME_BYTES <= size:
        file.seek(start)
        block = file.read(_BLOCK_BYTES)
        data = np.frombuffer(block, np.uint8)
        if data.size <= _HEADER_BYTES:
            return None
        ends = data.size - _HEADER_BYTES
        # The upper half of a length is 0, and an event starts with the key of its time: few places are left to check.
        likely = data[_HEADER_BYTES:] == _WALL_TIME_KEY
        for index in range(4, 8):
            likely &= data[index : index + ends] == 0
        for at in np.flatnonzero(likely).tolist():
            length = _length(block[at : at + _HEADER_BYTES], {})
            if length is not None and start + at + _FRAME_BYTES + length <= size:
                return start + int(at)
        start += ends
    return None


def _lost(name: str, start: int, size: int, length: int | None, found: int | None) -> str:
    if found is not None:
        return f"{name}: damaged at byte {start}; read on at byte {found}"
    if length is not None or size - start < _HEADER_BYTES:
        return f"{name}: the last record is cut off, or still being written; its {size - start} bytes are lost"
    return f"{name}: damaged from byte {start} to the end, {size - start} bytes"
