"""Findings read well in a terminal of 80 columns, whatever the layers are called."""

from __future__ import annotations

import doctest
import importlib
import json
import re
from dataclasses import replace

import pytest
from tell.samples import FAILED

from lightning_gradwatch.record.escape import escape
from lightning_gradwatch.record.finding import Action, Finding, Remedy, Severity
from lightning_gradwatch.tell.junit_report import junit_report
from lightning_gradwatch.tell.markdown_report import markdown_report
from lightning_gradwatch.tell.sarif_report import sarif_report
from lightning_gradwatch.tell.terminal import RunVerdict, verdict_text, warning_text

FINDING = Finding(
    code="GW101",
    name="vanishing-gradient",
    severity=Severity.ERROR,
    layers=tuple(f"net.{place}" for place in range(0, 51, 3)),
    first_step=16,
    last_step=18,
    value=2.3456e-26,
    threshold=0.003,
    cause="All 49 hidden activations are Sigmoid, whose derivative is at most 1/4.",
    remedy=Remedy("Replace Sigmoid by ReLU.", (Action("replace_activation"),)),
    message="The gradient shrinks: net.1 gets 2.35e-26 of the signal of net.97. The loss hasn't fallen since step 8.",
    headline="The gradient shrinks: net.1 gets 2.35e-26 of the signal of net.97",
    evidence="The loss hasn't fallen since step 8.",
)


def named(*layers):
    return Finding(**{**vars(FINDING), "layers": layers})


def test_a_warning_as_a_terminal_shows_it():
    assert warning_text(FINDING) == (
        "GW101 The gradient shrinks: net.1 gets 2.35e-26 of the signal of net.97.\n"
        "  do       Replace Sigmoid by ReLU.\n"
        "  why      All 49 hidden activations are Sigmoid, whose derivative is at most 1/4. The loss hasn't\n"
        "           fallen since step 8.\n"
        "  rule     vanishing-gradient, error since step 16, last seen at step 18 (threshold 0.003)\n"
        "  more     gradwatch explain GW101"
    )


@pytest.mark.parametrize("length", [1, 80, 300, 3000])
def test_what_is_too_long_ends_in_an_ellipsis_the_reason_first_and_what_to_do_last(length):
    words = " ".join(f"word{place}" for place in range(length))
    finding = replace(FINDING, headline=words, cause=words, remedy=Remedy(f"{words} done"))
    led_to = [replace(FINDING, code="GW301", layers=(f"layer.{place}",)) for place in range(length)]
    lines = warning_text(finding, led_to=led_to).splitlines()
    assert len(lines) <= 12
    assert lines[-1] == "  more     gradwatch explain GW101"
    labels = [line[2:9].strip() for line in lines if line[:2] == "  " and line[2] != " " and line[9:11] == "  "]
    assert labels == ["do", "why", "led to", "rule", "more"]
    whole = length == 1
    assert ("done" in "".join(lines)) is whole
    assert ("…" in "".join(lines)) is not whole
    verdict = RunVerdict(path="p", findings=(finding,), unjudged={}, judged=1, exit_code=1)
    told = verdict_text(verdict, width=100).splitlines()
    assert (
        told.index("    more     gradwatch explain GW101") - told.index(next(each for each in told if "word0" in each))
        < 12
    )
    narrow = warning_text(finding, led_to=led_to, width=50).splitlines()
    assert len(narrow) <= 24


def test_a_rule_of_the_users_own_has_its_name_and_layers_in_front():
    assert warning_text(replace(FINDING, headline="", evidence="", message="It is loud.", cause="")).startswith(
        "GW101 vanishing-gradient at net.0 … net.48 (17 layers): It is loud.\n  do       Replace"
    )


@pytest.mark.parametrize("code", ["GW501", "GW502", "GW503", "GW504", "GW506"])
def test_what_is_so_or_isnt_shows_no_number_in_any_format(code):
    finding = replace(FINDING, code=code, name=code, layers=("a",), value=1234.0, threshold=567.0)
    verdict = replace(FAILED, findings=(finding,), rules={code: {}}, problems=(), ignored=())
    told = [
        warning_text(finding),
        verdict_text(verdict, width=200),
        markdown_report([verdict]),
        junit_report([verdict]),
    ]
    told.append(json.dumps(json.loads(sarif_report([verdict]))["runs"][0]["results"]))
    for text in told:
        assert "1234" not in text
        assert "1.23e3" not in text
        assert "567" not in text
    assert "(threshold 567)" in warning_text(replace(finding, code="GW101"))


