"""What is promised, in each situation of the table: nothing changes, nothing is left, numbers are right or absent."""

from __future__ import annotations

import math

import numpy as np
from integration.captures import compare
from integration.situation import differences, others, ours

from lightning_gradwatch import Severity


def test_training_is_bit_identical(pair):
    assert len(pair.watch.records) == (pair.situation.records or pair.situation.steps)
    assert list(differences(pair.without.end, pair.watched.end)) == []


def test_nothing_is_left_behind(pair):
    assert pair.without.traces == pair.watched.traces
    assert pair.watched.traces["modes"] == (0, 0, True)


def test_nothing_is_left_between_batches(pair):
    assert len(pair.without.between) == len(pair.watched.between)
    for without, watched in zip(pair.without.between, pair.watched.between, strict=True):
        assert without == watched


def test_gradients_and_updates_equal_the_reference(pair):
    if pair.situation.compared:
        row = pair.situation
        states, tolerance = row.states, row.tolerance
        scales = [record.gradient_scale for record in pair.watch.records]
        taken = [step for step in pair.watched.captures.steps if step["stepped"]]
        for step, scale in zip(taken, scales, strict=True):
            step["losses"] = [loss / scale for loss in step["losses"]]
        compare(pair.watch, pair.watched.captures, tolerance=tolerance, states=states)


def test_a_healthy_net_is_left_alone(pair):
    if pair.name == "vanishing":
        assert ours(pair.watched.warned) != []
    elif pair.name == "unused":  # a layer that no optimizer holds, on data that can hardly be learned
        assert {finding.code for finding in pair.watch.findings if finding.severity >= Severity.WARNING} <= {"GW503"}
    else:
        assert ours(pair.watched.warned) == []
        assert [finding for finding in pair.watch.findings if finding.severity >= Severity.WARNING] == []


def test_no_other_warning_than_without_the_monitor(pair):
    # Lightning tells some things once in a process, so that the second fit may say less.
    assert set(others(pair.watched.warned)) <= set(others(pair.without.warned))


def test_nothing_is_compiled_again(pair):
    assert (pair.without.graphs > 0) == pair.situation.compiles
    assert pair.watched.graphs == pair.without.graphs
    assert pair.watched.breaks == pair.without.breaks


def test_the_sites_and_what_is_not_covered_are_named(pair):
    assert tuple(site.name for site in pair.watch.info.sites) == tuple(pair.situation.sites)
    told = {entry.name: entry.reason for entry in pair.watch.coverage}
    assert told.keys() == pair.situation.uncovered.keys()
    for name, reason in pair.situation.uncovered.items():
        assert reason in told[name]


NEVER_ZERO = ("grad_norm", "grad_rms", "weight_rms", "update_ratio", "signal_norm", "activation_gain", "weight_gain")


def test_no_silent_zero(pair):
    for record in pair.watch.records:
        for metric in NEVER_ZERO:
            values = record.metrics.get(metric, np.empty(0))
            assert metric in pair.situation.zeros or not (values == 0).any(), (record.step, metric)


def test_what_is_absent_is_said(pair):
    """A site without a signal in any record is one that coverage names."""
    named = " ".join(f"{entry.name} {entry.reason}" for entry in pair.watch.coverage)
    for column, site in enumerate(pair.watch.info.sites):
        signals = [
            record.metrics["signal_norm"][column]
            for record in pair.watch.records
            if column < len(record.metrics["signal_norm"])
        ]
        assert not all(map(math.isnan, signals)) or site.name in named
