"""Where segments start, against the definition: every path is listed and looked at."""

from __future__ import annotations

import random

import pytest
from lines import lines_run

from lightning_gradwatch.record import segments
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.segments import components, path_order, segment_starts
from lightning_gradwatch.record.step import SiteInfo


def paths(follow, start, ends):
    """Yield every path from a site along `follow` to the ends, as tuples of sites; of a graph without cycles."""
    if start in ends:
        yield (start,)
    for following in follow[start]:
        for path in paths(follow, following, ends):
            yield (start, *path)


def by_definition(feeds, entries, exits):
    fed = [[late for late, feeding in enumerate(feeds) if early in feeding] for early in range(len(feeds))]
    starts = []
    for site in range(len(feeds)):
        back = [set(path) for path in paths(feeds, site, entries)]
        passed = set.intersection(*back) - {site} if back else set()
        common = [c for c in passed if all(site in path for path in paths(fed, c, exits))]
        # The nearest: no other of them lies between.
        nearest = [c for c in common if not any(c in feeding_of(feeds, d) for d in common if d != c)]
        starts.append(nearest[0] if nearest else None)
    return tuple(starts)


def feeding_of(feeds, site):
    return set().union(*(feeding_of(feeds, each) | {each} for each in feeds[site]))


def found(feeds, entries, exits):
    return segment_starts([sorted(feeding) for feeding in feeds], entries, exits)


@pytest.mark.parametrize("density", [0.15, 0.3, 0.6])
def test_starts_are_those_of_the_definition(density):
    seen = 0
    for _ in range(300):
        count = random.randrange(1, 8)
        feeds = [{early for early in range(late) if random.random() < density} for late in range(count)]
        for late in range(1, count):  # mostly one after the other, as nets are
            if random.random() < 0.7:
                feeds[late].add(late - 1)
        entries = {site for site in range(count) if not feeds[site] or random.random() < 0.1}
        fed = set().union(*feeds)
        exits = {site for site in range(count) if site not in fed or random.random() < 0.1}
        expected = by_definition(feeds, entries, exits)
        assert found(feeds, entries, exits) == expected, (feeds, entries, exits)
        seen += sum(start is not None for start in expected)
    assert seen > 50


def test_a_residual_trunk():
    # Sites 1, 3 are inside blocks, around which 0 feeds 2 and 2 feeds 4.
    assert found([{}, {0}, {0, 1}, {2}, {2, 3}], {0}, {4}) == (None, None, 0, None, 2)


def test_two_activations_in_a_branch_are_a_segment_of_their_own():
    assert found([{}, {0}, {1}, {0, 2}], {0}, {3}) == (None, None, 1, 0)


def test_a_site_that_the_loss_takes_too_starts_no_segment():
    assert found([{}, {0}], {0}, {0, 1}) == (None, None)


def test_of_a_recurrent_site_not_all_gradient_has_come_from_the_next():
    # 0 and 1 are unrolled loops, the second over the outputs of the first.
    assert found([{0}, {0, 1}], {0}, {1}) == (None, None)
    # Only the second is a loop: what arrives at the first has come from the second.
    assert found([set(), {0, 1}], {0}, {1}) == (None, 0)


def test_a_loop_over_two_sites_starts_no_segment_where_it_is_entered():
    assert found([{1}, {0}], {0}, {1}) == (None, 0)


def test_what_no_path_reaches_starts_nowhere():
    assert found([{}, {0}, {1}, {}], {0}, {2}) == (None, 0, 1, None)
    assert found([{1}, {0}], set(), {1}) == (None, None)


def reached(fed, starts, *, around):
    """Return what can be reached from some sites without passing another one, by fixed point."""
    found = set(starts) - {around}
    while True:
        more = found | {late for early in found for late in fed[early] if late != around}
        if more == found:
            return found
        found = more


def by_reachability(feeds, entries, exits):
    """The definition where there are circles, and so no end of paths."""
    sites = range(len(feeds))
    fed = [[late for late in sites if early in feeds[late]] for early in sites]
    starts = []
    for site in sites:
        passed = [c for c in sites if c != site and site not in reached(fed, entries, around=c)]
        if site not in reached(fed, entries, around=None):
            passed = []
        # The nearest is the one that all others are passed on the way to.
        nearest = [c for c in passed if all(d == c or c not in reached(fed, entries, around=d) for d in passed)]
        behind = [reached(fed, [late for late in fed[c] if late != site], around=site) for c in nearest]
        good = [
            c for c, way in zip(nearest, behind, strict=True) if c not in exits and c not in way and not way & exits
        ]
        starts.append(good[0] if good else None)
    return tuple(starts)


@pytest.mark.parametrize("density", [0.1, 0.2, 0.35])
def test_starts_are_those_of_the_definition_where_sites_feed_each_other_in_circles(density):
    seen = 0
    for _ in range(400):
        count = random.randrange(1, 9)
        feeds = [{early for early in range(count) if random.random() < density} for _ in range(count)]
        for late in range(1, count):
            if random.random() < 0.6:
                feeds[late].add(late - 1)
        entries = {0} | {site for site in range(count) if random.random() < 0.1}
        exits = {count - 1} | {site for site in range(count) if random.random() < 0.1}
        expected = by_reachability(feeds, entries, exits)
        assert found(feeds, entries, exits) == expected, (feeds, entries, exits)
        seen += sum(start is not None for start in expected)
    assert seen > 50


