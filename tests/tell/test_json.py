"""The JSON report: what its schema says, whatever is in it."""

from __future__ import annotations

import json

import jsonschema
import pytest
from tell.samples import ALL, COMPARED, FAILED, HEALTHY, HOSTILE, MISSING, hostile

from lightning_gradwatch.cli.schemas import read_schema
from lightning_gradwatch.judge.verdict import RunVerdict
from lightning_gradwatch.record.finding import Finding
from lightning_gradwatch.tell.json_report import json_report

SCHEMA = read_schema("report")


def validated(*verdicts):
    text = json_report(verdicts)
    assert text.isascii()
    data = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    jsonschema.Draft202012Validator(SCHEMA).validate(data)
    return data


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("verdict", ALL, ids=lambda verdict: verdict.path)
def test_every_kind_of_verdict_is_what_the_schema_says(verdict):
    assert validated(verdict)["exit_code"] == verdict.exit_code


def test_it_holds_what_was_judged_found_and_left_out():
    healthy, failed, missing, compared = validated(*ALL)["runs"]
    assert [run["outcome"] for run in (healthy, failed, missing, compared)] == [
        "healthy",
        "failed",
        "cannot-judge",
        "failed",
    ]
    assert [finding["code"] for finding in failed["findings"]] == ["GW101", "GW201"]
    assert [finding["fails"] for finding in failed["findings"]] == [True, False]
    assert Finding.from_dict(failed["findings"][0]) == FAILED.sorted_findings[0]
    assert failed["unjudged"] == [
        {"code": "GW202", "name": "saturated-units", "reason": "not yet: the first 10 steps are warm-up"}
    ]
    assert failed["judged"][0] == {"code": "GW101", "name": "vanishing-gradient", "thresholds": {"ratio": 0.01}}
    assert failed["findings"][0]["cause_kind"] == "small-slope"
    assert failed["ignored_layers"][0]["layers"] == ["head.1"]
    assert failed["measured"]["layers"] == 2
    assert missing["failure"] == MISSING.failure
    assert missing["measured"] == {}
    assert healthy["comparison"] is None
    assert compared["comparison"]["worse"][0]["ratio"] == pytest.approx(1e-3)
    assert compared["comparison"]["worse"][1]["ratio"] == "Infinity"
    assert [finding["known"] for finding in compared["findings"]] == [False, True]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_come_back_as_they_are(name):
    run = validated(hostile(name))["runs"][0]
    assert run["findings"][0]["layers"] == [name.encode("utf-8", "backslashreplace").decode()]
    assert run["findings"][0]["value"] == "NaN"
    assert run["findings"][1]["threshold"] == "Infinity"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("report_version"),
        lambda data: data.update(exit_code=3),
        lambda data: data["runs"][0].update(outcome="fine"),
        lambda data: data["runs"][0].update(extra=1),
        lambda data: data["runs"][0]["findings"][0].pop("cause"),
        lambda data: data["runs"][0]["findings"][0].update(severity="fatal"),
        lambda data: data["runs"][0]["findings"][0].update(value=None),
        lambda data: data["runs"][0]["comparison"]["worse"][0].update(ratio="much"),
    ],
)
def test_the_schema_refuses_what_is_wrong(damage):
    data = validated(COMPARED)
    damage(data)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(data)


def test_no_run_at_all_is_no_pass():
    assert validated()["exit_code"] == 2
    assert validated(HEALTHY)["exit_code"] == 0


def test_a_rule_that_this_release_does_not_know_is_told_by_its_code_whatever_that_is():
    verdict = RunVerdict(path="p", unjudged={"GW999 of tomorrow": "this release doesn't know it"})
    assert validated(verdict)["runs"][0]["unjudged"][0] == {
        "code": "GW999 of tomorrow",
        "name": "",
        "reason": "this release doesn't know it",
    }
