"""GW102 says when the gradient explodes, over depth or over time, and what isn't an explosion."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gradwatch.judge.rules.exploding import ExplodingGradient
from lightning_gradwatch.record.finding import Action, ExplodingGradientWarning, Severity

STEPS = (0, 1, 2, 4, 8, 16)
LEARNED = (
    [1.5e-3, 4.8e-3, 1.6e-3, 8.2e-3, 1e-3, 1e-3, 4.1e-3, 4.6e-4, 2.6e-3, 9e-4, 3.3e-3, 7e-4],
    [0.052, 0.131, 0.06, 0.164, 0.059, 0.043, 0.271, 0.021, 0.09, 0.03, 0.14, 0.025],
)
"""Losses and norms of a net near the floor of its loss."""


def over_depth(runs, attenuation, *, info=None, steps=STEPS, losses=None, rule=None, **metrics):
    info = info or runs.stack(function="tanh")
    signal = runs.fading(info, attenuation) if np.isscalar(attenuation) else attenuation
    records = [
        runs.measure(info, step, loss=loss, signal_norm=signal, **metrics)
        for step, loss in zip(steps, losses or [2.3] * len(steps), strict=True)
    ]
    return runs.feed(rule or ExplodingGradient(), records, info)


def over_time(runs, norms, losses=None, *, first=0, rule=None, **settings):
    """One record a step; the signal is level."""
    info = runs.stack(**settings)
    losses = losses if losses is not None else [2.3] * len(norms)
    records = [
        runs.measure(info, first + place, norm=norm, loss=loss, signal_norm=1.0)
        for place, (norm, loss) in enumerate(zip(norms, losses, strict=True))
    ]
    return runs.feed(rule or ExplodingGradient(), records, info)


class TestHealing:
    """A surge is over when its readings are the usual ones; whether it did harm, the loss says."""

    @pytest.mark.parametrize(("last", "healed"), [(1.2, None), (1.1, 30)])
    def test_when_it_is_over_and_the_loss_has_come_down_to_half_its_start(self, runs, last, healed):
        norms = [1.0] * 15 + [20.0] * 4 + [1.0] * 12
        losses = [2.3] * 15 + [7.0] * 4 + [last] * 12
        finding = over_time(runs, norms, losses).only
        assert finding.last_step == 18
        assert (finding.healed_step is not None) is (healed is not None)
        assert (finding.severity == Severity.INFO) is (healed is not None)
        if healed:
            assert "It has healed: the loss has come down to 48 % of where it began." in finding.message


class TestDepth:
    def test_fires_in_the_third_measured_step_from_the_first_on(self, runs):
        """A net that starts so is wrecked by its first steps: there is no warm-up to wait for."""
        fed = over_depth(runs, 2e3)
        assert [len(told) for told in fed.told] == [0, 0, 1, 0, 0, 0]
        assert fed.confirming == [True, True, False, False, False, False]
        finding = fed.only
        assert (finding.severity, finding.first_step, finding.last_step) == (Severity.WARNING, 0, 16)
        assert finding.value == pytest.approx(2e3)
        assert finding.threshold == 1e3
        assert fed.evaluator.warning_for(finding) is ExplodingGradientWarning
        assert finding.layers == tuple(f"net.{place}" for place in range(0, 13, 2))

    @pytest.mark.parametrize(
        ("attenuation", "severity"), [(0.9e5, Severity.WARNING), (1.1e5, Severity.ERROR), (1e300, Severity.ERROR)]
    )
    def test_a_hundred_times_the_threshold_is_an_error(self, runs, attenuation, severity):
        assert over_depth(runs, attenuation).only.severity == severity

    @pytest.mark.parametrize(("gain", "fires"), [(1.25, False), (1.38, False), (1.42, True)])
    def test_a_gentle_slope_over_many_sites_is_left_alone(self, runs, gain, fires):
        """BatchNorm nets at the start grow by 1.21 to 1.25 a layer (Yang et al. 2019), and train."""
        assert bool(over_depth(runs, gain**59, info=runs.stack(depth=60)).findings) is fires

    def test_a_high_gain_over_few_sites_is_left_alone(self, runs):
        assert not over_depth(runs, 3.0**5, info=runs.stack(depth=6)).findings

    @pytest.mark.parametrize(
        "signal",
        [
            [1.0, *[1e-6] * 9],  # a trunk, then branches that start small
            [*[1.0] * 5, *[1e-6] * 5],  # two halves
            [1.0, 1e-6] * 5,  # trunk and branches in turn
            [*[1.0] * 9, 1e-9],  # a last site that hardly matters
        ],
    )
    def test_ends_that_differ_without_growth_between_them_are_left_alone(self, runs, signal):
        assert not over_depth(runs, signal, info=runs.stack(depth=10)).findings

    def test_sites_that_take_turns_are_seen_through(self, runs):
        """A trunk that grows 10 times a block, with a site inside each block at a hundredth of the trunk's signal."""
        signal = np.ravel([[10.0**-block, 10.0 ** (-block - 2)] for block in range(6)])
        finding = over_depth(runs, signal, info=runs.stack(depth=12)).only
        assert finding.value == pytest.approx(1e7)

    def test_two_readings_before_a_crash_are_enough(self, runs):
        """The median holds what the first steps showed while the net is thrown about."""
        info = runs.stack(depth=20, function="tanh")
        values = [3e3, 8e3, 160.0, 0.2, 4e-3]
        records = [runs.measure(info, step, signal_norm=runs.fading(info, value)) for step, value in enumerate(values)]
        fed = runs.feed(ExplodingGradient(), records, info)
        assert [len(told) for told in fed.told] == [0, 0, 1, 0, 0]
        assert fed.only.value == pytest.approx(3e3)

    @pytest.mark.parametrize("early", [(), (2e3,), (2e3, 60.0), (0.5, 8e-3)])
    def test_a_net_that_its_first_steps_wreck_is_told(self, runs, early):
        """Chance decides how many of the steps after the first still show it, and the loss falls from afar to chance."""
        info = runs.stack(depth=20, function="tanh")
        values = [3e3, *early, 20.0, 1e-2, 7e-5, 4e-7, 2e-8, 1e-8]
        records = [
            runs.measure(info, step, loss=9.0 - step, signal_norm=runs.fading(info, value))
            for step, value in enumerate(values)
        ]
        finding = runs.feed(ExplodingGradient(), records, info).only
        assert (finding.severity, finding.first_step, finding.threshold) == (Severity.WARNING, 0, 1e3)
        assert finding.value == pytest.approx(3e3)
        assert "net.1 got 3e3 times the signal of" in finding.message
        assert "Then a step wrecked the net: " in finding.message
        assert "information only" not in finding.message

    @pytest.mark.parametrize(
        "values",
        [
            [3e3, 20.0, *[1.0] * 8],  # it comes to rest
            [3e3, *[1.0] * 20, *[1e-7] * 8],  # it came to rest: what fades later is another matter
            [1.0, 1.0, 1.0, 1e9, *[1e-7] * 8],  # one odd reading
        ],
    )
    def test_a_net_that_is_no_wreck_is_left_alone(self, values, runs):
        info = runs.stack(depth=20, function="tanh")
        records = [runs.measure(info, step, signal_norm=runs.fading(info, value)) for step, value in enumerate(values)]
        assert not runs.feed(ExplodingGradient(), records, info).findings

    def test_one_odd_reading_is_left_alone(self, runs):
        info = runs.stack()
        values = [1.0, 1.0, 1e9, 1.0, 1.0, 1e9, 1.0, 1.0]
        records = [runs.measure(info, step, signal_norm=runs.fading(info, value)) for step, value in enumerate(values)]
        assert not runs.feed(ExplodingGradient(), records, info).findings

    def test_is_information_while_the_loss_falls_and_silent_once_converged(self, runs):
        losses = [2.3 * 0.7**place for place in range(len(STEPS))]
        assert over_depth(runs, 2e3, losses=losses).only.severity == Severity.INFO
        steps, losses = range(20, 40), [2.3] * 3 + [1e-3] * 17
        assert not over_depth(runs, 2e3, steps=steps, losses=losses, rule=ExplodingGradient(patience=9)).findings

    def test_cause_and_remedy_come_from_the_weights(self, runs):
        info = runs.stack(depth=14, function="tanh")
        finding = over_depth(
            runs, 1e8, info=info, weight_rms=np.sqrt(16 / 8), weight_gain=3.9, activation_gain=0.4
        ).only
        assert "start too large for Tanh" in finding.cause
        assert "variance times the fan-in is 16 where 1 would" in finding.cause
        assert "the weights pass back 3.9 of the signal a layer and the functions 0.4" in finding.cause
        by_kind = {action.kind: action for action in finding.remedy.actions}
        assert {"initialize", "add_skip_connections", "clip_gradients"} <= by_kind.keys()
        assert dict(by_kind["initialize"].arguments)["method"] == "xavier_normal_"


