"""How a fit ended, as the last event of its file tells it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from written import make_info, make_record

from lightning_gradwatch.judge.evaluator import replay
from lightning_gradwatch.judge.run import read_run
from lightning_gradwatch.record.events.file import EventFile
from lightning_gradwatch.record.events.step_events import findings_event, step_event
from lightning_gradwatch.record.run_end import RunEnd
from lightning_gradwatch.rules import Rule, Verdict

STOPPED = RunEnd(how="stopped", steps=7, planned_steps=300)
ENDS = (
    STOPPED,
    RunEnd(how="completed", steps=300),
    RunEnd(how="failed", steps=0, planned_steps=10, error="ValueError"),
)


def write(folder, *ends, steps=(0,)):
    """Write a fit an end, each into a file of its own, beginning where the one before has."""
    info = make_info(2)
    for end in ends:
        with EventFile(folder) as file:
            for step in steps:
                file.write(step_event(make_record(info, step), info, describe=step == steps[0], max_curves=0))
            if end is not None:
                file.write(findings_event([], step=steps[-1] + 1, end=end, changed=False))
    return read_run(folder)


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.how)
def test_it_comes_back_from_plain_data_and_from_a_file_as_it_was(end, tmp_path):
    assert RunEnd.from_dict(json.loads(json.dumps(end.to_dict()))) == end
    run = write(tmp_path, end)
    assert (run.end, run.problems) == (end, ())


def test_a_newer_release_may_say_more_and_an_earlier_one_said_nothing(tmp_path):
    assert RunEnd.from_dict({**STOPPED.to_dict(), "mood": "good"}) == STOPPED
    assert write(tmp_path, None).end is None


def test_of_several_fits_in_a_folder_it_is_that_of_the_last(tmp_path):
    assert write(tmp_path / "again", STOPPED, ENDS[1]).end == ENDS[1]
    assert write(tmp_path / "goes on", STOPPED, None).end is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damaged(RunEnd):
    """An end of which something else is stored."""

    damage: object = None

    def to_dict(self):
        return {**STOPPED.to_dict(), **self.damage}


@pytest.mark.parametrize(
    "damage",
    [{"how": 3}, {"how": "x" * 5000}, {"steps": -1}, {"steps": "many"}, {"planned_steps": 0.5}, {"error": None}],
    ids=lambda damage: str(damage)[:30],
)
def test_what_is_none_is_damage(damage, tmp_path):
    run = write(tmp_path, Damaged(how="", steps=0, damage=damage))
    assert run.end is None
    assert run.damaged
    assert len(run.records) == 1


class Asked(Rule):
    """Notes what it is told of an end."""

    code, name = "LAB601", "asked"

    def look(self, record, info, state):
        return Verdict(unjudged="not yet: the run goes on")

    def at_end(self, end, info, state):
        return Verdict(unjudged=f"can't judge: it {end.how} after {end.steps}")


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (None, "not yet: the run goes on"),
        (STOPPED, "can't judge: it stopped after 7"),
        (dataclasses.replace(STOPPED, steps=4), "not yet: the run goes on"),
        (dataclasses.replace(STOPPED, error="GradWatchError"), "not yet: the run goes on"),
    ],
    ids=["not known", "stopped", "before steps of another fit", "stopped by a finding"],
)
def test_a_rule_is_asked_where_the_end_is_known_and_behind_all_steps(end, said, tmp_path):
    run = write(tmp_path, end, steps=(0, 3, 6))
    assert replay(run.records, run.infos, [Asked()], run.end).unjudged == {"LAB601": said}
