"""GW303 tells of clipping that leaves next to nothing of a step, and of nothing that goes far enough all the same."""

from __future__ import annotations

import dataclasses

import pytest

from lightning_gradwatch.judge.rules.clipped_away import ClippedAway
from lightning_gradwatch.judge.rules.stalled import StalledUpdate
from lightning_gradwatch.record.finding import Action, CauseKind, ClippedAwayWarning, Severity

STEPS = (0, 1, 2, 4, 8, 16, 24, 25)


def clipped(
    runs, *, factor=5e-4, ratio=2e-5, norm=20.0, losses=None, steps=STEPS, rates=None, rule=None, gradient=1e-3, **told
):
    """Feed a run whose gradient is clipped to a part of itself; `told` is what is known of it."""
    told = {"clipping": "norm 0.01", "planned_steps": 400, **told}
    eps = told.pop("eps", None)
    info = runs.stack(**told)
    if eps is not None:
        optimizers = tuple(
            dataclasses.replace(each, settings={**each.settings, "eps": eps}) for each in info.optimizers
        )
        info = dataclasses.replace(info, optimizers=optimizers)
    records = [
        dataclasses.replace(
            runs.measure(
                info,
                step,
                loss=2.3 if losses is None else losses[place],
                norm=norm,
                update_ratio=ratio,
                grad_rms=gradient,
                weight_rms=0.2,
                rates=None if rates is None else (rates[place],),
            ),
            clip_factor=factor,
        )
        for place, step in enumerate(steps)
    ]
    return runs.feed(rule or ClippedAway(), records, info)


def test_it_is_told_from_step_24_on_since_the_first_step(runs):
    fed = clipped(runs)
    assert [len(told) for told in fed.told] == [0] * 6 + [1, 0]
    finding = fed.only
    assert (finding.severity, finding.first_step, finding.last_step) == (Severity.ERROR, 0, 25)
    assert (finding.value, finding.threshold) == (5e-4, 0.01)
    assert fed.evaluator.warning_for(finding) is ClippedAwayWarning
    assert finding.cause_kind is CauseKind.TIGHT_CLIPPING


@pytest.mark.parametrize(
    ("factor", "severity"),
    [(0.011, None), (0.009, Severity.WARNING), (1.1e-3, Severity.WARNING), (9e-4, Severity.ERROR)],
)
def test_its_thresholds(runs, factor, severity):
    found = clipped(runs, factor=factor).findings
    assert [finding.severity for finding in found] == ([] if severity is None else [severity])


def test_the_limit_is_raised_to_what_lets_the_gradient_through(runs):
    finding = clipped(runs, ratio=1e-6, norm=20.0, factor=5e-4).only
    assert finding.remedy.actions == (Action("raise_clip", (), (("norm", 40.0),)),)
    assert "gradient_clip_val to 40, which lets the gradient through, whose norm is 20" in finding.remedy.text


def test_it_is_raised_no_further_than_steps_of_a_usual_size(runs):
    """The whole gradient would change a layer by 0.2 of itself: 30 times 0.0075, which is right for 400 steps of plain SGD."""
    finding = clipped(runs, ratio=1e-4, factor=5e-4).only
    ((_, raised),) = finding.remedy.actions[0].arguments
    assert raised == pytest.approx(3.0)
    assert "makes the largest update ratio about 0.0225; the whole gradient" in finding.remedy.text


def test_of_a_limit_in_the_code_the_finding_says_so(runs):
    finding = clipped(runs, clipping="").only
    assert dict(finding.remedy.actions[0].arguments)["where"] == "code"
    assert "max_norm where your code clips" in finding.remedy.text


def test_by_value(runs):
    finding = clipped(runs, clipping="value 1e-06", ratio=1e-6).only
    assert [name for name, _ in finding.remedy.actions[0].arguments] == ["value"]


def test_a_limit_that_suits_many_nets_is_left_where_the_targets_are_to_blame(runs):
    finding = clipped(runs, losses=[1e6] * 8, norm=1e5, factor=1e-5, ratio=1e-6, clipping="norm 1.0").only
    assert finding.cause_kind is CauseKind.UNSCALED_TARGETS
    assert finding.remedy.actions == (Action("normalize_targets"),)


