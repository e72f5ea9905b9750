"""Segments of a net: from each activation site back to the nearest one that all of the gradient must pass.

Told from which site feeds which alone, so that the measuring part and the rules can't disagree. What every path passes
follows from two trees, made and asked in about as much time as there are connections (Cooper, Harvey and Kennedy 2001).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    Feeds = Sequence[Sequence[int]]

_MOST_STEPS = 1 << 23
"""Steps from site to site that are gone for one net, a few seconds of them. Nets take a few for each connection; a small file
can describe circles within circles that take hours."""


def segment_starts(feeds: Feeds, entries: Iterable[int], exits: Collection[int]) -> tuple[int | None, ...]:
    """Return for each site the one at which the segment that leads to it starts; None where there is no such site.

    The segment to a site s starts at the nearest site c that every path from s towards the input passes, where every path
    from c towards the loss also passes s. So all of the gradient at c's output has come from s, and what reaches c of it
    is the segment's gain. In a chain c is the site before; behind a residual block it is the site before the block; inside
    a branch there is none. There is none either where finding it would take too long, the same on every machine.

    Args:
        feeds: For each site, those whose outputs reach it through no other site.
        entries: The sites that some path reaches from the input through no other site.
        exits: The sites from which some path reaches the loss through no other site.

    >>> segment_starts([[], [0], [1]], {0}, {2})
    (None, 0, 1)
    >>> segment_starts([[], [0], [0, 1]], {0}, {2})  # site 1 is a branch around which site 0 feeds site 2
    (None, None, 0)
    """
    try:
        return _segment_starts(feeds, entries, exits, _Room())
    except _UsedUpError:
        return (None,) * len(feeds)


class _UsedUpError(Exception):
    """The work on a net is given up."""


class _Room:
    """How much work is left; the same on every machine, so that measuring and judging can't disagree."""

    def __init__(self) -> None:
        self._left = _MOST_STEPS

    def take(self, steps: int) -> None:
        """Note steps from site to site."""
        self._left -= steps
        if self._left < 0:
            raise _UsedUpError


def _segment_starts(
    feeds: Feeds, entries: Iterable[int], exits: Collection[int], room: _Room
) -> tuple[int | None, ...]:
    fed = turned_round(feeds)
    before, after = _tree(feeds, fed, entries, room), _tree(fed, feeds, exits, room)
    is_behind = _ancestry(after)
    circles = _Circles(feeds, fed, room)
    root = len(feeds)
    starts: list[int | None] = []
    for site, start in enumerate(before[:root]):
        found = (
            start is not None
            and start != root
            and (
                is_behind(site, start) if after[start] is not None else _leads_to_no_end(site, start, fed, exits, room)
            )
            and not circles.lead_back(start, around=site)
        )
        starts.append(start if found else None)
    return tuple(starts)


def turned_round(feeds: Feeds) -> list[list[int]]:
    """Return for each site those that it feeds.

    >>> turned_round([[], [0], [0, 1]])
    [[1, 2], [2], []]
    """
    fed: list[list[int]] = [[] for _ in feeds]
    for site, feeding in enumerate(feeds):
        for earlier in feeding:
            fed[earlier].append(site)
    return fed


def path_order(*feeds: Feeds) -> list[int]:
    """Return all places in an order in which each comes after those that feed it, and otherwise as they are numbered.

    Args:
        feeds: For each place, those that feed it; then, of places that feed each other in a circle, those of them that count
            there, and so on. Where the last ones still lead in a circle the numbers alone decide.

    >>> path_order([[2], [0], []])
    [2, 0, 1]
    >>> path_order([[1], [0], []])
    [0, 1, 2]
    >>> path_order([[1], [0], []], [[1], [], []])
    [1, 0, 2]
    """
    order: list[int] = []
    for component in map(sorted, components(feeds[0])):
        if len(component) > 1 and len(feeds) > 1:
            within = {place: number for number, place in enumerate(component)}
            inner = [
                [[within[each] for each in known[place] if each in within] for place in component]
                for known in feeds[1:]
            ]
            order += [component[number] for number in path_order(*inner)]
        else:
            order += component
    return order


def components(feeds: Feeds) -> list[list[int]]:
    """Return the places in groups that feed each other in circles, each group after those that feed it (Kosaraju)."""
    fed = turned_round(feeds)
    grouped = [False] * len(feeds)
    found: list[list[int]] = []
    for last in reversed(_each_after_what_it_leads_to(feeds, range(len(feeds)))):
        if grouped[last]:
            continue
        grouped[last] = True
        group = [last]
        for place in group:
            for following in fed[place]:
                if not grouped[following]:
                    grouped[following] = True
                    group.append(following)
        found.append(group)
    found.reverse()
    return found


