"""Whether there is room for what is about to be written, so that others who write to the same place still have theirs.

A logger's writer that fails takes the user's fit with it. So what is ours stops while there is room left: `RESERVE`, and
of a small place a quarter, and as much as it has taken itself. It is looked for before each write, in a few system calls,
as anybody may fill a disk at any time. Quotas can't be asked for; they are met when they are hit.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

if sys.platform != "win32":
    import resource

RESERVE = 64 << 20
"""Bytes that are left to others, of a place that has plenty."""
HANDLES = 8
"""File handles that are left to others."""
SET_ASIDE = 16 << 10
"""Bytes that are set aside for a user's writer in its own file, beyond what ours put there."""
_KEEP_SIZE = 1
_SHARE = 4
"""One part in so many is left to others, of a place that is small."""


def check_disk(folder: Path, *, more: int, taken: int, handle: int | None = None) -> None:
    """Check that others still have room on a disk after so many bytes more.

    Args:
        folder: On that disk.
        more: Bytes that are about to be written.
        taken: Bytes that were written before.
        handle: Of a file that is open there, which is quicker to ask by.

    Raises:
        OSError: they haven't, the folder is gone, or nothing can be written to that disk.
    """
    if sys.platform == "win32":
        usage = shutil.disk_usage(folder)
        total, free = usage.total, usage.free
    else:
        found = os.statvfs(folder if handle is None else handle)
        if found.f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, "the disk is read-only now")
        total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    if total and not _leaves_enough(free, total, more, taken):  # some network filesystems don't say
        raise OSError(errno.ENOSPC, f"only {bytes_text(free)} are free on the disk, and others are left some")


def check_limit(path: Path, *, size: int, more: int, taken: int, shared: bool) -> None:
    """Check that a file may grow by so many bytes under the limit on file sizes.

    Args:
        path: The file.
        size: Its bytes now.
        more: Bytes that are about to be added.
        taken: Bytes of it that are ours.
        shared: Whether others write to it too, who are left their part.

    Raises:
        OSError: it may not.
    """
    if sys.platform == "win32":
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY:
        return
    left = limit - size
    if not (_leaves_enough(left, limit, more, taken) if shared else left >= more):
        raise OSError(
            errno.EFBIG,
            f"a file may grow to {bytes_text(limit)} only (ulimit -f) and has {bytes_text(size)}",
            str(path),
        )


def check_handles(folder: Path) -> None:
    """Check that a few files more can be opened.

    Raises:
        OSError: they can't, or the folder can't be opened.
    """
    if sys.platform == "win32":
        return  # a folder is no file there, and handles are plenty
    opened = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        opened.extend(os.dup(opened[0]) for _ in range(HANDLES - 1))
    finally:
        for handle in opened:
            os.close(handle)


def check_writable(path: Path) -> None:
    """Check that a file can be written to, or that one can be made in a folder.

    Raises:
        OSError: it can't.
    """
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "it can't be written to any more", str(path))


def set_aside(handle: int, start: int) -> int:
    """Give a file `SET_ASIDE` bytes of the disk from an offset on, as a file's last block has room for a few short events.

    Ours use that room up: a disk that somebody fills would else be full for the user's next event where it wasn't without
    us. The file stays as long as it is. Systems and disks that can't do it aren't an error.

    Returns:
        The offset up to which the file has its part, as far as is known.
    """
    allocate = _allocate()
    if allocate is not None:
        allocate(handle, _KEEP_SIZE, ctypes.c_long(start), ctypes.c_long(SET_ASIDE))
    return start + SET_ASIDE


@cache
def _allocate() -> Any:
    """Return the system's function; None where there is none that is known."""
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_long) != 8:  # offsets are longs there
        return None
    try:
        return ctypes.CDLL(None).fallocate
    except (AttributeError, OSError):
        return None


def bytes_text(count: int) -> str:
    """Return an amount of bytes as people read it.

    >>> bytes_text(999), bytes_text(20_000), bytes_text(1_500_000)
    ('999 bytes', '20 kB', '1.5 MB')
    """
    if count < 1000:
        return f"{count} bytes"
    for unit, factor in (("kB", 1e3), ("MB", 1e6)):
        if count < 1000 * factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e9:.4g} GB"


def _leaves_enough(left: int, total: int, more: int, taken: int) -> bool:
    return left - more >= min(RESERVE, max(taken + more, total // _SHARE))
