"""A finding as plain data: of this release, of an earlier one that didn't say what kind its cause is, of a later one."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from written import make_info, make_record

import lightning_gradwatch
from lightning_gradwatch.cli.schemas import read_schema
from lightning_gradwatch.judge.run import read_run
from lightning_gradwatch.record.events.file import EventFile
from lightning_gradwatch.record.events.step_events import findings_event, step_event
from lightning_gradwatch.record.finding import Cause, CauseKind, Finding, Remedy, Severity

KNOWN = Finding(
    "GW101",
    "vanishing-gradient",
    Severity.ERROR,
    ("net.0",),
    1,
    2,
    0.5,
    1e-3,
    "Both are to blame.",
    Remedy("Start anew."),
    "It fades.",
    cause_kind=CauseKind.SMALL_SLOPE,
    causes=(Cause(CauseKind.SMALL_SLOPE, ("net.1", "net.3")), Cause(CauseKind.SMALL_WEIGHTS)),
)
SILENT = dataclasses.replace(KNOWN, cause_kind=CauseKind.UNKNOWN, causes=())


def of_an_earlier_release(data):
    return {key: value for key, value in data.items() if key not in {"cause_kind", "causes"}}


def of_a_later_one(data):
    return {**data, "cause_kind": "sunspots", "causes": [{"kind": "sunspots", "sites": ["net.1"]}], "mood": "good"}


@dataclasses.dataclass(frozen=True)
class Stored(Finding):
    """A finding that is written as another release would."""

    change: object = None

    def to_dict(self):
        return self.change(super().to_dict())


def stored(change):
    return Stored(**{entry.name: getattr(KNOWN, entry.name) for entry in dataclasses.fields(KNOWN)}, change=change)


def test_it_comes_back_from_plain_data_as_it_was():
    data = json.loads(json.dumps(KNOWN.to_dict()))
    assert (data["cause_kind"], data["causes"][0]) == (
        "small-slope",
        {"kind": "small-slope", "sites": ["net.1", "net.3"]},
    )
    assert Finding.from_dict(data) == KNOWN


@pytest.mark.parametrize("change", [of_an_earlier_release, of_a_later_one])
def test_a_kind_that_another_release_left_out_or_added_is_unknown(tmp_path, change):
    read = Finding.from_dict(change(KNOWN.to_dict()))
    assert read.cause_kind is CauseKind.UNKNOWN
    assert {cause.kind for cause in read.causes} <= {CauseKind.UNKNOWN}
    assert dataclasses.replace(read, causes=()) == SILENT
    info = make_info(2)
    with EventFile(tmp_path) as file:
        file.write(step_event(make_record(info, 0), info, describe=True, max_curves=0))
        file.write(findings_event([stored(change)], step=0))
    run = read_run(tmp_path)
    assert run.findings == (read,)
    assert (run.problems, run.damaged) == ((), False)


@pytest.mark.parametrize(
    "damage",
    [
        {"cause_kind": 3},
        {"cause_kind": None},
        {"causes": 3},
        {"causes": [3]},
        {"causes": [{}]},
        {"causes": [{"kind": [], "sites": []}]},
        {"causes": [{"kind": "clamped", "sites": [3]}]},
        {"causes": [{"kind": "clamped", "sites": ["x" * 5000]}]},
        {"causes": [{"kind": "clamped", "sites": []}] * 200},
    ],
    ids=str,
)
def test_what_is_no_kind_is_damage(tmp_path, damage):
    info = make_info(2)
    with EventFile(tmp_path) as file:
        file.write(step_event(make_record(info, 0), info, describe=True, max_curves=0))
        file.write(findings_event([stored(lambda data: {**data, **damage})], step=0))
    run = read_run(tmp_path)
    assert run.findings == ()
    assert run.damaged


def test_kinds_are_public_and_are_texts_that_say_what_they_are():
    assert lightning_gradwatch.CauseKind is CauseKind
    assert lightning_gradwatch.Cause is Cause
    assert f"{CauseKind.DEAD_LAYER}" == str(CauseKind.DEAD_LAYER) == CauseKind.DEAD_LAYER == "dead-layer"
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.value) for kind in CauseKind)
    assert all(kind.value == kind.name.lower().replace("_", "-") for kind in CauseKind)


def test_the_reports_schema_and_the_documentation_have_each_kind_once():
    schema = read_schema("report")["$defs"]["cause_kind"]["enum"]
    assert schema == [kind.value for kind in CauseKind]
    page = (Path(__file__).parents[2] / "docs" / "findings.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z-]+)` \| [A-Z`]", page, flags=re.MULTILINE) == [kind.value for kind in CauseKind]


def test_some_rule_gives_each_kind():
    package = Path(lightning_gradwatch.__file__).parent / "judge"
    code = "".join(
        path.read_text(encoding="utf-8")
        for path in sorted(package.rglob("*.py"))
        if path.name not in {"root_causes.py", "evaluator.py"}
    )
    assert [kind.name for kind in CauseKind if not re.search(rf"CauseKind\.{kind.name}\b", code)] == []
