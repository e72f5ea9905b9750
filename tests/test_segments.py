"""Where segments start, against the definition: every path is listed and looked at."""

from __future__ import annotations

import random

import pytest

from lightning_gradwatch import segments
from lightning_gradwatch.record import RunInfo, SiteInfo
from lightning_gradwatch.segments import MOST_SITES, as_bits, bits, segment_starts


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
    return segment_starts(tuple(map(as_bits, feeds)), as_bits(entries), as_bits(exits))


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


def test_sets_of_thousands_of_sites():
    count = 2000
    feeds = [0, *(1 << site for site in range(count - 1))]
    assert segment_starts(tuple(feeds), 1, 1 << (count - 1)) == (None, *range(count - 1))
    assert list(bits(as_bits(range(0, count, 3)))) == list(range(0, count, 3))


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
    feeds = [(1 << site) - 1 for site in range(count)]
    assert segment_starts(tuple(feeds), 1, 1 << (count - 1)) == (*(None,) * (count - 1), 0)
    trunk = [as_bits({site - 1, site - 1 - site % 3} - {-1}) for site in range(9000)]
    starts = segment_starts(tuple(trunk), 1, 1 << 8999)
    assert starts[:24] == segment_starts(tuple(trunk[:30]), 1, 1 << 29)[:24]
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

    monkeypatch.setattr(segments._Room, "take", take)
    monkeypatch.setattr(segments, "_MOST_BYTES", 1 << 20)
    feeds = tuple(as_bits(feed(site, count)) for site in range(count))
    assert segment_starts.__wrapped__(feeds, 1, 1 << (count - 1)) == (None,) * count
    once = sum(feeding.bit_count() for feeding in feeds) + count  # what is under way is ended
    assert steps < (1 << 20) // segments._STEP_BYTES + 2 * once


def test_so_many_sites_have_no_segments():
    count = MOST_SITES + 1
    assert segment_starts((0,) * count, 1, 1) == (None,) * count
    chain = info(**{f"s{place}": (f"s{place - 1}",) for place in range(count)})
    assert chain.segment_starts == (None,) * count