class TestTime:
    def test_growth_with_a_loss_that_rises_fires(self, runs):
        norms = [1.0] * 20 + [12.0, 15.0, 20.0]
        fed = over_time(runs, norms, [2.3] * 20 + [5.0, 7.0, 9.0])
        finding = fed.only
        assert (finding.first_step, finding.last_step, finding.severity) == (20, 22, Severity.WARNING)
        assert finding.value == pytest.approx(20.0)
        assert fed.confirming == [False] * 20 + [True, True, False]
        assert [action.kind for action in finding.remedy.actions] == ["set_learning_rate", "clip_gradients"]
        assert finding.remedy.actions[1] == Action("clip_gradients", (), (("norm", 1.0),))

    @pytest.mark.parametrize(("last", "severity"), [(900.0, Severity.WARNING), (1100.0, Severity.ERROR)])
    def test_a_hundred_times_the_threshold_is_an_error(self, runs, last, severity):
        fed = over_time(runs, [1.0] * 20 + [last] * 3, [2.3] * 20 + [50.0] * 3)
        assert fed.only.severity == severity

    @pytest.mark.parametrize(
        ("norms", "losses"),
        [
            ([1.0] * 20 + [9.0] * 5, [2.3] * 20 + [9.0] * 5),  # too little
            ([1.0] * 20 + [99.0, 99.0, 1.0, 99.0, 99.0], [2.3] * 20 + [9.0] * 5),  # spikes that are over
            ([1.0] * 20 + [99.0] * 5, [2.3] * 25),  # the loss doesn't mind: a plateau is left, say
            (list(1.15 ** np.arange(25.0)), list(1.2 ** np.arange(25.0))),  # slower than tenfold in twenty readings
            ([1.0] * 3 + [99.0] * 5, [2.3] * 3 + [99.0] * 5),  # warm-up
            ([1e7] * 25, [2.3] * 25),  # large and level
        ],
    )
    def test_what_is_no_explosion_is_left_alone(self, runs, norms, losses):
        assert not over_time(runs, norms, losses).findings

    def test_a_surge_below_where_the_loss_began_is_left_alone(self, runs):
        """A ReLU net that has all but learned its data by heart: steps 499 to 579 of such a run, and a hard end to it."""
        began = ([2.24, 2.33, 1.75] * 4, [2.31, 2.27, 2.21] * 4)
        losses = [*LEARNED[0], 0.0335, 0.006, 0.149, 0.171, 0.278, 0.221, 0.0293, 0.316, 0.153, 0.129, 0.0337, 0.0437]
        norms = [*LEARNED[1], 1.46, 0.182, 3.31, 2.15, 2.39, 2.58, 0.979, 2.57, 2.72, 4.86, 0.705, 1.07]
        assert not over_time(runs, began[0] + norms, began[1] + losses).findings
        assert not over_time(runs, began[0] + [0.01] * 20 + [5.0] * 20, began[1] + [1e-3] * 20 + [2.0] * 20).findings
        assert over_time(runs, began[0] + [0.01] * 20 + [5.0] * 20, began[1] + [1e-3] * 20 + [2.4] * 20).findings

    def test_a_run_that_begins_at_the_floor_is_measured_by_its_own_scatter(self, runs):
        """A net that is tuned on: where batches differ a hundredfold, tenfold is nothing."""
        losses, norms = (values * 3 for values in LEARNED)
        odd = [0.09, 0.12, 0.15, 0.1], [0.9, 1.2, 1.5, 1.0]
        assert not over_time(runs, norms + odd[1], losses + odd[0]).findings
        calm = [0.06] * len(norms), [2e-3] * len(norms)
        assert over_time(runs, calm[0] + odd[1], calm[1] + odd[0]).findings

    def test_batches_that_learn_to_the_last_digit_are_still_compared(self, runs):
        """A loss of exactly 0 is a loss."""
        norms, losses = [2.0] * 12 + [1e-9] * 20, [2.3] * 12 + [0.0] * 20
        assert not over_time(runs, norms + [1e-3] * 5, losses + [1e-4] * 5).findings
        assert over_time(runs, norms + [1e-3] * 5, losses + [3.0] * 5).findings

    def test_a_steady_rise_is_no_scatter(self, runs):
        """It grows by a third a step, so the norms before reach over a factor of 300."""
        rise = 1.35 ** np.arange(24.0)
        assert over_time(runs, [1.0] * 12 + list(rise), [2.3] * 12 + list(2.3 * rise)).findings

    @pytest.mark.parametrize("patience", [1, 3, 5])
    def test_an_explosion_lasts_through_batches_that_fall_short(self, runs, patience):
        """Every other one is half a batch, say."""
        norms, losses = [1.0] * 20 + [15.0, 6.0] * patience, [2.3] * 20 + [9.0, 5.0] * patience
        finding = over_time(runs, norms, losses, rule=ExplodingGradient(patience=patience)).only
        assert (finding.first_step, finding.last_step) == (20, 20 + 2 * (patience - 1))

    def test_an_explosion_isnt_the_measure_of_itself(self, runs):
        """Twenty more readings, and what has exploded would be usual."""
        finding = over_time(runs, [1.0] * 20 + [50.0] * 40, [2.3] * 20 + [9.0] * 40).only
        assert (finding.first_step, finding.last_step, finding.value) == (20, 59, 50.0)
        assert finding.remedy.actions[1] == Action("clip_gradients", (), (("norm", 1.0),))

    def test_a_loss_that_cant_be_compared_needs_a_hundred_times_as_much(self, runs):
        for losses in ([float("nan")] * 23, [-2.3] * 23):
            assert not over_time(runs, [1.0] * 20 + [900.0] * 3, losses).findings
            assert over_time(runs, [1.0] * 20 + [1100.0] * 3, losses).only.threshold == 1000.0
            # A norm near its own floor is no measure either.
            assert not over_time(runs, [2.0] * 5 + [1e-6] * 20 + [1.9] * 3, [losses[0]] * 28).findings
            assert over_time(runs, [2.0] * 5 + [1e-6] * 20 + [2.1] * 3, [losses[0]] * 28).findings

    def test_steps_of_different_optimizers_are_compared_with_their_own_kind(self, runs):
        info = runs.stack(optimizers=("Adam", "Adam"))
        records = []
        for step in range(40):
            record = runs.measure(info, step, norm=(1.0, 1e6)[step % 2], loss=float("nan"), signal_norm=1.0)
            records.append(type(record)(**{**vars(record), "optimizers": (step % 2,)}))
        assert not runs.feed(ExplodingGradient(), records, info).findings


