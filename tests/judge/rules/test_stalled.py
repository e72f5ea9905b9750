"""GW301 says which weight layers hardly move, or that none does, and why; and knows when that is meant."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lightning_gradwatch.judge.rules.stalled import StalledUpdate
from lightning_gradwatch.record.finding import Action, CauseKind, Severity, StalledUpdateWarning
from lightning_gradwatch.record.step import LayerInfo, LayerState, OptimizerInfo

STEPS = range(10, 16)
NAMES = tuple(f"net.{place}" for place in range(0, 13, 2))


def ratios(low=1e-8, behind=("net.0", "net.2"), high=1e-3):
    return {name: low if name in behind else high for name in NAMES}


def judged(runs, update_ratio, *, info=None, steps=STEPS, losses=None, rates=None, rule=None, **given):
    info = info or runs.stack()
    given = {"weight_rms": 0.3, "grad_rms": 1e-3, **given}
    records = [
        runs.measure(
            info,
            step,
            loss=2.3 if losses is None else losses[place],
            rates=None if rates is None else rates[place],
            update_ratio=update_ratio,
            **given,
        )
        for place, step in enumerate(steps)
    ]
    return runs.feed(rule or StalledUpdate(), records, info)


def thrown(runs, *, update=3.0, now=None, losses=lambda step: 2.3 if step < 3 else 2.5, **given):
    """A run whose first steps changed each layer by that much of itself, and whose first two layers hardly move since."""
    info = runs.stack()
    given = {"weight_rms": 0.3, "grad_rms": 1e-3, **given}
    records = [
        runs.measure(
            info,
            step,
            loss=losses(step),
            update_ratio=update if step < 4 else (now or ratios()),
            **{name: value(step) if callable(value) else value for name, value in given.items()},
        )
        for step in (0, 1, 2, 4, 8, *range(10, 16))
    ]
    return runs.feed(StalledUpdate(), records, info)


class TestBehind:
    def test_layers_a_hundred_times_behind_are_named_in_the_third_measured_step(self, runs):
        fed = judged(runs, ratios(9e-6))
        assert [len(told) for told in fed.told] == [0, 0, 1, 0, 0, 0]
        assert fed.confirming == [True, True, False, False, False, False]
        finding = fed.only
        assert finding.layers == ("net.0", "net.2")
        assert finding.headline.endswith("and net.4 by 0.001 (as slow: net.2)")
        assert (finding.severity, finding.value, finding.threshold) == (Severity.WARNING, 9e-6, 1e-5)
        assert (finding.first_step, finding.last_step) == (10, 15)
        assert fed.evaluator.warning_for(finding) is StalledUpdateWarning

    @pytest.mark.parametrize(
        ("low", "high", "fires"), [(1.1e-5, 1e-1, False), (9e-6, 8e-4, False), (9e-6, 1e-3, True), (0.0, 1e-3, True)]
    )
    def test_below_the_threshold_and_far_behind(self, runs, low, high, fires):
        assert bool(judged(runs, ratios(low, high=high)).findings) is fires

    @pytest.mark.parametrize(("low", "severity"), [(1.1e-6, Severity.WARNING), (0.9e-6, Severity.ERROR)])
    def test_a_tenth_of_the_threshold_is_an_error(self, runs, low, severity):
        assert judged(runs, ratios(low)).only.severity == severity

    def test_a_reading_between_begins_anew(self, runs):
        info = runs.stack()
        records = [
            runs.measure(info, 10 + place, update_ratio=ratios() if low else 1e-3, weight_rms=0.3, grad_rms=1e-3)
            for place, low in enumerate([1, 1, 0, 1, 1, 0])
        ]
        assert not runs.feed(StalledUpdate(), records, info).findings

    @pytest.mark.parametrize("state", [LayerState.ZERO, LayerState.NONE, LayerState.FROZEN, LayerState.UNUSED])
    def test_layers_without_a_gradient_are_another_rules(self, runs, state):
        states = {"net.0": state, "net.2": state}
        fed = judged(runs, ratios(), states=states)
        assert not fed.findings
        assert fed.evaluator.unjudged == {}

    def test_weights_that_are_all_zero_are_out(self, runs):
        """LoRA's B, a zero-initialised head: the ratio is NaN."""
        assert not judged(runs, ratios(float("nan"))).findings

    def test_a_layer_that_starts_at_zero_leaves_nobody_behind(self, runs):
        """LoRA: B grows from 0, so it changes by much of itself, and A's gradient is as small as B is."""
        weights = {name: 1e-5 if name == "net.12" else 0.3 for name in NAMES}
        update = {name: 1e-2 if name == "net.12" else 5e-6 for name in NAMES}
        assert not judged(runs, update, weight_rms=weights).findings
        assert judged(runs, update).findings

    def test_weights_that_are_given_nothing_but_zeros_are_not_behind(self, runs):
        """A covariate that this data set lacks: the weights' gradient is exactly 0, and the bias learns."""
        behind = ratios(0.0, behind=NAMES[:1])
        assert not judged(runs, behind, grad_rms={NAMES[0]: 0.0}).findings
        assert judged(runs, behind, grad_rms={NAMES[0]: 1e-40}).only.layers == NAMES[:1]

    @pytest.mark.parametrize(
        ("gradient", "of"),
        [
            ({"net.0": float("nan")}, "net.0"),
            ({name: float("nan") for name in NAMES[2:]}, "net.4"),
            (float("nan"), "net.0 and of net.4"),
        ],
        ids=["of-the-layer", "of-the-others", "of-all"],
    )
    def test_of_a_gradient_that_wasnt_measured_the_cause_says_so(self, runs, gradient, of):
        finding = judged(runs, ratios(), grad_rms=gradient).only
        assert finding.cause == f"What holds net.0 back doesn't show, as the gradient of {of} wasn't measured."
        assert finding.cause_kind is CauseKind.UNKNOWN

    @pytest.mark.parametrize(("there", "told"), [(1e-3, " (net.4: 0.001)"), (float("nan"), "")])
    def test_a_gradient_below_eps_needs_no_other_beside_it(self, runs, there, told):
        info = runs.stack(optimizers=("Adam",))
        optimizer = dataclasses.replace(info.optimizers[0], settings={"lr": 0.1, "eps": 1e-8})
        info = dataclasses.replace(info, optimizers=(optimizer,))
        gradient = dict.fromkeys(NAMES, there) | {"net.0": 1e-9, "net.2": 1e-9}
        finding = judged(runs, ratios(), info=info, grad_rms=gradient).only
        assert f"below the eps of Adam (1e-8), so its steps shrink with it{told}." in finding.cause

    def test_a_layer_is_not_compared_with_itself(self, runs):
        """All but the last are dead, and that one doesn't move: no other layer is there to be behind."""
        assert not judged(runs, 0.0, states=dict.fromkeys(NAMES[:-1], LayerState.ZERO)).findings

    @pytest.mark.parametrize(("growth", "fires"), [(1.6, True), (2.5, False)])
    def test_what_rises_is_on_its_way(self, runs, growth, fires):
        """Branches behind a layer scale: their updates start at next to nothing and grow with each doubling of the steps."""
        info = runs.stack()
        steps = [*range(9), 16, 17, 18]
        records = [
            runs.measure(
                info, step, update_ratio=ratios(1e-7 * growth ** np.log2(step + 1)), weight_rms=0.3, grad_rms=1e-3
            )
            for step in steps
        ]
        assert bool(runs.feed(StalledUpdate(), records, info).findings) is fires

    def test_zero_stays_zero(self, runs):
        assert judged(runs, ratios(0.0), steps=range(16), losses=[2.3] * 16).findings

    def test_embeddings_are_out(self, runs):
        info = runs.stack()
        info = dataclasses.replace(
            info, layers=(LayerInfo("emb", "Embedding", ((9, 4),), 36, weight=False), *info.layers)
        )
        assert not judged(runs, {"emb": 1e-9, **dict.fromkeys(NAMES, 1e-3)}, info=info).findings


