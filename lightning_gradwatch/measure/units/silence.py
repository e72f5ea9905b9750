"""Whether units have fallen silent: how much the newest observations speak for it, given how active each unit was before.

A window is right about a net that stays as it is. When units die, what it holds of the time before hides it, at small
batches for thousands of steps. So two explanations of the newest steps are held against each other: nothing has changed,
or some of the units have died. How much more likely the second makes what was seen is the evidence, as a logarithm.
A unit that was active in many observations and isn't in any of the newest ones speaks for it, one that is seen to be
active against it.

The units are taken to be independent of each other. Where they aren't, chance alone reaches a given evidence more often:
so it has to exceed what the steps before would have been, and where it still leads to steps watched in vain, the bar is
raised. Positions of one batch element (pixels, tokens) are taken to be one observation: they are alike, and how much so
isn't known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from lightning_gradwatch.record.checkpoint import StateError, count_of, instance_of, mapping_of, numbers_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.record.step import FloatVector

Mask: TypeAlias = npt.NDArray[np.bool_]

UnitCounts = npt.NDArray[np.int64]


@dataclass(slots=True)
class WindowEntry:
    """The observations of one measured step (of a few, where steps are tiny); those in a window never change."""

    inactive: UnitCounts
    saturated: UnitCounts | None
    observations: int
    batch_elements: int
    _silent: int | None = None

    def is_like(self, other: WindowEntry) -> bool:
        """Whether it is of as many units, and they can be saturated or can't, too; a checkpoint's may be of another function."""
        return len(self.inactive) == len(other.inactive) and (self.saturated is None) is (other.saturated is None)

    @property
    def flat(self) -> UnitCounts:
        """How often each unit was inactive, or saturated where the function can't be inactive."""
        # Where a function can be both, what is saturated is inactive too.
        return self.inactive if self.saturated is None else np.maximum(self.inactive, self.saturated)

    @property
    def silent(self) -> int:
        """The units that were flat in each observation, as bits: of one in a window, which never changes."""
        if self._silent is None:
            note_silent([self])
        assert self._silent is not None
        return self._silent

    def joined(self, other: WindowEntry) -> WindowEntry:
        """Return a chunk of the observations of both."""
        return WindowEntry(
            self.inactive + other.inactive,
            None if self.saturated is None or other.saturated is None else self.saturated + other.saturated,
            self.observations + other.observations,
            self.batch_elements + other.batch_elements,
        )

    def add(self, other: WindowEntry) -> None:
        """Add another chunk's counts, in place."""
        self.inactive += other.inactive
        if self.saturated is not None and other.saturated is not None:
            self.saturated += other.saturated
        self.observations += other.observations
        self.batch_elements += other.batch_elements

    def remove(self, other: WindowEntry) -> None:
        """Take another chunk's counts away, in place."""
        self.inactive -= other.inactive
        if self.saturated is not None and other.saturated is not None:
            self.saturated -= other.saturated
        self.observations -= other.observations
        self.batch_elements -= other.batch_elements


SATURATED_PERCENT = 95
"""A unit is saturated when at least this share of the window's observations is; in integers, so that it is exact."""
RECENT = 16
"""So many of a window's newest steps stay apart, as units may have died in front of each."""
STEPS_SINCE = 2
"""Steps that have to speak for it at least: one batch may be of one kind."""
_COMPARED = 32
"""As many steps before are compared with the newest."""
FEW = 1 / 8
"""Share of a site's units that isn't worth a further step: what a window says is off by so much at most."""
_SHARE = 1 / 3
"""Share of the units that have died, by the second explanation; it is made for a half, and a tenth still shows."""
_DIED, _LIVES = math.log(_SHARE), math.log1p(-_SHARE)
_ONE_IN = 3.0
"""If nothing has changed, the evidence reaches the bar in one look of so many at most, over all sites together; far fewer
where units are many."""


def bar(sites: int) -> float:
    """Return the evidence from which on units of a site are suspected to have died, where so many are looked at."""
    return math.log(_ONE_IN * max(sites, 1))


