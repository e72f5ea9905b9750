"""Where a jump began, as a finding carries it: data that comes back as it was, and a sentence."""

from __future__ import annotations

import dataclasses
import json

import pytest
from written import make_info, make_record

import lightning_gradwatch
from lightning_gradwatch.cli.schemas import read_schema
from lightning_gradwatch.judge.run import read_run
from lightning_gradwatch.record.events.file import EventFile
from lightning_gradwatch.record.events.step_events import findings_event, step_event
from lightning_gradwatch.record.finding import Finding, Remedy, Severity
from lightning_gradwatch.record.first_bad_step import FirstBadStep

BEGUN = FirstBadStep(
    layer="net.4",
    metric="update_ratio",
    before=0.0012,
    after=0.41,
    step=812,
    batch=12,
    last_good_step=811,
    last_good_batch=11,
    learning_rate=0.1,
    learning_rate_before=0.001,
)
FOUND = Finding(
    "GW103",
    "non-finite",
    Severity.ERROR,
    ("net.0",),
    1,
    2,
    1,
    1,
    "It exploded.",
    Remedy("Lower it."),
    "NaN.",
    first_bad=BEGUN,
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {},
            (
                "net.4 left its own range first, at step 812 (batch 12), step 811 (batch 11) was good: update ratio 0.41, 0.0012 "
                "before; learning rate 0.1, 0.001 before."
            ),
        ),
        (
            {"last_good_step": 799, "last_good_batch": 799, "learning_rate_before": 0.1},
            (
                "net.4 left its own range first, between step 799 (batch 799, good) and step 812 (batch 12, bad): update ratio "
                "0.41, 0.0012 before; learning rate 0.1."
            ),
        ),
        (
            {"metric": "forward_rms", "site": "net.5", "after": None, "learning_rate": None},
            (
                "net.4 left its own range first, at step 812 (batch 12), step 811 (batch 11) was good: rms of the output of net.5 "
                "not finite, 0.0012 before."
            ),
        ),
        (
            {"layer": "", "metric": "loss", "last_good_step": None, "before": None, "learning_rate_before": None},
            (
                "The loss alone left its own range, at step 812 (batch 12), the first that was measured: loss 0.41; learning rate "
                "0.1."
            ),
        ),
    ],
)
def test_it_says_what_where_and_the_number(changes, said):
    assert dataclasses.replace(BEGUN, **changes).sentence == said


def test_it_is_exact_where_no_step_lies_between():
    assert BEGUN.exact
    assert not dataclasses.replace(BEGUN, last_good_step=799).exact
    assert not dataclasses.replace(BEGUN, last_good_step=None).exact


@pytest.mark.parametrize("begun", [BEGUN, dataclasses.replace(BEGUN, after=None, last_good_step=None), None])
def test_it_comes_back_from_plain_data_and_from_a_file_as_it_was(begun, tmp_path):
    finding = dataclasses.replace(FOUND, first_bad=begun)
    assert Finding.from_dict(json.loads(json.dumps(finding.to_dict(), allow_nan=False))) == finding
    info = make_info(2)
    with EventFile(tmp_path) as file:
        file.write(step_event(make_record(info, 0), info, describe=True, max_curves=0))
        file.write(findings_event([finding], step=0))
    run = read_run(tmp_path)
    assert run.findings == (finding,)
    assert (run.problems, run.damaged) == ((), False)


def test_an_earlier_release_said_nothing_of_it_and_a_later_one_may_say_more():
    data = FOUND.to_dict()
    assert Finding.from_dict({**data, "first_bad": {**data["first_bad"], "mood": "good"}}) == FOUND
    del data["first_bad"]
    assert Finding.from_dict(data) == dataclasses.replace(FOUND, first_bad=None)


@dataclasses.dataclass(frozen=True)
class Damaged(Finding):
    """A finding of which something else is stored."""

    damage: object = None

    def to_dict(self):
        data = super().to_dict()
        return {**data, "first_bad": {**data["first_bad"], **self.damage}}


@pytest.mark.parametrize(
    "damage",
    [{"layer": 3}, {"layer": "x" * 5000}, {"step": -1}, {"step": "many"}, {"after": "much"}, {"last_good_batch": 0.5}],
    ids=str,
)
def test_what_is_none_is_damage(damage, tmp_path):
    info = make_info(2)
    data = {entry.name: getattr(FOUND, entry.name) for entry in dataclasses.fields(FOUND)}
    with EventFile(tmp_path) as file:
        file.write(step_event(make_record(info, 0), info, describe=True, max_curves=0))
        file.write(findings_event([Damaged(**data, damage=damage)], step=0))
    run = read_run(tmp_path)
    assert run.findings == ()
    assert run.damaged


def test_it_is_public_and_the_reports_schema_has_its_fields():
    assert lightning_gradwatch.FirstBadStep is FirstBadStep
    schema = read_schema("report")["$defs"]["first_bad"]
    assert (
        set(schema["properties"]) == set(schema["required"]) == {each.name for each in dataclasses.fields(FirstBadStep)}
    )
