"""GW505 and GW601: the loss beside what one constant answer would give."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gradwatch.judge.rules.no_progress import NoProgress
from lightning_gradwatch.judge.rules.start_far_off import StartFarOff
from lightning_gradwatch.record.finding import CauseKind, Severity

NAN = float("nan")
CLASSES = (2.3, 20.0, NAN, NAN)
STEPS = (0, 1, 2, 4, 8, 16, 32, 50, 51, 52, 53, 100, 150, 200, 250, 299)


def fed(runs, rule, losses, *, answer=CLASSES, steps=STEPS, planned=300, info=None, **more):
    """Feed a rule a run whose first records know what a constant answer gives."""
    info = info or runs.stack(planned_steps=planned)
    of = losses if callable(losses) else lambda _: losses
    return runs.feed(
        rule,
        [
            runs.measure(info, step, loss=of(step), answer=answer if place < 4 else (), **more)
            for place, step in enumerate(steps)
        ],
        info,
    )


class TestStartFarOff:
    @pytest.mark.parametrize(("loss", "wanted"), [(40.0, True), (2.0, False)])
    def test_asks_for_the_steps_that_decide(self, runs, loss, wanted):
        losses = lambda step: 40.0 if step < 2 else loss  # noqa: E731 - a curve
        assert fed(runs, StartFarOff(), losses, steps=(0, 1, 2, 4, 8, 16, 32, 49)).evaluator.confirming is wanted
        assert not fed(runs, StartFarOff(), losses, steps=(0, 1, 2, 4, 8)).evaluator.confirming

    def test_it_is_information_until_the_loss_has_stood_for_fifty_steps(self, runs):
        got = fed(runs, StartFarOff(), 40.0)
        (first,), *rest = [told for told in got.told if told]
        assert (first.severity, first.first_step) == (Severity.INFO, 0)
        assert [each.severity for (each,) in rest] == [Severity.WARNING]
        assert [step for step, told in zip(STEPS, got.told, strict=True) if told] == [0, 50]
        assert got.only.value == pytest.approx(40 / 2.3)

    def test_a_loss_that_comes_back_heals(self, runs):
        got = fed(runs, StartFarOff(), lambda step: 2 + 38 * np.exp(-step / 3))
        assert got.only.severity == Severity.INFO
        assert got.only.healed_step is not None

    def test_one_that_still_falls_is_information(self, runs):
        assert fed(runs, StartFarOff(), lambda step: 400 / (1 + step / 20) + 15).only.severity == Severity.INFO

    @pytest.mark.parametrize("loss", [2.3, 0.1, 11.4, NAN, float("inf"), -3.0])
    def test_what_is_not_far_above_is_quiet(self, runs, loss):
        assert fed(runs, StartFarOff(), loss).findings == ()

    def test_where_a_constant_answer_is_not_known_it_cannot_judge(self, runs):
        got = fed(runs, StartFarOff(), 40.0, answer=())
        assert got.findings == ()
        assert got.evaluator.unjudged["GW505"].startswith("can't judge: what a constant answer gives isn't known")

    def test_a_run_that_is_gone_on_with_is_not_at_its_start(self, runs):
        assert fed(runs, StartFarOff(), 40.0, steps=(500, 501, 502, 600, 700)).findings == ()

    @pytest.mark.parametrize(("first", "starts_there"), [(1.6, False), (30.0, True), (NAN, True)])
    def test_what_the_first_steps_took_far_off_did_not_start_there(self, runs, first, starts_there):
        """The first batch has a single class, so its answer isn't known; a step that is too large follows."""
        info = runs.stack(planned_steps=300)
        records = [
            runs.measure(info, step, loss=40.0 if step else first, answer=CLASSES if step else ()) for step in STEPS
        ]
        assert bool(runs.feed(StartFarOff(), records, info).findings) is starts_there

    def test_targets_far_from_zero_are_named(self, runs):
        finding = fed(runs, StartFarOff(), 901.0, answer=(1.0, 0.5, 30.0, 1.0)).only
        assert finding.cause_kind is CauseKind.UNSCALED_TARGETS
        assert [action.kind for action in finding.remedy.actions] == ["normalize_targets"]

    def test_inputs_are_named_where_the_first_layer_puts_out_too_much_by_usual_weights(self, runs):
        info = runs.stack(planned_steps=300)
        info = _with_feeds(info)
        finding = fed(runs, StartFarOff(), 40.0, info=info, outputs=80.0, weight_rms=info.default_rms).only
        assert finding.cause_kind is CauseKind.UNSCALED_INPUTS
        assert finding.layers == ("net.0",)

    def test_the_layer_whose_weights_start_too_large_is_named_with_a_start_that_suits(self, runs):
        info = _with_feeds(runs.stack(planned_steps=300))
        sizes = info.default_rms * np.where(np.arange(len(info.layers)) == len(info.layers) - 1, 40.0, 1.0)
        finding = fed(runs, StartFarOff(), 40.0, info=info, weight_rms=sizes).only
        assert finding.cause_kind is CauseKind.LARGE_WEIGHTS
        assert finding.layers == (info.layers[-1].name,)
        (action,) = finding.remedy.actions
        gain = dict(action.arguments)["gain"]
        xavier = np.sqrt(2 / 16)
        assert gain * xavier == pytest.approx(sizes[-1] / 20.0, rel=0.2)  # by which the outputs' rms of 20 becomes 1


