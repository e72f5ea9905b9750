"""What a fit came to, and how it gets from a process that trains to the one that started it (``ddp_spawn``).

Lightning sends a spawned fit's callbacks there and brings none of them back. So each callback knows a name that nobody
else does. The process that trains makes a private folder of that name and leaves the outcome in it, as data; the one that
made the callback looks there, takes only what is its own user's, and never looks at the same name again: once a name could
be seen, others of the machine may put something of theirs in its place.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import stat
import tempfile
import uuid
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.fit.plain_data import decode, encode
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Finding, Remedy, Severity
from lightning_gradwatch.record.first_bad_step import FirstBadStep
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import (
    LayerInfo,
    LostGradient,
    NotCovered,
    OptimizerInfo,
    SiteInfo,
    StepRecord,
    Wiring,
)
from lightning_gradwatch.record.stored_function import StoredFunction

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_FILE = "outcome"
_BINARY = getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


@dataclass(frozen=True)
class Outcome:
    """All that is asked of a fit when it is over."""

    findings: tuple[Finding, ...] = ()
    records: tuple[StepRecord, ...] = ()
    info: RunInfo | None = None
    coverage: tuple[NotCovered, ...] = ()
    judged: int = 0
    """How many rules could judge."""
    unjudged: Mapping[str, str] = field(default_factory=dict)
    """Rules that couldn't, by code, with the reason."""
    path: Path | None = None
    """Folder of an event file of its own."""
    infos: tuple[RunInfo, ...] = ()
    """A description for each list of layers and sites that measured steps had."""

    def to_bytes(self) -> bytes:
        """Return it as data; `from_bytes` reads it back, bit for bit.

        Raises:
            TypeError: something in it is no plain data.
        """
        return encode(self, _CLASSES)

    @classmethod
    def from_bytes(cls, data: bytes) -> Outcome:
        """Build from what `to_bytes` gave.

        Raises:
            ValueError: the data isn't an outcome.
        """
        outcome = decode(data, _CLASSES)
        if not isinstance(outcome, cls):
            raise ValueError(f"it is damaged: a {type(outcome).__name__}, no outcome")  # noqa: TRY004 - as all damage
        return outcome


_CLASSES = (
    Outcome,
    Finding,
    FirstBadStep,
    Remedy,
    Action,
    Cause,
    CauseKind,
    Severity,
    StepRecord,
    RunInfo,
    LayerInfo,
    SiteInfo,
    StoredFunction,
    NotCovered,
    OptimizerInfo,
    LostGradient,
    Wiring,
)


class SpawnResult:
    """Where the processes that train for a callback leave their outcome for the process that it was made in."""

    def __init__(self) -> None:
        self._maker = os.getpid()
        self._names: list[Path] = []
        """All so far: a rank that is late makes the folder again that the first one's outcome was taken from."""
        self._choose_name()
        weakref.finalize(self, _remove, self._names, self._maker)

    def __deepcopy__(self, memo: dict[int, Any]) -> SpawnResult:
        return SpawnResult()

    def __getstate__(self) -> dict[str, Any]:
        return {"_maker": self._maker, "_path": self._path, "_names": []}  # its maker takes them away

    @property
    def wanted(self) -> bool:
        """Whether this process was started by the one that the callback was made in, to train for it."""
        parent = multiprocessing.parent_process()
        return parent is not None and parent.pid == self._maker != os.getpid()

    def leave(self, outcome: Outcome, *, first_only: bool = False) -> None:
        """Leave an outcome; it takes the place of an earlier one, unless it is only for want of that.

        Raises:
            OSError: it can't be written, or what is there isn't a private folder of this user.
            TypeError: something in it is no plain data.
        """
        try:
            self._path.mkdir(mode=0o700)
        except FileExistsError:  # another rank has made it
            _check_private(self._path)
        if first_only and (self._path / _FILE).exists():
            return
        unfinished = self._path / f"{_FILE}.{os.getpid()}"
        unfinished.write_bytes(outcome.to_bytes())
        unfinished.replace(self._path / _FILE)

    def take(self) -> Outcome | None:
        """Return what was left since it was last asked for; None if nothing was. Each name is read at most once.

        Raises:
            OSError: it can't be read, or what is there isn't this user's own.
            ValueError: it is damaged.
        """
        if os.getpid() != self._maker or not os.path.lexists(self._path):
            return None
        path = self._path
        try:
            _check_private(path)
            data = _read_own(path / _FILE)
        except FileNotFoundError:
            return None  # still being written
        except OSError:
            self._choose_name()
            raise
        self._choose_name()
        return Outcome.from_bytes(data)

    def _choose_name(self) -> None:
        """Choose another name, and take away what was left under earlier ones."""
        _remove(self._names, self._maker)
        self._path = Path(tempfile.gettempdir()) / f"gradwatch-{uuid.uuid4().hex}"
        self._names.append(self._path)


def _check_private(folder: Path) -> None:
    """Check that only this user can have put something into a folder.

    Raises:
        OSError: it isn't there, or others could.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or _is_strange(found) or (hasattr(os, "geteuid") and found.st_mode & 0o077):
        raise PermissionError(f"{folder} isn't a private folder of this user")


def _read_own(path: Path) -> bytes:
    """Return the bytes of a file of this user's.

    Raises:
        OSError: it isn't there, or it is something else.
    """
    with open(os.open(path, os.O_RDONLY | _NO_LINK | _BINARY), "rb") as file:  # noqa: PTH123 - Path's follows links
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or _is_strange(found):
            raise PermissionError(f"{path} isn't a file of this user")
        return file.read()


def _is_strange(found: os.stat_result) -> bool:
    return hasattr(os, "geteuid") and found.st_uid != os.geteuid()  # Windows has no such owners


def _remove(paths: Iterable[Path], maker: int) -> None:
    """Remove folders of ours; what others have put in their place is theirs to remove."""
    for path in paths if os.getpid() == maker else ():  # not in a process that was forked off it
        try:
            _check_private(path)
        except OSError:
            continue
        shutil.rmtree(path, ignore_errors=True)
