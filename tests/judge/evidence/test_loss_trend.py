"""Whether the loss falls, where single losses are too noisy to tell."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lightning_gradwatch.judge.evidence.loss_trend import Losses


def noted(runs, losses):
    """What is kept of a run that is measured at every step."""
    info, kept = runs.stack(), Losses()
    for step, loss in enumerate(losses):
        kept.note(runs.measure(info, step, loss=float(loss)))
    return kept, kept.trend(info)


def of_two_samples(seed, level):
    """Losses of batches of two: mostly small, now and then large, about a level."""
    return np.random.default_rng(seed).exponential(level)


@pytest.mark.parametrize("seed", range(10))
def test_a_noisy_loss_that_comes_down_is_seen_to_fall(runs, seed):
    _, trend = noted(runs, of_two_samples(seed, np.geomspace(1.2, 0.3, 300)))
    assert trend.falls_by(0.2)


def test_a_noisy_loss_that_stays_is_seldom_seen_to_fall(runs):
    falls = [noted(runs, of_two_samples(seed, np.full(300, 1.2)))[1].falls_by(0.05) for seed in range(60)]
    assert sum(falls) <= 6


def test_a_loss_that_came_down_long_ago_and_stays_falls_no_more(runs):
    _, trend = noted(runs, of_two_samples(0, np.where(np.arange(400) < 60, 2.4, 1.2)))
    assert not trend.falls_by(0.05)


def test_a_net_that_learns_all_in_one_step_has_converged(runs):
    """Three losses are called the start, and two of them may be as good as 0 already."""
    assert noted(runs, [1.65, 3e-3, 1e-4, *[5e-5] * 17])[1].converged_to(0.01)
    assert not noted(runs, [1.65, 3e-2, 2e-2, *[1e-2] * 17])[1].converged_to(0.01)
    assert not noted(runs, [50.0, 1.0, 1.0, *[0.9] * 17])[1].converged_to(0.01)


def test_what_is_kept_spreads_evenly_over_the_run_and_ends_with_the_latest(runs):
    """With each goes the mean of the steps since the one before."""
    losses = of_two_samples(0, np.full(1000, 1.0))
    kept = noted(runs, losses)[0].plain()
    steps = kept["steps"]
    assert len(steps) == 40
    assert steps[-10:] == list(range(990, 1000))
    assert np.diff(steps[:-10]).max() <= 4 * 990 / 30
    bounds = [-1, *steps]
    means = [losses[start + 1 : end + 1].mean() for start, end in zip(bounds, steps, strict=False)]
    np.testing.assert_allclose(kept["means"], means, rtol=1e-12)
    assert kept["losses"] == losses[steps].tolist()
    assert sum(kept["counts"]) == 1000


def test_what_is_kept_goes_on_from_plain_data(runs):
    losses = of_two_samples(0, np.full(200, 1.0))
    whole = noted(runs, losses)[0]
    info, resumed = runs.stack(), Losses(json.loads(json.dumps(noted(runs, losses[:120])[0].plain())))
    for step in range(120, 200):
        resumed.note(runs.measure(info, step, loss=float(losses[step])))
    assert resumed.plain() == whole.plain()
