"""How much room is left to others, and what looking for it costs."""

from __future__ import annotations

import doctest
import errno
import os
import resource
from types import SimpleNamespace

import pytest
from forked import in_child

from lightning_gradwatch.record import disk_space


def disk(monkeypatch, *, total, free, flags=0):
    found = SimpleNamespace(f_blocks=total, f_bavail=free, f_frsize=1, f_flag=flags)
    monkeypatch.setattr(os, "statvfs", lambda place: found)


@pytest.mark.parametrize(
    ("total", "free", "taken", "enough"),
    [
        (1 << 40, 65 << 20, 0, True),
        (1 << 40, 63 << 20, 0, False),
        (1 << 40, 65 << 20, 1 << 40, True),  # a long run: what it has taken isn't asked for again
        (1 << 20, 300 << 10, 0, True),
        (1 << 20, 250 << 10, 0, False),  # a quarter of a small one
        (1 << 20, 400 << 10, 300 << 10, True),
        (1 << 20, 400 << 10, 500 << 10, False),  # others have taken less than we have
        (0, 0, 1 << 20, True),  # a network disk that doesn't say
    ],
)
def test_others_are_left_a_part_of_the_disk(total, free, taken, enough, monkeypatch, tmp_path):
    disk(monkeypatch, total=total, free=free)
    if enough:
        disk_space.check_disk(tmp_path, more=1000, taken=taken)
        return
    with pytest.raises(OSError, match="are free on the disk") as raised:
        disk_space.check_disk(tmp_path, more=1000, taken=taken)
    assert raised.value.errno == errno.ENOSPC


def test_a_disk_that_has_become_read_only_is_told(monkeypatch, tmp_path):
    disk(monkeypatch, total=1 << 40, free=1 << 40, flags=os.ST_RDONLY)
    with pytest.raises(OSError, match="read-only"):
        disk_space.check_disk(tmp_path, more=1, taken=0)


@pytest.mark.parametrize(
    ("size", "taken", "shared", "enough"),
    [
        (59_000, 59_000, False, True),
        (59_001, 59_001, False, False),
        (29_000, 28_000, True, True),
        (31_000, 30_000, True, False),
        (46_000, 0, True, False),
    ],
)
def test_a_limit_on_file_sizes_is_shared_with_who_else_writes_to_the_file(
    size, taken, shared, enough, monkeypatch, tmp_path
):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (60_000, 60_000))
    if enough:
        disk_space.check_limit(tmp_path, size=size, more=1000, taken=taken, shared=shared)
        return
    with pytest.raises(OSError, match=r"60 kB only \(ulimit -f\)"):
        disk_space.check_limit(tmp_path, size=size, more=1000, taken=taken, shared=shared)


def open_until(left):
    """Open files until so many are left."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        for handle in held[:left]:
            os.close(handle)
    return held[left:]


def looks(folder, left):
    open_until(left)
    try:
        disk_space.check_handles(folder)
    except OSError as error:
        return error.errno
    os.close(os.open(folder, os.O_RDONLY))  # what it opened is closed
    return None


@pytest.mark.parametrize("left", [0, 1, disk_space.HANDLES - 1, disk_space.HANDLES])
def test_a_few_handles_are_left_to_others(left, tmp_path):
    assert in_child(looks, tmp_path, left) == (None if left >= disk_space.HANDLES else errno.EMFILE)


def test_what_is_set_aside_shows_in_no_size(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    with path.open("ab") as file:
        assert disk_space.set_aside(file.fileno(), 100) == 100 + disk_space.SET_ASIDE
    assert path.read_bytes() == b"x" * 100
    with path.open("ab") as file:
        file.write(b"y")
    assert path.read_bytes() == b"x" * 100 + b"y"


def test_examples_in_docstrings_are_true():
    result = doctest.testmod(disk_space)
    assert result.attempted
    assert not result.failed
