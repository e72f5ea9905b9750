"""GW101 says when the signal vanishes, how badly, and when not to say it."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.judge.rules.vanishing import VanishingGradient
from lightning_gradwatch.record.finding import Severity, VanishingGradientWarning
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, LayerState

STEPS = (0, 1, 2, 4, 8, 16, 17, 18)


def judged(runs, attenuation, *, info=None, steps=STEPS, losses=None, rule=None):
    info = info or runs.stack()
    losses = losses or [2.3] * len(steps)
    records = [
        runs.measure(info, step, loss=loss, signal_norm=runs.fading(info, attenuation))
        for step, loss in zip(steps, losses, strict=True)
    ]
    return runs.feed(rule or VanishingGradient(), records, info)


def test_fires_once_in_the_third_measured_step_after_warm_up(runs):
    fed = judged(runs, 1e-3)
    assert [len(told) for told in fed.told] == [0] * 7 + [1]
    assert fed.confirming == [False] * 5 + [True, True, False]
    finding = fed.only
    assert (finding.code, finding.severity) == ("GW101", Severity.WARNING)
    assert (finding.first_step, finding.last_step) == (16, 18)
    assert finding.value == pytest.approx(1e-3)
    assert finding.threshold == 3e-3
    assert fed.evaluator.warning_for(finding) is VanishingGradientWarning


def test_is_told_once_and_its_numbers_go_on(runs):
    info = runs.stack()
    fed = judged(runs, 1e-3, info=info, steps=(*STEPS, 50, 100))
    assert sum(len(told) for told in fed.told) == 1
    assert fed.only.last_step == 100


@pytest.mark.parametrize(
    ("optimizers", "attenuation", "fires"),
    [
        (("SGD",), 2.9e-3, True),
        (("SGD",), 3.1e-3, False),
        (("ASGD", "SGD"), 2.9e-3, True),
        (("Adam",), 2.9e-3, False),
        (("Adam",), 0.9e-4, True),
        (("Sophia",), 2.9e-3, False),
        (("SGD", "Adam"), 2.9e-3, False),
        ((), 2.9e-3, False),
        ((), 0.9e-4, True),
    ],
)
def test_threshold_depends_on_the_optimizers(runs, optimizers, attenuation, fires):
    fed = judged(runs, attenuation, info=runs.stack(optimizers=optimizers))
    assert bool(fed.findings) is fires
    assert fed.evaluator.unjudged == {}


def test_names_the_layers_up_to_where_the_signal_is_back(runs):
    finding = judged(runs, 0.236**49, info=runs.stack(depth=50)).only
    assert finding.layers[0] == "net.0"
    assert len(finding.layers) == 45  # up to where 0.236**k is above 3e-3 again: five sites from the end


def test_a_ratio_of_the_users_holds_for_every_optimizer(runs):
    rule = VanishingGradient(ratio=1e-2)
    assert judged(runs, 0.9e-2, info=runs.stack(optimizers=("Adam",)), rule=rule).findings
    assert not judged(runs, 1.1e-2, info=runs.stack(optimizers=("Adam",)), rule=rule).findings


@pytest.mark.parametrize(("attenuation", "severity"), [(3.1e-5, Severity.WARNING), (2.9e-5, Severity.ERROR)])
def test_a_hundredth_of_the_threshold_is_an_error(runs, attenuation, severity):
    assert judged(runs, attenuation).only.severity == severity


def test_it_heals_after_three_readings_in_which_the_signal_gets_through(runs):
    info = runs.stack()
    for after, healed in ((4, None), (5, 17)):  # the median of five readings turns with the third
        values = [1e-9] * 3 + [0.5] * after
        records = [
            runs.measure(info, 10 + place, signal_norm=runs.fading(info, value)) for place, value in enumerate(values)
        ]
        finding = runs.feed(VanishingGradient(), records, info).only
        assert finding.healed_step == healed
    assert "no longer fades" in finding.message


def test_becoming_an_error_is_not_told_again_nor_is_falling_back(runs):
    info = runs.stack()
    values = [1e-3] * 3 + [1e-7] * 5 + [1e-3] * 8
    records = [
        runs.measure(info, 10 + place, signal_norm=runs.fading(info, value)) for place, value in enumerate(values)
    ]
    fed = runs.feed(VanishingGradient(), records, info)
    assert [told[0].severity for told in fed.told if told] == [Severity.WARNING]
    assert fed.only.severity == Severity.ERROR
    assert fed.only.value == pytest.approx(1e-7)
    assert (fed.only.first_step, fed.only.last_step) == (10, 25)


def test_a_gentle_slope_over_many_sites_is_left_alone(runs):
    """Healthy tanh nets lose up to a third a layer: the ratio alone must not fire."""
    info = runs.stack(depth=40)
    assert not judged(runs, 0.8**39, info=info).findings
    assert judged(runs, 0.7**39, info=info).findings


def test_a_low_gain_alone_is_left_alone(runs):
    assert not judged(runs, 0.5**5, info=runs.stack(depth=6)).findings


def test_one_odd_reading_neither_fires_nor_ends_it(runs):
    info = runs.stack()

    def fed(values):
        records = [runs.measure(info, 20 + place, signal_norm=runs.fading(info, v)) for place, v in enumerate(values)]
        return runs.feed(VanishingGradient(), records, info)

    assert not fed([0.5, 0.5, 0.5, 1e-9, 1e-9, 0.5, 0.5]).findings
    assert fed([1e-3, 1e-3, 0.5, 1e-3, 1e-3, 1e-3]).findings


@pytest.mark.parametrize("attenuation", [0.0, 5e-324])
def test_a_signal_of_zero_is_an_error_without_a_division(runs, attenuation):
    info = runs.stack()
    signal = [attenuation, 0.0, 0.1, 0.2, 0.5, 1.0]
    records = [runs.measure(info, step, signal_norm=signal) for step in (10, 11, 12)]
    finding = runs.feed(VanishingGradient(), records, info).only
    assert (finding.severity, finding.value) == (Severity.ERROR, attenuation)


def test_no_signal_at_the_last_site_cant_be_judged(runs):
    info = runs.stack()
    fed = runs.feed(VanishingGradient(), [runs.measure(info, 20, signal_norm=0.0)], info)
    assert fed.evaluator.unjudged["GW101"].startswith("can't judge: no signal")


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_needs_three_hidden_sites(runs, depth):
    info = runs.stack(depth=depth)
    records = [runs.measure(info, step, signal_norm=np.full(depth, 1.0)) for step in (10, 11, 12)]
    fed = runs.feed(VanishingGradient(), records, info)
    assert fed.evaluator.unjudged["GW101"].startswith("can't judge: a signal over depth needs 3 hidden")


def test_says_not_yet_in_warm_up_and_while_confirming(runs):
    fed = judged(runs, 1e-3, steps=(0, 1, 2))
    assert fed.evaluator.unjudged == {"GW101": "not yet: the first 10 steps are warm-up"}
    fed = judged(runs, 1e-3, steps=(10, 11))
    assert fed.evaluator.unjudged == {"GW101": "not yet: 3 measured steps in a row must agree"}
    assert judged(runs, 0.5, steps=(10,)).evaluator.unjudged == {}


def test_gates_and_outputs_are_no_ends_of_the_signal(runs):
    info = runs.stack()
    outputs = tuple(site if site.name != "net.1" else type(site)("net.1", "sigmoid", "gate", 8) for site in info.sites)
    info = RunInfo(info.layers, outputs, info.optimizers)
    signal = [1e-9, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert not runs.feed(
        VanishingGradient(), [runs.measure(info, s, signal_norm=signal) for s in range(10, 15)], info
    ).findings


class TestLoss:
    def test_falling_makes_it_information_and_stalling_a_warning(self, runs):
        steps = [*STEPS, *range(20, 200, 20)]
        losses = [2.3 * 0.98 ** min(step, 60) for step in steps]
        fed = judged(runs, 1e-3, steps=steps, losses=losses)
        told = [(found[0].severity, steps[place]) for place, found in enumerate(fed.told) if found]
        assert [severity for severity, _ in told] == [Severity.INFO, Severity.WARNING]
        assert told[0][1] == 18
        assert told[1][1] <= 140
        assert "hasn't fallen since" in fed.only.message or "hardly falls" in fed.only.message

    @pytest.mark.parametrize(("end", "severity"), [(1.02, Severity.WARNING), (0.98, Severity.INFO)])
    def test_to_take_back_a_rise_is_not_to_learn(self, runs, end, severity):
        """As large first steps throw the loss up, and the next ones bring it down to where it began."""
        steps = [0, 1, 2, 4, 8, 16, 17, 18]
        fed = judged(runs, 1e-3, steps=steps, losses=[1.0, 2.0, 3.0, 4.0, 3.0, end, end, end])
        assert fed.only.severity == severity
        assert ("brings it back to where it began." in fed.only.message) is (severity == Severity.WARNING)

    def test_what_is_left_of_a_rise_is_told(self, runs):
        steps = [0, 1, 2, 4, 8, 16, 17, 18]
        fed = judged(runs, 1e-3, steps=steps, losses=[1.0, 2.0, 3.0, 4.0, 3.0, 1.5, 1.5, 1.5])
        assert "which only brings it back to 1.5 times where it began." in fed.only.message

    def test_learning_the_output_bias_delays_the_warning_by_a_few_steps_only(self, runs):
        rng = np.random.default_rng(0)
        steps = [*STEPS, 32, *range(50, 300, 50)]
        losses = [2.303 + 0.3 * np.exp(-step / 6) + rng.normal(0, 0.01) for step in steps]
        fed = judged(runs, 1e-20, steps=steps, losses=losses)
        first = next(steps[place] for place, told in enumerate(fed.told) if told and told[0].severity > Severity.INFO)
        assert first <= 50

    def test_noise_is_not_falling(self, runs):
        rng = np.random.default_rng(1)
        for _ in range(20):
            steps = list(range(10, 60))
            fed = judged(runs, 1e-3, steps=steps, losses=list(2.3 * np.exp(rng.normal(0, 0.2, len(steps)))))
            assert fed.only.severity == Severity.WARNING

    def test_a_power_law_is_falling_at_any_age(self, runs):
        steps = [*STEPS, *range(50, 4000, 50)]
        fed = judged(runs, 1e-3, steps=steps, losses=[3.0 * (step + 1) ** -0.1 for step in steps])
        assert fed.only.severity == Severity.INFO
        assert "information only" in fed.only.message

    def test_converged_is_silent(self, runs):
        steps = [*STEPS, *range(50, 500, 50)]
        info = runs.stack()
        records = [
            runs.measure(info, s, loss=2.3 if s < 10 else 1e-3, signal_norm=runs.fading(info, 0.9 if s < 50 else 1e-3))
            for s in steps
        ]
        fed = runs.feed(VanishingGradient(), records, info)
        assert not fed.findings
        assert not fed.evaluator.unjudged

    @pytest.mark.parametrize(
        ("optimizers", "loss", "why"),
        [
            (("SGD", "SGD"), 2.3, "several optimizers"),
            (("SGD",), -2.3, "isn't positive"),
            (("SGD",), float("nan"), "no loss was recorded"),
        ],
    )
    def test_what_it_cant_tell_is_no_gate_and_is_said(self, runs, optimizers, loss, why):
        losses = [loss * 0.9**place for place in range(len(STEPS))]
        fed = judged(runs, 1e-3, info=runs.stack(optimizers=optimizers), losses=losses)
        assert fed.only.severity == Severity.WARNING
        assert why in fed.only.message


class TestFloor:
    def test_names_each_early_weight_layer_below_it_at_once(self, runs):
        info = runs.stack(depth=8)  # nine weight layers, three of them early
        rms = {"net.0": 1e-9, "net.2": 2e-9, "net.4": 1e-3, "net.16": 1e-9}
        fed = runs.feed(VanishingGradient(min_grad_rms=1e-7), [runs.measure(info, 0, grad_rms=rms)], info)
        finding = fed.only
        assert finding.layers == ("net.0", "net.2")
        assert (finding.severity, finding.value, finding.threshold) == (Severity.WARNING, 1e-9, 1e-7)
        assert (finding.first_step, finding.last_step) == (0, 0)

    def test_what_wasnt_measured_isnt_below(self, runs):
        info = runs.stack(depth=8)
        states = {"net.0": LayerState.OK, "net.2": LayerState.UNMEASURED, "net.4": LayerState.NON_FINITE}
        record = runs.measure(info, 0, states=states, grad_rms=0.0)
        assert runs.feed(VanishingGradient(min_grad_rms=1e-7), [record], info).only.layers == ("net.0",)

    @pytest.mark.parametrize("below", [True, False])
    def test_needs_no_sites(self, runs, below):
        info = runs.stack(depth=0)
        fed = runs.feed(
            VanishingGradient(min_grad_rms=1e-7), [runs.measure(info, 0, grad_rms=0.9e-7 if below else 1e-7)], info
        )
        assert bool(fed.findings) is below
        assert all(finding.remedy.actions for finding in fed.findings)
        assert fed.evaluator.unjudged == {}

    def test_biases_and_embeddings_are_out(self, runs):
        info = RunInfo(layers=(LayerInfo("emb", "Embedding", ((9, 4),), 36, weight=False), *runs.stack(depth=0).layers))
        record = runs.measure(info, 0, grad_rms={"emb": 0.0})
        assert not runs.feed(VanishingGradient(min_grad_rms=1e-7), [record], info).findings


def test_a_skipped_step_counts_for_nothing(runs):
    info = runs.stack()
    record = runs.measure(info, 20, signal_norm=runs.fading(info, 1e-9))
    skipped = type(record)(**{**vars(record), "skipped": True})
    evaluator = Evaluator((VanishingGradient(patience=1),))
    evaluator.feed(skipped, info)
    assert evaluator.findings == ()
    evaluator.feed(record, info)
    assert evaluator.findings