class TestLearningRates:
    def stack(self, runs, rates):
        info = runs.stack()
        optimizer = dataclasses.replace(info.optimizers[0], rates=rates)
        return dataclasses.replace(info, optimizers=(optimizer,))

    def test_a_rate_of_its_own_is_taken_into_account(self, runs):
        """A pretrained body at a hundredth of the head's rate moves a hundredth as much, on purpose."""
        info = self.stack(runs, (1e-2,) * 6 + (1.0,))
        body = ratios(9e-6, behind=NAMES[:6])
        assert not judged(runs, body, info=info).findings
        assert judged(runs, body).only.layers == NAMES[:6]
        assert judged(runs, ratios(9e-8, behind=NAMES[:6]), info=info).only.value == pytest.approx(9e-6)

    def test_layers_at_rest_are_out(self, runs):
        assert not judged(runs, ratios(0.0), info=self.stack(runs, (0.0, 0.0, 1, 1, 1, 1, 1))).findings

    def test_an_optimizer_at_rest_holds_its_layers_still(self, runs):
        info = runs.stack()
        two = (OptimizerInfo("SGD", {}, NAMES[:2]), OptimizerInfo("SGD", {}, NAMES[2:]))
        info = dataclasses.replace(info, optimizers=two)
        assert not judged(runs, ratios(0.0), info=info, rates=[(0.0, 0.1)] * 6).findings
        assert judged(runs, ratios(0.0), info=info, rates=[(0.1, 0.1)] * 6).findings

    def test_nothing_is_judged_while_the_rate_rises(self, runs):
        fed = judged(runs, 1e-8, rates=[(1e-6 * place,) for place in range(1, 7)])
        assert not fed.findings
        assert fed.evaluator.unjudged == {"GW301": "not yet: the learning rate still rises"}

    def test_nothing_is_judged_after_it_was_lowered(self, runs):
        """At the end of a cosine schedule, nothing moves."""
        info = runs.stack()
        records = [
            runs.measure(info, 10 * (place + 1), rates=(rate,), update_ratio=1e-2 * rate, weight_rms=0.3, grad_rms=1e-3)
            for place, rate in enumerate([0.1, 0.1, 0.09, 0.05, 0.04, 1e-3, 1e-4, 1e-4, 1e-5])
        ]
        assert not runs.feed(StalledUpdate(), records, info).findings

    def test_warm_up_steps_arent_judged(self, runs):
        fed = judged(runs, 1e-8, steps=range(4, 10))
        assert fed.evaluator.unjudged == {"GW301": "not yet: the first 10 steps are warm-up"}


