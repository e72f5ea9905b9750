"""The order of events: by numbers of our own, whatever the clock says and wherever files were copied."""

import shutil
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from written import frames_of, make_info, make_record, write_run

from lightning_gradwatch import evaluate, read_run
from lightning_gradwatch.record.events.encoding import PLUGIN
from lightning_gradwatch.record.events.file import EventFile, read_payloads, write_to
from lightning_gradwatch.record.events.numbering import Numbering
from lightning_gradwatch.record.events.step_events import STEP_TAG, decode_event, findings_event, step_event
from lightning_gradwatch.record.events.tags import Stamp, read_stamp


def write(folder, steps, *, loss=1.0, info=None):
    info = info or make_info(3)
    with EventFile(folder) as file:
        for place, step in enumerate(steps):
            file.write(step_event(make_record(info, step, loss=loss), info, describe=place == 0, max_curves=0))
    return file.path


def stamps(path):
    found = [
        decode_event(payload).stamp for _, payload in read_payloads(path, marker=PLUGIN.encode(), problem=pytest.fail)
    ]
    return [stamp and stamp[:2] for stamp in found]


def losses(run):
    return {record.step: record.loss for record in run.records}


def unstamped(path):
    """Turn a file into one of the first releases."""
    events = [event_pb2.Event.FromString(frame[12:-4]) for frame in frames_of(path)]
    path.unlink()
    with EventFile(path.parent) as file:
        file._numbering.stamp = lambda event: None
        for event in events[1:]:
            for value in event.summary.value:
                value.ClearField("node_name")
            file.write(event)
    return file.path


class Writer:
    """A logger's writer: TensorBoard's own, with the methods that torch's has."""

    def __init__(self, folder):
        self.writer = EventFileWriter(str(folder))

    def get_logdir(self):
        return self.writer.get_logdir()

    def add_event(self, event, step=None, walltime=None):
        event.wall_time = time.time() if walltime is None else walltime
        self.writer.add_event(event)


def test_events_are_numbered_by_fit_and_in_their_file(tmp_path):
    assert [stamps(write(tmp_path, range(3))) for _ in range(3)] == [[(fit, n) for n in range(3)] for fit in range(3)]
    with EventFile(tmp_path) as file:
        file.write(event_pb2.Event(wall_time=1.0, step=3))  # not ours: no number
        file.write(findings_event([], step=3))
    assert stamps(file.path) == [(3, 0)]


def test_a_number_costs_a_few_bytes():
    info = make_info(3)
    event = step_event(make_record(info, 0), info, describe=False)
    before = event.ByteSize()
    Numbering(None).stamp(event)
    assert event.ByteSize() - before <= 12


def test_the_later_fit_wins_when_the_clock_went_back(tmp_path, monkeypatch):
    """Two fits in one folder, the second from a checkpoint of the first, after the clock was set back."""
    now = time.time()
    info = make_info(3)
    for back, steps, state in ((0, range(20), 1), (3600, range(10, 20), 5)):
        monkeypatch.setattr(time, "time", lambda back=back: now - back)
        with EventFile(tmp_path) as file:
            for step in steps:
                record = make_record(info, step, layer_state=np.full(3, state, np.uint8), loss=float(back))
                file.write(step_event(record, info, describe=step == steps[0]))
    run = read_run(tmp_path)
    assert losses(run) == dict.fromkeys(range(10), 0.0) | dict.fromkeys(range(10, 20), 3600.0)
    assert [finding.code for finding in evaluate(run)] == ["GW103"]
    assert run.problems == ()


def test_a_loggers_file_is_numbered_on_over_fits_and_a_new_one_is_a_fit_later(tmp_path):
    info = make_info(3)
    for fit in range(2):
        writer = Writer(tmp_path)
        for step in range(4):
            write_to(writer, step_event(make_record(info, step, loss=float(fit)), info, describe=step in {0, 2}))
        writer.writer.close()
        (path,) = (path for path in tmp_path.iterdir() if not path.name.endswith(".x"))
        path = path.rename(tmp_path / f"events.out.tfevents.{5 - fit}.x")  # their names tell another order
        assert stamps(path) == [(fit, number) for number in range(4)]
    assert losses(read_run(tmp_path)) == dict.fromkeys(range(4), 1.0)
    assert read_run(tmp_path).problems == ()


