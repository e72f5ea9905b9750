"""Each format says which finding is the root cause, and tells it first."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest
from report.samples import make_finding

from lightning_gradwatch.findings import Finding, Severity
from lightning_gradwatch.report.formats import render
from lightning_gradwatch.report.terminal import warning_text
from lightning_gradwatch.summaries import findings_markdown
from lightning_gradwatch.verdict import RunVerdict

ROOT = make_finding("GW201", Severity.WARNING, ("net.1",))
EFFECT = make_finding("GW101", Severity.ERROR, consequence_of="GW201")
SAID = "a consequence of GW201: mend that first"
VERDICT = RunVerdict(
    path="logs/ill",
    findings=(EFFECT, ROOT),
    unjudged={},
    judged=2,
    exit_code=1,
    rules={"GW101 vanishing-gradient": {}, "GW201 dead-units": {}},
)


def test_a_warning_names_it_below_the_headline():
    assert warning_text(EFFECT).splitlines()[1] == f"  root     {SAID}"
    assert "root" not in warning_text(ROOT)


def test_the_root_comes_before_what_is_worse():
    assert VERDICT.sorted_findings == (ROOT, EFFECT)
    text = render([VERDICT], "text")
    assert text.index("GW201 dead-units: warning") < text.index("GW101 vanishing-gradient: error")
    assert text.count(SAID) == 1


def test_json():
    (run,) = json.loads(render([VERDICT], "json"))["runs"]
    assert [(finding["code"], finding["consequence_of"]) for finding in run["findings"]] == [
        ("GW201", ""),
        ("GW101", "GW201"),
    ]


def test_junit():
    cases = ET.fromstring(render([VERDICT], "junit").encode()).iter("testcase")
    told = {case.get("name"): case.findtext("failure") for case in cases}
    assert SAID in told["GW101 vanishing-gradient"]
    assert SAID not in told["GW201 dead-units"]


def test_github():
    lines = render([VERDICT], "github").splitlines()
    assert [line for line in lines if SAID in line] == [line for line in lines if "title=GW101" in line]


def test_sarif():
    (run,) = json.loads(render([VERDICT], "sarif"))["runs"]
    assert {each["ruleId"]: each["properties"]["consequenceOf"] for each in run["results"]} == {
        "GW201": "",
        "GW101": "GW201",
    }


@pytest.mark.parametrize("text", [render([VERDICT], "markdown"), findings_markdown([ROOT, EFFECT])])
def test_markdown(text):
    root, effect = text.split("GW101 vanishing")
    assert "- **root**" not in root
    assert "- **root** a consequence of GW201&#58; mend that first" in effect or f"- **root** {SAID}" in effect


def test_a_stored_finding_keeps_it_and_an_older_one_has_none():
    assert Finding.from_dict(json.loads(json.dumps(EFFECT.to_dict()))) == EFFECT
    older = ROOT.to_dict()
    del older["consequence_of"]
    assert Finding.from_dict(older) == ROOT