class TestHealing:
    def fed(self, runs, *readings):
        info = runs.stack()
        records = [
            runs.measure(info, 10 + place, update_ratio=reading, weight_rms=0.3, grad_rms=1e-3)
            for place, reading in enumerate(readings)
        ]
        return runs.feed(StalledUpdate(), records, info)

    @pytest.mark.parametrize("low", [ratios(), 1e-7], ids=["behind", "slow"])
    def test_three_readings_of_layers_that_move_again(self, runs, low):
        fed = self.fed(runs, *[low] * 3, *[1e-3] * 2, low, *[1e-3] * 2)
        assert fed.only.healed_step is None
        fed = self.fed(runs, *[low] * 3, *[1e-3] * 4)
        assert (fed.only.severity, fed.only.last_step, fed.only.healed_step) == (Severity.INFO, 12, 15)
        assert "move again" in fed.only.message

    @pytest.mark.parametrize(("above", "heals"), [(1.9e-5, False), (2.1e-5, True)])
    def test_what_is_just_above_the_threshold_has_not_healed(self, runs, above, heals):
        fed = self.fed(runs, *[9e-6] * 3, *[above] * 6)
        assert (fed.only.healed_step is not None) is heals

    def test_readings_of_layers_without_a_gradient_heal_nothing(self, runs):
        info = runs.stack()
        states = dict.fromkeys(NAMES, LayerState.ZERO)
        records = [
            runs.measure(info, 10 + place, update_ratio=ratios(), weight_rms=0.3, states=states if place > 2 else None)
            for place in range(8)
        ]
        assert runs.feed(StalledUpdate(), records, info).only.healed_step is None


class TestSlow:
    def test_no_layer_moves(self, runs):
        finding = judged(runs, ratios(3e-6, high=4e-6)).only
        assert (finding.layers, finding.value, finding.severity) == (NAMES, 4e-6, Severity.WARNING)
        assert "the learning rate (0.1) is too small" in finding.cause
        assert finding.remedy.actions == (Action("set_learning_rate", (), (("factor", 2000.0),)),)

    def test_and_none_is_behind_then(self, runs):
        assert judged(runs, ratios(1e-12, high=9e-6)).only.layers == NAMES

    def test_weights_that_start_large_are_to_be_started_anew(self, runs):
        finding = judged(runs, 1e-9, weight_rms=20.0).only
        assert "times as large as PyTorch's default" in finding.cause
        assert "they were nearly as large in the first measured step" in finding.cause
        assert [action.kind for action in finding.remedy.actions] == ["replace_activation", "initialize"]

    def test_weights_that_steps_threw_out_ask_for_a_lower_rate_and_no_other_start(self, runs):
        info = runs.stack()
        records = [
            runs.measure(info, step, update_ratio=1e-9, weight_rms=20.0 if step > 10 else 0.2) for step in range(10, 16)
        ]
        finding = runs.feed(StalledUpdate(), records, info).only
        assert "steps that were too large threw them there, from 0.98 times in the first measured step" in finding.cause
        assert [action.kind for action in finding.remedy.actions] == ["set_learning_rate", "clip_gradients"]

    def test_the_rest_of_a_dead_net_says_nothing(self, runs):
        assert not judged(runs, 1e-9, states=dict.fromkeys(NAMES[:5], LayerState.ZERO)).findings

    def test_a_coarse_number_format_rounds_changes_away(self, runs):
        finding = judged(runs, 0.0, info=runs.stack(precision="bf16-true")).only
        assert finding.remedy.actions == (Action("set_precision", (), (("to", "bf16-mixed"),)),)