def _with_feeds(info):
    from dataclasses import replace  # noqa: PLC0415 - of one helper

    names = [site.name for site in info.sites]
    layers = tuple(
        replace(layer, feeds=names[place] if place < len(names) else "") for place, layer in enumerate(info.layers)
    )
    return replace(info, layers=layers)


class TestNoProgress:
    @pytest.mark.parametrize("loss", [2.3, 2.29, 2.5, 40.0])
    def test_a_loss_that_is_not_below_by_half_of_the_steps(self, runs, loss):
        got = fed(runs, NoProgress(), loss)
        assert got.only.severity == Severity.WARNING
        assert len(got.only.layers) == 7
        assert got.only.first_step == 150
        assert [step for step, told in zip(STEPS, got.told, strict=True) if told] == [250]
        assert got.confirming[STEPS.index(150)]

    @pytest.mark.parametrize("loss", [2.2, 0.3, NAN, -5.0])
    def test_one_that_is_below_is_quiet(self, runs, loss):
        assert fed(runs, NoProgress(), loss).findings == ()

    def test_a_plateau_that_ends_before_half_is_quiet(self, runs):
        assert fed(runs, NoProgress(), lambda step: 2.3 if step < 120 else 0.5, steps=range(0, 300, 3)).findings == ()

    def test_a_plateau_that_ends_later_heals(self, runs):
        got = fed(runs, NoProgress(), lambda step: 2.3 if step < 200 else 0.5, steps=range(0, 300, 3))
        assert got.only.severity == Severity.INFO
        assert got.only.healed_step > 200

    def test_losses_of_long_ago_are_not_compared(self, runs):
        losses = dict(zip((0, 1, 2, 4, 8, 16, 32, 50, 100, 101, 102), (*[2.3] * 7, 1.4, 0.7, 0.6, 0.7), strict=True))
        assert fed(runs, NoProgress(), losses.get, steps=tuple(losses), planned=200).findings == ()

    def test_one_that_still_falls_is_information(self, runs):
        got = fed(runs, NoProgress(), lambda step: 40 * 0.996**step + 2.3, steps=range(0, 300, 3))
        assert got.only.severity == Severity.INFO

    def test_what_a_few_batches_of_targets_say_is_an_estimate(self, runs):
        """0.95 is nothing that could be told from 1.0 by batches of 0.8 to 1.2."""
        info = runs.stack(planned_steps=300)

        def run(loss):
            known = {step: (cost, 0.5, 0.0, 1.0) for step, cost in zip(STEPS, (0.8, 1.2, 0.9, 1.1), strict=False)}
            records = [runs.measure(info, step, loss=loss, answer=known.get(step, ())) for step in STEPS]
            return runs.feed(NoProgress(), records, info)

        near = run(0.995)
        assert near.findings == ()
        assert "as near" in near.evaluator.unjudged["GW601"]
        assert run(1.5).only.severity == Severity.WARNING

    @pytest.mark.parametrize(
        ("planned", "steps", "reason"),
        [
            (32, range(32), "a run of 32 steps is a trial"),
            (None, range(0, 900, 9), "progress is asked for from step 999 on"),
            (300, range(0, 149, 2), "progress is asked for from step 149 on"),
        ],
    )
    def test_before_half_of_a_run_that_is_no_trial_nothing_is_asked(self, runs, planned, steps, reason):
        got = fed(runs, NoProgress(), 2.3, planned=planned, steps=steps)
        assert got.findings == ()
        assert reason in got.evaluator.unjudged["GW601"]

    def test_without_a_plan_a_thousand_steps_are_enough(self, runs):
        assert fed(runs, NoProgress(), 2.3, planned=None, steps=range(0, 1200, 9)).only.severity == Severity.WARNING

    def test_where_a_constant_answer_is_not_known_it_cannot_judge(self, runs):
        got = fed(runs, NoProgress(), 2.3, answer=())
        assert got.evaluator.unjudged["GW601"].startswith("can't judge: what a constant answer gives isn't known")

    def test_several_optimizers_have_no_common_loss(self, runs):
        info = runs.stack(planned_steps=300, optimizers=("Adam", "Adam"))
        assert "several optimizers" in fed(runs, NoProgress(), 2.3, info=info).evaluator.unjudged["GW601"]