def test_a_writer_that_says_no_folder_is_numbered_from_the_first_fit():
    written = []
    writer = type("Bare", (), {"add_event": lambda self, event, walltime: written.append(event)})()
    for step in range(2):
        write_to(writer, findings_event([], step=step))
    assert [decode_event(event.SerializeToString()).stamp[:2] for event in written] == [(0, 0), (0, 1)]


def test_tensorboard_reads_what_is_numbered(tmp_path):
    write(tmp_path, range(3))
    stock = EventAccumulator(str(tmp_path)).Reload()
    assert [point.step for point in stock.Tensors("gradwatch/step")] == [0, 1, 2]
    assert [point.step for point in stock.Scalars("gradwatch/log10_grad_norm")] == [0, 1, 2]


def test_files_of_the_first_releases_are_read_and_come_first(tmp_path):
    first = unstamped(write(tmp_path / "run", (0, 1, 2), loss=1.0))
    assert stamps(first) == [None] * 3
    assert losses(read_run(tmp_path / "run")) == dict.fromkeys(range(3), 1.0)
    write(tmp_path / "run", (2, 3), loss=2.0)
    first.rename(first.with_name("events.out.tfevents.9999999999.x"))
    run = read_run(tmp_path / "run")
    assert losses(run) == {0: 1.0, 1: 1.0, 2: 2.0, 3: 2.0}
    assert run.problems == ()


def test_files_of_the_first_releases_follow_each_other_by_the_time_inside(tmp_path):
    late, early = (unstamped(write(tmp_path / name, (1,), loss=loss)) for name, loss in (("a", 1.0), ("b", 2.0)))
    (tmp_path / "run").mkdir()
    for number, path in ((2, late), (1, early)):
        shutil.copy(path, tmp_path / "run" / f"events.out.tfevents.{number}.x")
    assert losses(read_run(tmp_path / "run")) == {1: 2.0}


@pytest.mark.parametrize("place", range(1, 7))
def test_an_event_that_was_cut_out_whole_is_missed(tmp_path, place):
    """No checksum can tell: what is left of the file is sound."""
    path = write(tmp_path, range(6))
    frames = frames_of(path)
    path.write_bytes(b"".join(frames[:place] + frames[place + 1 :]))
    if place == 1:  # with it the description
        with EventFile(tmp_path / "more") as file:
            file.write(step_event(make_record(make_info(3), 9), make_info(3), describe=True))
        path.write_bytes(path.read_bytes() + b"".join(frames_of(file.path)[1:]))
    run = read_run(path)
    where = "before its first step" if place == 1 else f"the first behind step {place - 2}"
    told = (f"{path.name}: 1 event that GradWatch wrote is missing, {where}",)
    assert run.problems == (told if place < 6 else ())  # a run that was killed there looks the same
    assert run.damaged is (place < 6)


def test_several_missing_events_are_counted(tmp_path):
    path = write(tmp_path, range(10))
    frames = frames_of(path)
    path.write_bytes(b"".join(frames[:3] + frames[5:7] + frames[9:]))
    assert read_run(path).problems == (
        f"{path.name}: 4 events that GradWatch wrote are missing, the first behind step 1",
    )


def test_damage_that_is_told_is_not_told_again(tmp_path):
    path = write(tmp_path, range(6))
    frames = frames_of(path)
    damaged = bytearray(frames[3])
    damaged[damaged.index(b'"loss"')] ^= 1
    path.write_bytes(b"".join((*frames[:3], damaged, *frames[4:])))
    (problem,) = read_run(path).problems
    assert "is damaged" in problem