class TestLevel:
    def test_a_huge_loss_with_a_huge_gradient_that_is_level_is_information(self, runs):
        finding = over_time(runs, [1e7] * 13, [4e10] * 13).only
        assert finding.severity == Severity.INFO
        assert finding.remedy.actions == (Action("normalize_targets"),)
        assert "isn't an explosion" in finding.cause
        assert finding.first_step == 10

    @pytest.mark.parametrize(("norm", "loss"), [(1e7, 1e5), (1e3, 1e8), (1e7, float("nan"))])
    def test_either_alone_says_nothing(self, runs, norm, loss):
        assert not over_time(runs, [norm] * 13, [loss] * 13).findings

    def test_an_explosion_over_depth_isnt_told_as_targets(self, runs):
        info = runs.stack()
        records = [
            runs.measure(info, step, norm=1e9, loss=1e9, signal_norm=runs.fading(info, 1e7)) for step in range(10, 14)
        ]
        assert runs.feed(ExplodingGradient(), records, info).only.value == pytest.approx(1e7)


def test_needs_a_signal_or_a_norm(runs):
    info = runs.stack(depth=2)
    fed = runs.feed(ExplodingGradient(), [runs.measure(info, 20, signal_norm=1.0)], info)
    assert fed.evaluator.unjudged["GW102"].startswith("can't judge: a signal over depth needs 3 hidden")
    assert over_time(runs, [1.0] * 3, depth=2).evaluator.unjudged == {}


def test_a_skipped_step_counts_for_nothing(runs):
    info = runs.stack()
    records = [
        runs.measure(info, step, signal_norm=runs.fading(info, 1e9), skipped=step < 4, norm=1e9) for step in range(6)
    ]
    assert not runs.feed(ExplodingGradient(), records, info).findings
