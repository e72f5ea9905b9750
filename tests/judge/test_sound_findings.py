"""What holds of every finding, whatever the run: tried on runs of all kinds, made of numbers."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from lightning_gradwatch.judge.catalog import DEFAULT_RULES
from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.record.finding import CauseKind, Severity
from lightning_gradwatch.record.step import LayerState, Wiring

RUNS = 60
STEPS = 40
ZEROS = (2, 8)
"""Runs with factors that are 0."""
FUNCTIONS = ("relu", "sigmoid", "tanh", "gelu", "softsign", "hardtanh", "elu")
OF_A_RATE = re.compile(r"learning rate .*is too high|a step that was too large|steps that were too large")
TOO_SLOW = re.compile(r"learning rate .*is too small")
CUT = re.compile(r"graph is cut|isn't used|wasn't seen to use it|sets it to None")


def phase(generator, info):
    """Metrics that a run may have for a while, each as it comes from some trouble or none."""
    sites, layers = len(info.sites), len(info.layers)

    def one_of(*choices):
        return choices[generator.integers(len(choices))]

    gains = one_of(1.0, 1.0, 0.1, 0.5, 3.0, 0.0)
    fractions = one_of(0.0, 0.0, 0.6, 0.95, 1.0)
    spread = one_of(0.0, 0.0, 6.0)
    return {
        "signal_norm": np.power(gains, np.arange(sites)[::-1].astype(float)),
        "activation_gain": np.full(sites, one_of(1.0, 0.3, 0.05)),
        "weight_gain": np.array([np.nan, *[one_of(1.0, 0.3, 3.0)] * (sites - 1)]),
        "dead_fraction": np.full(sites, fractions) * (generator.random(sites) < 0.7),
        "saturated_fraction": np.full(sites, one_of(0.0, 0.0, 0.8)),
        "inactive_share": np.full(sites, max(fractions, 0.4)),
        "update_ratio": one_of(1e-3, 1e-3, 0.5, 3.0, 1e-7) * 10.0 ** -(spread * generator.random(layers)),
        "weight_rms": np.full(layers, one_of(0.2, 0.2, 0.01, 9.0)),
        "grad_rms": one_of(1e-2, 1e-9) * 10.0 ** -generator.random(layers),
        "grad_norm": np.full(layers, 1.0),
    }


def wiring_of(generator, info):
    """What may be wired wrongly, in one run of three."""
    layer, site = info.layer_names[0], info.site_names[-1]
    facts = (
        Wiring("output-twice", (site,), "cross_entropy", "training_step (a.py:3)"),
        Wiring("log-of-output", (site,), "log"),
        Wiring("stale-gradient", info.layer_names, "SGD", value=1.5),
        Wiring("unregistered", (layer,), value=80),
        Wiring("unheld", (layer,)),
        Wiring("norm-of-one", (layer,), "layer_norm", value=1),
        Wiring("norm-of-sample", (layer,), "batch_norm", value=64),
        Wiring("evaluation-mode", (layer,), "dropout"),
    )
    return (facts[generator.integers(len(facts))],) if generator.random() < 1 / 3 else ()


ANSWERS = {
    "falls": (2.3, 1.0, np.nan, np.nan),
    "level": (2.3, 1.0, np.nan, np.nan),
    "lost": (0.2, 1.0, 4.0, 0.4),
    "explodes": (0.4, 20.0, np.nan, np.nan),
    "broken": (),
}
"""What a constant answer costs."""


def record_of(runs, generator, info, step, metrics, heading):
    """A record of a phase."""
    states = {}
    if heading == "lost":
        kind = LayerState.ZERO if generator.random() < 0.5 else LayerState.NONE
        states = {layer.name: kind for layer in info.layers[: 1 + len(info.layers) // 2]}
    if heading == "broken" and step > STEPS - 6:
        states = {layer.name: LayerState.NON_FINITE for layer in info.layers}
    loss, norm = {
        "falls": (2.3 * 0.9**step, 1.0),
        "explodes": (2.3 * 1.6**step, 2.0**step),
        "broken": (float("nan") if states else 2.3, 1.0),
        "level": (2.3 + 0.1 * generator.random() + 5.0 * (step == STEPS - 8), 1.0),
    }.get(heading, (2.3 + 0.1 * generator.random(), 1.0))
    answer = ANSWERS[heading] if step < 4 else ()
    return runs.measure(info, step, states=states, loss=loss, norm=norm, answer=answer, **metrics)


def clipped(record, info):
    """The same with a gradient of which clipping leaves next to nothing."""
    metrics = {**record.metrics, "update_ratio": np.full(len(info.layers), 1e-7)}
    return dataclasses.replace(record, metrics=metrics, clip_factor=1e-5)


def shrunk(record, info):
    """The same with weights that decay takes away."""
    weights = np.full(len(info.layers), 0.2 * 0.8**record.step)
    return dataclasses.replace(record, metrics={**record.metrics, "weight_rms": weights})


def findings_of(runs, seed):
    """Everything that a run's rules say, after each of its records."""
    generator = np.random.default_rng(seed)
    functions = [FUNCTIONS[each] for each in generator.integers(len(FUNCTIONS), size=1)]
    info = runs.stack(
        depth=int(generator.integers(2, 15)),
        function=functions[0],
        optimizers=(("SGD",), ("Adam",))[generator.integers(2)],
        planned_steps=int(generator.integers(48, 4000)),
    )
    info = dataclasses.replace(info, wiring=wiring_of(generator, info))
    if seed in ZEROS:
        info = dataclasses.replace(
            info, wiring=(Wiring("zero-factors", info.layer_names[:1], "linear", "forward (a.py:9)"),)
        )
    if seed % 6 == 1:
        decays = tuple(dataclasses.replace(each, decays=(9.0,) * len(info.layers)) for each in info.optimizers)
        info = dataclasses.replace(info, optimizers=decays)
    changes = int(generator.integers(1, STEPS))
    phases = [phase(generator, info), phase(generator, info)]
    headings = [("falls", "level", "lost", "explodes", "broken")[each] for each in generator.integers(5, size=2)]
    evaluator = Evaluator(DEFAULT_RULES)
    for step in range(STEPS):
        late = int(step >= changes)
        record = record_of(runs, generator, info, step, phases[late], headings[late])
        record = clipped(record, info) if seed % 6 == 0 else shrunk(record, info) if seed % 6 == 1 else record
        evaluator.feed(record, info)
        yield info, evaluator.findings


