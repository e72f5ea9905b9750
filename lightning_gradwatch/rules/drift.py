"""How units got where their function is flat: from the start, or thrown there by steps that were too large."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from lightning_gradwatch.record import RunInfo, StepRecord
    from lightning_gradwatch.rules.memory import Mask
    from lightning_gradwatch.rules.protocol import State

_WATCHED = 16
"""Records whose updates are looked at: what ails a net from the start shows in them, and each costs time."""
_OVERSIZED = 0.1


class Drift(NamedTuple):
    """What is known of the way there."""

    update: float
    """Largest median update ratio of the weight layers seen near the start; 0 where none was."""
    later: bool
    """Whether there was a reading before in which nothing was wrong."""

    @property
    def thrown(self) -> bool:
        """Whether the learning rate is the likely cause."""
        return self.later or self.update > _OVERSIZED

    def sentence(self) -> str:
        """Say so."""
        if self.update > _OVERSIZED:
            return f"The first steps moved the weights by {100 * self.update:.0f} % of themselves: the learning rate is too high."
        return "At first they weren't there: most likely a step that was too large threw them."


def note_update(state: State, record: StepRecord, info: RunInfo) -> None:
    """Add a record's updates to the memory."""
    seen = state.get("seen", 0)
    if seen >= _WATCHED:
        return
    state["seen"] = seen + 1
    ratios = record.metrics.get("update_ratio")
    if ratios is not None:
        known = ratios[list(info.weight_columns)]
        known = known[np.isfinite(known)]
        if len(known):
            state["update"] = max(state.get("update", 0.0), float(np.median(known)))


def note_first(state: State, wrong: Mask) -> None:
    """Remember of the first reading whether anything was wrong in it."""
    if "later" not in state:
        state["later"] = not np.count_nonzero(wrong)


def drift(state: State) -> Drift:
    """Return what the memory tells."""
    return Drift(state.get("update", 0.0), state["later"])
