"""Whether units of filled windows have died, and in front of which of the newest steps (see `silence`).

Windows of as many units each are looked at together, as a deep net has hundreds; nearly all are done after a step or two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lightning_gradwatch.measure.units.silence import (
    FEW,
    RECENT,
    STEPS_SINCE,
    MostEvidence,
    Suspicion,
    active_counts,
    evidence,
    stacked_flat,
    usual_evidence,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from lightning_gradwatch.measure.units.silence import Mask
    from lightning_gradwatch.measure.units.window import Window


class Moved(NamedTuple):
    """A filled window that has just taken in a step."""

    window: Window
    hidden: bool
    """Whether it is a hidden site's: only for those further steps are watched."""


def examine(moved: Sequence[Moved], height: float) -> None:
    """See whether units of some windows have died, which have as many units each; `height` is the evidence that it takes."""
    totals = [window.total for window, _ in moved if window.total is not None]
    seen = np.array([[total.observations, total.batch_elements] for total in totals])
    active = active_counts(totals)
    newest = [window.chunks[-1] for window, _ in moved]
    flat = stacked_flat(newest) == np.array([[chunk.observations] for chunk in newest])
    silent: Mask = flat & (active > 0)
    fresh = []
    # Nearly always each unit that was active in the window is so in the newest step, and all is said.
    for place, anything in enumerate(np.count_nonzero(silent, axis=1).tolist()):
        if moved[place].window.suspicion is not None:
            moved[place].window.reconsider(height)
        elif anything:
            fresh.append(place)
    if fresh:
        _look_back([moved[place] for place in fresh], seen[fresh], active[fresh], silent[fresh], height)


def _look_back(
    moved: Sequence[Moved],
    seen: npt.NDArray[np.int64],
    active: npt.NDArray[np.int64],
    silent: Mask,
    height: float,
) -> None:
    """Look for the latest step in front of which units of a window have died."""
    bars = np.array([height + window.caution for window, _ in moved])
    chunks_of = [window.chunks for window, _ in moved]
    most = MostEvidence(chunks_of, [window.density for window, _ in moved], seen, active)
    left = np.arange(len(moved))
    fills = np.array(moved[0].window.fills_from)  # all windows of a run are alike
    hidden = np.array([each.hidden for each in moved])
    since = np.zeros_like(seen)
    steps = np.array([len(chunks) for chunks in chunks_of])
    for back in range(1, RECENT + 1):
        # Nearly always, what is still silent after a step or two can't amount to enough.
        left = left[(most.given(silent[left], left) >= bars[left]) & (steps[left] > back)]
        if not left.size:
            return
        chunks = [chunks_of[place][-back] for place in left.tolist()]
        counts = np.array([[chunk.observations, chunk.batch_elements] for chunk in chunks])
        since[left] += counts
        if back > 1:
            silent[left] &= stacked_flat(chunks) == counts[:, :1]
        # From a few units nothing follows until enough was seen since.
        matter = np.count_nonzero(silent[left], axis=1) > FEW * active.shape[1]
        settle = (since[left] >= fills).all(axis=1) & (back >= STEPS_SINCE)
        told = left[(hidden[left] & matter) | settle]
        if not told.size:
            continue
        before = np.maximum(seen[told] - since[told], 1)
        found = evidence(active[told], silent[told], before[:, :1], before[:, 1:], since[told, 1:])
        settled = []
        for place, much in zip(told.tolist(), found.tolist(), strict=True):
            if much < bars[place]:
                continue
            window = moved[place].window
            usual = usual_evidence(chunks_of[place][:-back], active[place], seen[place])
            if much < bars[place] + usual:
                continue
            observations, batch_elements = since[place].tolist()
            suspicion = Suspicion(
                back, silent[place].copy(), observations, batch_elements, much - height - usual, moved[place].hidden
            )
            window.suspect(suspicion, height)
            settled.append(place)
        if settled:
            left = left[~np.isin(left, settled)]
