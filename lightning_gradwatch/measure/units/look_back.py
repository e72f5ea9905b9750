"""Whether units of filled windows have died, and in front of which of the newest steps (see `silence`).

Windows of as many units each are looked at together, as a deep net has hundreds; nearly all are done after a step or two.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lightning_gradwatch.measure.units.silence import (
    FEW,
    RECENT,
    STEPS_SINCE,
    Suspicion,
    active_counts,
    bits,
    evidence,
    note_silent,
    unpacked,
    usual_evidence,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from lightning_gradwatch.measure.units.window import Window


class Moved(NamedTuple):
    """A filled window that has just taken in a step."""

    window: Window
    hidden: bool
    """Whether it is a hidden site's: only for those further steps are watched."""


class _Stretch(NamedTuple):
    """Steps that follow each other in front of which the same units of a window may have died."""

    place: int
    """The window's."""
    silent: int
    """The units, as bits."""
    steps: list[tuple[int, int, int]]
    """How far back each is, and what was seen since: observations and batch elements."""


def examine(moved: Sequence[Moved], height: float) -> None:
    """See whether units of some windows have died, which have as many units each; `height` is the evidence that it takes."""
    totals = [window.total for window, _ in moved if window.total is not None]
    active = active_counts(totals)
    newest = [window.chunks[-1] for window, _ in moved]
    note_silent(newest)
    stretches = []
    # Nearly always each unit that was active in the window is so in the newest step or the one before, and all is said.
    for place, alive in enumerate(bits(active > 0)):
        if moved[place].window.suspicion is not None:
            moved[place].window.reconsider(height)
        elif silent := newest[place].silent & alive:
            stretches += _stretches(place, moved[place], silent, units=active.shape[1])
    if stretches:
        _look_back(moved, stretches, active, height)


def _stretches(place: int, moved: Moved, silent: int, *, units: int) -> list[_Stretch]:
    """Return the steps in front of which units may have died that are `silent` in the newest one, the latest first."""
    window, hidden = moved
    chunks = window.chunks
    fills_observations, fills_elements = window.fills_from
    found: list[_Stretch] = []
    steps: list[tuple[int, int, int]] = []
    # From a few units nothing follows until enough was seen since.
    few = FEW * units
    matters = hidden and silent.bit_count() > few
    observations = batch_elements = 0
    for back in range(1, min(RECENT, len(chunks) - 1) + 1):
        chunk = chunks[-back]
        still = silent & chunk.silent
        if still != silent:
            if not still:
                break
            silent, steps = still, []
            matters = hidden and silent.bit_count() > few
        observations += chunk.observations
        batch_elements += chunk.batch_elements
        if matters or (back >= STEPS_SINCE and observations >= fills_observations and batch_elements >= fills_elements):
            if not steps:
                found.append(_Stretch(place, silent, steps))
            steps.append((back, observations, batch_elements))
    return found


def _look_back(
    moved: Sequence[Moved], stretches: Sequence[_Stretch], active: npt.NDArray[np.int64], height: float
) -> None:
    """Look for the latest step in front of which units of a window have died."""
    counts = [(stretch.place, *seen) for stretch in stretches for _, *seen in stretch.steps]
    places, since = np.array(counts)[:, 0], np.array(counts)[:, 1:]
    steps = [len(stretch.steps) for stretch in stretches]
    silent = unpacked([stretch.silent for stretch in stretches], active.shape[1])
    totals = [window.total for window, _ in moved if window.total is not None]
    seen = np.array([[total.observations, total.batch_elements] for total in totals])
    before = np.maximum(seen[places] - since, 1)
    found = evidence(active[places], silent.repeat(steps, axis=0), before[:, :1], before[:, 1:], since[:, 1:]).tolist()
    settled = set()
    for index, (stretch, first) in enumerate(zip(stretches, accumulate(steps, initial=0), strict=False)):
        window, hidden = moved[stretch.place]
        bar = height + window.caution
        much = found[first : first + len(stretch.steps)]
        if stretch.place in settled or max(much) < bar:
            continue
        for (back, observations, batch_elements), speaks in zip(stretch.steps, much, strict=True):
            if speaks < bar:
                continue
            usual = usual_evidence(window.chunks[:-back], active[stretch.place], seen[stretch.place])
            if speaks < bar + usual:
                continue
            excess = speaks - height - usual
            window.suspect(Suspicion(back, silent[index].copy(), observations, batch_elements, excess, hidden), height)
            settled.add(stretch.place)
            break
