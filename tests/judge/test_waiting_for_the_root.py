"""A finding that may follow from one that is on its way waits for it: no longer than it takes, and it is never lost."""

from __future__ import annotations

import json

import numpy as np
import pytest
from judge.scripted import ERROR, INFO, WARNING, Fades, Scripted, Stalls

from lightning_gradwatch.judge.catalog import DEFAULT_RULES
from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.record.finding import NonFiniteGradientWarning, OversizedUpdateWarning, SaturatedUnitsWarning
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, OptimizerInfo, SiteInfo, StepRecord

INFO_OF_RUN = RunInfo(
    layers=(LayerInfo("net.0", "Linear", ((2, 2),), 4, weight=True),),
    sites=(),
    optimizers=(OptimizerInfo("SGD", {}, ()),),
)


class Throws(Scripted):
    """`Stalls` follows from it, where it was there before."""

    code = "GW302"
    name = "oversized-update"
    warning = OversizedUpdateWarning


class Saturates(Scripted):
    """Follows from `Throws`; `Fades` follows from it."""

    code = "GW202"
    name = "saturated-units"
    warning = SaturatedUnitsWarning


class Overflows(Scripted):
    """Follows from `Throws`."""

    code = "GW103"
    name = "non-finite"
    warning = NonFiniteGradientWarning


def record(step):
    return StepRecord(
        step=step,
        layout=INFO_OF_RUN.layout,
        metrics={"grad_rms": np.ones(1)},
        layer_state=np.zeros(1, np.uint8),
        window_fill=np.ones(0),
        forward_rms=np.ones(0),
        loss=1.0,
    )


def waiting(*steps):
    return tuple((step, ...) for step in steps)


def fed(evaluator, steps):
    """Return what is told at each step: code, severity and whose consequence it is."""
    told = {}
    for step in steps:
        found = [(each.code, each.severity, each.consequence_of) for each in evaluator.feed(record(step), INFO_OF_RUN)]
        if found or evaluator.risen is not None:
            told[step] = found, evaluator.risen
    return told


def test_the_consequence_is_told_with_its_root():
    evaluator = Evaluator([Fades(says=(*waiting(1, 2, 3), (4, WARNING))), Stalls(says=((2, WARNING), (3, WARNING)))])
    assert fed(evaluator, range(6)) == {4: ([("GW101", WARNING, ""), ("GW301", WARNING, "GW101")], WARNING)}
    assert not evaluator.let_go()


def test_meanwhile_it_is_a_finding_like_any_other():
    evaluator = Evaluator([Fades(says=waiting(1, 2, 3)), Stalls(says=((2, WARNING),))])
    fed(evaluator, range(3))
    assert [finding.code for finding in evaluator.findings] == ["GW301"]


def test_it_is_told_as_soon_as_the_root_has_given_up():
    evaluator = Evaluator([Fades(says=waiting(1, 2, 3)), Stalls(says=((2, WARNING),))])
    assert fed(evaluator, range(6)) == {4: ([("GW301", WARNING, "")], WARNING)}


def test_it_is_told_with_the_severity_that_it_has_by_then():
    evaluator = Evaluator([Fades(says=waiting(1, 2, 3)), Stalls(says=((2, WARNING), (3, ERROR)))])
    assert fed(evaluator, range(6)) == {4: ([("GW301", ERROR, "")], ERROR)}


def test_what_has_healed_meanwhile_warns_no_more():
    evaluator = Evaluator([Fades(says=waiting(1, 2, 3, 4)), Stalls(says=((2, WARNING), (3, "it moves again")))])
    assert fed(evaluator, range(6)) == {3: ([("GW301", INFO, "")], INFO)}


def test_it_waits_only_for_what_it_may_follow_from():
    evaluator = Evaluator([Fades(says=((2, WARNING),)), Stalls(says=waiting(1, 2, 3))])
    assert fed(evaluator, range(4)) == {2: ([("GW101", WARNING, "")], WARNING)}


@pytest.mark.parametrize(("since", "told_at"), [(1, 4), (2, 2)])
def test_steps_that_are_too_large_are_the_root_of_what_came_later_only(since, told_at):
    evaluator = Evaluator([Stalls(says=((2, WARNING),)), Throws(says=waiting(*range(since, 4)))])
    assert list(fed(evaluator, range(6))) == [told_at]


