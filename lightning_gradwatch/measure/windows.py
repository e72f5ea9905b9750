"""Rolling windows over the observations of each site's units: a unit is judged over many samples, not over one batch.

Kept on the host in numpy, since the counts of a step travel in its one transfer anyway; so that they are exact, cheap
to save in a checkpoint, and free of any device.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

UnitCounts = npt.NDArray[np.int64]

SATURATED_PERCENT = 95
"""A unit is saturated when at least this share of the window's observations is; in integers, so that it is exact."""
_FEWEST = 16
"""Observations a chunk holds at least: a step of fewer joins the one before, so that windows hold at most 64 chunks."""


@dataclass
class Chunk:
    """The observations of one measured step (of a few, where steps are tiny)."""

    inactive: UnitCounts
    saturated: UnitCounts | None
    observations: int
    batch_elements: int

    def take(self, other: Chunk, sign: int = 1) -> None:
        """Add another chunk's counts, or with ``sign=-1`` take them away."""
        self.inactive = self.inactive + sign * other.inactive
        if self.saturated is not None and other.saturated is not None:
            self.saturated = self.saturated + sign * other.saturated
        self.observations += sign * other.observations
        self.batch_elements += sign * other.batch_elements


class Window:
    """The last measured steps of one site: as few as hold enough observations of enough batch elements."""

    def __init__(self, observations: int, batch_elements: int) -> None:
        self._observations = observations
        self._batch_elements = batch_elements
        self._chunks: deque[Chunk] = deque()
        self._total: Chunk | None = None

    def add(self, chunk: Chunk) -> None:
        """Take in a measured step and let go of the oldest ones that a full window doesn't need."""
        if self._total is None or self._total.inactive.shape != chunk.inactive.shape:
            self._chunks.clear()
            self._total = Chunk(
                np.zeros_like(chunk.inactive),
                None if chunk.saturated is None else np.zeros_like(chunk.saturated),
                0,
                0,
            )
        self._total.take(chunk)
        if self._chunks and self._chunks[-1].observations < _FEWEST:
            self._chunks[-1].take(chunk)
        else:
            self._chunks.append(replace(chunk))  # the next one may be added to it
        while len(self._chunks) > 1 and self._full_with(
            self._total.observations - self._chunks[0].observations,
            self._total.batch_elements - self._chunks[0].batch_elements,
        ):
            self._total.take(self._chunks.popleft(), sign=-1)

    def _full_with(self, observations: int, batch_elements: int) -> bool:
        return observations >= self._observations and batch_elements >= self._batch_elements

    @property
    def full(self) -> bool:
        """Whether there are enough observations of enough batch elements."""
        return self._total is not None and self._full_with(self._total.observations, self._total.batch_elements)

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

    def dead_fraction(self) -> float:
        """Return the share of units inactive in every observation; NaN until the window is full."""
        if self._total is None or not self.full or not self._total.inactive.size:
            return float("nan")
        return np.count_nonzero(self._dead(self._total)) / self._total.inactive.size

    def saturated_fraction(self) -> float:
        """Return the share of units saturated in at least 95 % of observations and not dead; NaN until full."""
        if self._total is None or not self.full or self._total.saturated is None or not self._total.inactive.size:
            return float("nan")
        often = 100 * self._total.saturated >= SATURATED_PERCENT * self._total.observations
        return np.count_nonzero(often & ~self._dead(self._total)) / often.size

    @staticmethod
    def _dead(total: Chunk) -> npt.NDArray[np.bool_]:
        return np.equal(total.inactive, total.observations)

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