class TestWhy:
    def test_adams_eps(self, runs):
        info = runs.stack(optimizers=("Adam",))
        adam = dataclasses.replace(info.optimizers[0], settings={"lr": 1e-3, "eps": 1e-8})
        info = dataclasses.replace(info, optimizers=(adam,))
        finding = judged(runs, ratios(), info=info, grad_rms=ratios(1e-11)).only
        assert "rms of 1e-11, below the eps of Adam (1e-8)" in finding.cause

    def test_weights_that_are_large(self, runs):
        finding = judged(runs, ratios(), weight_rms=ratios(50.0, high=0.3)).only
        assert "The weights of net.0 are large: their rms is 50" in finding.cause

    def test_a_gradient_that_is_weak(self, runs):
        finding = judged(runs, ratios(), grad_rms=ratios(1e-11)).only
        assert "net.0 has an rms of 1e-11, that of net.4 0.001" in finding.cause
        assert [action.kind for action in finding.remedy.actions] == ["replace_activation", "initialize"]

    def test_weights_that_steps_threw_ask_for_smaller_steps(self, runs):
        finding = thrown(runs, weight_rms=lambda step: ratios(50.0 if step else 0.1, high=0.3)).only
        assert "threw the weights of net.0: their rms is 50, and was 0.1 when it was first measured" in finding.cause
        assert (
            "The first steps changed the weights by 3 times their size: the learning rate is too high." in finding.cause
        )
        assert [cause.kind for cause in finding.causes] == [CauseKind.HIGH_LEARNING_RATE, CauseKind.LARGE_WEIGHTS]
        assert [action.kind for action in finding.remedy.actions] == ["set_learning_rate", "clip_gradients"]

    def test_a_gradient_that_steps_weakened_asks_for_smaller_steps(self, runs):
        finding = thrown(runs, grad_rms=ratios(1e-11)).only
        assert "It wasn't so at first, when a step changed it by 3 of itself." in finding.cause
        assert [cause.kind for cause in finding.causes] == [CauseKind.HIGH_LEARNING_RATE, CauseKind.WEAK_GRADIENT]
        (rate, _) = finding.remedy.actions
        assert rate.kind == "set_learning_rate"
        assert dict(rate.arguments)["factor"] < 0.01  # 3 becomes less than a hundredth
        assert finding.remedy.text.endswith("clip the gradient norm to 1.")

    def test_weights_that_were_as_large_when_the_layer_still_moved_are_no_reason(self, runs):
        finding = thrown(runs, weight_rms=ratios(50.0, high=0.3), grad_rms=ratios(1e-11)).only
        assert "are large" not in finding.cause
        assert finding.cause_kind is CauseKind.HIGH_LEARNING_RATE

    def test_a_head_that_is_thrown_about_while_the_loss_is_far_above_its_start(self, runs):
        """A branch that starts at 0 hardly moves at first either; what makes the loss that high is the head's steps."""
        given = {"update": ratios(), "now": ratios() | {"net.12": 0.4}, "grad_rms": ratios(1e-11)}
        finding = thrown(runs, **given, losses=lambda step: 1.2 if step < 3 else 6.0).only
        assert (
            "Steps that change net.12 by 0.4 of itself are too large: the learning rate (0.1) is too high."
            in finding.cause
        )
        assert "The loss is 5 times what it was at first." in finding.cause
        finding = thrown(runs, **given, losses=lambda step: 1.2 if step < 3 else 1.8).only
        assert finding.cause_kind is CauseKind.WEAK_GRADIENT
        # Where most of the first steps threw it about, less of a rise is needed.
        given["update"] = given["now"]
        for level, blamed in ((1.8, True), (1.4, False)):
            finding = thrown(runs, **given, losses=lambda step, level=level: 1.2 if step < 3 else level).only
            assert (finding.cause_kind is CauseKind.HIGH_LEARNING_RATE) is blamed

    @pytest.mark.parametrize(
        "given",
        [
            {"update": ratios()},  # as it began
            {"update": ratios(5e-5)},  # nearly so
            {"update": ratios(1e-2)},  # steps of a usual size
            {"losses": lambda step: 2.3 if step < 3 else 2.2},
        ],
    )
    def test_what_no_step_is_seen_to_have_weakened_is_the_gradients(self, runs, given):
        finding = thrown(runs, grad_rms=ratios(1e-11), **given).only
        assert finding.cause_kind is CauseKind.WEAK_GRADIENT
        assert "learning rate that suits the others" in finding.cause

    def test_of_a_branch_the_branch_is_told_and_not_the_whole_net(self, runs):
        """The gradient passes a layer scale by: the first layers have a strong one. A new start would cure nothing."""
        info = runs.stack(optimizers=("AdamW",))
        adam = dataclasses.replace(info.optimizers[0], settings={"lr": 1e-3, "eps": 1e-8})
        info = dataclasses.replace(info, optimizers=(adam,))
        behind = dict.fromkeys(NAMES, 0.001) | {"net.6": 1e-6}
        weak = dict.fromkeys(NAMES, 0.01) | {"net.6": 2e-10}
        finding = judged(runs, behind, info=info, grad_rms=weak).only
        assert finding.layers == ("net.6",)
        assert "net.0, before it, has 0.01, so the gradient isn't lost on its way through the net" in finding.cause
        assert finding.remedy.text == (
            "If such a factor is meant, nothing: the gradient grows with it. Else start the factor at a larger value, or lower the "
            "eps of AdamW to 2e-11."
        )
        assert [action.kind for action in finding.remedy.actions] == ["trace_gradient"]
        # Without eps: weak beside the others alone.
        finding = judged(runs, behind, grad_rms=weak | {"net.6": 1e-6}).only
        assert finding.remedy.text.endswith("Else start the factor at a larger value.")

    def test_large_weights_start_anew_and_no_others(self, runs):
        finding = judged(runs, ratios(), weight_rms=ratios(50.0, high=0.3)).only
        assert [action.targets for action in finding.remedy.actions] == [NAMES[:2]]

    def test_what_the_optimizer_holds_back_is_looked_for_there(self, runs):
        finding = judged(runs, ratios(), grad_rms=1e-3, weight_rms=0.3).only
        assert "the optimizer gives it smaller steps" in finding.cause
        assert finding.remedy.text.startswith("Look for what holds net.0 back")


