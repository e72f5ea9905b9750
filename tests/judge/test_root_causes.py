"""One root cause a run: what follows from what, and what doesn't."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradwatch.judge import root_causes
from lightning_gradwatch.judge.catalog import DEFAULT_RULES, RULE_BY_CODE
from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.judge.root_causes import RELATIONS, _brings_about, relate
from lightning_gradwatch.record.finding import Action, Cause, Finding, Remedy, Severity
from lightning_gradwatch.record.finding import CauseKind as Kind

INFO, WARNING, ERROR = Severity


def make(code, *causes, severity=WARNING, layers=("net.0",), step=10, value=0.5, threshold=0.5):
    """A finding with such causes: each a kind, or a kind with sites. Its remedy says nothing."""
    known = tuple(each if isinstance(each, Cause) else Cause(each) for each in causes)
    return Finding(
        code,
        RULE_BY_CODE[code].name,
        severity,
        layers,
        step,
        step,
        value,
        threshold,
        "",
        Remedy("", (Action("trace_gradient"),)),
        "",
        cause_kind=known[0].kind if known else Kind.UNKNOWN,
        causes=known,
    )


def dead(*sites):
    return Cause(Kind.DEAD_LAYER, sites)


DEAD_THERE = dead("net.1")
FADED = make("GW101", Cause(Kind.SMALL_SLOPE, ("net.1",)))
WEAK = make("GW101", Kind.SMALL_WEIGHTS)
EXPLODED = make("GW102", Kind.LARGE_WEIGHTS, step=5)
NAN = make("GW103", Kind.EXPLOSION, severity=ERROR, step=20)
UNDERFLOWN = make("GW104", Kind.UNDERFLOW, Kind.SMALL_WEIGHTS, severity=ERROR, step=0)
DEAD_END = make("GW104", DEAD_THERE, severity=ERROR, step=0)
CUT_OFF = make("GW104", Kind.GRAPH_CUT, severity=ERROR, step=0)
UNUSED = make("GW104", Kind.UNUSED_LAYER, severity=ERROR, step=0)
LEFT_OUT = make("GW104", Kind.LEFT_OUT_OF_LOSS, severity=ERROR, step=0)
GIVEN_ZEROS = make("GW104", Kind.ZERO_INPUT, severity=ERROR, step=0)
TAKEN_OUT = make("GW104", Kind.VALUES_TAKEN_OUT, severity=ERROR, step=0)
THROWN_AWAY = make("GW104", Kind.DISCARDED_GRADIENT, severity=ERROR, step=0)
ROUNDED = make("GW104", Kind.SATURATED_UNITS, Kind.UNSCALED_INPUTS, severity=ERROR, step=0)
UNKNOWN_ZERO = make("GW104", Kind.UNKNOWN, severity=ERROR, step=0)
DEAD = make("GW201", Kind.UNSUITED_START, severity=ERROR, layers=("net.1",), step=15, value=1.0, threshold=1.0)
SPARSE = make("GW201", Kind.UNSUITED_START, layers=("net.1",), step=15, value=0.92, threshold=0.9)
SATURATED = make("GW202", Kind.LARGE_WEIGHTS, layers=("net.1",), step=15)
STALLED = make("GW301", Kind.WEAK_GRADIENT, step=12)
CLIPPED = make("GW303", Kind.TIGHT_CLIPPING)
DECAYED = make("GW304", Kind.STRONG_DECAY)
SPIKED = make("GW105", Kind.UNUSUAL_BATCH, step=30)
OVERSIZED = make("GW302", Kind.HIGH_LEARNING_RATE, step=2)
TOO_SMALL = make("GW401", Kind.SMALL_WEIGHTS, step=0, value=1e-9, threshold=1e-3)
TOO_LARGE = make("GW401", Kind.LARGE_WEIGHTS, step=0, value=1e9, threshold=1e2)

DOUBLED = make("GW501", Kind.OUTPUT_APPLIED_TWICE, severity=ERROR, step=0)
STALE = make("GW502", Kind.STALE_GRADIENT, step=1)
UNTRAINED = make("GW503", Kind.UNREGISTERED_PARAMETERS, step=0)
NORMED = make("GW104", Kind.NORM_OF_ONE, severity=ERROR, step=0)
OF_ONE = make("GW504", Kind.NORM_OF_ONE, step=0)
FAR_OFF = make("GW505", Kind.LARGE_WEIGHTS, step=0, value=9.0, threshold=5.0)
STARVED = make("GW106", Kind.STARVED_PART, step=20)
EVALUATED = make("GW506", Kind.EVALUATION_MODE, step=0)
NOTHING_LEARNED = make("GW601", Kind.UNKNOWN, layers=(), step=500)

FLAT_OUTPUT = make("GW501", Kind.SATURATED_UNITS, severity=ERROR, step=20)
FLAT_AT_START = make("GW501", Kind.SATURATED_UNITS, severity=ERROR, step=0)
OF_ONE_ENTRY = make("GW104", Kind.SOFTMAX_OF_ONE, severity=ERROR, step=0)

LINKED = [
    *((FLAT_OUTPUT, effect) for effect in (UNKNOWN_ZERO, STALLED, FADED)),
    *((cause, FLAT_OUTPUT) for cause in (OF_ONE_ENTRY, EXPLODED, OVERSIZED, STALE, EVALUATED)),
    *((DOUBLED, effect) for effect in (NAN, STALLED, FADED)),
    *((STALE, effect) for effect in (FADED, EXPLODED, NAN, UNKNOWN_ZERO, SPARSE, SATURATED, STALLED, OVERSIZED)),
    *((UNTRAINED, effect) for effect in (FADED, STALLED)),
    *((OF_ONE, effect) for effect in (NORMED, STALLED, FADED, DEAD)),
    *((EVALUATED, effect) for effect in (FADED, EXPLODED, NAN, SPARSE, SATURATED, OVERSIZED, TOO_LARGE)),
    (TOO_SMALL, FADED),
    (TOO_SMALL, UNDERFLOWN),
    (TOO_SMALL, SPARSE),
    (TOO_SMALL, STALLED),
    (TOO_SMALL, OVERSIZED),
    (TOO_LARGE, EXPLODED),
    (TOO_LARGE, NAN),
    (TOO_LARGE, SPARSE),
    (TOO_LARGE, SATURATED),
    (TOO_LARGE, FADED),
    (DEAD, DEAD_END),
    (DEAD, make("GW101", DEAD_THERE)),
    (SPARSE, make("GW101", DEAD_THERE)),
    (DEAD, STALLED),
    (SATURATED, FADED),
    (SATURATED, ROUNDED),
    (SATURATED, STALLED),
    (FADED, UNDERFLOWN),
    (WEAK, SPARSE),
    (FADED, STALLED),
    (UNKNOWN_ZERO, STALLED),
    (THROWN_AWAY, STALLED),
    (DEAD_END, make("GW101", DEAD_THERE, value=0.0)),
    (make("GW104", Kind.ZERO_FACTORS, severity=ERROR), DEAD),
    (EXPLODED, NAN),
    (EXPLODED, SPARSE),
    (EXPLODED, SATURATED),
    (EXPLODED, FADED),
    (EXPLODED, STALLED),
    (EXPLODED, make("GW302", step=6)),
    (EXPLODED, make("GW104", DEAD_THERE, severity=ERROR, step=30)),
    (CLIPPED, STALLED),
    *((DECAYED, effect) for effect in (FADED, SPARSE, STALLED, OVERSIZED)),
    (EXPLODED, CLIPPED),
    (TOO_LARGE, CLIPPED),
    (OVERSIZED, EXPLODED),
    (OVERSIZED, make("GW101", Kind.HIGH_LEARNING_RATE)),
    (OVERSIZED, NAN),
    (OVERSIZED, SPARSE),
    (OVERSIZED, SATURATED),
    (OVERSIZED, STALLED),
    (OVERSIZED, SPIKED),
    (EXPLODED, SPIKED),
    (OVERSIZED, make("GW104", DEAD_THERE, severity=ERROR, step=30)),
    *(
        (NAN, make(code, Kind.SMALL_WEIGHTS, step=21))
        for code in ("GW101", "GW102", "GW104", "GW106", "GW201", "GW202", "GW301", "GW302")
    ),
    *(
        (cause, effect)
        for effect in (FAR_OFF, NOTHING_LEARNED)
        for cause in (FADED, EXPLODED, NAN, CUT_OFF, SPARSE, SATURATED, STALLED, OVERSIZED, TOO_SMALL)
    ),
    *(
        (cause, effect)
        for effect in (FAR_OFF, NOTHING_LEARNED)
        for cause in (DOUBLED, STALE, UNTRAINED, OF_ONE, EVALUATED)
    ),
    *((cause, NOTHING_LEARNED) for cause in (FAR_OFF, CLIPPED, DECAYED, STARVED)),
    (CLIPPED, FAR_OFF),
    (FAR_OFF, make("GW301", Kind.LARGE_WEIGHTS, severity=ERROR, step=12)),
    (make("GW301", Kind.LARGE_WEIGHTS, step=12), dataclasses.replace(FAR_OFF, severity=Severity.INFO)),
    (STARVED, STALLED),
    (STARVED, make("GW104", Kind.UNKNOWN, severity=ERROR, step=30)),
]
UNLINKED = [
    (STARVED, make("GW301", Kind.WEAK_GRADIENT, layers=("elsewhere",))),
    (STARVED, make("GW104", Kind.GRAPH_CUT, severity=ERROR, step=30)),
    (STARVED, UNKNOWN_ZERO),
    (make("GW504", Kind.SINGLE_SAMPLE), NORMED),
    (OF_ONE, UNKNOWN_ZERO),
    (OF_ONE, DEAD_END),
    (make("GW504", Kind.SINGLE_SAMPLE), DEAD),
    (FLAT_OUTPUT, OF_ONE_ENTRY),
    (FLAT_OUTPUT, NAN),
    (EXPLODED, FLAT_AT_START),
    (OVERSIZED, DOUBLED),
    (UNTRAINED, DEAD),
    (DOUBLED, SATURATED),
    (TOO_SMALL, EXPLODED),
    (TOO_SMALL, SATURATED),
    (TOO_SMALL, CUT_OFF),
    (TOO_SMALL, DEAD_END),
    (TOO_LARGE, UNKNOWN_ZERO),
    (DEAD, CUT_OFF),
    (DEAD, UNDERFLOWN),
    (DEAD, FADED),
    (DEAD, make("GW101", dead("elsewhere"))),
    (DEAD, SATURATED),
    (SATURATED, CUT_OFF),
    (SATURATED, DEAD_END),
    (FADED, CUT_OFF),
    (FADED, DEAD_END),
    (FADED, make("GW104", Kind.UNDERFLOW, severity=ERROR, layers=("elsewhere",))),
    (FADED, SPARSE),
    (WEAK, DEAD),
    (CUT_OFF, STALLED),
    (CUT_OFF, FADED),
    (UNUSED, STALLED),
    (LEFT_OUT, STALLED),
    (GIVEN_ZEROS, STALLED),
    (TAKEN_OUT, STALLED),
    (FADED, ROUNDED),
    (SATURATED, UNDERFLOWN),
    (make("GW101", Kind.LARGE_WEIGHTS, Kind.SMALL_SLOPE), SPARSE),
    (EXPLODED, make("GW202", step=3)),
    (NAN, EXPLODED),
    (NAN, make("GW201", step=15)),
    (OVERSIZED, make("GW102", step=1)),
    (OVERSIZED, FADED),
    (OVERSIZED, CUT_OFF),
    (STALLED, FADED),
    (FAR_OFF, STALLED),
    (make("GW301", Kind.LARGE_WEIGHTS, step=12), FAR_OFF),
]


def name(pair):
    return pair if isinstance(pair, str) else " ".join(finding.code for finding in pair)


@pytest.mark.parametrize("pair", LINKED, ids=name)
def test_linked(pair):
    for given_ in itertools.permutations(pair):
        root, effect = relate(given_)
        assert (root.code, root.consequence_of) == (pair[0].code, "")
        assert (effect.code, effect.consequence_of) == (pair[1].code, pair[0].code)


@pytest.mark.parametrize("pair", UNLINKED, ids=name)
def test_unlinked(pair):
    assert not _brings_about(*pair)


def test_each_relation_is_tried_and_has_its_reason():
    tried = {(cause.code, effect.code) for cause, effect in LINKED}
    assert {(relation.cause, relation.effect) for relation in RELATIONS} == tried
    assert all(relation.reason for relation in RELATIONS)


@pytest.mark.parametrize(
    ("findings", "root"),
    [
        ((TOO_SMALL, FADED, UNDERFLOWN, STALLED), "GW401"),
        ((TOO_LARGE, SATURATED, FADED, EXPLODED, NAN), "GW401"),
        ((SATURATED, FADED, STALLED), "GW202"),
        ((DEAD, DEAD_END, make("GW101", DEAD_THERE, value=0.0), STALLED), "GW201"),
        ((EXPLODED, NAN, make("GW301", step=30)), "GW102"),
        ((OVERSIZED, DEAD, DEAD_END), "GW302"),
        ((FADED, UNDERFLOWN, STALLED), "GW101"),
    ],
    ids=name,
)
def test_a_chain_has_one_root(findings, root):
    related = relate(findings)
    assert [finding.code for finding in related if not finding.consequence_of] == [root]
    assert {finding.consequence_of for finding in related[1:]} == {root}
    assert related[0].code == root


def test_information_is_never_the_cause_of_a_warning():
    hint = make("GW202", Kind.LARGE_WEIGHTS, severity=INFO)
    assert [finding.consequence_of for finding in relate([hint, FADED])] == ["", ""]
    assert relate([hint, make("GW101", severity=INFO)])[1].consequence_of == "GW202"


def test_roots_come_first_and_the_worst_of_them_in_front():
    mild = make("GW401", Kind.SMALL_WEIGHTS, threshold=1e-3)
    related = relate([STALLED, make("GW101", Kind.SMALL_WEIGHTS, severity=ERROR), mild, CUT_OFF])
    assert [finding.code for finding in related] == ["GW104", "GW401", "GW101", "GW301"]


def test_of_causes_that_differ_in_what_they_blame_alone_the_same_one_is_named_in_any_order():
    blocked = make("GW104", Kind.GRAPH_CUT, DEAD_THERE, severity=INFO, value=0.0)
    faded = make("GW101", DEAD_THERE, severity=INFO, value=0.0)
    other = make("GW101", severity=INFO, value=0.0)
    stalled = make("GW301", severity=INFO, value=0.0)
    given_in_all_orders = [relate(order) for order in itertools.permutations([blocked, faded, other, stalled])]
    assert len({related[-1].consequence_of for related in given_in_all_orders}) == 1


def test_a_consequence_has_no_remedy_of_its_own():
    root, *others = relate([TOO_SMALL, FADED, UNDERFLOWN])
    assert root.remedy == TOO_SMALL.remedy
    assert {(each.consequence_of, each.remedy) for each in others} == {("GW401", Remedy("Fix GW401 first."))}
    # Where its root is left out (its layers are ignored), it has it again.
    assert relate([FADED])[0] == FADED


def test_a_text_names_only_findings_that_are_there():
    advice = (Action("trace_gradient"),)
    text = "Its gradient is too weak (GW101), and no unit is dead (GW201)."
    stalled = dataclasses.replace(STALLED, cause=text, message=text, remedy=Remedy(text, advice))
    alone = "Its gradient is too weak, and no unit is dead."
    for others in ((), (CUT_OFF,)):
        (told,) = (each for each in relate([stalled, *others]) if each.code == "GW301")
        assert (told.cause, told.message, told.remedy) == (alone, alone, Remedy(alone, advice))
    (told,) = (each for each in relate([stalled, FADED]) if each.code == "GW301")
    assert told.cause == "Its gradient is too weak (GW101), and no unit is dead."


def test_sentences_name_other_findings_in_the_one_way_that_can_be_left_out_again():
    """In evidence and rules, but for docstrings: those are pages."""
    package = Path(root_causes.__file__).parent
    for path in sorted([*(package / "evidence").glob("*.py"), *(package / "rules").glob("*.py")]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        pages = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in pages:
                assert not re.search(r"\(GW[0-9]", node.value), f"{path.name}:{node.lineno}: write {{mention('GW101')}}"


def test_what_follows_from_what_is_read_off_causes_and_never_off_a_text_or_a_remedy():
    def without_words(finding):
        return dataclasses.replace(finding, cause="", message="", remedy=Remedy(""))

    def with_others(finding):
        said = "Dead layer: the graph is cut (GW201)."
        everything = tuple(
            Action(kind, ("net.1",), (("with", "LeakyReLU"),))
            for kind in ("replace_activation", "initialize", "normalize_inputs", "reconnect_graph", "use_or_remove")
        )
        return dataclasses.replace(finding, cause=said, message=said, remedy=Remedy(said, everything))

    for changed in (without_words, with_others):
        for cause, effect in LINKED:
            assert _brings_about(changed(cause), changed(effect)), (changed.__name__, cause, effect)
        for cause, effect in UNLINKED:
            assert not _brings_about(changed(cause), changed(effect)), (changed.__name__, cause, effect)


def test_a_rule_of_the_users_own_stays_by_itself():
    own = Finding("XY001", "mine", ERROR, ("net.0",), 0, 0, 1.0, 1.0, "", Remedy(""), "")
    assert {finding.consequence_of for finding in relate([own, FADED])} == {""}


FINDINGS = st.builds(
    lambda code, severity, causes, layers, step, value, threshold: make(
        code, *causes, severity=severity, layers=layers, step=step, value=value, threshold=threshold
    ),
    st.sampled_from(sorted(RULE_BY_CODE)),
    st.sampled_from(list(Severity)),
    st.lists(st.sampled_from([*Kind, DEAD_THERE, dead("net.0")]), max_size=4),
    st.sampled_from([("net.0",), ("net.1",), ("net.0", "net.1")]),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([1e-3, 1e3]),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(FINDINGS, max_size=6))
def test_no_circle_whatever_the_findings(findings):
    left = list(findings)
    while left:
        roots = [effect for effect in left if not any(_brings_about(cause, effect) for cause in left)]
        assert roots, [finding.code for finding in left]
        left = [finding for finding in left if finding not in roots]
    related = relate(findings)
    codes = {finding.code for finding in related if not finding.consequence_of}
    assert {finding.consequence_of for finding in related} - {""} <= codes
    assert len(related) == len(findings)


@pytest.mark.parametrize(
    ("first", "told_as"), [(13, [("GW101", ""), ("GW202", "")]), (11, [("GW202", ""), ("GW101", "GW202")])]
)
def test_a_warning_names_the_root_that_is_known_or_on_its_way_when_it_is_told(runs, first, told_as):
    info = runs.stack(depth=8)
    faded = runs.gains(info, 0.2, 1.0)
    evaluator = Evaluator(DEFAULT_RULES)
    told = [
        each
        for step in range(10, 16)
        for each in evaluator.feed(
            runs.measure(info, step, saturated_fraction=0.9 if step >= first else np_nan(info), **faded), info
        )
    ]
    # GW101 is due at step 12. What shows only later finds it told as a root; the finding learns of it.
    assert [(finding.code, finding.consequence_of) for finding in told] == told_as
    assert [(finding.code, finding.consequence_of) for finding in evaluator.findings] == [
        ("GW202", ""),
        ("GW101", "GW202"),
    ]


def np_nan(info):
    return [float("nan")] * len(info.sites)


def test_told_together_the_root_is_named_in_each(runs):
    info = runs.stack(depth=8)
    evaluator = Evaluator(DEFAULT_RULES)
    told = []
    for step in range(10, 13):
        told += evaluator.feed(runs.measure(info, step, saturated_fraction=0.9, **runs.gains(info, 0.2, 1.0)), info)
    assert [(finding.code, finding.consequence_of) for finding in told] == [("GW202", ""), ("GW101", "GW202")]
