"""What waits for the loss to stand waits for a step, and for some measured steps in a row, once."""

from __future__ import annotations

import pytest

from lightning_gradwatch.judge.evidence.loss_trend import LossTrend
from lightning_gradwatch.judge.evidence.standing_loss import awaits_standing_loss
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
def test_it_waits_until_both_have_lasted(runs, step, count, told, why):
    waiting = awaits_standing_loss(RULE, runs.measure(runs.stack(), step), LossTrend(), count, told=told)
    assert (waiting.unjudged if waiting else None) == why
    assert waiting is None or waiting.confirming
    # The step by which it shows is known, so what may follow from it can wait so long.
    assert waiting is None or waiting.dated is (step < 20)


@pytest.mark.parametrize("told", [False, True])
def test_of_a_loss_that_isnt_known_nothing_is_said(runs, told):
    trend = LossTrend(unknown="no loss was recorded")
    waiting = awaits_standing_loss(RULE, runs.measure(runs.stack(), 30), trend, 3, told=told)
    assert waiting.unjudged == "can't judge: no loss was recorded"
