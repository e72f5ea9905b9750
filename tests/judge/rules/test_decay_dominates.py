"""GW304 tells of weights that decay shrinks while the loss stands, whichever way an optimizer decays them."""

from __future__ import annotations

import dataclasses

import pytest

from lightning_gradwatch.judge.rules.decay_dominates import DecayDominates
from lightning_gradwatch.judge.rules.oversized import OversizedUpdate
from lightning_gradwatch.record.finding import CauseKind, DecayDominatesWarning, Severity
from lightning_gradwatch.record.run_info import RunInfo

STEPS = (0, 1, 2, 4, 8, 16, 24, 25)
SHRINKING = (0.2, 0.18, 0.16, 0.12, 0.08, 0.06, 0.05, 0.05)


def decayed(
    runs,
    *,
    name="SGD",
    decay=0.1,
    weights=SHRINKING,
    gradient=1e-3,
    ratio=0.01,
    losses=None,
    rule=None,
    decays=(),
    factor=float("nan"),
    **settings,
):
    """Feed a run whose weights have that rms, step by step; each number of `decays` is a layer's."""
    info = runs.stack(optimizers=(name,))
    optimizer = dataclasses.replace(
        info.optimizers[0], settings={"lr": 0.1, "weight_decay": decay, **settings}, decays=tuple(decays)
    )
    info = dataclasses.replace(info, optimizers=(optimizer,))
    records = [
        dataclasses.replace(
            runs.measure(
                info,
                step,
                loss=2.3 if losses is None else losses[place],
                weight_rms=weights[place],
                grad_rms=gradient,
                update_ratio=ratio,
            ),
            clip_factor=factor,
        )
        for place, step in enumerate(STEPS)
    ]
    return runs.feed(rule or DecayDominates(), records, info)


def test_it_is_told_from_step_24_on_with_the_share_of_the_first_steps(runs):
    fed = decayed(runs)
    assert [len(told) for told in fed.told] == [0] * 6 + [1, 0]
    finding = fed.only
    assert (finding.severity, finding.first_step, finding.last_step) == (Severity.WARNING, 0, 25)
    assert finding.value == pytest.approx(0.1 * 0.2 / (0.1 * 0.2 + 1e-3))
    assert finding.cause_kind is CauseKind.STRONG_DECAY
    assert fed.evaluator.warning_for(finding) is DecayDominatesWarning


def test_the_cause_adds_to_the_headline_and_repeats_none_of_its_numbers(runs):
    fed = decayed(runs)
    assert "made up 95 % of the first steps' change, in the median layer, and has left 25 % of" in fed.only.headline
    assert fed.only.cause.startswith("The weight decay (0.1) is too strong for these gradients")
    assert not fed.said_again


def test_the_remedy_makes_decay_a_fiftieth_of_the_first_gradient(runs):
    (action,) = decayed(runs).only.remedy.actions
    assert (action.kind, dict(action.arguments)) == ("scale_weight_decay", {"factor": 0.001})


def test_a_twentieth_of_the_weights_is_an_error(runs):
    assert decayed(runs, weights=(*SHRINKING[:6], 9e-3, 9e-3)).only.severity is Severity.ERROR


def test_where_the_optimizer_decays_beside_its_step_what_it_changes_is_measured(runs):
    """The rate of 0.1 times the decay is a tenth of what a step changes, or nine tenths."""
    for name, settings in (("AdamW", {}), ("Adam", {"decoupled_weight_decay": True}), ("Lion", {})):
        assert not decayed(runs, name=name, decay=0.01, ratio=0.01, gradient=0.0, **settings).findings
        found = decayed(runs, name=name, decay=0.09, ratio=0.01, gradient=1e3, **settings).only
        assert found.value == pytest.approx(0.9)


def test_of_an_optimizer_that_is_not_known_both_ways_must_agree(runs):
    assert not decayed(runs, name="Mine", decay=0.1, ratio=1.0).findings
    assert not decayed(runs, name="Mine", decay=0.1, ratio=0.01, gradient=1.0).findings
    assert decayed(runs, name="Mine", decay=0.1, ratio=0.01).findings


def test_clipping_takes_from_the_gradient_and_not_from_the_decay(runs):
    assert not decayed(runs, gradient=0.03).findings
    assert decayed(runs, gradient=0.03, factor=0.1).findings


def test_each_group_has_a_decay_of_its_own(runs):
    assert not decayed(runs, decays=[0.1] * 3 + [1e-6] * 4).findings
    assert not decayed(runs, decays=[0.0] * 7).findings
    assert decayed(runs, decay=0.0, decays=[0.0] * 3 + [0.1] * 4).findings


@pytest.mark.parametrize(
    "healthy",
    [
        {"decay": 1e-4},
        {"decay": 0.0},
        {"weights": (0.2,) * 8},
        {"weights": (*SHRINKING[:6], 0.11, 0.11)},
        {"losses": [2.3, 2.2, 2.0, 1.7, 1.5, 1.3, 1.1, 1.0]},
        {"gradient": 0.05},
    ],
    ids=str,
)
def test_it_is_silent(runs, healthy):
    assert not decayed(runs, **healthy).findings


def test_what_it_makes_of_the_steps_is_its_consequence(runs):
    ratios = 0.4
    fed = decayed(
        runs, rule=(OversizedUpdate(), DecayDominates()), ratio=ratios, weights=[3 * each for each in SHRINKING]
    )
    assert [(finding.code, finding.consequence_of) for finding in fed.findings] == [("GW304", ""), ("GW302", "GW304")]


def test_a_run_that_an_earlier_release_stored_says_nothing_of_groups(runs):
    info = runs.stack()
    told = info.to_dict()
    for optimizer in told["optimizers"]:
        del optimizer["decays"]
        optimizer["settings"] = {"weight_decay": 0.1}
    assert RunInfo.from_dict(told).layer_decays.tolist() == [[0.1] * len(info.layers)]