def _tree(feeds: Feeds, fed: Feeds, entries: Iterable[int], room: _Room) -> list[int | None]:
    """Return for each site the nearest one that every path to it from the entries passes.

    That is the number of sites, which stands for where all paths begin, where there is none; None where no path leads to it.
    The last entry is that of the beginning itself.
    """
    root = len(feeds)
    order = _each_after_what_it_leads_to(fed, entries)[::-1]
    rank = [0] * (root + 1)
    for place, site in enumerate(order, 1):
        rank[site] = place
    first = set(entries)
    tree: list[int | None] = [None] * root
    tree.append(root)
    changed = True
    while changed:  # once more for each way in which circles lie within circles; once, where there are none
        changed = False
        for site in order:
            nearest = root if site in first else None
            room.take(1 + len(feeds[site]))
            for earlier in feeds[site]:
                if tree[earlier] is None or nearest == root:
                    continue
                nearest = earlier if nearest is None else _common(tree, rank, earlier, nearest, room)
            if nearest != tree[site]:
                tree[site] = nearest
                changed = True
    return tree


def _each_after_what_it_leads_to(edges: Feeds, starts: Iterable[int]) -> list[int]:
    """Return the places that can be reached, each after those that its edges lead to, but for circles."""
    order: list[int] = []
    seen = [False] * len(edges)
    for start in starts:
        if seen[start]:
            continue
        seen[start] = True
        path = [(start, iter(edges[start]))]
        while path:  # no recursion: nets are deeper than Python's stack
            place, following = path[-1]
            for each in following:
                if not seen[each]:
                    seen[each] = True
                    path.append((each, iter(edges[each])))
                    break
            else:
                path.pop()
                order.append(place)
    return order


def _common(tree: Sequence[int | None], rank: Sequence[int], one: int, other: int, room: _Room) -> int:
    """Return the nearest site that the paths to both pass."""
    steps = 0
    while one != other:
        while rank[one] > rank[other]:
            one = tree[one]  # type: ignore[assignment]  # what was reached has one, up to the beginning
            steps += 1
        while rank[other] > rank[one]:
            other = tree[other]  # type: ignore[assignment]  # as above
            steps += 1
    room.take(steps)
    return one


def _ancestry(tree: Sequence[int | None]) -> Callable[[int, int], bool]:
    """Return what tells whether every path to a site passes another one."""
    root = len(tree) - 1
    below: list[list[int]] = [[] for _ in tree]
    for site, nearest in enumerate(tree[:root]):
        if nearest is not None:
            below[nearest].append(site)
    entered, left = [-1] * len(tree), [-1] * len(tree)
    count = 0
    path = [(root, iter(below[root]))]
    while path:
        site, following = path[-1]
        if entered[site] < 0:
            entered[site] = count
            count += 1
        for each in following:
            path.append((each, iter(below[each])))
            break
        else:
            path.pop()
            left[site] = count

    def passes(other: int, site: int) -> bool:
        return entered[other] >= 0 and entered[other] <= entered[site] < left[other]

    return passes


class _Circles:
    """Ways that lead from a site back to itself."""

    def __init__(self, feeds: Feeds, fed: Feeds, room: _Room) -> None:
        self._fed = fed
        self._room = room
        self._of: dict[int, list[int]] = {}
        for component in components(feeds):
            if len(component) > 1 or component[0] in feeds[component[0]]:
                self._of.update(dict.fromkeys(component, component))

    def lead_back(self, start: int, *, around: int) -> bool:
        """Whether one leads back to `start` without passing another site."""
        circle = self._of.get(start)
        if circle is None:
            return False
        if self._of.get(around) is not circle:
            return True
        return _leads_to(start, {start}, self._fed, self._room, around=around)


def _leads_to_no_end(site: int, start: int, fed: Feeds, exits: Collection[int], room: _Room) -> bool:
    return start not in exits and not _leads_to(start, exits, fed, room, around=site)


def _leads_to(start: int, ends: Collection[int], fed: Feeds, room: _Room, *, around: int) -> bool:
    """Whether some path on from `start` gets to an end without passing a site."""
    seen = {around}
    waiting = [start]
    while waiting:
        place = waiting.pop()
        room.take(1 + len(fed[place]))
        for following in fed[place]:
            if following in seen:
                continue
            if following in ends:
                return True
            seen.add(following)
            waiting.append(following)
    return False