@pytest.mark.parametrize(
    "healthy",
    [
        {"losses": [2.3, 2.2, 2.1, 1.9, 1.7, 1.5, 1.3, 1.2]},
        {"factor": 0.05},
        {"ratio": 1e-3},
        {"ratio": 2e-5, "planned_steps": 100_000},
        {"ratio": 5e-4, "planned_steps": None},
        {"rates": [0.1, 0.1, 0.1, 0.04, 0.03, 0.02, 0.01, 0.01]},
        {"rates": [0.01, 0.02, 0.03, 0.05, 0.06, 0.1, 0.2, 0.3]},
        {"steps": tuple(range(8))},
        {"factor": float("nan"), "clipping": ""},
        {"optimizers": ("Adam",), "eps": 1e-8},
        {"optimizers": ("Lion",)},
    ],
    ids=str,
)
def test_it_is_silent(runs, healthy):
    assert not clipped(runs, **healthy).findings


def test_under_adam_what_is_left_of_the_step_counts(runs):
    """The gradient of 1e-7 that clipping leaves is a thousandth of eps, so the step is a thousandth of the rate's."""
    finding = clipped(runs, optimizers=("Adam",), eps=1e-4, factor=1e-4, gradient=1e-3).only
    assert finding.value == pytest.approx(1e-4 * (1e-3 + 1e-4) / (1e-7 + 1e-4))


def test_a_loss_that_falls_later_heals_it_and_small_steps_late_in_a_run_are_no_news(runs):
    losses = [2.3] * 8 + [1.0, 0.9, 0.8, 0.7, 0.6]
    fed = clipped(runs, losses=losses, steps=(*STEPS, 40, 50, 60, 70, 80))
    assert fed.only.severity is Severity.INFO
    assert fed.only.healed_step is not None


def test_what_stalls_is_told_with_it_as_its_consequence(runs):
    fed = clipped(runs, rule=(ClippedAway(), StalledUpdate()), ratio=2e-6)
    assert [finding.code for told in fed.told for finding in told] == ["GW303", "GW301"]
    root, effect = fed.findings
    assert (root.code, effect.code, effect.consequence_of) == ("GW303", "GW301", "GW303")


def test_several_optimizers_share_no_loss(runs):
    fed = clipped(runs, optimizers=("SGD", "SGD"))
    assert not fed.findings
    assert fed.evaluator.unjudged["GW303"].startswith("can't judge: several optimizers")


def test_a_loss_that_falls_for_a_while_leaves_the_first_step_as_it_was(runs):
    losses = [2.3, 2.2, 2.1, 2.0, 1.8, 1.7, 1.5, 1.4, *[2.3] * 12]
    fed = clipped(runs, losses=losses, steps=(*STEPS, *range(30, 42)))
    assert fed.only.first_step == 0
    assert [len(told) for told in fed.told][:8] == [0] * 8


@pytest.mark.parametrize(
    ("told", "cause"),
    [
        ({}, "The limit (norm 0.01) is far below the usual size of the gradient, so the steps are a fraction of what"),
        ({"clipping": "value 1e-06", "ratio": 2e-6}, "The limit (value 1e-6) is far below"),
        ({"clipping": ""}, "The limit in your code is far below"),
        (
            {"optimizers": ("Adam",), "eps": 1e-4, "factor": 1e-4},
            "of the gradient, and what it leaves is below the optimizer's eps, so the steps",
        ),
        (
            {"losses": [1e6] * 8, "norm": 1e5, "factor": 1e-5, "ratio": 1e-6, "clipping": "norm 1.0"},
            "The loss is so large that hardly anything of the gradient is left by clipping",
        ),
    ],
    ids=["norm", "value", "in-code", "adam", "targets"],
)
def test_the_cause_adds_to_the_headline_and_repeats_none_of_its_numbers(runs, told, cause):
    fed = clipped(runs, **told)
    assert cause in fed.only.cause
    assert not fed.said_again
