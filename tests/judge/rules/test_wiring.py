"""GW501 to GW506: facts of the wiring, as urgent as the loss has it."""

from __future__ import annotations

import dataclasses
import math

import pytest

from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.judge.rules.evaluation_mode import EvaluationMode
from lightning_gradwatch.judge.rules.output_applied_twice import OutputAppliedTwice
from lightning_gradwatch.judge.rules.single_value_normalization import SingleValueNormalization
from lightning_gradwatch.judge.rules.stale_gradient import StaleGradient
from lightning_gradwatch.judge.rules.untrained_parameter import UntrainedParameter
from lightning_gradwatch.record.finding import Cause, CauseKind, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerState, Wiring

TWICE = Wiring("output-twice", ("net.11",), "cross_entropy", "training_step (a.py:3)")
LOG = Wiring("log-of-output", ("net.11",), "log")
STALE = Wiring("stale-gradient", ("net.0", "net.2"), "SGD", value=3.5)
UNHELD = Wiring("unheld", ("net.4",))
INITIAL = Wiring("unheld-initial", ("net.4",))
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


NOISY = {0: 1.0, 1: 1.2, 2: 0.95, 4: 1.25, 8: 0.8, 16: 0.7, 32: 1.1, 49: 1.15, 50: 1.1, 51: 1.2, 52: 1.0, 53: 1.1}
"""Losses of small batches that stand, of which step 16's look like a fall."""


class TestWhenTheLossIsSeenToStand:
    """A rule doesn't wait for longer than its 50 steps because a few noisy losses looked like a fall."""

    def test_a_loss_that_is_where_it_began_has_stood_since_then(self, runs):
        assert fed(runs, OutputAppliedTwice(), TWICE, NOISY).only.severity is Severity.ERROR

    def test_one_that_has_come_down_stands_from_there_on(self, runs):
        losses = {step: loss if step < 32 else 0.6 * loss for step, loss in NOISY.items()}
        assert fed(runs, SingleValueNormalization(), ONE, losses).only.severity is Severity.INFO

    @pytest.mark.parametrize(("step", "wanted"), [(16, False), (49, True)])
    def test_the_steps_before_it_are_measured_one_by_one(self, runs, step, wanted):
        losses = {each: STANDS[each] for each in STANDS if each <= step}
        for rule, fact in ((OutputAppliedTwice(), TWICE), (UntrainedParameter(), UNHELD)):
            assert fed(runs, rule, fact, losses).evaluator.confirming is wanted

    def test_but_not_where_the_net_learns(self, runs):
        losses = {each: FALLS[each] for each in FALLS if each <= 49}
        assert not fed(runs, OutputAppliedTwice(), TWICE, losses).evaluator.confirming


class TestLayersThatStayAsInitialised:
    @staticmethod
    def losses(level):
        """Return losses that fall from 1 by fits and starts, by 10 % in twenty steps, to a level at step 100."""
        steps = [0, 1, 2, 4, 8, 16, 32, *range(49, 100)]
        return [(step, 1 - (1 - level) * step / 100) for step in steps]

    @pytest.mark.parametrize(
        ("level", "severity"), [(0.7, Severity.INFO), (0.9, Severity.WARNING), (1.1, Severity.WARNING)]
    )
    def test_are_a_warning_unless_the_head_learns_well(self, runs, level, severity):
        info = dataclasses.replace(runs.stack(), wiring=(UNHELD, INITIAL))
        records = [runs.measure(info, step, loss=loss) for step, loss in self.losses(level)]
        only = runs.feed(UntrainedParameter(), records, info).only
        assert only.severity is severity
        assert "They are still as initialised, and lie before layers that are trained." in only.message

    def test_a_small_fall_is_no_reason_for_information(self, runs):
        info = dataclasses.replace(runs.stack(), wiring=(UNHELD, INITIAL))
        records = [runs.measure(info, step, loss=loss) for step, loss in self.losses(0.85)]
        only = runs.feed(UntrainedParameter(), records, info).only
        assert only.severity is Severity.WARNING
        assert "is still at 8" in only.message
        assert "information only" not in only.message

    def test_are_information_in_the_first_50_steps(self, runs):
        info = dataclasses.replace(runs.stack(), wiring=(UNHELD, INITIAL))
        records = [runs.measure(info, step, loss=1.0) for step in (0, 1, 2, 4, 8, 16, 32, 49)]
        assert runs.feed(UntrainedParameter(), records, info).only.severity is Severity.INFO