def test_up_to_three_layers_are_all_named():
    bare = {"headline": "", "evidence": ""}
    assert " at a, b, c: " in warning_text(replace(named("a", "b", "c"), **bare))
    assert " at a … d (4 layers): " in warning_text(replace(named("a", "b", "c", "d"), **bare))


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "a\r", "\x00", "\x85", "\u2028", "\u202e", "\ud800", "\x9b31m"])
def test_a_hostile_name_neither_steers_the_terminal_nor_breaks_the_layout(name):
    texts = dict.fromkeys(("message", "headline", "evidence", "cause"), name)
    finding = Finding(**{**vars(FINDING), **texts, "layers": (name,), "remedy": Remedy(name)})
    text = warning_text(finding)
    assert len(text.splitlines()) == 5
    assert all(character.isprintable() or character == "\n" for character in text)
    text.encode()
    assert name not in verdict_text(RunVerdict(path=name, findings=(finding,), unjudged={name: name}))


def test_escaping_leaves_other_scripts_alone():
    assert escape("блок.0 … 层") == "блок.0 … 层"


@pytest.mark.parametrize("width", [40, 80, 100])
def test_no_line_is_wider_than_the_terminal(width):
    finding = named("x" * 300, "y")
    verdict = RunVerdict(path="p" * 200, findings=(finding,), unjudged={"GW202": "z " * 100}, judged=3)
    assert max(map(len, warning_text(finding, width=width).splitlines())) <= width
    assert max(map(len, verdict_text(verdict, width=width).splitlines())) <= width


@pytest.mark.parametrize(("width", "told"), [(100, "net.0 … net.48 (17 layers)"), (80, "17 layers"), (72, None)])
def test_the_table_counts_layers_that_it_has_no_room_to_name(width, told):
    verdict = RunVerdict(path="p", findings=(FINDING,), unjudged={}, judged=1, exit_code=1)
    cells = re.findall(r"  error +(.*?) +16 ", verdict_text(verdict, width=width))
    assert cells == ([told] if told else [])


def test_a_verdict_lists_the_worst_first_and_what_wasnt_judged():
    info = Finding(**{**vars(FINDING), "code": "GW201", "severity": Severity.INFO})
    verdict = RunVerdict(
        path="logs/version_0",
        findings=(info, FINDING),
        unjudged={"GW202": "not yet: the first 10 steps are warm-up"},
        judged=3,
        measured="5 measured steps (0 to 8)",
        problems=("the tail of the file is cut off",),
        exit_code=1,
    )
    lines = verdict_text(verdict).splitlines()
    assert lines[0] == "logs/version_0: 5 measured steps (0 to 8)"
    assert lines[1] == "  note: the tail of the file is cut off"
    heads = [line for line in lines if re.match("  GW... The gradient", line)]
    assert [head.split()[0] for head in heads] == ["GW101", "GW201"]
    assert lines[-2] == "  not judged: GW202 saturated-units: not yet: the first 10 steps are warm-up"
    assert lines[-1] == "  failed: 1 error, 1 info from 3 rules judged"


def test_the_outcome_of_a_healthy_run_and_of_one_that_cant_be_judged():
    assert verdict_text(RunVerdict(path="a", unjudged={}, judged=1)) == "a\n  healthy: 1 rule judged, nothing found"
    assert (
        verdict_text(RunVerdict(path="a", unjudged={}, failure="no such run: a")) == "a\n  can't judge: no such run: a"
    )


@pytest.mark.parametrize(
    "module",
    [
        "record.escape",
        "record.wording",
        "judge.catalog",
        "record.activations",
        "record.segments",
        "measure.model.names",
        "measure.model.number_sets",
    ],
)
def test_examples_in_docstrings_are_true(module):
    result = doctest.testmod(importlib.import_module(f"lightning_gradwatch.{module}"))
    assert result.attempted
    assert not result.failed
