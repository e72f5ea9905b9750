"""Live, replayed and resumed in the middle, the verdict is the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradwatch.judge.catalog import DEFAULT_RULES
from lightning_gradwatch.judge.evaluator import Evaluator, evaluate_records, replay
from lightning_gradwatch.judge.rules.vanishing import VanishingGradient
from lightning_gradwatch.judge.selection import resolve_rules
from lightning_gradwatch.record.finding import CauseKind, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, OptimizerInfo, SiteInfo, StepRecord

LOSS = st.sampled_from([2.3, 2.2, 1.0, 0.01, 0.0, -1.0, float("nan"), float("inf")])
SIGNAL = st.sampled_from([0.0, 1e-300, 1e-9, 1e-4, 1e-3, 1.0, float("nan"), float("inf")])
RATIO = st.sampled_from([0.0, 1e-8, 1e-8, 1e-3, 0.5, 0.5, 1e30, float("nan"), float("inf")])
FRACTION = st.sampled_from([0.0, 0.4, 0.5, 0.6, 0.95, 1.0, float("nan")])
RULES = resolve_rules(rules=[VanishingGradient(min_grad_rms=1e-7, warm_up_steps=2)])


def described(layers, sites, optimizers):
    names = tuple(f"layer{place}" for place in range(layers))
    return RunInfo(
        layers=tuple(
            LayerInfo(name, "Linear", ((2, 2),), 4, weight=place % 4 != 3, used=(True, True, False, None)[place % 4])
            for place, name in enumerate(names)
        ),
        sites=tuple(
            SiteInfo(
                f"site{place}",
                ("relu", "sigmoid", "tanh")[place % 3],
                "gate" if place == 3 else "hidden",
                4,
                predecessors=(f"site{place - 1}",) if place else (),
            )
            for place in range(sites)
        ),
        optimizers=tuple(OptimizerInfo(name, {"lr": 0.1}, names) for name in optimizers),
    )


@st.composite
def stored_runs(draw):
    """Records of a run whose layers and sites grow, with every kind of value."""
    optimizers = draw(st.sampled_from([("SGD",), ("Adam",), ("SGD", "Adam")]))
    layers, sites = draw(st.integers(1, 5)), draw(st.integers(0, 5))
    infos, records, step = {}, [], draw(st.sampled_from([-1, 4]))
    # Streaks are what a rule remembers, so a state is drawn less often than a step.
    for _ in range(draw(st.integers(1, 5))):
        layers, sites = layers + draw(st.integers(0, 1)), sites + draw(st.integers(0, 1))
        info = described(layers, sites, optimizers)
        infos[info.layout] = info

        def vector(values, length):
            return np.array(draw(st.lists(values, min_size=length, max_size=length)), dtype=np.float64)

        metrics = {
            "signal_norm": np.sort(vector(SIGNAL, sites)) if draw(st.booleans()) else vector(SIGNAL, sites),
            "dead_fraction": vector(FRACTION, sites),
            "saturated_fraction": vector(FRACTION, sites),
            "inactive_share": vector(FRACTION, sites),
            "grad_rms": vector(SIGNAL, layers),
            "activation_gain": vector(SIGNAL, sites),
            "weight_gain": vector(SIGNAL, sites),
            "weight_rms": vector(SIGNAL, layers),
            "update_ratio": vector(RATIO, layers),
        }
        states = np.array(draw(st.lists(st.integers(0, 6), min_size=layers, max_size=layers)), dtype=np.uint8)
        for _ in range(draw(st.integers(1, 6))):
            step += draw(st.sampled_from([1, 1, 1, 7]))
            records.append(
                StepRecord(
                    step=step,
                    layout=info.layout,
                    metrics=metrics,
                    layer_state=states,
                    window_fill=vector(FRACTION, sites),
                    forward_rms=vector(st.sampled_from([1.0, 1.0, 1.0, float("inf"), float("nan")]), sites),
                    loss=draw(LOSS),
                    global_grad_norm=draw(SIGNAL),
                    learning_rates=tuple(draw(st.sampled_from([0.0, 0.1, 0.1])) for _ in optimizers),
                    skipped=draw(st.sampled_from([False, False, False, True])),
                )
            )
    return records, infos


def told(evaluator, records, infos):
    return [(evaluator.feed(record, infos[record.layout]), evaluator.confirming) for record in records]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(stored_runs(), st.data())
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(run, data):
    records, infos = run
    whole = Evaluator(RULES)
    expected = told(whole, records, infos)
    cut = data.draw(st.integers(0, len(records)))
    first = Evaluator(RULES)
    seen = told(first, records[:cut], infos)
    second = Evaluator(RULES)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.confirming == first.confirming
    assert second.findings == first.findings
    assert seen + told(second, records[cut:], infos) == expected
    assert second.state_dict() == whole.state_dict()
    assert second.unjudged == whole.unjudged
    assert evaluate_records(records, infos, RULES) == whole.findings == second.findings


@settings(max_examples=100, deadline=None)
@given(stored_runs())
def test_findings_are_the_same_however_often_they_are_read(run):
    """Their sentences are written when they are read, and mustn't know what came after."""
    records, infos = run
    often, at_the_end = Evaluator(RULES), Evaluator(RULES)
    for record in records:
        often.feed(record, infos[record.layout])
        at_the_end.feed(record, infos[record.layout])
        assert often.risen == at_the_end.risen
        assert sorted(often.outline) == sorted(
            (each.code, int(each.severity), each.first_step, each.layers) for each in often.findings
        )
    assert often.findings == at_the_end.findings


