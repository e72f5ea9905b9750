"""Reading event files as bytes, those that others wrote and damaged ones included.

The checksum of each record's header is checked, that of its data only where something is wrong: in pure Python that is
the difference between a second and a minute, and our events carry a checksum of their own. After damage TensorBoard's
readers stop; this one looks for the next header, so that one torn record doesn't cost the rest of a run.

Whoever made a file chose its bytes, so the work has to be proportional to them: damage is searched forward, each block
once, and going back into what was read already draws on a budget.
"""

from __future__ import annotations

import errno
import os
import struct
from bisect import bisect_left
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from lightning_gradwatch.record.events.crc32c import masked_crc32c, masked_crc32c_of_rows
from lightning_gradwatch.record.events.protobuf import BrokenMessageError, fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

MAX_EVENT_BYTES = 64 << 20
"""A larger event isn't ours; it is stepped over."""

_HEADER_BYTES = 12
_FRAME_BYTES = 16
_BLOCK_BYTES = 1 << 20
_WALL_TIME_KEY = 0x09
_KNOWN_HEADERS = 1 << 16
_MOST_CHECKED = 1 << 14
_MOST_FIELDS = 64
"""Of an event; TensorBoard's own have three."""


class EventReader:
    """Goes through one event file from front to back.

    Args:
        path: An event file, possibly of gigabytes, possibly damaged, possibly still being written.
        marker: Bytes that an event of interest contains; others cost a read and a search in C.
        problem: Called with a sentence about each stretch that can't be read.
        signs: Bytes that only an event of interest contains: one that is too large and has them claims what isn't its own.
        limit: Read no further than this many bytes.
    """

    def __init__(
        self,
        path: Path,
        *,
        marker: bytes,
        problem: Callable[[str], None],
        signs: tuple[bytes, ...] = (),
        limit: int | None = None,
    ) -> None:
        self._path = path
        self._marker = marker
        self._problem = problem
        self._signs = signs
        self._limit = limit
        self._crcs: dict[bytes, bytes] = {}
        self._next = 0
        self._start = 0
        self._payload = self._checksum = b""
        self._search: _Search | None = None
        self._credit = 0

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Yield the offset and the data of each event that contains the marker.

        Raises:
            OSError: the file can't be opened or read.
        """
        with self._path.open("rb", buffering=_BLOCK_BYTES) as file, self._path.open("rb", buffering=0) as raw:
            size = os.fstat(file.fileno()).st_size
            if self._limit is not None:
                size = min(size, self._limit)
            self._search = _Search(raw, size)
            self._credit = 2 * size
            yield from self._events(file, size)

    def _events(self, file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
        at = 0
        marked = True
        while self._next < size:
            if self._next != at:
                file.seek(self._next)
            at = start = self._next
            header = file.read(_HEADER_BYTES)
            length = _length(header, self._crcs)
            end = start + _FRAME_BYTES + (length or 0)
            if length is None or end > size:
                at = -1
                self._skip_damage(start, size, length)
            elif length > MAX_EVENT_BYTES:
                at = -1
                self._step_over(start, end)
            else:
                self._payload = file.read(length)
                self._checksum = file.read(4)
                self._start = start
                self._next = at = end
                marked = self._marker in self._payload
                if marked and len(self._payload) == length:
                    yield start, self._payload
        # Whatever follows an event of ours says that it is missing; nothing follows the last one. What was cut from the middle of
        # that on, to where another's end fits its length, leaves a record that is right and takes the rest of the run.
        if 0 < at == self._next and not (self.is_sound() and (marked or self._is_whole())):
            self._problem(f"{self._path.name}: the last event, at byte {self._start}, is damaged")

    def is_sound(self) -> bool:
        """Tell whether the data of the event that came last are what was written, by the file's own checksum."""
        return self._checksum == struct.pack("<I", masked_crc32c(self._payload))

    def _is_whole(self) -> bool:
        """Tell whether the data of the event that came last are those of a message."""
        try:
            for _ in fields(self._payload, 0, len(self._payload), most=_MOST_FIELDS):
                pass
        except BrokenMessageError:
            return False
        return True

    def read_within(self) -> None:
        """Go on inside of the event that came last: its header claims more than is its own."""
        assert self._search is not None
        if self._draw(self._next - self._start):
            found = self._search.next_record(self._start + 1)
            self._next = self._next if found is None else min(found, self._next)

    def _skip_damage(self, start: int, size: int, length: int | None) -> None:
        """Go to the next record behind a header that is none, or that claims more than there is."""
        assert self._search is not None
        behind = start + 1
        # From behind the last good header: a record that was torn has swallowed the next one's first bytes.
        if length is None and self._start < start and self._draw(start - self._start):
            behind = self._start + 1
        found = self._search.next_record(behind)
        self._problem(_lost(self._path.name, start, size, length, found))
        self._next = size if found is None else found
        self._start = self._next

    def _step_over(self, start: int, end: int) -> None:
        """Pass an event that is too large; where one of ours is in it, its header lies."""
        assert self._search is not None
        found = self._search.next_record(start + 1) if self._search.holds(self._signs, start, end) else None
        if found is not None and found < end:
            self._problem(
                f"{self._path.name}: damaged at byte {start}, where a header claims {end - start} bytes and events of "
                f"GradWatch are inside; read on at byte {found}"
            )
        self._next = end if found is None else min(found, end)
        self._start = start

    def _draw(self, cost: int) -> bool:
        """Tell whether so many bytes may be gone back."""
        self._credit -= cost
        return self._credit >= 0