def standing(runs, seed):
    """What is said of a run whose loss stands for long, by rules that take so long."""
    info = runs.stack(planned_steps=200)
    loss, answer = ((2.3, ANSWERS["level"]), (16.4, ANSWERS["lost"]), (9.0, ANSWERS["explodes"]))[seed % 3]
    evaluator = Evaluator(DEFAULT_RULES)
    for step in (*range(0, 60, 5), 100, 101, 102, 150) if seed < 6 else ():
        ratio = 1e-3 if seed < 3 else 0.5
        evaluator.feed(runs.measure(info, step, loss=loss, answer=answer if step < 4 else (), update_ratio=ratio), info)
        yield info, evaluator.findings


SAID = []


@pytest.fixture
def said(runs):
    """Findings, each with the others of the same moment and with what the run is made of."""
    if not SAID:
        for seed in range(RUNS):
            every = {}
            for info, findings in (*findings_of(runs, seed), *standing(runs, seed)):
                every.update(dict.fromkeys(findings, (findings, info)))
            SAID.extend((finding, *rest) for finding, rest in every.items())
    return SAID


def kinds(finding):
    return [action.kind for action in finding.remedy.actions]


def factors(finding):
    return [dict(each.arguments)["factor"] for each in finding.remedy.actions if each.kind == "set_learning_rate"]


def test_a_finding_names_only_findings_that_are_there(said):
    for finding, findings, _ in said:
        there = {each.code for each in findings}
        text = f"{finding.cause} {finding.message} {finding.remedy.text}"
        assert set(re.findall(r"GW\d{3}", text)) <= there, finding


