"""Paths through a net, against all of them listed."""

from __future__ import annotations

import random

import numpy as np
import pytest
from lines import lines_run

from lightning_gradwatch.paths import SitePaths
from lightning_gradwatch.record import LayerInfo, RunInfo, SiteInfo


def listed(fed, start):
    """Yield every way from a site to where none leads on."""
    if not fed[start]:
        yield (start,)
    for following in fed[start]:
        for way in listed(fed, following):
            yield (start, *way)


def hidden_ways(feeds, hidden):
    """Return the hidden sites of all ways from the input to the loss, those that are part of another left out."""
    sites = range(len(feeds))
    fed = [[late for late in sites if early in feeds[late]] for early in sites]
    starts = [site for site in sites if not feeds[site]]
    ways = {tuple(site for site in way if hidden[site]) for start in starts for way in listed(fed, start)}
    return [way for way in ways if way and not any(contains(other, way) for other in ways - {way})]


def contains(way, part):
    """Whether one way passes all sites of another, in the same order."""
    rest = iter(way)
    return all(site in rest for site in part)


def drawn(count, density):
    feeds = [[early for early in range(late) if random.random() < density] for late in range(count)]
    hidden = [random.random() < 0.8 for _ in range(count)]
    norms = np.array([random.choice([np.nan, 10 ** random.uniform(-6, 0)]) for _ in range(count)])
    return feeds, hidden, norms


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5])
def test_a_path_is_the_longest_from_its_beginning_to_the_strongest_of_its_losses(density):
    for _ in range(300):
        feeds, hidden, norms = drawn(random.randrange(1, 9), density)
        paths = SitePaths(feeds, hidden)
        ways = hidden_ways(feeds, hidden)
        upstream = {
            later: {way[place] for way in ways for place in range(len(way)) if later in way[place + 1 :]}
            for way in ways
            for later in way
        }
        firsts = {site for site in upstream if not upstream[site]}
        feeding = {earlier for way in feeds for earlier in way}
        assert paths.firsts == ({site for site in firsts if site in feeding} or firsts)
        found = [tuple(path) for path in paths.along(norms)]
        for first in firsts:
            own = [way for way in ways if way[0] == first]
            ends = {way[-1]: np.nan_to_num(norms[way[-1]], nan=-1) for way in own}
            strongest = [end for end in ends if ends[end] == max(ends.values())]
            longest = {end: max(len(way) for way in own if way[-1] == end) for end in strongest}
            (path,) = (path for path in found if path[0] == first)
            assert path in own, (feeds, hidden)
            assert len(path) == longest[path[-1]], (feeds, hidden)
        assert {path[0] for path in map(tuple, paths.along(None))} == firsts
        # The others begin where all that follows leads to one loss.
        for path in found:
            if path[0] not in firsts:
                assert len({way[-1] for way in ways if path[0] in way}) == 1
                assert all(len({way[-1] for way in ways if each in way}) > 1 for each in upstream[path[0]])


def test_towers_are_never_on_one_path():
    paths = SitePaths([[], [0], [1], [], [3], [4]], [True] * 6)
    assert [path.tolist() for path in paths.along(None)] == [[0, 1, 2], [3, 4, 5]]
    assert paths.firsts == {0, 3}


def test_two_inputs_of_one_trunk_have_a_path_each():
    paths = SitePaths([[], [], [0, 1], [2]], [True] * 4)
    assert [path.tolist() for path in paths.along(None)] == [[0, 2, 3], [1, 2, 3]]


def test_of_two_losses_behind_one_trunk_the_stronger_has_the_path_and_each_what_is_its_own():
    feeds = [[], [0], [1], [2], [1], [4]]
    norms = np.array([1.0, 1.0, 1.0, 1.0, 1e-5, 1e-5])
    found = [path.tolist() for path in SitePaths(feeds, [True] * 6).along(norms)]
    assert found == [[0, 1, 2, 3], [2, 3], [4, 5]]
    norms[[2, 3]] = 1e-6
    found = [path.tolist() for path in SitePaths(feeds, [True] * 6).along(norms)]
    assert found == [[0, 1, 4, 5], [2, 3], [4, 5]]


def test_sites_in_a_circle_are_one_stop_in_the_order_of_their_columns():
    assert [path.tolist() for path in SitePaths([[], [0, 2], [1], [2]], [True] * 4).along(None)] == [[0, 1, 2, 3]]
    assert [path.tolist() for path in SitePaths([[0]], [True]).along(None)] == [[0]]


def test_gates_are_passed():
    assert [path.tolist() for path in SitePaths([[], [0], [1]], [True, False, True]).along(None)] == [[0, 2]]
    assert SitePaths([[], [0]], [False, False]).along(None) == []
    assert SitePaths([], []).along(None) == []


def test_of_hundreds_of_paths_the_longest_are_looked_at():
    feeds = [[] for _ in range(100)] + [[place] for place in range(100)] + [[150], [151]]
    found = SitePaths(feeds, [True] * len(feeds)).along(None)
    assert len(found) == 64
    assert [path.tolist() for path in found if len(path) > 2] == [[50, 150, 200], [51, 151, 201]]


def test_the_work_is_in_proportion_to_the_sites():
    def chain(count):
        return SitePaths([[site - 1] if site else [] for site in range(count)], [True] * count).along(None)

    few, many = (lines_run(lambda count=count: chain(count)) for count in (200, 800))
    assert many < 4.3 * few


def info(feeds, *, known):
    return RunInfo(
        layers=(LayerInfo("layer", "Linear", ((4, 4),), 16, weight=True, feeds="0" if known else ""),),
        sites=tuple(
            SiteInfo(str(site), "relu", "hidden", 4, tuple(map(str, feeding))) for site, feeding in enumerate(feeds)
        ),
    )


def test_where_no_graph_was_seen_the_columns_are_the_path():
    """As in what an older version stored, or after a graph that was too large; a new run tells when nothing feeds anything."""
    assert [path.tolist() for path in info([[], [], []], known=False).site_paths.along(None)] == [[0, 1, 2]]
    assert [path.tolist() for path in info([[], [], []], known=True).site_paths.along(None)] == [[0], [1], [2]]


def test_a_run_whose_columns_are_in_another_order_is_read_along_its_path():
    """As an older version stored it: what was thawed late stands behind."""
    assert [path.tolist() for path in info([[3], [0], [], [2]], known=False).site_paths.along(None)] == [[2, 3, 0, 1]]


def test_layers_of_a_path_are_those_that_feed_its_sites():
    whole = RunInfo(
        layers=tuple(
            LayerInfo(name, "Linear", ((4, 4),), 16, weight=name != "norm", feeds=feeds)
            for name, feeds in (("a", "0"), ("norm", "0"), ("b", "1"), ("head", ""))
        ),
        sites=info([[], []], known=True).sites,
    )
    assert [whole.layers_on(path) for path in whole.site_paths.along(None)] == [(0,), (2,)]