def ending_at(start, end):
    """Return losses that come down to `end` by step 64 and stand there: more than half of where they began."""
    return {step: max(end, start - (start - end) * step / 64) for step in (*STANDS, 149, 199, 249, 299, 349, 399)}


@pytest.mark.parametrize(
    ("operation", "start", "right", "constant"),
    [
        # Independent of the rule: of C classes, a softmax of (1, 0, …, 0) has the loss ln(e + C - 1) - 1, and of equal ones ln(C).
        ("cross_entropy", math.log(10), math.log(math.e + 9) - 1, math.log(10)),
        ("log_softmax", math.log(100), math.log(math.e + 99) - 1, math.log(100)),
        # Of ten labels one is 1: probabilities of 0.5 at the start; all 0 in the end, or those that are right.
        ("binary_cross_entropy_with_logits", 0.1 * 0.4741 + 0.9 * 0.9741, 0.1 * 0.3133 + 0.9 * 0.6931, 0.6931),
        ("binary_cross_entropy_with_logits", 0.7241, 0.5 * 0.3133 + 0.5 * 0.6931, 0.6931),
    ],
)
def test_a_loss_of_probabilities_that_has_come_down_as_far_as_it_can_is_information(
    runs, operation, start, right, constant
):
    fact = dataclasses.replace(TWICE, operation=operation)
    assert fed(runs, OutputAppliedTwice(), fact, ending_at(start, right + 0.01)).only.severity is Severity.INFO
    assert fed(runs, OutputAppliedTwice(), fact, ending_at(start, constant - 0.003)).only.severity is Severity.ERROR


def test_a_fall_that_stays_near_a_constant_answer_is_no_learning(runs):
    """Of probabilities a sigmoid's loss has 0.69 for a constant answer, 0.50 for the right ones: 0.68 is a fall from 0.72, and nothing."""
    losses = dict.fromkeys(STANDS, 0.72) | {149 + 10 * step: 0.682 - 1e-4 * step for step in range(12)}
    fact = dataclasses.replace(TWICE, operation="binary_cross_entropy_with_logits")
    only = fed(runs, OutputAppliedTwice(), fact, losses).only
    assert only.severity is Severity.ERROR
    assert "which leaves it near what one constant answer gives" in only.message


def with_output(runs, function, *, gain, losses, name="head", wiring=(), gradient=1.0):
    info = runs.stack()
    last = dataclasses.replace(info.sites[-1], name=name, function=function, role="output", units=0)
    info = dataclasses.replace(info, sites=(*info.sites[:-1], last), wiring=wiring)
    gains = [0.5] * (len(info.sites) - 1) + [gain]
    norms = [gradient] * len(info.layers)
    records = [
        runs.measure(info, step, loss=loss, activation_gain=gains, grad_norm=norms) for step, loss in losses.items()
    ]
    return runs.feed(OutputAppliedTwice(), records, info)


