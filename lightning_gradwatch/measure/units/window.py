"""The rolling window over the observations of a site's units: a unit is judged over many samples, not over one batch.

Kept on the host in numpy, since the counts of a step travel in its one transfer anyway; so that they are exact, cheap
to save in a checkpoint, and free of any device.

A unit that is active in a share p of independent observations is called dead with a chance of (1 - p) ** n over a window of
n. Full is a window from 256 on, where that is 0.6 % for p = 2 % (from 228 on it is below 1 %); 1,024 are wanted, as far as
the net stays as it is. Pixels of an image and tokens of a text are alike, and so less than as many observations: at worst
an element of the batch is one. Hence 32 elements at least, of which a unit has to be active in 14 % to be called dead
wrongly with a chance below 1 % even then.

Where units seem to have died (see `silence`), what a window holds of the time before is let go as soon as the time since
fills one by itself. Until it does, the window isn't full: it is known not to say what is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lightning_gradwatch.measure.units.silence import (
    RECENT,
    SATURATED_PERCENT,
    STEPS_SINCE,
    Mask,
    Suspicion,
    WindowEntry,
    active_counts,
    died_later,
    evidence,
)
from lightning_gradwatch.record.checkpoint import count_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_gradwatch.record.step import FloatVector

_FEWEST = 16
"""Observations a chunk holds at least: one of fewer joins the one before, so that windows hold no more than 64 chunks, and
those of the newest steps, which stay apart."""
_MOST_LOOKS = 64
"""Steps beside those that are due which a suspicion may have watched."""
_VAIN, _FORGIVEN = 0.5, 0.1
"""How much a step that was watched in vain raises a site's bar, and each step that is due lowers it, over all sites: so in
the long run no more than one step is watched in vain for five that are due, whatever the units' activity is like."""
_WRONG, _FORGOTTEN = 10.0, 0.01
"""Where a suspicion was strong and wrong all the same, batches aren't alike (sorted data): the bar is doubled and raised by
so much; of that, each step that is due takes off a hundredth."""
_TRIAL = 16
"""Steps after which units that were taken for dead, and weren't seen to be active again, are believed to be."""


