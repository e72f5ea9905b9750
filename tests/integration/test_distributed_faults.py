"""What goes wrong on one of two ranks: the other is never left waiting, and training ends as it would have."""

from __future__ import annotations

import numpy as np
import pytest
from integration import rank_situations, ranked
from integration.processes import Processes
from integration.whole_batch import agree, same

from lightning_gradwatch import VanishingGradientWarning
from lightning_gradwatch.judge.rules.dead import DeadUnits

pytestmark = pytest.mark.slow

MEASURING = ["counting", "signal", "gradients", "updates"]
KEEPING_STEP = ["schedule", "combining", "rules"]
SETTINGS = {"net": "relu", "optimizer": "adam", "steps": 6, "gradient_clip_val": 0.1}


def equal_weights(one, other):
    return all(
        np.array_equal(mine["weights"][name], theirs["weights"][name])
        for mine, theirs in zip(one, other, strict=True)
        for name in mine["weights"]
    )


@pytest.mark.parametrize("of_ranks", [(0,), (1,), (0, 1)], ids=lambda ranks: f"on {ranks}")
@pytest.mark.parametrize("where", MEASURING)
def test_a_part_that_fails_on_one_rank_goes_off_on_all_and_the_others_go_on(where, of_ranks, processes):
    part = {"counting": "activations"}.get(where, where)
    whole = processes(**SETTINGS)
    answers = processes(rank_situations.fit_with_fault, where=where, of_ranks=of_ranks, at_call=4, **SETTINGS)
    agree(answers)
    assert equal_weights(answers, whole)
    assert [answer["left"] for answer in answers] == [[], []]
    ((_, why),) = answers[0]["coverage"]
    assert why == f"{part} switched off: on rank {of_ranks[0]}: RuntimeError: injected"
    assert [[f"switched its {part} off" in text for text in answer["warnings"]] for answer in answers] == [[True], []]
    gone = {
        "activations": {
            "signal_norm",
            "activation_gain",
            "weight_gain",
            "inactive_share",
            "dead_fraction",
            "saturated_fraction",
        },
        "signal": {"signal_norm", "activation_gain", "weight_gain"},
        "gradients": {"grad_norm", "grad_rms"},
        "updates": {"weight_rms", "update_ratio"},
    }[part]
    last, complete = answers[0]["records"][-1], whole[0]["records"][-1]
    assert last["step"] == 5
    for metric, values in last["metrics"].items():
        assert np.isnan(values).all() if metric in gone else same(values, complete["metrics"][metric]), metric
    assert last["layer_state"] == ([0, 0, 0] if part == "gradients" else [1, 1, 1])
    assert np.isnan(last["global_grad_norm"]) == (part == "gradients")


@pytest.mark.parametrize("at_call", [1, 2, 4])
@pytest.mark.parametrize("of_ranks", [(0,), (1,), (0, 1)], ids=lambda ranks: f"on {ranks}")
@pytest.mark.parametrize("where", KEEPING_STEP)
def test_a_rank_that_cannot_keep_step_ends_the_monitoring_on_all(where, of_ranks, at_call, processes):
    without = processes(**SETTINGS, watched=False)
    answers = processes(rank_situations.fit_with_fault, where=where, of_ranks=of_ranks, at_call=at_call, **SETTINGS)
    assert equal_weights(answers, without)
    assert [answer["left"] for answer in answers] == [[], []]
    for rank, answer in enumerate(answers):
        told = " ".join(answer["warnings"])
        if rank in of_ranks:
            assert "injected" in told
        elif rank == 0:
            assert told == (
                "GradWatch: nothing more is measured: the monitor of rank 1 has failed, and said why there. "
                "Training goes on."
            )
        else:
            assert told == ""
        assert len(answer["records"]) <= at_call
        assert any("measured" in why or "switched off" in why for _, why in answer["coverage"])


def test_after_a_fault_the_next_fit_is_measured_again(processes):
    processes(rank_situations.fit_with_fault, where="schedule", **SETTINGS)
    agree(processes(**SETTINGS))


