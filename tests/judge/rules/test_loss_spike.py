"""GW105: a loss that jumps and comes back is information; what only looks like it is nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_gradwatch.judge.evidence.loss_jump import read_jump
from lightning_gradwatch.judge.rules.loss_spike import LossSpike
from lightning_gradwatch.record.finding import CauseKind, Severity

pytestmark = pytest.mark.judges

STEPS = 300


def noise(seed, size=STEPS, scale=1.0):
    return np.random.default_rng(seed).normal(scale=scale, size=size)


def fed(runs, losses, *, steps=None, optimizers=("SGD",), **settings):
    info = runs.stack(optimizers=optimizers)
    steps = range(len(losses)) if steps is None else steps
    records = [
        runs.measure(info, step, loss=float(loss), norm=1.0, **settings)
        for step, loss in zip(steps, losses, strict=True)
    ]
    return runs.feed(LossSpike(), records, info)


def learning(seed=0, *, floor=0.3, start=2.3, speed=30.0, scatter=0.05):
    """A loss that falls from a start to a floor, and scatters by a share of itself."""
    level = floor + (start - floor) * np.exp(-np.arange(STEPS) / speed)
    return level * np.exp(noise(seed, scale=scatter))


def spiked(losses, at, peak, length=1):
    losses = np.array(losses, dtype=float)
    losses[at : at + length] = peak
    return losses


@pytest.mark.parametrize("length", [1, 3, 20])
def test_a_loss_that_jumps_and_comes_back_is_information(runs, length):
    losses = spiked(learning(), 200, 1.9, length)
    finding = fed(runs, losses).only
    assert finding.severity is Severity.INFO
    assert (finding.first_step, finding.last_step) == (200, 199 + length)
    usual = float(np.median(losses[180:200]))
    learned = float(np.median(losses[:3])) - usual
    assert finding.value == pytest.approx((1.9 - usual) / learned)
    assert finding.threshold == 0.25
    assert finding.message.startswith(f"The loss jumped from {usual:.3g} to 1.9 at step 200, ")
    assert finding.cause_kind is CauseKind.UNUSUAL_BATCH


def test_it_is_told_once_it_has_been_back_for_three_measured_steps(runs):
    fed_ = fed(runs, spiked(learning(), 200, 1.9))
    assert [place for place, told in enumerate(fed_.told) if told] == [203]


def test_the_second_spike_is_counted(runs):
    finding = fed(runs, spiked(spiked(learning(), 200, 1.9), 250, 2.0)).only
    assert (finding.first_step, finding.last_step) == (200, 250)
    assert "at step 250" in finding.message
    assert "the 2nd time in this run" in finding.message


def test_a_loss_below_zero_spikes_as_one_above(runs):
    finding = fed(runs, spiked(learning() - 5.0, 200, -3.1)).only
    assert finding.first_step == 200


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "losses"),
    [
        ("learning", learning),
        ("noisy", lambda seed: learning(seed, scatter=0.4)),
        ("near its floor, an odd batch", lambda seed: spiked(learning(seed, floor=1e-4, speed=15), 250, 0.05)),
        ("falls by orders", lambda seed: 10.0 ** (-np.arange(STEPS) / 40) * np.exp(noise(seed, scale=0.2))),
        ("negative and falling", lambda seed: -0.02 * np.arange(STEPS) + noise(seed, scale=0.1)),
        ("around zero", lambda seed: noise(seed, scale=0.1)),
        ("one batch in fifty is hard", lambda seed: learning(seed) + 0.3 * (np.arange(STEPS) % 50 == 49)),
        ("heavy tails, learned little", lambda seed: 2.3 + 0.1 * np.random.default_rng(seed).standard_t(5, STEPS)),
        ("cyclic rate", lambda seed: learning(seed) + 0.15 * np.sin(np.arange(STEPS) / 10)),
        ("warm-up that rises first", lambda seed: learning(seed) + 0.5 * np.exp(-((np.arange(STEPS) - 12) ** 2) / 40)),
        ("restart of the rate", lambda seed: learning(seed) + 0.4 * (np.arange(STEPS) % 100) / 100),
        (
            "batches of varying size",
            lambda seed: learning(seed) * np.exp(noise(seed + 9) * np.tile([0.05, 0.3], STEPS // 2)),
        ),
        ("a sum over varying batches", lambda seed: learning(seed) * np.tile([8.0, 8.0, 8.0, 3.0], STEPS // 4)),
        ("harder curriculum, for good", lambda seed: learning(seed) + 1.2 * (np.arange(STEPS) >= 150)),
        (
            "thawed layers, slowly back",
            lambda seed: (
                learning(seed) + 0.4 * (np.arange(STEPS) >= 150) * np.exp(-np.maximum(np.arange(STEPS) - 150, 0) / 40)
            ),
        ),
        ("a fall", lambda seed: spiked(learning(seed), 200, 1e-6)),
        ("constant", lambda seed: np.full(STEPS, 0.693)),
        ("exactly zero", lambda seed: np.zeros(STEPS)),
        ("diverges", lambda seed: np.exp(np.arange(STEPS) / 30)),
        ("the last step jumps", lambda seed: spiked(learning(seed), STEPS - 1, 3.0)),
        ("a constant loss but for rounding", lambda seed: 0.693 + 1e-7 * noise(seed)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_only_looks_like_it_is_nothing(runs, name, losses, seed):
    assert fed(runs, losses(seed)).findings == (), name


def test_a_loss_that_is_nan_comes_back_from_nothing(runs):
    assert fed(runs, spiked(spiked(learning(), 200, 1.9), 201, math.nan, 3)).findings == ()


def test_of_several_optimizers_the_losses_cant_be_compared(runs):
    told = fed(runs, spiked(learning(), 200, 1.9), optimizers=("Adam", "Adam"))
    assert told.findings == ()
    assert told.evaluator.unjudged["GW105"].startswith("can't judge: several optimizers")


def test_a_step_that_the_scaler_left_out_is_none(runs):
    info = runs.stack()
    losses = learning()
    records = [
        runs.measure(info, step, loss=9.0 if step == 200 else float(loss), skipped=step == 200)
        for step, loss in enumerate(losses)
    ]
    assert runs.feed(LossSpike(), records, info).findings == ()


@pytest.mark.parametrize(("share", "found"), [(0.26, True), (0.24, False)])
def test_the_threshold_is_a_share_of_what_was_learned(share, found):
    losses = [0.5] * 20
    jump = read_jump(0.5 + share * 1.5, losses, start=2.0)
    assert (jump is not None) is found


def test_what_steps_did_is_told_as_a_rate(runs):
    info = runs.stack()
    losses = spiked(learning(), 200, 1.9)
    records = [
        runs.measure(info, step, loss=float(loss), norm=1.0, update_ratio=0.3 if step == 200 else 1e-3)
        for step, loss in enumerate(losses)
    ]
    finding = runs.feed(LossSpike(), records, info).only
    assert finding.cause_kind is CauseKind.HIGH_LEARNING_RATE
    assert finding.first_bad.metric == "update_ratio"
    assert finding.layers == ("net.0",)
