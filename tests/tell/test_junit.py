"""The JUnit report: what was judged, what failed and what was skipped, as a CI server counts it."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from tell.samples import ALL, COMPARED, FAILED, HOSTILE, MISSING, hostile, steers

from lightning_gradwatch.tell.junit_report import junit_report


def parsed(*verdicts):
    return ET.fromstring(junit_report(verdicts).encode())


def cases(suite):
    return {case.get("name"): [child.tag for child in case] for case in suite.iter("testcase")}


def test_a_rule_is_a_case():
    (suite,) = parsed(FAILED)
    assert cases(suite) == {
        "GW101 vanishing-gradient": ["failure"],
        "GW201 dead-units": ["system-out"],
        "GW202 saturated-units": ["skipped"],
    }
    failure = suite.find(".//failure")
    assert failure.get("type") == "error"
    assert failure.get("message") == "The signal vanishes at net.0. It does so at each step."
    assert "  why      All sites are Sigmoid. It does so at each step.\n" in failure.text
    assert "cut off" in suite.find("system-err").text


def test_a_run_that_cannot_be_judged_is_an_error():
    (suite,) = parsed(MISSING)
    assert cases(suite) == {"can be judged": ["error"]}
    assert suite.find(".//error").get("message") == "no such run: logs/none"


def test_what_is_known_does_not_fail_and_what_got_worse_does():
    (suite,) = parsed(COMPARED)
    assert cases(suite) == {
        "GW101 vanishing-gradient": ["system-out"],
        "GW201 dead-units": ["system-out"],
        "no worse than logs/good": ["failure"],
    }


def test_the_counts_are_those_of_the_cases():
    root = parsed(*ALL)
    assert {name: root.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "8",
        "failures": "2",
        "errors": "1",
        "skipped": "1",
    }
    for suite in root:
        assert int(suite.get("tests")) == len(suite.findall("testcase"))
        assert int(suite.get("failures")) == len(suite.findall("testcase/failure"))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_leave_the_document_whole(name):
    text = junit_report([hostile(name)])
    assert not steers(text)
    root = ET.fromstring(text.encode())
    assert {element.tag for element in root.iter()} <= {
        "testsuites",
        "testsuite",
        "properties",
        "property",
        "testcase",
        "failure",
        "error",
        "skipped",
        "system-out",
        "system-err",
    }
    assert root.get("tests") == "5"