def evidence(
    active: npt.NDArray[np.int64],
    silent: Mask,
    observations: npt.NDArray[np.int64],
    before: npt.NDArray[np.int64],
    since: npt.NDArray[np.int64],
) -> FloatVector:
    """Return for each site how much its newest steps speak for units that have died, as a logarithm of a likelihood ratio.

    Args:
        active: Observations in which each unit was active, shape [S, U].
        silent: Which units were active before and in none of the newest observations, shape [S, U].
        observations: All of a site but the newest, shape [S, 1].
        before: Batch elements of those, shape [S, 1].
        since: Batch elements of the newest, shape [S, 1].

    That a unit which was active in k of n batch elements isn't in the next m is as likely as (1 + m / n) ** -(k + 1/2),
    if activity comes at a constant rate that the n alone tell of: a few observations before prove little.

    >>> alive = np.array([[512, 512, 512, 512]])
    >>> first_two = np.array([[True, True, False, False]])
    >>> evidence(alive, first_two, *np.array([[[1024]], [[1024]], [[16]]])).round(1)
    array([12.9])
    """
    rows, units = silent.nonzero()  # nearly always a few, and logarithms are dear
    rate = active[rows, units] * (before / observations)[rows, 0]
    unlikely = (rate + 0.5) * np.log1p(since / before)[rows, 0]
    gained = np.bincount(rows, np.logaddexp(_LIVES, _DIED + unlikely), len(silent))
    total: FloatVector = gained + _LIVES * ((active > 0).sum(axis=1) - silent.sum(axis=1))
    return total