class TestASaturatedOutput:
    @pytest.mark.parametrize("function", ["softmax", "sigmoid", "tanh"])
    def test_is_an_error_while_the_loss_stands(self, runs, function):
        only = with_output(runs, function, gain=1e-7, losses=STANDS).only
        assert (only.severity, only.layers, only.first_step) == (Severity.ERROR, ("head",), 1)
        assert only.message.startswith("head passes 1e-7 of its gradient back, as its outputs are saturated.")
        assert only.causes == (Cause(CauseKind.SATURATED_UNITS, ("head",)),)

    def test_isnt_told_before_the_loss_has_stood_for_50_steps(self, runs):
        losses = {step: STANDS[step] for step in STANDS if step < 50}
        assert with_output(runs, "softmax", gain=1e-7, losses=losses).findings == ()

    def test_is_told_by_step_50_however_the_losses_of_small_batches_jump(self, runs):
        assert with_output(runs, "sigmoid", gain=1e-7, losses=NOISY).only.severity is Severity.ERROR

    def test_asks_for_the_steps_before_that(self, runs):
        losses = {step: NOISY[step] for step in NOISY if step < 50}
        assert with_output(runs, "sigmoid", gain=1e-7, losses=losses).evaluator.confirming
        assert not with_output(runs, "sigmoid", gain=1e-2, losses=losses).evaluator.confirming

    def test_a_fall_by_little_is_no_sign_of_health(self, runs):
        losses = NOISY | {99 + step: 0.97 - 1e-3 * step for step in range(20)}
        only = with_output(runs, "sigmoid", gain=1e-7, losses=losses).only
        assert (only.severity, only.healed_step) == (Severity.ERROR, None)

    def test_where_no_layer_gets_a_gradient_it_needs_no_waiting(self, runs):
        losses = {0: 0.7, 1: 0.5, 2: 0.4, 4: 0.5, 8: 0.45}
        only = with_output(runs, "sigmoid", gain=0.0, losses=losses, gradient=0.0).only
        assert (only.severity, only.first_step) == (Severity.ERROR, 1)
        assert with_output(runs, "sigmoid", gain=0.0, losses=losses).findings == ()  # one of several outputs
        learned = {step: loss / 30 for step, loss in losses.items()}
        assert with_output(runs, "sigmoid", gain=0.0, losses=learned, gradient=0.0).findings == ()

    @pytest.mark.parametrize(
        ("losses", "gain"),
        [
            (FALLS, 1e-7),  # it learns
            ({step: 0.9 if step < 9 else 0.1 for step in STANDS}, 1e-7),  # it has learned, and is sure of it
            (dict.fromkeys(STANDS, 0.01), 1e-7),  # it had learned before the run
            (STANDS, 2e-3),  # enough gets through
            (STANDS, math.nan),  # nothing was measured
            (dict.fromkeys(STANDS, -1.0), 1e-7),  # the loss says nothing
        ],
    )
    def test_is_none_of_its_business_elsewhere(self, runs, losses, gain):
        assert with_output(runs, "softmax", gain=gain, losses=losses).findings == ()

    @pytest.mark.parametrize(("level", "told"), [(0.45, False), (0.68, True)])
    def test_a_net_that_has_learned_through_two_sigmoids_has_a_loss_that_stands(self, runs, level, told):
        """Of as many labels of 0 as of 1, the right answers cost about 0.5 and a constant one 0.69."""
        losses = {step: 0.724 if step < 3 else level for step in STANDS}
        fact = Wiring("output-twice", ("head",), "binary_cross_entropy_with_logits")
        found = with_output(runs, "sigmoid", gain=1e-7, losses=losses, wiring=(fact,))
        assert any(finding.severity > Severity.INFO for finding in found.findings) is told

    def test_has_healed_once_the_net_learns(self, runs):
        found = with_output(runs, "sigmoid", gain=1e-7, losses=PLATEAU)
        assert found.only.healed_step == 249 or found.only.severity is Severity.INFO


def turns(runs, frozen):
    """Feed records of a net whose second layer is frozen in these steps."""
    info = dataclasses.replace(runs.stack(), wiring=())
    records = []
    for step in range(20):
        record = runs.measure(info, step, loss=2.3)
        state = record.layer_state.copy()
        state[1] = LayerState.FROZEN if step in frozen else LayerState.OK
        records.append(dataclasses.replace(record, layer_state=state))
    return runs.feed(UntrainedParameter(), records, info)


class TestLayersThatAreThawed:
    def test_are_information_from_the_step_that_shows_it(self, runs):
        only = turns(runs, range(7)).only
        assert (only.severity, only.first_step, only.layers) == (Severity.INFO, 7, (runs.stack().layers[1].name,))
        assert only.message == f"By step 7 {only.layers[0]} was thawed."

    def test_so_are_those_that_are_frozen(self, runs):
        assert turns(runs, range(7, 20)).only.message.endswith("was frozen.")

    @pytest.mark.parametrize(
        "frozen",
        [(), range(20), range(0, 20, 2), (3,), range(18, 20)],
        ids=["never", "ever", "turns", "once", "lately"],
    )
    def test_but_not_what_stays_or_takes_turns(self, runs, frozen):
        assert turns(runs, frozen).findings == ()

    def test_one_that_comes_later_was_frozen_before(self, runs):
        whole = dataclasses.replace(runs.stack(), wiring=())
        before = dataclasses.replace(whole, layers=whole.layers[:-1])
        infos = {step: before if step < 5 else whole for step in range(10)}
        evaluator = Evaluator([UntrainedParameter()])
        for step, info in infos.items():
            evaluator.feed(runs.measure(info, step, loss=2.3), info)
        (only,) = evaluator.findings
        assert only.message == f"By step 5 {whole.layers[-1].name} was thawed."


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
        "Softmax is applied twice: cross_entropy is given what net.11 has put out, and applies it once more, in training_step (a.py:3). "
    )
    assert only.remedy.text.startswith("Remove net.11, so that cross_entropy gets the raw outputs")
    stale = fed(runs, StaleGradient(), STALE, STANDS).only
    assert "3.5 times as large as the new ones" in stale.message
    assert fed(runs, EvaluationMode(), LEFT, STANDS).only.message.startswith(
        "The whole model is trained in evaluation mode."
    )