@settings(max_examples=50, deadline=None)
@given(stored_runs())
def test_each_cause_is_told_once_and_once_more_where_it_becomes_a_warning_and_findings_make_sense(run):
    records, infos = run
    evaluator = Evaluator(RULES)
    told = []
    for record in records:
        news = evaluator.feed(record, infos[record.layout])
        for finding in news:
            assert finding in evaluator.findings
            assert finding not in told  # as it was found a record before, where it waited for its root, perhaps
        # What was told as a warning may have risen to an error beside them, which isn't told again.
        assert not news or evaluator.risen >= max(finding.severity for finding in news)
        told += news
    late = evaluator.let_go()
    assert not any(finding in told for finding in late)
    told += late
    assert evaluator.let_go() == ()
    aloud = [finding.code for finding in told if finding.severity >= Severity.WARNING]
    # GW104 has a finding a cause, GW101 one by each of its three ways to judge.
    assert all(aloud.count(code) == 1 for code in aloud if code in {"GW201", "GW202", "GW302", "GW401"})
    for finding in evaluator.findings:
        assert finding.first_step <= finding.last_step <= records[-1].step
        assert finding.layers
        assert np.isfinite([finding.value, finding.threshold]).all()
        assert finding.cause
        assert finding.remedy.text
        # That other layers are trained from a step on is said, and may well be meant.
        thawed = finding.cause.startswith("requires_grad was changed")
        assert bool(finding.remedy.actions) is not (bool(finding.consequence_of) or thawed)


def test_a_state_that_was_saved_isnt_changed_by_going_on(runs):
    info = runs.stack()
    evaluator = Evaluator(DEFAULT_RULES)
    record = runs.measure(info, 20, signal_norm=runs.fading(info, 1e-9), dead_fraction=1.0)
    evaluator.feed(record, info)
    state = evaluator.state_dict()
    frozen = json.dumps(state)
    evaluator.feed(record, info)
    other = Evaluator(DEFAULT_RULES)
    other.load_state_dict(state)
    other.feed(record, info)
    assert json.dumps(state) == frozen


def test_a_rule_that_is_new_after_a_resume_starts_afresh(runs):
    evaluator = Evaluator(DEFAULT_RULES)
    evaluator.load_state_dict(Evaluator(resolve_rules(ignore=("GW1",))).state_dict())
    assert set(evaluator.unjudged) == {rule.code for rule in DEFAULT_RULES}


def test_a_state_of_another_version_is_refused():
    with pytest.raises(ValueError, match="version 99; this release reads 6"):
        Evaluator(DEFAULT_RULES).load_state_dict({"version": 99, "rules": {}})


@pytest.mark.parametrize("kind", [None, "sunspots"], ids=["of the release before", "of a later one"])
def test_a_state_that_knows_no_kinds_of_causes_or_others_is_gone_on_from(runs, kind):
    """Those of version 5 have none. What is found next says what it is."""
    info = runs.stack()
    record = runs.measure(info, 20, signal_norm=runs.fading(info, 1e-9), saturated_fraction=1.0)
    first = Evaluator(DEFAULT_RULES)
    for _ in range(5):
        first.feed(record, info)
    state = json.loads(json.dumps(first.state_dict()))
    state["version"] = 5 if kind is None else state["version"]
    for entry in state["rules"].values():
        for kept in entry["findings"].values():
            for key in ("cause_kind", "causes"):
                del kept["finding"][key]
            if kind is not None:
                kept["finding"] |= {"cause_kind": kind, "causes": [{"kind": kind, "sites": ["net.1"]}]}
    second = Evaluator(DEFAULT_RULES)
    second.load_state_dict(state)
    assert first.findings
    assert {finding.cause_kind for finding in second.findings} == {CauseKind.UNKNOWN}
    assert [(each.code, each.message) for each in second.alone] == [(each.code, each.message) for each in first.alone]
    second.feed(record, info)
    first.feed(record, info)
    assert second.findings == first.findings
    assert second.begun_anew == {}


def test_a_record_without_its_description_is_an_error(runs):
    info = runs.stack()
    with pytest.raises(ValueError, match="step 7 has layout"):
        replay([runs.measure(info, 7)], {}, DEFAULT_RULES)


def test_nothing_measured_is_nothing_judged():
    assert set(Evaluator(DEFAULT_RULES).unjudged.values()) == {"not yet: no step was measured"}
