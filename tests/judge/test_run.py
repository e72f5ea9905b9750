"""Reading runs: what was written is what is read, and damage costs only what it hit."""

import dataclasses
import os
import tracemalloc

import numpy as np
import pytest
from record.small_runs import make_info, make_record, steps_of, write
from tensorboard.compat.proto import event_pb2, summary_pb2

from lightning_gradwatch.judge.run import RunError, evaluate, read_run
from lightning_gradwatch.record.events.file import MAX_EVENT_BYTES, EventFile, masked_crc32c
from lightning_gradwatch.record.events.step_events import findings_event, step_event
from lightning_gradwatch.record.finding import Finding, Remedy, Severity


def make_finding(code="GW101"):
    return Finding(code, "x", Severity.ERROR, ("net.0",), 1, 2, 0.5, 1e-3, "c", Remedy("r"), "m")


def test_a_series_matches_columns_by_name_over_layouts(tmp_path):
    old, new = make_info(2, 1), make_info(4, 1, first=1)
    with EventFile(tmp_path) as file:
        file.write(step_event(make_record(old, 3), old, describe=True))
        file.write(step_event(make_record(new, 5), new, describe=True))
    run = read_run(str(tmp_path))
    assert run.names("grad_norm") == ("net.2", "net.4", "net.6", "net.0")
    steps, values = run.series("grad_norm")
    assert steps.tolist() == [3, 5]
    np.testing.assert_array_equal(values, [[3, np.nan, np.nan, 3], [5, 5, 5, np.nan]])
    assert list(run.infos) == [old.layout, new.layout]
    with pytest.raises(ValueError, match="grad_nrom"):
        run.series("grad_nrom")


def test_the_newest_description_is_the_one_written_last(tmp_path):
    first, second = make_info(2), make_info(3)
    with EventFile(tmp_path) as file:
        for step, info in enumerate((first, second, dataclasses.replace(first, precision="16-mixed"))):
            file.write(step_event(make_record(info, step), info, describe=True))
    run = read_run(tmp_path)
    assert run.info.precision == run.infos[first.layout].precision == "16-mixed"
    assert list(run.infos) == [second.layout, first.layout]


def test_findings_are_the_ones_reported_last(tmp_path):
    info = make_info()
    first, last = [make_finding()], [make_finding(), make_finding("GW301")]
    with EventFile(tmp_path) as file:
        file.write(step_event(make_record(info, 0), info, describe=True, findings=first))
        assert read_run(tmp_path).findings == tuple(first)
        file.write(step_event(make_record(info, 1), info, describe=False))
        assert read_run(tmp_path).findings == tuple(first)
        file.write(findings_event(last, step=1))
    assert read_run(tmp_path).findings == tuple(last)


def test_a_resumed_run_overwrites_the_steps_it_repeats(tmp_path):
    write(tmp_path, (0, 10, 20, 30), fill=0.0)
    write(tmp_path, (15, 20, 30, 40), fill=0.5)
    run = read_run(tmp_path)
    assert steps_of(run) == [0, 10, 15, 20, 30, 40]
    assert run.series("grad_norm")[1][:, 0].tolist() == [0, 10, 15.5, 20.5, 30.5, 40.5]


def test_files_follow_each_other_by_the_time_inside(tmp_path):
    late, _ = write(tmp_path, (1,), fill=0.25)
    early, _ = write(tmp_path, (1,), fill=0.5)
    late_bytes, early_bytes = late.read_bytes(), early.read_bytes()
    late.write_bytes(early_bytes)
    early.write_bytes(late_bytes)
    assert read_run(tmp_path).records[0].metrics["grad_norm"][0] == 1.5


def test_files_of_the_same_time_follow_each_other_by_name(tmp_path):
    info = make_info()
    for number in (9, 10):
        event = step_event(make_record(info, 0, number), info, describe=True)
        event.wall_time = 7.0
        with EventFile(tmp_path / "x") as file:
            file.write(event)
        file.path.rename(tmp_path / f"events.out.tfevents.1.host.5.{number}")
    assert read_run(tmp_path).records[0].metrics["grad_norm"][0] == 10


