"""What a fit came to, and how it gets from a process that trains to the one that started it (``ddp_spawn``).

Lightning sends a spawned fit's callbacks there and brings none of them back. So each callback has the name of a file, in
which the process that trains leaves the outcome and where the one that made the callback finds it.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import uuid
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_gradwatch.findings import Finding
    from lightning_gradwatch.record import NotCovered, RunInfo, StepRecord


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


class Handover:
    """Where the processes that train for a callback leave their outcome for the process that it was made in."""

    def __init__(self) -> None:
        self._maker = os.getpid()
        self._path = Path(tempfile.gettempdir()) / f"gradwatch-{uuid.uuid4().hex}"
        weakref.finalize(self, _remove, self._path, self._maker)

    def __deepcopy__(self, memo: dict[int, Any]) -> Handover:
        return Handover()

    @property
    def wanted(self) -> bool:
        """Whether this process was started by the one that the callback was made in, to train for it."""
        parent = multiprocessing.parent_process()
        return parent is not None and parent.pid == self._maker != os.getpid()

    def leave(self, outcome: Outcome, *, first_only: bool = False) -> None:
        """Leave an outcome; it takes the place of an earlier one, unless it is only for want of that."""
        if first_only and self._path.exists():
            return
        unfinished = self._path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(pickle.dumps(outcome))
        unfinished.replace(self._path)

    def take(self) -> Outcome | None:
        """Return what was left since it was last asked for; None if nothing was."""
        if os.getpid() != self._maker or not self._path.exists():
            return None
        outcome: Outcome = pickle.loads(self._path.read_bytes())  # noqa: S301 - written by a process of ours, under a name that nobody knows
        self._path.unlink()
        return outcome


def _remove(path: Path, maker: int) -> None:
    if os.getpid() == maker:  # not in a process that was forked off it
        for left in path.parent.glob(f"{path.name}*"):
            left.unlink(missing_ok=True)