@pytest.mark.parametrize(
    ("kind", "lag", "steps"),
    [
        (rank_situations.ManualSkipping, 0, [0, 1, 3, 4, 5]),
        (rank_situations.ManualEveryThird, 0, [2, 5]),
        (rank_situations.OverriddenStep, 0, [0, 1, 3, 4, 5]),
        (rank_situations.OverriddenStep, 2, [0, 1, 3, 4, 5]),
    ],
    ids=["manual", "manual, every third", "overridden hook", "overridden hook, exchanged later"],
)
def test_a_step_that_one_rank_leaves_out_is_not_measured(kind, steps, lag, processes):
    settings = {"kind": kind, "net": "relu", "steps": -1, "max_epochs": 1, "count": 12}
    without = processes(**settings, watched=False)
    answers = processes(rank_situations.fit_with_lag, lag=lag, **settings)
    agree(answers)
    assert equal_weights(answers, without)
    assert [record["step"] for record in answers[0]["records"]] == steps
    dropped = ("", "steps that only some of the ranks took aren't measured")
    assert (dropped in answers[0]["coverage"]) == (kind is not rank_situations.ManualEveryThird)


@pytest.fixture
def own_processes():
    """Two that this test alone has, as it leaves them unusable."""
    running = Processes(2)
    yield running
    running.kill()


def test_fail_on_raises_on_every_rank_at_the_same_step_and_the_processes_end(own_processes):
    settings = {
        "net": "vanishing",
        "steps": 60,
        "size": 2,
        "count": 200,
        "watch": {"fail_on": "error", "every_n_steps": 1},
    }
    raised = own_processes.run(ranked.fit, last=True, **settings)
    assert [each.kind for each in raised] == ["GradWatchError", "GradWatchError"]
    assert raised[0].text == raised[1].text
    assert "GW101" in raised[0].text
    assert own_processes.ended(20) == [0, 0]


def test_a_warning_that_the_users_filter_makes_an_error_is_one_on_every_rank(processes):
    settings = {"net": "vanishing", "steps": 60, "size": 2, "count": 200, "filters": [VanishingGradientWarning]}
    raised = processes(rank_situations.error_of, **settings)
    assert [each["kind"] for each in raised] == ["VanishingGradientWarning"] * 2
    assert raised[0] == raised[1]


def test_an_error_of_the_users_on_one_rank_ends_both_processes_as_without_it(own_processes):
    raised = own_processes.run(ranked.fit, last=True, kind=rank_situations.Failing, seconds=40)
    assert [each.kind for each in raised] == ["RuntimeError", "ZeroDivisionError"]
    assert "closed by peer" in raised[0].text
    assert own_processes.ended(20) == [0, 0]


def test_a_callback_on_one_rank_only_gives_up(own_processes):
    answers = own_processes.run(rank_situations.fit_watched_on_rank_0, patience=3, raises=False)
    ((told,), none) = [answer["warnings"] for answer in answers]
    assert told.startswith("GradWatch: nothing is measured: no gloo process group can be made")
    assert none == []
    assert answers[0]["records"] == []
    assert all(
        np.array_equal(answers[0]["weights"][name], answers[1]["weights"][name]) for name in answers[0]["weights"]
    )


def test_a_rank_whose_monitor_has_failed_can_end_before_the_others_hear_of_it(own_processes):
    """Step 3 isn't due: rank 1 leaves while the others don't exchange anything, and then the user's own code fails."""
    raised = own_processes.run(
        rank_situations.fit_with_fault,
        last=True,
        where="schedule",
        at_call=4,
        kind=rank_situations.FailingLater,
        watch={"every_n_steps": 1000, "rules": [DeadUnits(observations=1, batch_elements=1)]},
        seconds=40,
    )
    assert [each.kind for each in raised] == ["RuntimeError", "ZeroDivisionError"]
    assert own_processes.ended(20) == [0, 0]
