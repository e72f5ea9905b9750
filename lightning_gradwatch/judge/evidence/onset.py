"""How units got where their function is flat: from the start, or thrown there by steps that were too large."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lightning_gradwatch.judge.evidence.unscaled_targets import WHY_HUGE, unscaled_targets
from lightning_gradwatch.judge.readings import layer_values, of_full_weights, site_values
from lightning_gradwatch.judge.streaks import columns
from lightning_gradwatch.record.finding import Cause, CauseKind
from lightning_gradwatch.record.wording import number, percent

if TYPE_CHECKING:
    from lightning_gradwatch.judge.streaks import Columns, Mask, State
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import FloatVector, StepRecord

_WATCHED = 16
"""Records whose updates are looked at: what ails a net from the start shows in them, and each costs time."""
OVERSIZED = 0.1
"""The threshold of GW302: ten such steps replace a layer."""
_AT_START = 4
"""Steps whose first record shows how a site started."""
_PASSED = 0.75
"""Share of a function's usual gain from which on fewer than half of its units were saturated, and not all of them dead."""


class Drift(NamedTuple):
    """What is known of the way there."""

    update: float
    """Largest median update ratio of the weight layers seen near the start; 0 where none was."""
    later: bool
    """Whether the first reading of each of these units showed nothing wrong."""
    unscaled: bool = False
    """Whether targets make the loss huge, and with it the steps, which are in proportion to the gradient."""

    @property
    def oversized(self) -> bool:
        """Whether steps were seen that are too large."""
        return self.update > OVERSIZED

    @property
    def thrown(self) -> bool:
        """Whether steps that were too large are the likely cause."""
        return self.later or self.oversized

    @property
    def causes(self) -> tuple[Cause, ...]:
        """What made the steps too large."""
        return (
            Cause(CauseKind.UNSCALED_TARGETS if self.oversized and self.unscaled else CauseKind.HIGH_LEARNING_RATE),
        )

    def sentence(self) -> str:
        """Say so."""
        if not self.oversized:
            return "At first they weren't there: most likely a step that was too large threw them."
        moved = (
            f"{number(self.update)} times their size" if self.update >= 1 else f"{percent(self.update)} of themselves"
        )
        why = (
            f"the loss is so large that steps in proportion to it are too. It {WHY_HUGE}."
            if self.unscaled
            else "the learning rate is too high."
        )
        return f"The first steps changed the weights by {moved}: {why}"


def note_update(state: State, record: StepRecord, info: RunInfo) -> None:
    """Add a record's updates to the memory."""
    seen = state.get("seen", 0)
    if seen >= _WATCHED:
        return
    state["seen"] = seen + 1
    if not seen:  # a loss that is huge later on may be what the steps have made of it
        state["huge"] = info.steps_follow_gradient and unscaled_targets(record, info)
    ratios = record.metrics.get("update_ratio")
    if ratios is not None:
        known = ratios[list(info.weight_columns)]
        known = known[np.isfinite(known)]
        if len(known):
            update = float(np.median(known))
            if np.count_nonzero(_full(record, info) > OVERSIZED):
                state["swings"] = state.get("swings", 0) + 1
            if update > OVERSIZED:
                state["unscaled"] = state.get("huge", False)
            state["update"] = max(state.get("update", 0.0), update)


def _full(record: StepRecord, info: RunInfo) -> FloatVector:
    """Return the update ratios of the weight layers; of those that start near 0, by a full start."""
    return of_full_weights(layer_values(record, info, "update_ratio"), record, info)[info.weight_mask]


def swings(state: State) -> bool:
    """Tell whether most of these updates changed some layer by too much, be it the head alone."""
    return bool(2 * state.get("swings", 0) > state.get("seen", 0))


def note_first(state: State, record: StepRecord, info: RunInfo, fractions: FloatVector, wrong: Mask) -> None:
    """Remember of each site's first reading whether anything was wrong in it.

    Sites don't fill their windows at the same step, so that one of them has been read says nothing of the others.
    """
    first = _first(state, info)
    new = np.isnan(first.values[0]) & np.isfinite(fractions)
    if np.count_nonzero(new):
        np.copyto(first.values[0], wrong, where=new)
        first.blank = False
        if record.step < _AT_START:  # the reading itself shows how the units started
            np.copyto(_started(state, info).values[0], 0.0, where=new)


def note_passed(state: State, record: StepRecord, info: RunInfo) -> None:
    """Remember what each site passes back when it is first measured: with small batches a window is full long after that."""
    if record.step >= _AT_START:
        return
    gains = _started(state, info)
    np.copyto(gains.values[0], site_values(record, info, "activation_gain"), where=np.isnan(gains.values[0]))
    gains.blank = False


def first_steps(state: State) -> Drift:
    """Return what the memory tells of these updates, of what wasn't so before them."""
    return Drift(state.get("update", 0.0), later=True, unscaled=state.get("unscaled", False))


def drift(state: State, info: RunInfo, where: Mask, whole: Mask) -> Drift:
    """Return what the memory tells of the units of some sites.

    Args:
        state: The memory, which the functions above fill.
        info: Describes its columns.
        where: The sites.
        whole: Sites of which so many units are wrong that next to nothing passes: if much did at first, they weren't then.
    """
    usual = np.array([site.activation.usual_gain for site in info.sites])
    fine = whole & (_started(state, info).values[0] >= _PASSED * usual)
    later = not np.count_nonzero(where & ~fine & (_first(state, info).values[0] == 1))
    return first_steps(state)._replace(later=later)


def _first(state: State, info: RunInfo) -> Columns:
    """Return of each site whether anything was wrong in its first reading: 1, 0, or NaN before it."""
    return columns(state, "first", info, "sites", rows=1, fill=math.nan)


def _started(state: State, info: RunInfo) -> Columns:
    """Return what each site passed back when it was first measured; NaN where that isn't known."""
    return columns(state, "started", info, "sites", rows=1, fill=math.nan)