def test_foreign_events_and_files_are_passed_over(tmp_path):
    info = make_info()
    mention = summary_pb2.Summary.Value(tag="note", simple_value=1.0)
    mention.metadata.summary_description = "I like gradwatch/step"
    with EventFile(tmp_path) as file:
        file.write(event_pb2.Event(wall_time=1.0, summary=summary_pb2.Summary(value=[mention])))
        file.write(step_event(make_record(info, 0), info, describe=True))
    (tmp_path / "hparams.yaml").write_text("gradwatch")
    (tmp_path / "folder.tfevents").mkdir()
    (tmp_path / "broken.tfevents").symlink_to(tmp_path / "nowhere")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.tfevents")
    run = read_run(tmp_path)
    assert steps_of(run) == [0]
    assert run.problems == ()


def test_an_event_too_large_to_be_ours_is_stepped_over(tmp_path):
    path, _ = write(tmp_path, (0,))
    header = (MAX_EVENT_BYTES + 1).to_bytes(8, "little")
    with path.open("ab") as file:
        file.write(header + masked_crc32c(header).to_bytes(4, "little"))
        file.truncate(file.tell() + MAX_EVENT_BYTES + 5)  # sparse: no byte of it is on the disk
        file.seek(0, os.SEEK_END)
        other, starts = write(tmp_path / "other", (7,))
        file.write(other.read_bytes()[starts[0] :])
    tracemalloc.start()
    run = read_run(path)
    assert tracemalloc.get_traced_memory()[1] < MAX_EVENT_BYTES / 4
    tracemalloc.stop()
    assert steps_of(run) == [0, 7]
    assert run.problems == ()


def test_links_are_followed(tmp_path):
    write(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert steps_of(read_run(tmp_path / "link")) == [0, 1, 2]


def test_a_record_whose_layout_is_described_nowhere_is_told(tmp_path):
    path, starts = write(tmp_path)
    whole = path.read_bytes()
    other = make_info(7)
    with EventFile(tmp_path) as file:
        file.write(step_event(make_record(other, 9), other, describe=False))
    run = read_run(tmp_path)
    assert steps_of(run) == [0, 1, 2]
    assert run.problems == (f"step 9: its layout {other.layout!r} is described nowhere",)
    path.write_bytes(whole[: starts[0]] + whole[starts[1] :])
    with pytest.raises(RunError, match=r"no GradWatch record that can be read: .* described nowhere"):
        read_run(path)


def test_a_newer_schema_is_read_and_told(tmp_path):
    write(tmp_path, info=dataclasses.replace(make_info(), schema_version=99))
    run = read_run(tmp_path)
    assert steps_of(run) == [0, 1, 2]
    assert "schema 99" in run.problems[0]


def test_many_problems_are_counted(tmp_path):
    write(tmp_path)
    other = make_info(7)
    with EventFile(tmp_path) as file:
        for step in range(100, 150):
            file.write(step_event(make_record(other, step), other, describe=False))
    problems = read_run(tmp_path).problems
    assert len(problems) == 21
    assert problems[-1] == "and 30 problems more"


def test_no_run_is_told_with_the_reason(tmp_path):
    with pytest.raises(RunError, match=r"no such run: .*nowhere"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match="no TensorBoard event file in"):
        read_run(tmp_path)
    write(tmp_path / "logs" / "version_3")
    with pytest.raises(RunError, match=r"did you mean .*version_3\?"):
        read_run(tmp_path)
    with EventFile(tmp_path / "plain"):
        pass
    with pytest.raises(
        RunError, match=r"no GradWatch records in .*plain: add GradWatch\(\) to the Trainer's callbacks"
    ):
        read_run(tmp_path / "plain")
    (tmp_path / "empty.tfevents").touch()
    with pytest.raises(RunError, match=r"nothing is written yet in .*: empty\.tfevents is empty"):
        read_run(tmp_path / "empty.tfevents")


def test_a_stored_run_is_judged_by_the_rules_stored_in_it(tmp_path, monkeypatch):
    info = dataclasses.replace(make_info(), rules={"GW101": {"ratio": 0.5}})
    write(tmp_path, info=info)
    run = read_run(tmp_path)
    judged = []

    def evaluate_records(records, infos, rules, end):
        assert end is None
        judged.append((list(records), dict(infos), rules))
        return (make_finding(),)

    monkeypatch.setattr("lightning_gradwatch.judge.evaluator.evaluate_records", evaluate_records)
    monkeypatch.setattr(
        "lightning_gradwatch.judge.selection.rules_from_settings", lambda settings: ("stored", settings)
    )
    assert evaluate(run) == (make_finding(),)
    assert evaluate(run, rules=["mine"]) == (make_finding(),)
    assert judged == [(run.records, run.infos, ("stored", info.rules)), (run.records, run.infos, ("mine",))]