class TestLoss:
    def test_falling_makes_it_information(self, runs):
        losses = [2.3 * 0.9**place for place in range(40)]
        assert judged(runs, ratios(), steps=range(10, 50), losses=losses).only.severity == Severity.INFO

    @pytest.mark.parametrize(("gradient", "severity"), [(1e-3, Severity.ERROR), (1.0, Severity.INFO)])
    def test_a_fall_that_the_steps_cannot_have_made_is_noise(self, runs, gradient, severity):
        """To first order a step takes off at most its norm times the gradient's: 5e-5 of the loss, or 5 %."""
        losses = [2.3 * 0.9**place for place in range(40)]
        known = {"grad_rms": gradient, "grad_norm": 8 * gradient}
        fed = judged(runs, ratios(), steps=range(10, 50), losses=losses, **known)
        assert fed.only.severity == severity
        assert ("many times what such steps can make, so that is noise." in fed.only.message) is (gradient < 1)

    def test_the_largest_step_so_far_may_have_made_it(self, runs):
        info, losses = runs.stack(), [2.3 * 0.9**place for place in range(40)]
        given = {"weight_rms": 0.3, "update_ratio": ratios()}
        records = [
            runs.measure(info, 10 + place, loss=loss, grad_rms=gradient, grad_norm=8 * gradient, **given)
            for place, (loss, gradient) in enumerate(zip(losses, [1.0] + 39 * [1e-3], strict=True))
        ]
        assert runs.feed(StalledUpdate(), records, info).only.severity == Severity.INFO

    def test_converged_is_silent(self, runs):
        steps = range(20)
        losses = [2.3] * 3 + [1e-3] * 17
        assert not judged(runs, ratios(), steps=steps, losses=losses, rule=StalledUpdate(warm_up_steps=12)).findings


@pytest.mark.parametrize("given", [{}, {"update_ratio": float("nan")}])
def test_cant_judge_without_an_update(runs, given):
    info = runs.stack()
    fed = runs.feed(StalledUpdate(), [runs.measure(info, 20, **given)], info)
    assert fed.evaluator.unjudged == {"GW301": "not yet: no update of a weight layer was measured"}


def test_a_skipped_step_counts_for_nothing(runs):
    info = runs.stack()
    records = [
        runs.measure(info, step, update_ratio=np.nan if step % 2 else ratios(), skipped=bool(step % 2), weight_rms=0.3)
        for step in range(10, 16)
    ]
    assert runs.feed(StalledUpdate(), records, info).only.first_step == 10
