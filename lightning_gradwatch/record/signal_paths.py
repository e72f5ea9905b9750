"""The ways on which a signal comes back from the loss to the input, told from which site feeds which.

A signal fades or grows along one path. Through a residual net or past branches that meet again there is one: the longest.
Towers that part, each with an input or a loss of its own, have one each, and sites of two towers are never compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.record.segments import components, turned_round

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.record.step import FloatVector

Places: TypeAlias = npt.NDArray[np.intp]

_MOST = 64
"""Paths that are looked at in one net, and losses that each may lead to; where there are more, as with hundreds of experts, the
longest ones, and the last ones."""
_MOST_STEPS = 1 << 19
"""Steps from site to site that are gone to find all paths once, half a second of them: of a file's net with more than any has,
there are fewer paths."""


class SitePaths:
    """The paths through the hidden sites of a net.

    Sites that feed each other in circles count as one stop, in the order of their columns.

    Args:
        feeds: For each site, those that feed it through no other site.
        hidden: Whether a site is hidden; the others, such as gates, are passed without counting.

    >>> stem_two_branches_head = SitePaths([[], [0], [1], [0], [2, 3]], [True] * 5)
    >>> [path.tolist() for path in stem_two_branches_head.along(None)]
    [[0, 1, 2, 4]]
    >>> two_towers = SitePaths([[], [0], [], [2]], [True] * 4)
    >>> [path.tolist() for path in two_towers.along(None)]
    [[0, 1], [2, 3]]
    """

    def __init__(self, feeds: Sequence[Sequence[int]], hidden: Sequence[bool]) -> None:
        groups = components(feeds)
        stop_of = {site: stop for stop, group in enumerate(groups) for site in group}
        self._members = [sorted(site for site in group if hidden[site]) for group in groups]
        self._feeds = [
            sorted({stop_of[earlier] for site in group for earlier in feeds[site]} - {stop})
            for stop, group in enumerate(groups)
        ]
        self._fed = turned_round(self._feeds)
        size = len(groups) + sum(map(len, self._feeds))
        self._most = max(1, min(_MOST, _MOST_STEPS // max(size, 1)))
        self._kept = 0
        """Entries in what is remembered of ways and paths."""
        self._ends_of = self._find_ends()
        starts = self._find_starts(None)
        self._paths: dict[tuple[int, int], Places] = {}
        self._ways: dict[int, dict[int, tuple[int, int | None]]] = {}
        alone = [ends[0] if len(ends) == 1 else None for ends in self._ends_of]
        self._inputs = self._longest(starts)
        """Where paths begin at the input."""
        self._parted = self._longest([start for start in self._find_starts(alone) if start not in starts])
        """Where they begin behind what they share with others: all that is left leads to one loss."""
        # One that neither is fed nor feeds any may be where no graph leads, as inside a reentrant checkpoint.
        begun = [start for start in starts if self._fed[start]] or starts
        self.firsts = frozenset(self._members[start][0] for start in begun)
        """The hidden sites before which there is none."""

    def _longest(self, starts: list[int]) -> list[int]:
        if len(starts) <= self._most:
            return starts
        lengths = self._lengths()
        return sorted(sorted(starts, key=lambda start: -lengths[start])[: self._most])

    def _lengths(self) -> list[int]:
        """Return for each stop how many hidden sites lie on the longest way from there to a loss."""
        lengths = [0] * len(self._members)
        for stop in reversed(range(len(lengths))):
            following = max((lengths[each] for each in self._fed[stop]), default=0)
            lengths[stop] = following + len(self._members[stop])
        return lengths

    def along(self, norms: FloatVector | None) -> list[Places]:
        """Return the columns of each path, from the input to the loss.

        Args:
            norms: The signal at each site: where several losses send theirs to one place, the path is that of the strongest,
                and what only leads to one of the losses is a path as well. None: the longest ones from the input alone.
        """
        starts = self._inputs if norms is None else (*self._inputs, *self._parted)
        return [self._path(start, self._end(start, self._ends_of[start], norms)) for start in starts]

    def _end(self, start: int, ends: Sequence[int], norms: FloatVector | None) -> int:
        if len(ends) == 1:
            return ends[0]
        if norms is None:
            return max(ends, key=lambda end: self._length(start, end))
        strength = np.nan_to_num(norms[[self._members[end][-1] for end in ends]], nan=-1.0, posinf=np.inf)
        return ends[int(np.argmax(strength))]

    def _find_ends(self) -> list[list[int]]:
        """Return for each stop the last hidden ones that its output reaches, so many at most."""
        found: list[list[int]] = [[] for _ in self._members]
        for stop in reversed(range(len(self._members))):
            behind = [found[each] for each in self._fed[stop]]
            if len(behind) == 1:
                found[stop] = behind[0]
            elif behind:
                found[stop] = sorted(set().union(*behind))[-self._most :]
            if not found[stop] and self._members[stop]:
                found[stop] = [stop]
        return found

    def _find_starts(self, only: Sequence[int | None] | None) -> list[int]:
        """Return the hidden stops before which there is none; with `only`, none that leads to the same one end alone."""
        passed = [False] * len(self._members)
        found = []
        for stop, feeds in enumerate(self._feeds):
            counts = only is None or only[stop] is not None
            before = any(passed[each] for each in feeds if only is None or only[each] == only[stop])
            if self._members[stop] and counts and not before:
                found.append(stop)
            passed[stop] = before or (bool(self._members[stop]) and counts)
        return found

    def _length(self, start: int, end: int) -> int:
        return self._ways_to(end)[start][0]

    def _path(self, start: int, end: int) -> Places:
        path = self._paths.get((start, end))
        if path is None:
            ways = self._ways_to(end)
            sites: list[int] = []
            stop: int | None = start
            while stop is not None:
                sites += self._members[stop]
                stop = ways[stop][1]
            path = self._paths[start, end] = np.array(sites, dtype=np.intp)
            self._keep(len(sites))
        return path

    def _keep(self, entries: int) -> None:
        """Forget what is remembered, where it has become more than is needed at a time."""
        self._kept += entries
        if self._kept > 4 * _MOST_STEPS:
            self._kept = entries
            self._ways.clear()
            self._paths.clear()

    def _ways_to(self, end: int) -> dict[int, tuple[int, int | None]]:
        """Return for each stop that leads to an end how many hidden sites lie on the longest way, and the next stop on it."""
        ways = self._ways.get(end)
        if ways is None:
            ways = {end: (len(self._members[end]), None)}
            for stop in reversed(range(end)):
                following = [(ways[each][0], -each) for each in self._fed[stop] if each in ways]
                if following:
                    length, each = max(following)
                    ways[stop] = (length + len(self._members[stop]), -each)
            self._keep(len(ways))
            self._ways[end] = ways
        return ways
