"""Event files as bytes: whatever is in one, the work is in proportion to it, and what is lost is told."""

import io
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as stock_crc

from lightning_gradwatch.record.events.crc32c import masked_crc32c, masked_crc32c_of_rows
from lightning_gradwatch.record.events.reader import MAX_EVENT_BYTES, EventReader, read_payloads

MARK = b"gradwatch"
SIGN = b"\n\x0egradwatch/step"


class Counting(io.FileIO):
    """A file that counts the bytes that are read from it, and gives no more than it may."""

    total, most = 0, 1 << 60

    def read(self, size=-1):
        data = super().read(size)
        self.note(len(data))
        return data

    def readinto(self, buffer):
        count = super().readinto(buffer)
        self.note(count)
        return count

    @classmethod
    def note(cls, count):
        cls.total += count
        assert cls.total < cls.most, f"more than {cls.most} bytes are read"


@pytest.fixture
def counted(monkeypatch):
    real = Path.open

    def opened(path, mode, buffering=-1):
        if mode != "rb":
            return real(path, mode, buffering)
        file = Counting(path)
        return io.BufferedReader(file, buffering) if buffering else file

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(Counting, "total", 0)
    monkeypatch.setattr(Counting, "most", 1 << 60)
    return Counting


def frame(payload, *, sound=True):
    header = struct.pack("<Q", len(payload))
    checksum = masked_crc32c(payload) if sound else 0
    return header + struct.pack("<I", masked_crc32c(header)) + payload + struct.pack("<I", checksum)


def header_of(length):
    head = struct.pack("<Q", length)
    return head + struct.pack("<I", masked_crc32c(head))


def event(number=0, size=0):
    return b"\x09" + struct.pack("<d", number) + MARK + bytes(size)


def write(folder, data):
    path = folder / "events.out.tfevents.1"
    path.write_bytes(data)
    return path


def read(path, **options):
    problems = []
    payloads = [payload for _, payload in EventReader(path, marker=MARK, problem=problems.append, **options)]
    return payloads, problems


@pytest.mark.parametrize("size", [0, 1, 8, 1023, 1024, 1025, 5000, (1 << 18) - 1, (1 << 18) + 1, (1 << 19) + 3])
def test_the_checksum_is_tensorboards_in_one_piece_or_many(size):
    data = np.random.default_rng(size).bytes(size)
    assert masked_crc32c(data) == stock_crc(data)


def test_the_checksum_of_many_rows_is_that_of_each():
    rows = np.random.default_rng(0).integers(0, 256, (50, 8), dtype=np.uint8)
    assert masked_crc32c_of_rows(rows).tolist() == [stock_crc(row.tobytes()) for row in rows]
    assert masked_crc32c_of_rows(rows[:0]).shape == (0,)


