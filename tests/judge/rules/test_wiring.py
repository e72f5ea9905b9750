"""GW501 to GW506: facts of the wiring, as urgent as the loss has it."""

from __future__ import annotations

import dataclasses
import math

import pytest

from lightning_gradwatch.judge.rules.evaluation_mode import EvaluationMode
from lightning_gradwatch.judge.rules.output_applied_twice import OutputAppliedTwice
from lightning_gradwatch.judge.rules.single_value_normalization import SingleValueNormalization
from lightning_gradwatch.judge.rules.stale_gradient import StaleGradient
from lightning_gradwatch.judge.rules.untrained_parameter import UntrainedParameter
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import Wiring

TWICE = Wiring("output-twice", ("net.11",), "cross_entropy", "training_step (a.py:3)")
LOG = Wiring("log-of-output", ("net.11",), "log")
STALE = Wiring("stale-gradient", ("net.0", "net.2"), "SGD", value=3.5)
UNHELD = Wiring("unheld", ("net.4",))
LIST = Wiring("unregistered", ("net.layers",), value=1212)
ONE = Wiring("norm-of-sample", ("net.1",), "batch_norm", value=36)
LEFT = Wiring("evaluation-mode", ("",), "dropout")
STANDS = {step: 2.3 + 0.01 * math.sin(step) for step in (0, 1, 2, 4, 8, 16, 32, 49, 64, 99)}
FALLS = {step: 2.3 * 0.97**step for step in STANDS}
PLATEAU = STANDS | dict.fromkeys((149, 199, 249, 299, 349), 0.2)


def fed(runs, rule, fact, losses):
    info = dataclasses.replace(runs.stack(), wiring=(fact,))
    return runs.feed(rule, [runs.measure(info, step, loss=loss) for step, loss in losses.items()], info)


@pytest.mark.parametrize(
    ("rule", "fact", "severity"),
    [
        (OutputAppliedTwice(), TWICE, Severity.ERROR),
        (OutputAppliedTwice(), LOG, Severity.ERROR),
        (StaleGradient(), STALE, Severity.WARNING),
        (UntrainedParameter(), LIST, Severity.WARNING),
        (UntrainedParameter(), UNHELD, Severity.WARNING),
        (SingleValueNormalization(), ONE, Severity.WARNING),
        (EvaluationMode(), LEFT, Severity.WARNING),
    ],
    ids=["twice", "log", "stale", "list", "unheld", "one", "left"],
)
class TestEachFact:
    def test_is_urgent_where_the_loss_stands(self, runs, rule, fact, severity):
        only = fed(runs, rule, fact, STANDS).only
        assert (only.severity, only.first_step, only.layers) == (severity, 0, fact.names)

    def test_is_information_where_the_net_learns(self, runs, rule, fact, severity):
        only = fed(runs, rule, fact, FALLS).only
        assert only.severity is Severity.INFO
        assert only.severity < severity

    def test_is_information_again_once_it_has_learned(self, runs, rule, fact, severity):
        before = fed(runs, rule, fact, STANDS).only
        assert before.severity is severity
        assert fed(runs, rule, fact, PLATEAU).only.severity is Severity.INFO

    def test_is_urgent_at_once_where_the_loss_is_no_number_any_more(self, runs, rule, fact, severity):
        assert fed(runs, rule, fact, {0: 2.3, 1: 2.2, 2: math.nan}).only.severity is severity

    def test_cant_be_judged_in_a_run_of_a_release_that_did_not_look(self, runs, rule, fact, severity):
        data = runs.stack().to_dict()
        del data["wiring"], fact, severity
        info = RunInfo.from_dict(data)
        evaluator = runs.feed(rule, [runs.measure(info, step) for step in range(3)], info).evaluator
        assert evaluator.unjudged[rule.code].startswith("can't judge: the release")


@pytest.mark.parametrize(
    ("rule", "fact"),
    [(OutputAppliedTwice(), TWICE), (SingleValueNormalization(), ONE), (UntrainedParameter(), UNHELD)],
)
def test_what_some_nets_learn_with_waits_until_the_loss_is_seen_to_stand(runs, rule, fact):
    assert fed(runs, rule, fact, {step: STANDS[step] for step in STANDS if step < 50}).only.severity is Severity.INFO


def test_of_two_facts_of_a_rule_each_has_its_own_urgency(runs):
    info = dataclasses.replace(runs.stack(), wiring=(LIST, UNHELD))
    found = runs.feed(UntrainedParameter(), [runs.measure(info, step) for step in range(3)], info).findings
    assert {each.layers: each.severity for each in found} == {LIST.names: Severity.WARNING, UNHELD.names: Severity.INFO}


def test_a_fact_counts_from_the_record_that_it_was_known_at(runs):
    plain = runs.stack()
    info = dataclasses.replace(plain, wiring=(STALE,))
    assert info.layout != plain.layout
    assert dataclasses.replace(plain, wiring=()).layout == plain.layout


def test_it_says_what_is_wrong_where_and_what_to_do(runs):
    only = fed(runs, OutputAppliedTwice(), TWICE, STANDS).only
    assert only.message.startswith(
        "cross_entropy is given what net.11 has put out, and applies softmax once more, in training_step (a.py:3). "
    )
    assert only.remedy.text.startswith("Remove net.11, so that cross_entropy gets the raw outputs")
    stale = fed(runs, StaleGradient(), STALE, STANDS).only
    assert "3.5 times as large as the new ones" in stale.message
    assert fed(runs, EvaluationMode(), LEFT, STANDS).only.message.startswith(
        "The whole model is trained in evaluation mode."
    )
