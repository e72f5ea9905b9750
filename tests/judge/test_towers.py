"""Towers, each with an input or a loss of its own, are judged one by one, in whatever order they were seen."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from lightning_gradwatch.judge.evidence.depth import read_depths
from lightning_gradwatch.judge.rules.exploding import ExplodingGradient
from lightning_gradwatch.judge.rules.initialization import Initialization
from lightning_gradwatch.judge.rules.vanishing import VanishingGradient
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, SiteInfo
from lightning_gradwatch.record.summaries import summaries

STEPS = range(10, 16)


def tower(name, depth, function="sigmoid", *, before=()):
    """Linear, function, …, Linear: layers and sites."""
    sites = [f"{name}.{2 * place + 1}" for place in range(depth)]
    layers = [
        LayerInfo(f"{name}.{2 * place}", "Linear", ((8, 8), (8,)), 72, weight=True, feeds=[*sites, ""][place])
        for place in range(depth + 1)
    ]
    feeds = [before, *((site,) for site in sites)]
    return layers, [SiteInfo(site, function, "hidden", 8, feeds[place]) for place, site in enumerate(sites)]


def towers(runs, *parts):
    return dataclasses.replace(
        runs.stack(),
        layers=tuple(layer for layers, _ in parts for layer in layers),
        sites=tuple(site for _, sites in parts for site in sites),
    )


def signals(info, **ends):
    """Signals that go evenly from one number to another in each tower."""
    found = np.empty(len(info.sites))
    for name, (first, last) in ends.items():
        columns = [column for column, site in enumerate(info.sites) if site.name.startswith(f"{name}.")]
        found[columns] = np.geomspace(first, last, len(columns))
    return found


def judged(runs, rule, info, **ends):
    return runs.feed(rule, [runs.measure(info, step, signal_norm=signals(info, **ends)) for step in STEPS], info)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_loss_of_another_weight_makes_no_tower_vanish_or_explode(runs, order):
    info = towers(runs, *(tower(name, 4) for name in order))
    for rule in (VanishingGradient(), ExplodingGradient()):
        assert not judged(runs, rule, info, a=(1e-6, 1e-6), b=(0.5, 1.0)).findings


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_tower_that_vanishes_beside_one_with_a_tiny_loss_is_found_and_named(runs, order):
    info = towers(runs, *(tower(name, 9) for name in order))
    finding = judged(runs, VanishingGradient(), info, a=(1e-9, 1.0), b=(1e-9, 1e-9)).only
    assert (finding.severity, finding.value) == (Severity.ERROR, pytest.approx(1e-9))
    assert finding.message.startswith(
        "The gradient shrinks by a factor of 0.075 per layer: a.1 gets 1e-9 of the signal of a.17, on one of several paths."
    )
    assert finding.layers == tuple(f"a.{2 * place}" for place in range(6))
    assert "a.1 … a.17 (9 activations)" in finding.remedy.text
    assert "b." not in finding.remedy.text.partition(";")[0]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_tower_that_explodes_is_found_and_named(runs, order):
    info = towers(runs, *(tower(name, 9, "relu") for name in order))
    finding = judged(runs, ExplodingGradient(), info, a=(1.0, 1.0), b=(1e9, 1.0)).only
    assert finding.value == pytest.approx(1e9)
    assert "b.1 gets 1e9 times the signal of b.17, on one of several paths" in finding.message
    assert finding.layers == tuple(f"b.{2 * place}" for place in range(9))


def test_a_start_that_loses_the_signal_in_one_tower_is_held_against_its_own_weights(runs):
    info = towers(runs, tower("a", 9, "relu"), tower("b", 9, "relu"))
    rms = {layer.name: 0.2 if layer.name.startswith("a") else 1.0 for layer in info.layers}
    record = runs.measure(info, 0, signal_norm=signals(info, a=(1e-7, 1.0), b=(1.0, 1.0)), weight_rms=rms)
    finding = runs.feed(Initialization(), [record], info).only
    assert finding.value == pytest.approx(1e-7)
    assert "a.1 gets 1e-7 of the signal of a.17, on one of several paths" in finding.message
    assert "their rms is 0.2" in finding.cause


def test_of_two_paths_that_fade_the_one_that_fades_most_at_each_site_counts(runs):
    """In the longer one less is left, but hardly less at each site."""
    info = towers(runs, tower("a", 60), tower("b", 6))
    fed = judged(runs, VanishingGradient(), info, a=(1e-6, 1.0), b=(1e-4, 1.0))
    assert fed.only.headline.endswith("b.1 gets 0.0001 of the signal of b.11, on one of several paths")


def test_two_inputs_of_one_trunk_are_each_followed_to_the_loss(runs):
    _, trunk_sites = tower("trunk", 3, before=("a.3", "b.3"))
    layers, _ = tower("trunk", 3)
    info = towers(runs, tower("a", 2), tower("b", 2), (layers, trunk_sites))
    finding = judged(runs, VanishingGradient(), info, a=(1.0, 1.0), b=(1e-6, 1e-4), trunk=(0.5, 1.0)).only
    assert re.search(r"b\.1 gets \S+ of the signal of trunk\.5, on one of several paths$", finding.headline)


def test_a_second_loss_that_weighs_little_makes_no_trunk_explode(runs):
    layers, sites = tower("aux", 3, "relu", before=("trunk.7",))
    main_layers, main = tower("main", 3, "relu", before=("trunk.7",))
    info = towers(runs, tower("trunk", 4, "relu"), (main_layers, main), (layers, sites))
    ends = {"trunk": (1.0, 1.0), "main": (1.0, 1.0), "aux": (1e-6, 1e-6)}
    assert not judged(runs, ExplodingGradient(), info, **ends).findings
    record = runs.measure(info, 0, signal_norm=signals(info, **ends))
    assert abs(summaries(record, info)["gradwatch/log10_attenuation"]) < 1e-9


def test_what_fades_in_a_head_that_a_trunk_hides_is_found(runs):
    """The other head's signal keeps the trunk's up."""
    ends = {"trunk": (1.0, 1.0), "main": (1.0, 1.0), "aux": (1e-7, 1.0)}
    info = towers(runs, tower("trunk", 4), tower("main", 3, before=("trunk.7",)), tower("aux", 6, before=("trunk.7",)))
    finding = judged(runs, VanishingGradient(), info, **ends).only
    assert re.search(r"aux\.1 gets \S+ of the signal of aux\.11, on one of several paths$", finding.headline)
    assert all(name.startswith("aux") for name in finding.layers)


def test_each_tower_has_early_layers(runs):
    info = towers(runs, tower("a", 5), tower("b", 5))
    rms = {layer.name: 1e-9 for layer in info.layers}
    records = [runs.measure(info, step, grad_rms=rms, signal_norm=1.0) for step in STEPS]
    fed = runs.feed(VanishingGradient(min_grad_rms=1e-7), records, info)
    assert fed.only.layers == ("a.0", "b.0")


def test_towers_of_too_few_sites_are_not_judged_across(runs):
    info = towers(runs, tower("a", 2), tower("b", 2))
    fed = judged(runs, VanishingGradient(), info, a=(1e-9, 1e-9), b=(1.0, 1.0))
    assert not fed.findings
    (reason,) = fed.evaluator.unjudged.values()
    assert reason == "can't judge: a signal over depth needs 3 hidden activations on one path, and no path has as many"


def test_a_run_of_an_older_version_is_judged_along_its_path(runs):
    """Its columns are in the order of first use: a head, and then the backbone that was thawed."""
    head = ("head.1", "head.3")
    names = (*head, *(f"backbone.{2 * place + 1}" for place in range(8)))
    before = {"head.1": "backbone.15", "head.3": "head.1"}
    before |= {f"backbone.{2 * place + 1}": f"backbone.{2 * place - 1}" for place in range(1, 8)}
    info = dataclasses.replace(
        runs.stack(depth=10),
        sites=tuple(
            SiteInfo(name, "sigmoid", "hidden", 8, (before[name],) if name in before else ()) for name in names
        ),
    )
    norms = np.geomspace(1e-9, 1.0, 10)
    records = [runs.measure(info, step, signal_norm=np.concatenate([norms[8:], norms[:8]])) for step in STEPS]
    finding = runs.feed(VanishingGradient(), records, info).only
    assert finding.headline.endswith(": backbone.1 gets 1e-9 of the signal of head.3")
    assert finding.layers == info.weight_names  # which of them feed what isn't told


def test_the_signal_at_a_site_that_was_left_out_is_not_missed(runs):
    """As the last layer is by LayerDrop: the path ends at the one before."""
    info = towers(runs, tower("a", 6))
    norms = signals(info, a=(1e-9, 1.0))
    norms[-1] = np.nan
    (depth,) = read_depths(runs.measure(info, 0, signal_norm=norms), info)
    assert [site.name for site in depth.sites(info)] == ["a.1", "a.3", "a.5", "a.7", "a.9"]


def test_nothing_is_said_of_paths_where_there_is_one(runs):
    assert isinstance(read_depths(runs.measure(RunInfo(), 0), RunInfo()), str)
    info = towers(runs, tower("a", 6))
    finding = judged(runs, VanishingGradient(), info, a=(1e-9, 1.0)).only
    assert finding.headline.endswith(": a.1 gets 1e-9 of the signal of a.11")