def chain(count):
    return [[], *([site] for site in range(count - 1))], {0}, {count - 1}


def wide(count):
    """A stem, branches, and a head."""
    return [[], *([0] for _ in range(count - 2)), list(range(1, count - 1))], {0}, {count - 1}


def ladder(count):
    """Two towers, fed by one and met in one."""
    return [[], [0], [0], *([site - 2] for site in range(3, count - 1)), [count - 2, count - 3]], {0}, {count - 1}


def rings(count):
    """Loops over three sites each, one after the other."""
    feeds = [[site - 1] if site else [] for site in range(count)]
    for site in range(0, count - 3, 3):
        feeds[site] = [*feeds[site], site + 2]
    return feeds, {0}, {count - 1}


@pytest.mark.parametrize("net", [chain, wide, ladder, rings])
def test_the_work_is_in_proportion_to_the_sites(net):
    few, many = (lines_run(lambda count=count: segment_starts(*net(count))) for count in (200, 800))
    assert many <= 4.3 * few


def test_segments_of_ten_thousand_sites():
    assert segment_starts(*chain(10_000)) == (None, *range(9_999))


@pytest.mark.parametrize("density", [0.1, 0.3])
def test_the_order_of_a_path_puts_each_place_behind_what_feeds_it(density):
    for _ in range(300):
        count = random.randrange(1, 10)
        numbers = random.sample(range(count), count)
        feeds = [[] for _ in range(count)]
        for place, late in enumerate(numbers):
            feeds[late] = sorted(early for early in numbers[:place] if random.random() < density)
        order = path_order(feeds)
        assert sorted(order) == list(range(count))
        assert all(order.index(early) < order.index(late) for late in range(count) for early in feeds[late])


def test_places_that_nothing_orders_keep_their_numbers():
    assert path_order([[], [], [0], [1], []]) == [0, 1, 2, 3, 4]
    # Place 4 came last, and feeds 2, so it stands before that one and no further to the front.
    assert path_order([[], [0], [1, 4], [2], [0]]) == [0, 1, 4, 2, 3]


def test_a_guess_counts_where_it_contradicts_nothing_that_is_known():
    assert path_order([[2], [], []], [[], [], []]) == [2, 0, 1]
    assert path_order([[1], [2], [0]], [[1], [], [0]]) == [1, 0, 2]


def test_a_circle_is_ordered_by_number_and_as_one_by_what_feeds_it():
    assert path_order([[1, 3], [0], [], [2]]) == [2, 3, 0, 1]
    assert path_order([[0], [1, 0]]) == [0, 1]
    assert components([[1], [0], [1]]) in ([[0, 1], [2]], [[1, 0], [2]])


def info(**predecessors):
    return RunInfo(
        sites=tuple(SiteInfo(name, "relu", "hidden", 4, tuple(those)) for name, those in predecessors.items())
    )


def test_a_description_tells_where_segments_start():
    assert info().segment_starts == ()
    assert info(a="", b="a", c="b").segment_starts == (None, 0, 1)
    assert info(a="", b="a", c="ab", d="c", e="cd").segment_starts == (None, None, 0, None, 2)
    # A column that came later may be executed earlier; a loop whose first site is the first of all is entered there.
    assert info(a="", c="b", b="a").segment_starts == (None, 2, 0)
    assert info(a="b", b="a").segment_starts == (None, 0)
    # Names that aren't there, as in a damaged file, are no sites.
    assert info(a="", b=("a", "z")).segment_starts == (None, 0)


def test_a_net_whose_sites_all_feed_each_other_is_within_the_work_that_is_done():
    """A transformer's residual stream: each block gets what all before it put out."""
    count = 1000
    feeds = [list(range(site)) for site in range(count)]
    assert segment_starts(feeds, {0}, {count - 1}) == (*(None,) * (count - 1), 0)
    trunk = [sorted({site - 1, site - 1 - site % 3} - {-1}) for site in range(9000)]
    starts = segment_starts(trunk, {0}, {8999})
    assert starts[:24] == segment_starts(trunk[:30], {0}, {29})[:24]
    assert sum(start is not None for start in starts) == 3001


ENTANGLED = {
    "against the order": lambda site, count: {site + 1} if site + 1 < count else set(),
    "at random": lambda site, count: {7919 * site % count, (104_729 * site + 5) % count},
    "all from all": lambda site, count: set(range(count)),
}


@pytest.mark.parametrize("feed", ENTANGLED.values(), ids=ENTANGLED)
def test_the_work_on_a_net_is_bounded(monkeypatch, feed):
    """A file of a few hundred kilobytes can describe sites whose segments would take hours."""
    count, steps = 800, 0
    real = segments._Room.take

    def take(self, number):
        nonlocal steps
        steps += number
        real(self, number)

    feeds = [sorted(feed(site, count)) for site in range(count)]
    once = sum(map(len, feeds)) + count  # what is under way is ended
    monkeypatch.setattr(segments._Room, "take", take)
    monkeypatch.setattr(segments, "_MOST_STEPS", once // 2)
    assert segment_starts(feeds, range(0, count, 7), {count - 1}) == (None,) * count
    assert steps <= 2 * once