@dataclass(slots=True)
class Suspicion:
    """That units have died in front of the newest chunks of a window, which then are all that it should hold."""

    chunks: int
    """How many those are."""
    silent: Mask
    """The units that were active before, and in none of them; shape [U]."""
    observations: int
    batch_elements: int
    evidence: float = 0.0
    """The most there was, above what it takes."""
    hidden: bool = True
    """Whether it is about a hidden site, for which it is worth to watch further steps: else it is settled at once or dropped."""
    looks: int = 0
    """Steps that were watched because of it."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {**{each: getattr(self, each) for each in self.__slots__}, "silent": torch.from_numpy(self.silent)}

    @classmethod
    def from_state(cls, state: Any, *, units: int, most: int) -> Suspicion:
        """Build from what `state_dict` gave.

        Args:
            state: What that gave.
            units: Units of the window.
            most: Chunks of the window.

        Raises:
            StateError: it isn't what that gives.
        """
        what = "the suspicion of a window"
        mapping_of(state, what, required=cls.__slots__)
        silent = np.asarray(state["silent"])
        if silent.shape != (units,) or silent.dtype != bool:
            raise StateError(f"{what} is about units of shape {list(silent.shape)}, not [{units}]")
        chunks = count_of(state["chunks"], f"the chunks of {what}", most=most)
        if not chunks:
            raise StateError(f"{what} has no chunk")
        (evidence,) = numbers_of([state["evidence"]], f"the evidence of {what}", most=1)
        return cls(
            chunks=chunks,
            silent=silent.copy(),
            observations=count_of(state["observations"], f"the observations of {what}"),
            batch_elements=count_of(state["batch_elements"], f"the batch elements of {what}"),
            evidence=float(evidence),
            hidden=instance_of(state["hidden"], f"whether {what} is hidden", bool),
            looks=count_of(state["looks"], f"the looks of {what}"),
        )

    @property
    def matters(self) -> bool:
        """Whether it is about more than a few of the units."""
        return bool(np.count_nonzero(self.silent) > FEW * self.silent.size)

    def date_from(self, chunks: Sequence[WindowEntry]) -> None:
        """Take it that units died in front of these chunks, the newest ones: a suspicion of its own."""
        active = np.add.reduce([chunk.observations - chunk.flat for chunk in chunks])
        self.chunks, self.silent = len(chunks), active == 0
        self.observations = sum(chunk.observations for chunk in chunks)
        self.batch_elements = sum(chunk.batch_elements for chunk in chunks)
        self.looks = 0

    def add(self, chunk: WindowEntry) -> None:
        """Take in the next chunk."""
        self.chunks += 1
        self.silent &= chunk.flat == chunk.observations
        self.observations += chunk.observations
        self.batch_elements += chunk.batch_elements


def died_later(chunks: Sequence[WindowEntry], height: float) -> int:
    """Return how many of the chunks, the newest, were seen since further units died; 0 where none seem to have.

    Args:
        chunks: Those since units were first thought to have died.
        height: The evidence that it takes.
    """
    counts = np.array([[chunk.observations, chunk.batch_elements] for chunk in chunks])
    flat = stacked_flat(chunks)
    inactive = np.logical_and.accumulate((flat == counts[:, :1])[::-1])[::-1][1:]
    active = np.cumsum(counts[:, :1] - flat, axis=0)[:-1]
    before = np.maximum(np.cumsum(counts, axis=0)[:-1], 1)
    since = np.cumsum(counts[::-1], axis=0)[::-1][1:, 1:]
    found = evidence(active, inactive & (active > 0), before[:, :1], before[:, 1:], since)
    place = int(found.argmax()) if len(found) else 0
    if not len(found) or found[place] < height + math.log(len(found)):
        return 0
    return len(chunks) - 1 - place


def usual_evidence(chunks: Sequence[WindowEntry], active: UnitCounts, seen: UnitCounts) -> float:
    """Return how much evidence steps before would have been, taken for the newest: the most but one, which came by chance.

    Units that follow each other are silent together: forty that go by one feature of the inputs are no more than one.
    """
    chunks = chunks[-_COMPARED:]
    counts = np.array([[chunk.observations, chunk.batch_elements] for chunk in chunks])
    silent = (stacked_flat(chunks) == counts[:, :1]) & (active > 0)
    before = np.maximum(seen - counts, 1)
    found = evidence(np.broadcast_to(active, silent.shape), silent, before[:, :1], before[:, 1:], counts[:, 1:])
    return max(float(np.sort(found)[-min(2, len(found))]), 0.0)


def stacked_flat(chunks: Sequence[WindowEntry]) -> UnitCounts:
    """Return `WindowEntry.flat` of chunks of one function or its like, shape [S, U]."""
    inactive: UnitCounts = np.array([chunk.inactive for chunk in chunks])
    if chunks[0].saturated is None:
        return inactive
    flat: UnitCounts = np.maximum(inactive, np.array([chunk.saturated for chunk in chunks]))
    return flat


def note_silent(chunks: Sequence[WindowEntry]) -> None:
    """Work out `WindowEntry.silent` of chunks of as many units each."""
    observations = np.array([[chunk.observations] for chunk in chunks])
    for chunk, silent in zip(chunks, bits(stacked_flat(chunks) == observations), strict=True):
        chunk._silent = silent  # noqa: SLF001 - its own class's


def bits(masks: Mask) -> list[int]:
    """Return each row of masks, shape [S, U], as one number, by which few or many units are told apart at once.

    >>> [f"{row:b}" for row in bits(np.array([[False, True, True], [False, False, False]]))]
    ['1100000', '0']
    """
    return [int.from_bytes(row.tobytes(), "big") for row in np.packbits(masks, axis=1)]


def unpacked(rows: Sequence[int], units: int) -> Mask:
    """Return the masks that `bits` made numbers of, shape [S, U]."""
    width = -(-units // 8)
    packed = np.frombuffer(b"".join([row.to_bytes(width, "big") for row in rows]), dtype=np.uint8)
    mask: Mask = np.unpackbits(packed.reshape(len(rows), width), axis=1, count=units).astype(bool)
    return mask


def active_counts(totals: Sequence[WindowEntry]) -> UnitCounts:
    """Return how often each unit was neither inactive nor saturated, shape [S, U].

    It is 0 for a unit that counts as saturated: what a window says already is no news.
    """
    observations = np.array([[total.observations] for total in totals])
    flat = stacked_flat(totals)
    active: UnitCounts = observations - flat
    if totals[0].saturated is not None:
        never_inactive = np.array([total.inactive for total in totals]) == 0
        active[never_inactive & (100 * flat >= SATURATED_PERCENT * observations)] = 0
    return active