def test_information_waits_for_nothing():
    evaluator = Evaluator([Fades(says=waiting(1, 2, 3)), Stalls(says=((2, INFO),))])
    assert list(fed(evaluator, range(4))) == [2]


def test_numbers_that_have_ended_wait_for_nothing():
    evaluator = Evaluator([Overflows(says=((2, ERROR),)), Throws(says=waiting(0, 1, 2, 3))])
    assert list(fed(evaluator, range(4))) == [2]


def test_what_follows_from_a_finding_that_waits_does_too():
    """`Fades` doesn't follow from `Throws`, and its root does."""
    evaluator = Evaluator(
        [
            Fades(says=((4, WARNING),)),
            Saturates(says=((3, WARNING),)),
            Throws(says=(*waiting(1, 2, 3, 4), (5, WARNING)), since=1),
        ]
    )
    assert fed(evaluator, range(6)) == {
        5: ([("GW302", WARNING, ""), ("GW202", WARNING, "GW302"), ("GW101", WARNING, "GW302")], WARNING)
    }


def test_whose_root_has_been_told_waits_for_no_other():
    evaluator = Evaluator([Fades(says=((1, WARNING),)), Stalls(says=((4, WARNING),)), Overflows(says=waiting(3, 4, 5))])
    assert fed(evaluator, range(6)) == {
        1: ([("GW101", WARNING, "")], WARNING),
        4: ([("GW301", WARNING, "GW101")], WARNING),
    }


@pytest.mark.parametrize(("dated", "told_at"), [(False, 33), (True, 99)])
def test_nobody_waits_for_ever(dated, told_at):
    """A rule that comes to no end is waited for in so many readings; one that says when it does, until then."""
    evaluator = Evaluator([Fades(says=waiting(*range(1, 99)), dated=dated), Stalls(says=((2, WARNING),))])
    assert list(fed(evaluator, range(100))) == [told_at]


def test_a_resumed_run_goes_on_waiting():
    rules = [Fades(says=(*waiting(1, 2, 3, 4), (5, WARNING))), Stalls(says=((2, WARNING),))]
    evaluator, resumed = Evaluator(rules), Evaluator(rules)
    assert not fed(evaluator, range(4))
    resumed.load_state_dict(json.loads(json.dumps(evaluator.state_dict())))
    expected = {5: ([("GW101", WARNING, ""), ("GW301", WARNING, "GW101")], WARNING)}
    assert fed(resumed, range(4, 7)) == fed(evaluator, range(4, 7)) == expected


def test_what_waited_to_the_end_is_told_once():
    evaluator = Evaluator([Fades(says=waiting(1, 2, 3)), Stalls(says=((2, ERROR),))])
    fed(evaluator, range(4))
    assert [finding.code for finding in evaluator.let_go()] == ["GW301"]
    assert evaluator.risen == ERROR
    assert not evaluator.let_go()


def test_steps_that_are_too_large_are_told_before_the_units_that_they_saturate():
    """The rules as they are: units are judged from step 10 on, what large steps have come to from step 24 on."""
    info = RunInfo(
        layers=(
            LayerInfo("net.0", "Linear", ((4, 4),), 16, weight=True),
            LayerInfo("net.2", "Linear", ((4, 4),), 16, weight=True),
        ),
        sites=(SiteInfo("net.1", "gelu", "hidden", 4),),
        optimizers=(OptimizerInfo("Adam", {"lr": 0.3}, ("net.0", "net.2")),),
    )

    def thrown(step):
        metrics = {
            "update_ratio": np.full(2, 0.4),
            "weight_rms": np.ones(2),
            "grad_rms": np.ones(2),
            "saturated_fraction": np.array([0.1 if step < 4 else 0.7]),
        }
        return StepRecord(
            step=step,
            layout=info.layout,
            metrics=metrics,
            layer_state=np.zeros(2, np.uint8),
            window_fill=np.ones(1),
            forward_rms=np.ones(1),
            loss=3.0,
            learning_rates=(0.3,),
        )

    evaluator = Evaluator(DEFAULT_RULES)
    told = {step: [each.code for each in evaluator.feed(thrown(step), info)] for step in range(40)}
    assert {step: codes for step, codes in told.items() if codes} == {24: ["GW302", "GW202"]}