def test_the_kind_of_a_cause_is_the_first_of_its_causes_and_says_what_its_sentence_does(said):
    kinds_of_causes = set()
    for finding, _, info in said:
        assert finding.cause_kind == finding.causes[0].kind, finding
        assert {site for cause in finding.causes for site in cause.sites} <= set(info.site_names), finding
        all_kinds = {cause.kind for cause in finding.causes}
        kinds_of_causes |= all_kinds
        if OF_A_RATE.search(finding.cause):
            assert all_kinds & {CauseKind.HIGH_LEARNING_RATE, CauseKind.UNSCALED_TARGETS}, finding
        if TOO_SLOW.search(finding.cause):
            assert CauseKind.LOW_LEARNING_RATE in all_kinds, finding
        if "graph is cut" in finding.cause:
            assert finding.cause_kind == CauseKind.GRAPH_CUT, finding
        if "wasn't seen to use it" in finding.cause:
            assert finding.cause_kind == CauseKind.UNUSED_LAYER, finding
        if finding.cause.startswith("Dead layer"):
            assert finding.cause_kind == CauseKind.DEAD_LAYER, finding
    assert len(kinds_of_causes) > 12


def test_what_follows_from_a_rate_is_never_initialised_anew(said):
    for finding, _, _ in said:
        if OF_A_RATE.search(finding.cause):
            assert "initialize" not in kinds(finding), finding
            assert "nitialise" not in finding.remedy.text, finding
            assert finding.consequence_of or any(factor < 1 for factor in factors(finding)), finding


def test_a_consequence_has_a_root_that_is_none_itself_and_no_remedy_of_its_own(said):
    for finding, findings, _ in said:
        if not finding.consequence_of:
            continue
        assert finding.consequence_of in {each.code for each in findings if not each.consequence_of}, finding
        assert not finding.remedy.actions, finding


def test_cause_and_remedy_do_not_contradict_each_other(said):
    for finding, _, _ in said:
        assert len(factors(finding)) <= 1, finding
        if OF_A_RATE.search(finding.cause):
            assert all(factor < 1 for factor in factors(finding)), finding
        if TOO_SLOW.search(finding.cause):
            assert all(factor > 1 for factor in factors(finding)), finding
        if CUT.search(finding.cause):
            assert not {"initialize", "set_learning_rate"} & set(kinds(finding)), finding
        if "the function isn't to blame" in finding.cause:
            assert "replace_activation" not in kinds(finding), finding


COMPARED = [
    re.compile(r"(\S+) hardly moves: a step changes it by \S+ of itself, and (\S+) by"),
    re.compile(r"gradient of (\S+) has an rms of \S+ that of (\S+) "),
    re.compile(r"gradient of (\S+) isn't weaker than that of (\S+):"),
    re.compile(r"per layer: (\S+) gets \S+ (?:of|times) the signal of (\S+?)[.,]"),
]


def test_nothing_is_compared_with_itself(said):
    for finding, _, _ in said:
        for pattern in COMPARED:
            for one, other in pattern.findall(f"{finding.message} {finding.cause}"):
                assert one != other, finding


def test_each_layer_that_is_named_is_in_the_run_and_named_once(said):
    for finding, _, info in said:
        assert set(finding.layers) <= {*info.layer_names, *info.site_names}, finding
        assert len(set(finding.layers)) == len(finding.layers), finding
        for action in finding.remedy.actions:
            assert set(action.targets) <= {*info.layer_names, *info.site_names}, finding


def test_the_runs_bring_up_what_is_to_be_tried(said):
    """Else the tests above would hold of nothing."""
    alone = [finding for finding, _, _ in said if not finding.consequence_of]
    codes = {rule.code for rule in DEFAULT_RULES}
    assert {finding.code for finding, _, _ in said} == codes
    assert {finding.code for finding, _, _ in said if finding.severity > Severity.INFO} == codes - {"GW105"}
    of_a_rate = {finding.code for finding in alone if OF_A_RATE.search(finding.cause)}
    assert of_a_rate >= {"GW102", "GW201", "GW202", "GW302"}
    for pattern in COMPARED:
        assert any(pattern.search(f"{finding.message} {finding.cause}") for finding, _, _ in said), pattern