def many_damages(size):
    return (frame(b"\x09", sound=False) + b"!") * (size // 18)


def likely_headers(size):
    """Wherever the search looks, there might be one."""
    return (bytes(8) + b"\x09" * 5) * (size // 13)


def nested(size):
    """Each event's data are another whole event, and behind the outermost one is damage."""
    payload = event()
    while len(payload) < 4000:
        payload = event() + frame(payload)
    return (frame(payload) + b"!") * (size // len(payload))


def ending_together(size):
    """Events that all claim to end where the damage is."""
    count = min(size // 22, 2000)
    heads = b"".join(header_of(size - 22 * place - 16) + b"\x09" + MARK for place in range(count))
    return heads + bytes(size - len(heads)) + b"!" * 40


def claiming_too_much(size):
    """Events whose headers are right, whose checksums aren't, and which hold the next."""
    return b"".join(header_of(size - 100 * place - 100) + event(size=71) for place in range(size // 100))


def torn(size):
    """Records that have lost their ends, so that each has swallowed the beginning of the next."""
    return b"".join(frame(event(place, size=200))[:-3] for place in range(size // 230))


@pytest.mark.parametrize("make", [many_damages, likely_headers, nested, ending_together, claiming_too_much, torn])
def test_what_is_read_is_in_proportion_to_the_file(tmp_path, counted, make):
    """In bytes: each is read in passing, searched once, and gone back over a few times at most."""
    for size in (300_000, 600_000, 3_000_000):
        path = write(tmp_path, make(size))
        counted.total, counted.most = 0, 8 * path.stat().st_size + (3 << 20)
        problems = []
        reader = EventReader(path, marker=MARK, problem=problems.append)
        for _, payload in reader:
            counted.note(len(payload))  # out of a buffer, perhaps
            if not reader.is_sound():
                reader.read_within()
        assert problems


@pytest.mark.parametrize("make", [many_damages, likely_headers])
def test_a_file_of_damages_takes_no_memory_for_their_places(tmp_path, make):
    path = write(tmp_path, make(2_000_000))
    told = []
    tracemalloc.start()
    assert list(EventReader(path, marker=MARK, problem=lambda _: told.append(None))) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(told) > (100_000 if make is many_damages else 0)
    assert peak < 16 << 20


def test_a_hole_is_stepped_over(tmp_path, counted):
    """A file can claim terabytes that take no room on the disk."""
    data = frame(event(1))
    path = write(tmp_path, data)
    os.truncate(path, 1 << 40)
    if path.stat().st_blocks * 512 > 1 << 30:
        pytest.skip("this file system has no holes")
    payloads, problems = read(path)
    assert payloads == [event(1)]
    assert problems == [f"{path.name}: damaged from byte {len(data)} to the end, {(1 << 40) - len(data)} bytes"]
    assert counted.total < 10 << 20


def test_an_event_too_large_to_be_ours_is_searched_for_ours(tmp_path):
    """A header with the right checksum that claims what follows it, other records among that."""
    inner = frame(b"\x09" + SIGN + MARK)
    start = frame(event(1))
    path = write(tmp_path, start + header_of(MAX_EVENT_BYTES + 1) + b"\x09" + inner + frame(event(3)))
    os.truncate(path, path.stat().st_size + MAX_EVENT_BYTES + 100)
    payloads, problems = read(path, signs=(SIGN,))
    assert payloads == [event(1), b"\x09" + SIGN + MARK, event(3)]
    assert f"damaged at byte {len(start)}, where a header claims" in problems[0]


def test_an_event_too_large_to_be_ours_that_has_none_is_stepped_over(tmp_path):
    path = write(tmp_path, header_of(MAX_EVENT_BYTES + 1))
    os.truncate(path, 12 + MAX_EVENT_BYTES + 1 + 4)
    with path.open("ab") as file:
        file.write(frame(event(3)))
    assert read(path, signs=(SIGN,)) == ([event(3)], [])


@pytest.mark.parametrize("at", [(1 << 20) - 8, (1 << 20) - 1, 1 << 20, MAX_EVENT_BYTES - 40])
def test_what_bears_our_mark_is_found_across_blocks(tmp_path, at):
    path = write(tmp_path, header_of(MAX_EVENT_BYTES + 1))
    with path.open("r+b") as file:
        file.seek(12 + at)
        file.write(SIGN)
    os.truncate(path, 12 + MAX_EVENT_BYTES + 1 + 4)
    with path.open("ab") as file:
        file.write(frame(event(3)))
    payloads, problems = read(path, signs=(SIGN,))
    assert payloads == [event(3)]
    assert problems == []  # there is no whole record of ours in it that could be read instead


def test_what_an_event_has_swallowed_is_read_where_its_checksum_is_wrong(tmp_path):
    """A header that claims more than is its own is right by its own checksum."""
    second = frame(event(2))
    swallowing = header_of(len(event(1)) + 4 + len(second)) + event(1) + b"sums" + second + b"sums"
    path = write(tmp_path, swallowing + frame(event(3)))
    problems, seen = [], []
    reader = EventReader(path, marker=MARK, problem=problems.append)
    for _, payload in reader:
        seen.append(payload)
        if not reader.is_sound():
            reader.read_within()
    assert seen[1:] == [event(2), event(3)]


def test_the_last_event_of_ours_is_checked_too_as_its_end_may_be_that_of_another(tmp_path):
    """Cut from inside of one event on, so that what is left of a later one fills it up: the events between leave no trace."""
    first, torn = frame(event(1)), frame(event(2), sound=False)
    path = write(tmp_path, first + torn)
    payloads, problems = read(path)
    assert payloads == [event(1), event(2)]
    assert problems == [f"{path.name}: the last event, at byte {len(first)}, is damaged"]


@pytest.mark.parametrize(("cut", "sound", "told"), [(0, True, False), (0, False, True), (12, True, True)])
def test_the_last_event_is_checked_where_none_of_ours_says_what_follows(cut, sound, told, tmp_path):
    """Also whether it is whole inside: what was cut off of it, under right checksums, may have been all that is ours."""
    foreign = b"\x09" + bytes(8) + b"\x2a\x12" + b"\x0a\x10" + b"\x0a\x04loss" + b"\x15" + bytes(4) + b"\x1a\x03abc"
    path = write(tmp_path, frame(event(1)) + frame(foreign[: len(foreign) - cut], sound=sound))
    payloads, problems = read(path)
    assert payloads == [event(1)]
    assert problems == ([f"{path.name}: the last event, at byte {len(frame(event(1)))}, is damaged"] if told else [])


def test_reading_can_end_early(tmp_path):
    data = [frame(event(place, size=1000)) for place in range(5)]
    path = write(tmp_path, b"".join(data))
    payloads, _ = read(path, limit=3 * len(data[0]) + 5)
    assert len(payloads) == 3
    problems = []
    assert len(list(read_payloads(path, marker=MARK, problem=problems.append))) == 5
    assert problems == []


def test_a_file_that_is_cut_while_it_is_searched_ends_there(tmp_path, monkeypatch):
    path = write(tmp_path, b"!" * 3_000_000)
    real = os.fstat

    def fstat(handle):
        found = real(handle)
        os.truncate(path, 100)
        return found

    monkeypatch.setattr("lightning_gradwatch.record.events.reader.os.fstat", fstat)
    payloads, problems = read(path)
    assert payloads == []
    assert len(problems) == 1
