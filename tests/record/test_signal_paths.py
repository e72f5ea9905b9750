"""Paths through a net, against all of them listed."""

from __future__ import annotations

import random

import numpy as np
import pytest
from lines import lines_run

from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.signal_paths import SitePaths
from lightning_gradwatch.record.step import LayerInfo, SiteInfo


def listed(fed, start):
    """Yield every way from a site to where none leads on."""
    if not fed[start]:
        yield (start,)
    for following in fed[start]:
        for way in listed(fed, following):
            yield (start, *way)


def hidden_ways(feeds, hidden):
    """Return the hidden activations of all ways from the input to the loss, those that are part of another left out."""
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


def comb(count):
    """Return a chain of which each site leads to a loss of its own as well."""
    half = count // 2
    return [[site - 1] if site else [] for site in range(half)] + [[site] for site in range(half)]


def fan(count):
    """Return inputs that each lead to a loss of their own and into one chain."""
    third = count // 3
    chain = [[third - 1]] + [[third + site] for site in range(third - 1)]
    for site in range(third):
        chain[site // 2].append(site)
    return [[] for _ in range(third)] + chain + [[site] for site in range(third)]


NETS = {
    "a chain": lambda count: [[site - 1] if site else [] for site in range(count)],
    "a comb": comb,
    "a fan": fan,
    "a circle": lambda count: [[(site - 1) % count] for site in range(count)],
    "towers": lambda count: [[site - 4] if site >= 4 else [] for site in range(count)],
}


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_the_work_is_in_proportion_to_the_sites(net):
    """Of a net that a file describes, and for each of its records."""

    def read(count):
        paths = SitePaths(net(count), [True] * count)
        for seed in range(3):
            paths.along(np.random.default_rng(seed).random(count))
        return paths

    few, many = (lines_run(lambda count=count: read(count)) for count in (600, 2400))
    assert many < 4.6 * few


def test_in_a_net_that_is_too_large_fewer_paths_are_looked_at(monkeypatch):
    monkeypatch.setattr("lightning_gradwatch.record.signal_paths._MOST_STEPS", 2000)
    feeds = [[] if site < 100 else [site - 100] for site in range(400)] + [[399]]
    paths = SitePaths(feeds, [True] * len(feeds))
    assert [path.tolist() for path in paths.along(None)] == [[0, 100, 200, 300], [99, 199, 299, 399, 400]]
    for seed in range(50):
        norms = np.random.default_rng(seed).random(len(feeds))
        assert [path.tolist() for path in paths.along(norms)] == [path.tolist() for path in paths.along(None)]


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