class Window:
    """The last measured steps of one site: as few as hold the wanted observations of enough batch elements.

    Args:
        observations: As many are wanted.
        batch_elements: At least from so many batch elements.
        least: Observations from which on it counts as full; as many as are wanted, by default.
    """

    def __init__(self, observations: int, batch_elements: int, least: int | None = None) -> None:
        self._observations = observations
        self._batch_elements = batch_elements
        self._least = observations if least is None else min(least, observations)
        self._chunks: list[WindowEntry] = []
        self._total: WindowEntry | None = None
        self.suspicion: Suspicion | None = None
        self.caution = 0.0
        """How much more evidence a suspicion takes here than elsewhere, as earlier ones were in vain."""
        self._believed: Mask | None = None
        """The units on whose account the oldest steps were let go last; None once that is settled."""
        self._trial = 0
        """Steps until it is."""

    def add(self, chunk: WindowEntry) -> None:
        """Take in a measured step and let go of the oldest ones that aren't wanted any more."""
        total = self._total
        if total is None or not total.is_like(chunk):
            total = self._restart([], chunk)
        chunks = self._chunks
        total.add(chunk)
        chunks.append(chunk)
        if self.suspicion is not None:
            self.suspicion.add(chunk)
        if self._believed is not None:
            self._try_belief(self._believed, chunk)
        self._join_small()
        observations, batch_elements = self._observations, self._batch_elements
        while (
            len(chunks) > 1
            and total.observations - (oldest := chunks[0]).observations >= observations
            and total.batch_elements - oldest.batch_elements >= batch_elements
        ):
            total.remove(chunks.pop(0))

    def _restart(self, chunks: list[WindowEntry], like: WindowEntry) -> WindowEntry:
        """Hold these chunks alone, which have as many units as another one; return their sum."""
        saturated = None if like.saturated is None else np.zeros_like(like.saturated)
        total = WindowEntry(np.zeros_like(like.inactive), saturated, 0, 0)
        for chunk in chunks:
            total.add(chunk)
        self._chunks, self._total, self.suspicion, self._believed = chunks, total, None, None
        return total

    def _try_belief(self, believed: Mask, chunk: WindowEntry) -> None:
        """See in a step whether units that were taken for dead are active again, most of them."""
        self._trial -= 1
        active = np.count_nonzero(believed & (chunk.flat < chunk.observations))
        if 2 * active > np.count_nonzero(believed):
            self.caution = 2 * self.caution + _WRONG
            self._believed = None
        elif self._trial <= 0:
            self._believed = None

    def _join_small(self) -> None:
        """Put the newest chunk that isn't recent any more to the one before it, if that one is small."""
        place = len(self._chunks) - RECENT - 1
        if place < 1 or self._chunks[place - 1].observations >= _FEWEST:
            return
        if self.suspicion is not None:
            since = len(self._chunks) - self.suspicion.chunks
            if place == since:
                return
            self.suspicion.chunks -= place > since
        self._chunks[place - 1 : place + 1] = [self._chunks[place - 1].joined(self._chunks[place])]

    def _suffices(self, seen: WindowEntry | Suspicion) -> bool:
        """Whether so much would fill it."""
        return seen.observations >= self._least and seen.batch_elements >= self._batch_elements

    @property
    def fills_from(self) -> tuple[int, int]:
        """The observations and the batch elements that would fill it."""
        return self._least, self._batch_elements

    def settles(self, suspicion: Suspicion) -> bool:
        """Whether enough was seen since units seem to have died to hold that alone."""
        return self._suffices(suspicion) and suspicion.chunks >= STEPS_SINCE

    @property
    def chunks(self) -> Sequence[WindowEntry]:
        """What it holds, the oldest first."""
        return self._chunks

    @property
    def total(self) -> WindowEntry | None:
        """All that it holds, full or not; None before the first step."""
        return self._total

    @property
    def filled(self) -> bool:
        """Whether it holds enough observations of enough batch elements, though units may have died in between."""
        return self._total is not None and self._suffices(self._total)

    @property
    def full(self) -> bool:
        """Whether there are enough observations of enough batch elements, of one and the same net."""
        return self.whole is not None

    @property
    def whole(self) -> WindowEntry | None:
        """All that it holds; None until it is full, and while units are suspected to have died since it was."""
        return self._total if self.suspicion is None and self.filled else None

    @property
    def fill(self) -> float:
        """How full it is, from 0 to 1; counted from where units are suspected to have died."""
        held = self._total if self.suspicion is None else self.suspicion
        if held is None:
            return 0.0
        steps = 1.0 if self.suspicion is None else self.suspicion.chunks / STEPS_SINCE
        return min(1.0, held.observations / self._least, held.batch_elements / self._batch_elements, steps)

    def suspect(self, suspicion: Suspicion, height: float) -> None:
        """Note that units may have died; where enough was seen since, all from before is let go at once."""
        self.suspicion = suspicion
        self._let_go(suspicion, height)

    def reconsider(self, height: float) -> None:
        """Drop a suspicion that the newest steps speak against; let go of all from before it once enough was seen since."""
        seen, suspicion = self._total, self.suspicion
        assert seen is not None
        assert suspicion is not None
        active = active_counts([seen])
        suspicion.silent &= active[0] > 0
        found = evidence(
            active,
            np.array([suspicion.silent]),
            *np.array(
                [
                    [[max(seen.observations - suspicion.observations, 1)]],
                    [[max(seen.batch_elements - suspicion.batch_elements, 1)]],
                    [[suspicion.batch_elements]],
                ]
            ),
        ).item()
        if found < 0 or not suspicion.matters:
            self.suspicion = None
            vain = self.caution + _VAIN * (suspicion.looks + 1)
            self.caution = max(vain, min(2 * self.caution + _WRONG, suspicion.evidence))
        else:
            suspicion.evidence = max(suspicion.evidence, found - height)
            self._let_go(suspicion, height)

    def _let_go(self, suspicion: Suspicion, height: float) -> None:
        if not self.settles(suspicion):
            return
        since = self._chunks[-suspicion.chunks :]
        if later := died_later(since, height + self.caution):
            # Not when it was thought, or not all at once: what was seen before the last of them won't do.
            suspicion.date_from(since[-later:])
            if not self.settles(suspicion):
                self.suspicion = suspicion if suspicion.hidden else None
                return
            since = since[-later:]
        self._restart(since, since[-1])
        self._believed, self._trial = suspicion.silent, _TRIAL

    def forgive(self, sites: int) -> None:
        """Lower the bar again after a step that is due, in which so many sites were looked at."""
        if self.caution:
            self.caution = max(self.caution * (1 - _FORGOTTEN) - _FORGIVEN / sites, 0.0)

    @property
    def wanted(self) -> int:
        """How many steps more are to be watched, so that what is suspected is settled."""
        suspicion = self.suspicion
        if suspicion is None or suspicion.looks >= _MOST_LOOKS:
            return 0
        latest = self._chunks[-1]
        missing = max(
            (self._least - suspicion.observations) / max(latest.observations, 1),
            (self._batch_elements - suspicion.batch_elements) / max(latest.batch_elements, 1),
            STEPS_SINCE - suspicion.chunks,
        )
        return min(math.ceil(missing), _MOST_LOOKS - suspicion.looks)

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
            ],
            "suspicion": None if self.suspicion is None else self.suspicion.state_dict(),
            "caution": self.caution,
            "believed": None if self._believed is None else torch.from_numpy(self._believed),
            "trial": self._trial,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, of this release or of one that suspected nothing.

        Raises:
            StateError: it isn't what that gives.
        """
        chunks = [
            WindowEntry(
                np.asarray(saved["inactive"], dtype=np.int64),
                None if saved["saturated"] is None else np.asarray(saved["saturated"], dtype=np.int64),
                int(saved["observations"]),
                int(saved["batch_elements"]),
            )
            for saved in state["chunks"]
        ]
        self._chunks, self._total, self.suspicion, self._believed = chunks, None, None, None
        self.caution = float(state.get("caution", 0.0))
        if not chunks:
            return
        self._restart(chunks, chunks[-1])
        if (suspicion := state.get("suspicion")) is not None:
            self.suspicion = Suspicion.from_state(suspicion, units=chunks[-1].inactive.size, most=len(chunks))
        if (believed := state.get("believed")) is not None:
            self._believed = np.asarray(believed, dtype=bool)
            self._trial = count_of(state.get("trial", 0), "the trial of a window")


def fractions(windows: Sequence[Window | None]) -> tuple[FloatVector, FloatVector]:
    """Return the dead and the saturated fraction of each window; NaN until it is full, and where they don't apply.

    A unit is dead where it was inactive in every observation, and saturated where it was in at least 95 % of them and
    isn't dead.
    """
    dead, saturated = np.full((2, len(windows)), math.nan)
    alike: dict[tuple[int, bool], list[tuple[int, WindowEntry]]] = {}
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
