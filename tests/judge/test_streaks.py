"""A rule's memory goes by names, whatever layouts come and go, and is plain data in a checkpoint."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.judge.rules.saturated import SaturatedUnits
from lightning_gradwatch.judge.streaks import columns, count_hits, counts, first_step, lasting, plain, shift_in, streaks
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import SiteInfo


def described(*names):
    return RunInfo(sites=tuple(SiteInfo(name, "tanh", "hidden", 4) for name in names))


def test_numbers_follow_their_names_through_layouts():
    state = {}
    columns(state, "kept", described("a", "b"), "sites", rows=1).values[0] = [1, 2]
    grown = columns(state, "kept", described("b", "c", "a"), "sites", rows=1)
    assert grown.values.tolist() == [[2, 0, 1]]
    grown.values[0, 1] = 3
    # A resumed run whose files are read together may go back to an older layout, and forth again.
    assert columns(state, "kept", described("a"), "sites", rows=1).values.tolist() == [[1]]
    assert columns(state, "kept", described("c", "b"), "sites", rows=1).values.tolist() == [[3, 2]]


@pytest.mark.parametrize("fill", [0.0, float("nan")])
def test_plain_data_is_the_same_whatever_layouts_there_were(fill):
    one, two = {}, {}
    columns(one, "kept", described("a"), "sites", rows=2, fill=fill)
    for state in (one, two):
        columns(state, "kept", described("b", "a"), "sites", rows=2, fill=fill).values[1, 1] = 7
    saved = plain(one)
    assert saved == plain(two) == {"kept": {"a": [None if np.isnan(fill) else 0.0, 7.0]}}
    back = json.loads(json.dumps(saved))
    values = columns(back, "kept", described("c", "a"), "sites", rows=2, fill=fill).values
    np.testing.assert_array_equal(values, [[fill, fill], [fill, 7]])
    assert plain(back) == saved


def test_a_streak_counts_hits_in_a_row_and_keeps_what_wasnt_read():
    state, info = {}, described("a", "b", "c")
    hits = [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    ends = [[0, 0, 1], [0, 1, 1], [0, 0, 0]]
    held = streaks(state, "held", info, "sites")
    for step, (hit, ended) in enumerate(zip(hits, ends, strict=True), start=5):
        count_hits(held, np.array(hit, dtype=bool), np.array(ended, dtype=bool), step)
    assert counts(held).tolist() == [[3, 1, 1]]
    assert first_step(held, np.array([False, True, True])) == 7
    assert first_step(held, np.array([True, True, True])) == 5
    count_hits(held, np.zeros(3, dtype=bool), np.ones(3, dtype=bool), 8)
    assert held.blank
    assert plain(state) == {"held": {}}


def test_a_streak_in_a_layout_that_is_gone_isnt_blank():
    state = {}
    count_hits(streaks(state, "held", described("a"), "sites"), np.array([True]), np.array([False]), 3)
    assert not streaks(state, "held", described("b"), "sites").blank


def test_readings_are_the_last_ones_that_there_were():
    readings = columns({}, "kept", described("a", "b"), "sites", rows=3, fill=float("nan"))
    for row in ([1, np.nan], [2, 5], [np.nan, np.nan], [3, np.nan], [4, np.nan]):
        shift_in(readings, np.array(row, dtype=np.float64))
    np.testing.assert_array_equal(readings.values, [[2, np.nan], [3, np.nan], [4, 5]])


def test_sentences_are_written_for_findings_that_are_read_and_of_their_own_record(runs, monkeypatch):
    written = []
    original = SaturatedUnits.words

    def spy(self, found):
        written.append(found.record.step)
        return original(self, found)

    monkeypatch.setattr(SaturatedUnits, "words", spy)
    info = runs.stack()
    evaluator = Evaluator((SaturatedUnits(),))
    for step, fraction in enumerate([0.6, 0.6, 0.6, 0.7, 0.8, 0.9], start=10):
        evaluator.feed(runs.measure(info, step, saturated_fraction=fraction), info)
    assert written == [12]  # the warning's
    evaluator.feed(runs.measure(info, 16, saturated_fraction=0.0), info)
    (finding,) = evaluator.findings
    assert evaluator.findings == (finding,)
    assert written == [12, 15]
    assert finding.message.startswith("90 % of")
    assert finding == dataclasses.replace(finding, first_step=10, last_step=15, value=0.9)


@given(
    patience=st.integers(1, 3),
    readings=st.lists(
        st.tuples(
            st.sampled_from(["abc", "cad", "", "dabc"]),
            st.sampled_from(["hhhhhhhh", "hhe.h.ee", "eeh.heh.", "........"]) | st.text("he.", min_size=8, max_size=8),
        ),
        max_size=30,
    ),
)
def test_streaks_are_what_counting_name_by_name_gives(patience, readings):
    """Two levels; a reading goes on (h), ends (e) or isn't there (.), and readings repeat, as an ill run's do."""
    state, streak = {}, {}
    for step, (names, marks) in enumerate(each for each in readings for _ in range(2)):
        marked = np.array([*marks]).reshape(2, 4)[:, : len(names)]
        held = streaks(state, "held", described(*names), "sites", levels=2)
        count_hits(held, marked == "h", marked == "e", step)
        for level in range(2):
            for name, mark in zip(names, marked[level], strict=True):
                if mark == "h":
                    streak.setdefault((level, name), []).append(step)
                elif mark == "e":
                    streak.pop((level, name), None)
            due = [
                name
                for name, mark in zip(names, marked[level], strict=True)
                if mark == "h" and len(streak[level, name]) >= patience
            ]
            found = lasting(held, patience, level)
            assert (found.names() if found else ()) == tuple(due)
            if found:
                assert found.since == min(streak[level, name][0] for name in due)
                assert [names[column] for column in np.flatnonzero(found.where)] == due
    kept = plain(state).get("held", {})
    assert {(level, name) for name, rows in kept.items() for level in range(2) if rows[level]} == set(streak)
    for (level, name), steps in streak.items():
        assert kept[name][level] == len(steps)
        assert kept[name][2 + level] == steps[0]
