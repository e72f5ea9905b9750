"""Rolling windows over the observations of each site's units: a unit is judged over many samples, not over one batch.

Kept on the host in numpy, since the counts of a step travel in its one transfer anyway; so that they are exact, cheap
to save in a checkpoint, and free of any device.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from lightning_gradwatch.saved import named, window_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lightning_gradwatch.measure.sites import Site
    from lightning_gradwatch.record import FloatVector, SiteInfo

UnitCounts = npt.NDArray[np.int64]

SATURATED_PERCENT = 95
"""A unit is saturated when at least this share of the window's observations is; in integers, so that it is exact."""
_FEWEST = 16
"""Observations a chunk holds at least: a step of fewer joins the one before, so that windows hold at most 64 chunks."""


@dataclass(slots=True)
class Chunk:
    """The observations of one measured step (of a few, where steps are tiny); those in a window never change."""

    inactive: UnitCounts
    saturated: UnitCounts | None
    observations: int
    batch_elements: int

    @property
    def kind(self) -> tuple[int, bool]:
        """How many units it is of, and whether they can be saturated; a checkpoint's may be of another function."""
        return len(self.inactive), self.saturated is None

    def joined(self, other: Chunk) -> Chunk:
        """Return a chunk of the observations of both."""
        return Chunk(
            self.inactive + other.inactive,
            None if self.saturated is None or other.saturated is None else self.saturated + other.saturated,
            self.observations + other.observations,
            self.batch_elements + other.batch_elements,
        )

    def add(self, other: Chunk) -> None:
        """Add another chunk's counts, in place."""
        self.inactive += other.inactive
        if self.saturated is not None and other.saturated is not None:
            self.saturated += other.saturated
        self.observations += other.observations
        self.batch_elements += other.batch_elements

    def remove(self, other: Chunk) -> None:
        """Take another chunk's counts away, in place."""
        self.inactive -= other.inactive
        if self.saturated is not None and other.saturated is not None:
            self.saturated -= other.saturated
        self.observations -= other.observations
        self.batch_elements -= other.batch_elements


class Window:
    """The last measured steps of one site: as few as hold enough observations of enough batch elements."""

    def __init__(self, observations: int, batch_elements: int) -> None:
        self._observations = observations
        self._batch_elements = batch_elements
        self._chunks: deque[Chunk] = deque()
        self._total: Chunk | None = None

    def add(self, chunk: Chunk) -> None:
        """Take in a measured step and let go of the oldest ones that a full window doesn't need."""
        if self._total is None or self._total.kind != chunk.kind:
            self._chunks.clear()
            self._total = Chunk(
                np.zeros_like(chunk.inactive),
                None if chunk.saturated is None else np.zeros_like(chunk.saturated),
                0,
                0,
            )
        total, chunks = self._total, self._chunks
        total.add(chunk)
        if chunks and chunks[-1].observations < _FEWEST:
            chunk = chunks.pop().joined(chunk)
        chunks.append(chunk)
        while len(chunks) > 1 and self._full_with(total, chunks[0]):
            total.remove(chunks.popleft())

    def _full_with(self, total: Chunk, less: Chunk) -> bool:
        """Whether it is full without the observations of one chunk."""
        return (
            total.observations - less.observations >= self._observations
            and total.batch_elements - less.batch_elements >= self._batch_elements
        )

    @property
    def full(self) -> bool:
        """Whether there are enough observations of enough batch elements."""
        return self.whole is not None

    @property
    def whole(self) -> Chunk | None:
        """All that it holds; None until it is full."""
        total = self._total
        enough = (
            total is not None
            and total.observations >= self._observations
            and total.batch_elements >= self._batch_elements
        )
        return total if enough else None

    @property
    def fill(self) -> float:
        """How full it is, from 0 to 1."""
        if self._total is None:
            return 0.0
        return min(
            1.0,
            self._total.observations / self._observations,
            self._total.batch_elements / self._batch_elements,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs: plain numbers and tensors, which load with ``weights_only=True``."""
        return {
            "chunks": [
                {
                    "inactive": torch.from_numpy(chunk.inactive),
                    "saturated": None if chunk.saturated is None else torch.from_numpy(chunk.saturated),
                    "observations": chunk.observations,
                    "batch_elements": chunk.batch_elements,
                }
                for chunk in self._chunks
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._chunks.clear()
        self._total = None
        for saved in state["chunks"]:
            self.add(
                Chunk(
                    np.asarray(saved["inactive"], dtype=np.int64),
                    None if saved["saturated"] is None else np.asarray(saved["saturated"], dtype=np.int64),
                    int(saved["observations"]),
                    int(saved["batch_elements"]),
                )
            )


def fractions(windows: Sequence[Window | None]) -> tuple[FloatVector, FloatVector]:
    """Return the dead and the saturated fraction of each window; NaN until it is full, and where they don't apply.

    A unit is dead where it was inactive in every observation, and saturated where it was in at least 95 % of them and
    isn't dead.
    """
    dead, saturated = np.full((2, len(windows)), math.nan)
    alike: dict[tuple[int, bool], list[tuple[int, Chunk]]] = {}
    for place, window in enumerate(windows):
        if window is not None and (whole := window.whole) is not None and whole.inactive.size:
            alike.setdefault((whole.inactive.size, whole.saturated is None), []).append((place, whole))
    # Windows of as many units at once: a deep net has hundreds.
    for (units, never), members in alike.items():
        places = [place for place, _ in members]
        observations = np.array([[whole.observations] for _, whole in members])
        inactive = np.array([whole.inactive for _, whole in members]) == observations
        dead[places] = np.count_nonzero(inactive, axis=1) / units
        if not never:
            often = 100 * np.array([whole.saturated for _, whole in members]) >= SATURATED_PERCENT * observations
            saturated[places] = np.count_nonzero(often & ~inactive, axis=1) / units
    return dead, saturated


class Windows:
    """The windows of all sites with units, by name."""

    def __init__(self, observations: int, batch_elements: int) -> None:
        self._size = observations, batch_elements
        self._windows: dict[str, Window] = {}
        """Those of a checkpoint too whose sites weren't seen again yet."""
        self._full = False
        """Whether all were seen to be; a full one stays so."""

    def of(self, sites: Iterable[Site | SiteInfo]) -> list[Window | None]:
        """Return the window of each site, an empty one for one that is new; None for one without units."""
        return [self._of(site.name) if site.units else None for site in sites]

    def _of(self, name: str) -> Window:
        window = self._windows.get(name)
        if window is None:
            window = self._windows[name] = Window(*self._size)
            self._full = False
        return window

    @property
    def full(self) -> bool:
        """Whether all of them are; asked at each step, measured or not, and so worked out only until they are."""
        if not self._full:
            self._full = all(window.full for window in self._windows.values())
        return self._full

    def state_dict(self) -> dict[str, Any]:
        """Return all of them, for a checkpoint."""
        return {name: window.state_dict() for name, window in self._windows.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            StateError: it isn't what that gives.
        """
        self._windows.clear()
        self._full = False
        for name, saved in named(state, "windows").items():
            window = self._of(name)
            window.load_state_dict(window_of(saved, f"the window of {name}", like=window.state_dict()))
