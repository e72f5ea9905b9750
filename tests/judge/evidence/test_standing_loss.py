"""What waits for the loss to stand waits for a step, and for some measured steps in a row, once; they are counted in one place."""

from __future__ import annotations

import pytest

from lightning_gradwatch.judge.evidence.loss_trend import LossTrend
from lightning_gradwatch.judge.evidence.standing_loss import (
    Standing,
    awaits_standing_loss,
    count_standing,
    forget_standing,
)
from lightning_gradwatch.judge.rule import NEAR
from lightning_gradwatch.judge.rules.clipped_away import ClippedAway

RULE = ClippedAway(warm_up_steps=20, patience=3)


@pytest.mark.parametrize(
    ("step", "count", "told", "why"),
    [
        (19, 9, False, "not yet: whether the loss stands shows by step 20"),
        (20, 2, False, "not yet: 3 measured steps in a row must agree"),
        (20, 3, False, None),
        (3, 1, True, None),
    ],
)
def test_it_waits_until_both_have_lasted(step, count, told, why):
    waiting = awaits_standing_loss(RULE, step, LossTrend(), Standing(steps=count), told=told)
    assert (waiting.unjudged if waiting else None) == why
    assert waiting is None or waiting.confirming
    # The step by which it shows is known, so what may follow from it can wait so long.
    assert waiting is None or waiting.dated is (step < 20)


@pytest.mark.parametrize("told", [False, True])
def test_of_a_loss_that_isnt_known_nothing_is_said(told):
    trend = LossTrend(unknown="no loss was recorded")
    waiting = awaits_standing_loss(RULE, 30, trend, Standing(steps=3), told=told)
    assert waiting.unjudged == "can't judge: no loss was recorded"


def test_steps_are_counted_in_a_row_and_from_the_first_of_them():
    memory = {}
    assert [count_standing(memory, step)[:2] for step in (10, 17, 18)] == [(1, 10), (2, 10), (3, 10)]
    assert forget_standing(memory) == Standing()
    assert count_standing(memory, 30)[:2] == (1, 30)


def test_each_thing_has_a_count_of_its_own():
    memory = {}
    count_standing(memory, 10, key="one")
    count_standing(memory, 12, key="other")
    forget_standing(memory, key="one")
    assert count_standing(memory, 14, key="other")[:2] == (2, 12)


@pytest.mark.parametrize(
    ("trend", "due"),
    [
        (None, 20),
        (LossTrend(of_first=0.96, of_start=0.97), 20),  # where it began, but for noise
        (LossTrend(of_first=0.7, of_start=0.7), 35),
    ],
)
def test_the_warm_up_counts_from_where_the_loss_came_to_stand_unless_it_never_left_its_start(trend, due):
    memory = {}
    for step in (15, 16):
        count_standing(memory, step, trend)
    standing = count_standing(memory, 17, trend)
    assert next(step for step in range(50) if standing.is_due(RULE, step)) == due
    assert next(step for step in range(50) if standing.nears(RULE, step)) == due - NEAR


def test_what_lacks_patience_isnt_due_and_what_doesnt_hold_is_never_near():
    assert not count_standing({"stood": [1, 0]}, 40).is_due(RULE, 40)
    assert count_standing({"stood": [2, 0]}, 40).is_due(RULE, 40)
    assert not Standing().is_due(RULE, 10**6)
    assert not Standing().nears(RULE, 10**6)
