"""Each format says which finding is the root cause, and tells it first."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from xml.etree import ElementTree as ET

import pytest
from tell.samples import make_finding

from lightning_gradwatch.judge.verdict import RunVerdict
from lightning_gradwatch.record.finding import Finding, Severity
from lightning_gradwatch.record.summaries import findings_markdown
from lightning_gradwatch.tell.formats import render
from lightning_gradwatch.tell.terminal import finding_texts, warning_text

ROOT = make_finding("GW201", Severity.WARNING, ("net.1",))
EFFECT = make_finding("GW101", Severity.ERROR, consequence_of="GW201")
SAID = "The signal vanishes at net.0; follows from GW201"
VERDICT = RunVerdict(
    path="logs/ill",
    findings=(EFFECT, ROOT),
    unjudged={},
    judged=2,
    exit_code=1,
    rules={"GW101": {}, "GW201": {}},
)


def test_a_warning_is_one_line_what_where_and_from_what_it_follows():
    assert warning_text(EFFECT) == (
        "GW101 The signal vanishes at net.0; follows from GW201 (vanishing-gradient, error since step 16, last seen at step 18)"
    )
    # As a rule of the user's own, or an older release, may leave it.
    bare = dataclasses.replace(
        EFFECT,
        layers=tuple(f"net.{place}" for place in range(99)),
        message="A number is 0.5. So.",
        headline="",
        evidence="",
    )
    assert warning_text(bare, width=40).startswith(
        "GW101 vanishing-gradient at net.0 … net.98 (99 layers): A number is 0.5. So; follows from GW201 ("
    )
    assert "\n" not in warning_text(dataclasses.replace(bare, layers=("a\nb",)))
    assert "\n" not in warning_text(dataclasses.replace(EFFECT, headline="a\nb"))
    assert "follows" not in warning_text(ROOT)


def test_a_root_says_what_it_led_to_and_that_is_not_told_once_more():
    others = [dataclasses.replace(EFFECT, code="GW301", name="stalled-update", layers=("net.0",))]
    together = finding_texts([ROOT, EFFECT, *others])
    assert [finding for finding, _ in together] == [ROOT]
    assert "  led to   GW101 vanishing-gradient at net.0 and 1 more; GW301 stalled-update at net.0\n" in together[0][1]
    assert finding_texts([EFFECT]) == [(EFFECT, warning_text(EFFECT))]
    assert "led to" not in warning_text(ROOT)


def test_what_has_healed_says_so():
    assert "dead-units, warning since step 16, last seen at step 18, healed by step 32 (threshold 0.003)" in " ".join(
        warning_text(dataclasses.replace(ROOT, healed_step=32)).split()
    )
    assert "healed by step 32" in findings_markdown([dataclasses.replace(ROOT, healed_step=32)])


def test_the_root_comes_before_what_is_worse():
    assert VERDICT.sorted_findings == (ROOT, EFFECT)
    text = render([VERDICT], "text")
    assert text.index("GW201 The signal") < text.index("led to   GW101 vanishing-gradient at net.0")
    assert "follows from" not in text
    table = [line.split()[0] for line in text.splitlines() if line.startswith("  GW")]
    assert table[:2] == ["GW201", "GW101"]


def test_json():
    (run,) = json.loads(render([VERDICT], "json"))["runs"]
    assert [(finding["code"], finding["consequence_of"]) for finding in run["findings"]] == [
        ("GW201", ""),
        ("GW101", "GW201"),
    ]


def test_junit():
    cases = ET.fromstring(render([VERDICT], "junit").encode()).iter("testcase")
    told = {case.get("name"): case.findtext("failure") for case in cases}
    assert list(told) == ["GW201 dead-units", "GW101 vanishing-gradient"]
    assert told["GW101 vanishing-gradient"] == warning_text(EFFECT)
    assert told["GW201 dead-units"] == warning_text(ROOT)


def test_junit_tells_the_root_of_what_fails_where_the_root_itself_does_not():
    verdict = dataclasses.replace(VERDICT, fail_on=Severity.ERROR)
    failures = list(ET.fromstring(render([verdict], "junit").encode()).iter("failure"))
    assert [failure.text for failure in failures] == [f"{warning_text(ROOT)}\n\n{warning_text(EFFECT)}"]
    assert failures[0].get("message") == SAID


def test_github():
    other = dataclasses.replace(
        VERDICT, path="logs/other", findings=(dataclasses.replace(ROOT, severity=Severity.INFO),)
    )
    lines = render([other, VERDICT], "github").splitlines()
    assert [(line.split(" ")[0], line.split("title=")[1].split("%3A")[0].split("::")[0]) for line in lines] == [
        ("::warning", "GW201 dead-units in logs/ill"),
        ("::error", "GW101 vanishing-gradient in logs/ill"),
        ("::notice", "GW201 dead-units in logs/other"),
    ]
    assert [line for line in lines if SAID in line] == [line for line in lines if "title=GW101" in line]


def test_sarif():
    (run,) = json.loads(render([VERDICT], "sarif"))["runs"]
    assert {each["ruleId"]: each["properties"]["consequenceOf"] for each in run["results"]} == {
        "GW201": "",
        "GW101": "GW201",
    }
    assert [each["message"]["text"] for each in run["results"]][1] == f"{SAID}."


@pytest.mark.parametrize("text", [render([VERDICT], "markdown"), findings_markdown([ROOT, EFFECT])])
def test_markdown(text):
    root, effect = re.split(r"GW101 (?=vanishing|The signal)", text)
    assert "- **cause**" in root
    assert "\n" not in effect.strip()
    assert SAID in html.unescape(effect)


def test_a_stored_finding_keeps_it_and_an_older_one_has_none():
    assert Finding.from_dict(json.loads(json.dumps(EFFECT.to_dict()))) == EFFECT
    older = ROOT.to_dict()
    del older["consequence_of"]
    assert Finding.from_dict(older) == ROOT