def read_payloads(path: Path, *, marker: bytes, problem: Callable[[str], None]) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and the data of each event that contains the marker; see `EventReader`.

    Raises:
        OSError: the file can't be opened or read.
    """
    return iter(EventReader(path, marker=marker, problem=problem))


class _Search:
    """Finds what lies behind damage: goes through the file once, however often it is asked."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._from = self._to = 0
        """Where records may start that `_records` would have."""
        self._records: list[int] = []

    def next_record(self, start: int) -> int | None:
        """Return the offset of the first whole record at or behind `start`."""
        while start + _FRAME_BYTES <= self._size:
            if not self._from <= start < self._to:
                start = max(start, self._data_at(start) - _HEADER_BYTES)
                if start + _FRAME_BYTES > self._size:
                    return None
                self._look_through(start)
            place = bisect_left(self._records, start)
            if place < len(self._records):
                return self._records[place]
            start = self._to
        return None

    def holds(self, signs: tuple[bytes, ...], start: int, end: int) -> bool:
        """Tell whether one of some signs is between two offsets."""
        overlap = max(map(len, signs), default=1) - 1
        before = b""
        while signs and start < end:
            data_at = self._data_at(start)
            if data_at > start:
                start, before = data_at, b""
            block = before + self._read(start, min(_BLOCK_BYTES, end - start))
            if len(block) == len(before):
                return False
            if any(sign in block for sign in signs):
                return True
            start += len(block) - len(before)
            before = block[-overlap:] if overlap else b""
        return False

    def _look_through(self, start: int) -> None:
        """Note all records that start in a block."""
        block = self._read(start, _BLOCK_BYTES)
        if len(block) < min(_BLOCK_BYTES, self._size - start):  # it was cut meanwhile
            self._size = start + len(block)
        data = np.frombuffer(block, np.uint8)
        ends = max(data.size - _HEADER_BYTES, 0)
        # The upper half of a length is 0, and an event starts with the key of its time: few places are left to check.
        likely = data[_HEADER_BYTES:] == _WALL_TIME_KEY
        for index in range(4, 8):
            likely &= data[index : index + ends] == 0
        at = np.flatnonzero(likely)
        self._records = [
            start + place
            for first in range(0, at.size, _MOST_CHECKED)
            for place in self._whole_records(data, at[first : first + _MOST_CHECKED], start)
        ]
        self._from, self._to = start, start + max(ends, 1)

    def _whole_records(self, data: npt.NDArray[np.uint8], at: npt.NDArray[np.intp], start: int) -> list[int]:
        """Return at which places of a block a header is right and claims no more than there is."""
        heads = data[at[:, None] + np.arange(_HEADER_BYTES)]
        lengths, stored = (np.ascontiguousarray(heads[:, place : place + 4]).view("<u4")[:, 0] for place in (0, 8))
        right = masked_crc32c_of_rows(heads[:, :8]) == stored
        whole = start + at + _FRAME_BYTES + lengths.astype(np.int64) <= self._size
        found: list[int] = at[right & whole].tolist()
        return found

    def _read(self, start: int, length: int) -> bytes:
        self._file.seek(start)
        return self._file.read(length)

    def _data_at(self, start: int) -> int:
        """Return where the next bytes are that take room on the disk: a hole can claim to be of terabytes."""
        try:
            return os.lseek(self._file.fileno(), start, os.SEEK_DATA)
        except (AttributeError, OSError) as error:  # no such call here; or nothing but a hole up to the end
            return self._size if getattr(error, "errno", 0) == errno.ENXIO else start


def _length(header: bytes, crcs: dict[bytes, bytes]) -> int | None:
    """Return the length that a header states; None unless its checksum is right."""
    head = header[:8]
    crc = crcs.get(head)
    if crc is None:
        crc = struct.pack("<I", masked_crc32c(head))
        if len(crcs) < _KNOWN_HEADERS:
            crcs[head] = crc
    return int.from_bytes(head, "little") if len(header) == _HEADER_BYTES and header[8:] == crc else None


def _lost(name: str, start: int, size: int, length: int | None, found: int | None) -> str:
    if found is not None:
        return f"{name}: damaged at byte {start}; read on at byte {found}"
    if length is not None or size - start < _HEADER_BYTES:
        return f"{name}: the last record is cut off, or still being written; its {size - start} bytes are lost"
    return f"{name}: damaged from byte {start} to the end, {size - start} bytes"