@pytest.mark.parametrize(
    "order", [(0, 1, 2, 3, 2, 3), (0, 1, 3, 2, 4), (0, 1, 2, 3, 0, 1, 2), (0, 2, 1, 3), (0, 1, 1, 2)]
)
def test_events_that_stand_twice_or_elsewhere_are_told_and_read_in_their_order(tmp_path, order):
    path = write(tmp_path, range(5))
    version, *frames = frames_of(path)
    path.write_bytes(version + b"".join(frames[place] for place in order))
    run = read_run(path)
    assert [record.step for record in run.records] == sorted(set(order))
    assert "events stand twice or not in the order of writing" in run.problems[0]


def test_a_file_that_was_put_behind_another_counts_on_its_own(tmp_path):
    first, second = write(tmp_path / "a", range(4), loss=1.0), write(tmp_path / "b", (3, 4, 5), loss=2.0)
    both = tmp_path / "events.out.tfevents.1"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    run = read_run(both)
    assert losses(run) == dict.fromkeys(range(3), 1.0) | dict.fromkeys(range(3, 6), 2.0)
    assert run.problems == ()
    frames = frames_of(second)
    both.write_bytes(first.read_bytes() + b"".join((*frames[:2], *frames[3:])))
    assert "1 event that GradWatch wrote is missing, the first behind step 3" in read_run(both).problems[0]


def test_a_fit_whose_files_are_gone_is_missed_in_a_folder(tmp_path):
    paths = [write(tmp_path, range(3 * fit, 3 * fit + 3)) for fit in range(3)]
    assert read_run(tmp_path).problems == ()
    paths[0].unlink()
    run = read_run(tmp_path)
    assert run.problems == ("what 1 earlier fit wrote into this folder is missing",)
    assert run.damaged
    paths[1].unlink()
    assert read_run(tmp_path).problems == ("what 2 earlier fits wrote into this folder are missing",)
    assert read_run(paths[2]).problems == ()


def test_a_flipped_bit_in_a_number_is_told_and_puts_no_file_before_another(tmp_path):
    write(tmp_path, (0, 1), loss=1.0)
    path = write(tmp_path, (1, 2), loss=2.0)
    whole = path.read_bytes()
    start = whole.index(b"1.0.")
    for at in range(start, start + 8):
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            run = read_run(tmp_path)
            assert run.problems
            assert losses(run) == {0: 1.0, 1: 2.0, 2: 2.0}


@pytest.mark.parametrize(
    "text", [b"", b"1", b"1.2", b".1.2", b"1.2.3.", b"-1.0.", b"1_0.0.", b" 1.0.", b"1" * 30 + b".0."]
)
def test_what_is_no_number_of_ours_is_none(text):
    from lightning_gradwatch.record.events.tags import check_of  # noqa: PLC0415 - to have the right checksum

    seal = b"01234567"
    assert read_stamp(text + (check_of(text[:-1], seal) if text.endswith(b".") else b""), seal) is None
    assert read_stamp(b"12.345." + check_of(b"12.345", seal), seal)[:2] == (12, 345)
    assert Stamp(1, 2) < Stamp(1, 3) < Stamp(2, 0)


def test_looking_for_earlier_fits_reads_beginnings_only(tmp_path, monkeypatch):
    """A fit starts with it, beside files that others have filled for days."""
    write_run(tmp_path, make_info(3), steps=range(5))
    with EventFile(tmp_path / "elsewhere") as file:
        file.write(event_pb2.Event(wall_time=1.0, graph_def=bytes(1000)))
    shutil.copy(file.path, tmp_path / "events.out.tfevents.0.foreign")
    monkeypatch.setattr("lightning_gradwatch.record.events.numbering._MOST_BYTES", 100)
    assert Numbering(tmp_path)._fit == 1  # the newest is looked at first
    monkeypatch.setattr("lightning_gradwatch.record.events.numbering._MOST_BYTES", 0)
    assert Numbering(tmp_path)._fit == 0
    assert Numbering(tmp_path / "nowhere")._fit == 0


def test_the_tag_of_the_envelope_is_where_the_number_stands(tmp_path):
    path = write(tmp_path, (0,))
    event = event_pb2.Event.FromString(frames_of(path)[1][12:-4])
    assert [value.tag for value in event.summary.value if value.node_name] == [STEP_TAG]
