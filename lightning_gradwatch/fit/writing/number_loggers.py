"""Loggers that take numbers: each step's summaries go to them by `log_metrics`, as the user's own do.

What they write on this machine is looked at first. A `CSVLogger` keeps rows until it saves, and what of ours can't be saved
any more is taken back: saving it would fail, and end the user's fit.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.fit.writing.destinations import NotWritten
from lightning_gradwatch.record.disk_space import (
    SET_ASIDE,
    check_disk,
    check_handles,
    check_limit,
    check_writable,
    set_aside,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ROW_BYTES = 64
"""What a number of a row takes in a logger's file, at most or nearly."""


class OtherLogger:
    """A logger that takes numbers: the summaries of a step."""

    takes_events = False

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._folder: Path | None = None
        self._table: _Table | None = None
        self._looked = False
        self._taken = 0

    @property
    def where(self) -> str:
        return type(self._logger).__name__ + (f" ({self._folder})" if self._folder else "")

    @property
    def is_local(self) -> bool:
        return self._folder is not None

    def begins(self) -> bool:
        return False

    def send(self, event: Any, numbers: Mapping[str, float], step: int) -> None:
        del event
        try:
            self._look(_ROW_BYTES * len(numbers))
            if self._table is None:
                self._logger.log_metrics(dict(numbers), step=step)
            else:
                with self._table.adding():
                    self._logger.log_metrics(dict(numbers), step=step)
        except Exception as error:
            # Whatever the user's logger raises: it is no fault of ours, and the fit goes on without it.
            since = None if self._table is None else self._table.withdraw()
            raise NotWritten(error, since=since) from error
        self._taken += _ROW_BYTES * len(numbers)

    def _look(self, more: int) -> None:
        """Check that what the logger writes on this machine can be written.

        Raises:
            OSError: it can't.
        """
        if not self._looked:
            self._looked = True
            self._table = _table_of(self._logger)
            self._folder = _local_folder(self._logger) if self._table is None else self._table.path.parent
        if self._folder is None:
            return
        check_handles(self._folder)
        # What an unknown logger's file holds isn't known; ours may all be in one.
        path, size = self._folder, self._taken
        if self._table is not None:
            path, size = self._table.path, self._table.look()
            more += _ROW_BYTES * sum(map(len, self._table.unsaved))
        check_limit(path, size=size, more=more, taken=self._taken, shared=True)
        check_disk(self._folder, more=more + (size if self._table else 0), taken=self._taken)

    def close(self) -> None:
        if self._table is None or not self._table.unsaved:
            return
        try:
            self._look(_ROW_BYTES)
        except OSError as error:
            raise NotWritten(error, since=self._table.withdraw()) from error


class _Table:
    """What a `CSVLogger` keeps until it saves; what can't be saved would end the user's fit."""

    def __init__(self, experiment: Any, path: Path) -> None:
        self.path = path
        self._experiment = experiment
        self._set_aside = 0
        self._ours: list[Any] = []

    @property
    def unsaved(self) -> list[Any]:
        """Rows of ours that it keeps."""
        kept: list[Any] = self._experiment.metrics
        return [row for row in kept if any(row is each for each in self._ours)]

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Note which rows are added."""
        before = self._experiment.metrics
        count = len(before)
        try:
            yield
        finally:
            after = self._experiment.metrics
            self._ours = [*self.unsaved, *after[count if after is before else 0 :]]

    def withdraw(self) -> int | None:
        """Take back what wasn't saved; return its first step, None where all was."""
        rows = self.unsaved
        kept = self._experiment.metrics
        kept[:] = [row for row in kept if not any(row is each for each in rows)]
        self._ours = []
        return min((row["step"] for row in rows), default=None)

    def look(self) -> int:
        """Check that it can be saved, and return how many bytes it has; a column that is new writes all of them again.

        Raises:
            OSError: it can't.
        """
        if not self.path.exists():
            check_writable(self.path.parent)
            return 0
        check_writable(self.path)
        size = self.path.stat().st_size
        if size + SET_ASIDE // 2 > self._set_aside:
            with self.path.open("ab") as file:
                self._set_aside = set_aside(file.fileno(), size)
        return size


def _table_of(logger: Any) -> _Table | None:
    """Return the rows of a `CSVLogger` on this machine; None for any other logger."""
    experiment = getattr(logger, "experiment", None)
    name: Any = getattr(experiment, "metrics_file_path", None)
    known = isinstance(name, str) and "://" not in name and isinstance(getattr(experiment, "metrics", None), list)
    return _Table(experiment, Path(name)) if known else None


def _local_folder(logger: Any) -> Path | None:
    """Return the folder that a logger writes to on this machine; None where there is none yet."""
    for name in ("log_dir", "save_dir"):
        folder = getattr(logger, name, None)
        if isinstance(folder, (str, os.PathLike)) and os.path.isdir(folder):  # noqa: PTH112 - as it is
            return Path(folder)
    return None
