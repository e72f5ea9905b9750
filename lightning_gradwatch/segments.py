"""Segments of a net: from each activation site back to the nearest one that all of the gradient must pass.

Told from which site feeds which alone, so that the measuring part and the rules can't disagree. Sets of sites are
integers whose bits are sites: a deep net with dense connections has a hundred thousand of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MOST_SITES = 1 << 14
"""Of more, none has a start."""
_MOST_BYTES = 1 << 30
"""Bytes of sets that are gone through for one net, a few million steps: enough for a thousand sites that all feed each
other in execution order. A small file can describe sites that take hours."""
_STEP_BYTES = 256  # what a step costs beside the bytes of its set


@lru_cache(maxsize=32)
def segment_starts(feeds: tuple[int, ...], entries: int, exits: int) -> tuple[int | None, ...]:
    """Return for each site the one at which the segment that leads to it starts; None where there is no such site.

    The segment to a site s starts at the nearest site c that every path from s towards the input passes, where every path
    from c towards the loss also passes s. So all of the gradient at c's output has come from s, and what reaches c of it
    is the segment's gain. In a chain c is the site before; behind a residual block it is the site before the block; inside
    a branch there is none. There is none either where finding it would take too long, the same on every machine.

    Args:
        feeds: A set of sites for each site, those whose outputs reach it through no other site.
        entries: The sites that some path reaches from the input through no other site.
        exits: The sites from which some path reaches the loss through no other site.

    >>> segment_starts((0b000, 0b001, 0b010), 0b001, 0b100)
    (None, 0, 1)
    >>> segment_starts((0b000, 0b001, 0b011), 0b001, 0b100)  # site 1 is a branch around which site 0 feeds site 2
    (None, None, 0)
    """
    if len(feeds) > MOST_SITES:
        return (None,) * len(feeds)
    room = _Room(len(feeds))
    fed = [0] * len(feeds)
    for site, feeding in enumerate(feeds):
        for earlier in bits(feeding):
            room.take(1)
            fed[earlier] |= 1 << site
    in_order = not any(feeding >> site for site, feeding in enumerate(feeds))
    passed = _dominators(feeds, range(len(feeds)), entries, room, in_order=in_order)
    at = {sites: site for site, sites in enumerate(passed) if sites}
    # The nearest one is passed by all the others: its own set is this one's without this site.
    nearest = [at.get(sites & ~(1 << site)) for site, sites in enumerate(passed)]
    if in_order:
        left = _dominators(fed, range(len(feeds) - 1, -1, -1), exits, room, in_order=True)
        starts = [
            start if start is not None and (not left[start] or left[start] >> site & 1) else None
            for site, start in enumerate(nearest)
        ]
    else:
        starts = [
            start if start is not None and _leads_only_to(site, start, fed, exits, room) else None
            for site, start in enumerate(nearest)
        ]
    return (None,) * len(feeds) if room.is_used_up else tuple(starts)


class _Room:
    """How much work is left; the same on every machine, so that measuring and judging can't disagree."""

    def __init__(self, sites: int) -> None:
        self._left = _MOST_BYTES
        self._step = _STEP_BYTES + sites // 8

    def take(self, steps: int) -> None:
        """Note steps that went through a set each."""
        self._left -= steps * self._step

    @property
    def is_used_up(self) -> bool:
        """Whether the rest has to be given up."""
        return self._left < 0


def _dominators(feeds: Sequence[int], order: Sequence[int], entries: int, room: _Room, *, in_order: bool) -> list[int]:
    """Return for each site the sites that every path to it from the input passes, itself included; 0: no path leads to it.

    Args:
        feeds: As `segment_starts` takes them.
        order: All sites, as they are gone through.
        entries: As `segment_starts` takes them.
        room: The work that is left.
        in_order: Whether each site comes behind all that feed it, so that once through is enough.
    """
    everything = (1 << len(feeds)) - 1
    passed = [everything] * len(feeds)
    reached = 0
    changed = True
    while changed and not room.is_used_up:
        changed = False
        for site in order:
            feeding, own = feeds[site], 1 << site
            common = 0 if entries & own else everything
            for earlier in bits(feeding & reached):
                common &= passed[earlier]
                room.take(1)
            room.take(1)
            if entries & own or feeding & reached:
                changed = changed or not reached & own or passed[site] != common | own
                reached |= own
                passed[site] = common | own
        if in_order:
            break
    return [sites if reached >> site & 1 else 0 for site, sites in enumerate(passed)]


def _leads_only_to(site: int, start: int, fed: list[int], exits: int, room: _Room) -> bool:
    """Whether every path on from `start` passes `site`, before it ends and before it comes back."""
    if exits >> start & 1:
        return False
    seen = 1 << site
    waiting = fed[start] & ~seen
    while waiting and not room.is_used_up:
        room.take(1)
        following = (waiting & -waiting).bit_length() - 1
        if following == start or exits >> following & 1:
            return False
        seen |= 1 << following
        waiting = (waiting | fed[following]) & ~seen
    return True


def as_bits(sites: Iterable[int]) -> int:
    """Return the set of some sites.

    >>> bin(as_bits([1, 3]))
    '0b1010'
    """
    found = 0
    for site in sites:
        found |= 1 << site
    return found


def bits(sites: int) -> Iterator[int]:
    """Yield the members of a set, in rising order.

    >>> list(bits(0b1010))
    [1, 3]
    """
    while sites:
        lowest = sites & -sites
        yield lowest.bit_length() - 1
        sites ^= lowest
