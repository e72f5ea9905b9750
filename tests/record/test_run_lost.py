"""No record vanishes without a word: what bears our mark and can't be read is told, with right checksums too."""

import json
import struct

import numpy as np
import pytest
from tensorboard.compat.proto import event_pb2, summary_pb2
from written import frames_of, make_info, make_record

from lightning_gradwatch.judge.run import RunError, read_run
from lightning_gradwatch.record.events import encoding
from lightning_gradwatch.record.events.file import MAX_EVENT_BYTES, EventFile, framed, masked_crc32c
from lightning_gradwatch.record.events.step_events import (
    RUN_TAG,
    STEP_TAG,
    _seal,
    decode_event,
    findings_event,
    step_event,
)
from lightning_gradwatch.record.finding import Finding, Remedy, Severity
from lightning_gradwatch.record.step import SCHEMA_VERSION

INFO = make_info(2)
FINDING = Finding("GW101", "x", Severity.ERROR, ("net.0",), 1, 2, 0.5, 1e-3, "c", Remedy("r"), "m")


def payloads(*, max_curves=0):
    """Return the events of a small run, the last one with findings alone."""
    found = [step_event(make_record(INFO, step), INFO, describe=step == 0, max_curves=max_curves) for step in range(4)]
    return [*found, findings_event([FINDING], step=3)]


def write(folder, events=None):
    with EventFile(folder) as file:
        for event in payloads() if events is None else events:
            file.write(event)
    return file.path


def seen(path):
    run = read_run(path)
    records = [
        (record.step, record.loss, *(vector.tobytes() for vector in record.metrics.values())) for record in run.records
    ]
    return records, run.findings, run.problems


@pytest.mark.parametrize("place", [2, 5], ids=["a step", "the findings"])
@pytest.mark.parametrize("checksums", ["wrong", "right"])
def test_a_flipped_bit_of_any_byte_is_told_or_costs_nothing(tmp_path, place, checksums):
    path = write(tmp_path)
    frames = frames_of(path)
    sound = seen(path)[:2]
    frame = frames[place]
    told = 0
    for at in range(len(frame)):
        if checksums == "right" and not 12 <= at < len(frame) - 4:
            continue
        bit = 5 * at % 8
        damaged = frame[:at] + bytes([frame[at] ^ 1 << bit]) + frame[at + 1 :]
        if checksums == "right":
            damaged = framed(damaged[12:-4])
        path.write_bytes(b"".join((*frames[:place], damaged, *frames[place + 1 :])))
        *now, problems = seen(path)
        assert problems or tuple(now) == sound, at
        assert all(record in sound[0] for record in now[0]), at
        told += bool(problems)
    assert told > 250


def test_a_summary_that_became_another_field_is_told(tmp_path):
    """One bit makes the graph of a program of it, which nobody has to understand."""
    path = write(tmp_path)
    frames = frames_of(path)
    payload = bytearray(frames[3][12:-4])
    key = payload.index(b"\x2a", 9)
    payload[key] ^= 0x08
    assert event_pb2.Event.FromString(bytes(payload)).graph_def
    frames[3] = framed(bytes(payload))
    path.write_bytes(b"".join(frames))
    run = read_run(path)
    assert [record.step for record in run.records] == [0, 1, 3]
    assert "it bears GradWatch's marks, and nothing of it can be read" in run.problems[0]
    assert run.damaged


def test_events_of_others_that_name_us_are_none_of_ours(tmp_path):
    mention = event_pb2.Event(wall_time=1.0, step=1)
    mention.summary.value.add(
        tag="note", simple_value=1.0
    ).metadata.summary_description = "see gradwatch/step, gradwatch"
    own_scalar = event_pb2.Event(wall_time=1.0, step=1)
    own_scalar.summary.value.add(tag="gradwatch/mine", simple_value=1.0)
    graph = event_pb2.Event(wall_time=1.0, graph_def=b"import gradwatch" * 100)
    path = write(tmp_path, [*payloads(), mention, own_scalar, graph])
    run = read_run(path)
    assert run.problems == ()
    assert not run.damaged


def test_an_event_that_only_mentions_us_is_told_where_it_is_damaged(tmp_path):
    """What is left of it may be the mention alone."""
    mention = event_pb2.Event(wall_time=1.0, step=1, graph_def=b"import gradwatch" * 100)
    path = write(tmp_path, [*payloads(), mention, event_pb2.Event(wall_time=1.0, file_version="x")])
    data = bytearray(path.read_bytes())
    data[data.rindex(b"import") + 1] ^= 1
    path.write_bytes(data)
    (problem,) = read_run(path).problems
    assert "mentions GradWatch and is damaged" in problem


def test_two_events_in_one_are_told(tmp_path):
    """For protobuf two messages, one behind the other, are one: the second's step would hide behind the first's."""
    first, second, *rest = payloads()
    path = write(tmp_path, rest)
    joined = first.SerializeToString() + second.SerializeToString()
    path.write_bytes(path.read_bytes() + framed(joined))
    assert "it holds more than one summary" in read_run(path_with_description(tmp_path, path)).problems[0]
    one = event_pb2.Event.FromString(joined)
    assert sum(value.tag == STEP_TAG for value in one.summary.value) == 2
    with pytest.raises(ValueError, match="it holds more than one step"):
        decode_event(one.SerializeToString())


def path_with_description(folder, path):
    described = write(folder / "more", payloads()[:1])
    path.write_bytes(described.read_bytes() + path.read_bytes())
    return path


def test_a_header_that_claims_the_next_records_too_costs_one(tmp_path):
    """With the right checksum of itself, and the wrong one of what it claims."""
    path = write(tmp_path)
    frames = frames_of(path)
    swallowed = frames[2][12:] + frames[3] + frames[4][:-4]
    header = struct.pack("<Q", len(swallowed))
    header += struct.pack("<I", masked_crc32c(header))
    path.write_bytes(b"".join((*frames[:2], header, swallowed, frames[4][-4:], *frames[5:])))
    run = read_run(path)
    assert [record.step for record in run.records] == [0, 2, 3]
    assert "is damaged" in run.problems[0]


def test_a_header_that_claims_more_than_an_event_may_have_costs_nothing_behind_it(tmp_path):
    path = write(tmp_path)
    frames = frames_of(path)
    header = struct.pack("<Q", MAX_EVENT_BYTES + 1)
    header += struct.pack("<I", masked_crc32c(header))
    path.write_bytes(b"".join((*frames[:2], header, frames[2][12:], *frames[3:], bytes(MAX_EVENT_BYTES))))
    run = read_run(path)
    assert [record.step for record in run.records] == [0, 2, 3]
    assert "where a header claims 67108881 bytes and events of GradWatch are inside" in run.problems[0]


def resealed(event, change, tag=STEP_TAG):
    """Change the JSON of an event, or its values, as one would who knows the format."""
    values = {value.tag: value for value in event.summary.value}
    texts = values[tag].tensor.string_val
    texts[0] = json.dumps(change(json.loads(texts[0]))).encode()
    return seal_again(event)


def seal_again(event):
    envelope = next(value.tensor.string_val for value in event.summary.value if value.tag == STEP_TAG)
    ours = [value for value in event.summary.value if value.metadata.plugin_data.plugin_name == encoding.PLUGIN]
    envelope[1] = _seal(
        envelope[0], {value.tag: encoding.content(value.tensor) for value in ours if value.tag != STEP_TAG}
    )
    return event


def renamed(name):
    def change(data):
        at = data
        *path, key = name.split(".")
        for part in path:
            at = at[int(part) if part.isdigit() else part]
        at[f"{key}x"] = at.pop(key)
        return data

    return change


RECORD_KEYS = [
    *("record", "record.step", "record.layout", "record.batch_idx", "record.optimizers", "record.loss"),
    *("record.learning_rates", "record.gradient_scale", "record.skipped", "record.partial", "record.clip_factor"),
    *("record.global_grad_norm", "record.world_size"),
]


@pytest.mark.parametrize("key", RECORD_KEYS)
def test_a_key_of_a_record_that_changed_is_told(tmp_path, key):
    events = payloads()
    resealed(events[2], renamed(key))
    run = read_run(write(tmp_path, events))
    assert [record.step for record in run.records] == [0, 1, 3]
    assert "lacks" in run.problems[0]
    assert run.damaged


DESCRIPTION_KEYS = [
    *("layers", "sites", "optimizers", "precision", "accumulation", "clipping", "planned_steps", "every_n_steps"),
    *("world_size", "strategy", "coverage", "rules", "versions", "schema_version", "layers.0.name", "layers.1.kind"),
    *("layers.0.shapes", "layers.0.parameters", "layers.0.weight", "layers.0.used", "sites.0.name", "sites.0.function"),
    *("sites.0.role", "sites.0.units", "sites.0.predecessors", "optimizers.0.name", "optimizers.0.settings"),
    *("optimizers.0.layers", "optimizers.0.rates"),
]


@pytest.mark.parametrize("key", DESCRIPTION_KEYS)
def test_a_key_of_a_description_that_changed_is_told(tmp_path, key):
    """A net without its optimizer, or a run without its rules, would be judged otherwise."""
    events = payloads()
    again = resealed(step_event(make_record(INFO, 9), INFO, describe=True), renamed(key), tag=RUN_TAG)
    run = read_run(write(tmp_path, [*events, again]))
    assert [record.step for record in run.records] == [0, 1, 2, 3]
    assert "lacks" in run.problems[0]
    assert run.info == INFO


def test_what_a_newer_release_added_is_left_out_and_told(tmp_path):
    """By the same schema, or a flipped bit in the name of a vector under the right seal: who can tell?"""
    events = payloads()
    resealed(events[1], lambda data: {**data, "mood": "good", "record": {**data["record"], "weather": 1}})
    encoding.add_bytes(events[2].summary.value, "gradwatch/new", np.ones(2, np.uint8))
    values = sorted(events[2].summary.value, key=lambda value: value.tag == STEP_TAG)
    moved = event_pb2.Event(wall_time=1.0, step=2, summary=summary_pb2.Summary(value=values))
    events[2] = seal_again(moved)
    run = read_run(write(tmp_path, events))
    assert [record.step for record in run.records] == [0, 1, 2, 3]
    for name in ("mood", "record.weather", "gradwatch/new"):
        assert any(f"GradWatch doesn't know '{name}', and it is left out" in problem for problem in run.problems)
    assert not run.damaged


def test_what_a_newer_schema_added_is_told_once(tmp_path):
    events = payloads()
    resealed(events[0], lambda data: {**data, "schema_version": SCHEMA_VERSION + 1, "mood": "good"}, tag=RUN_TAG)
    run = read_run(write(tmp_path, events))
    assert run.problems == (f"written by a newer GradWatch (schema {SCHEMA_VERSION + 1}); what it added is left out",)
    assert not run.damaged


def test_a_vector_that_is_there_without_its_step_is_told(tmp_path):
    events = payloads()
    del events[2].summary.value[-1]
    while events[2].summary.value[-1].tag != STEP_TAG:
        del events[2].summary.value[-1]
    del events[2].summary.value[-1]
    run = read_run(write(tmp_path, events))
    assert [record.step for record in run.records] == [0, 1, 3]
    assert f"it has no {STEP_TAG}" in run.problems[0]


def test_findings_whose_envelope_is_gone_are_told(tmp_path):
    """What is left is a text that any program could have written under that tag."""
    events = payloads()
    data = events[-1].SerializeToString()
    at = data.index(b"\x0a", data.index(b"\x2a", 9) + 2)
    path = write(tmp_path, events[:-1])
    path.write_bytes(path.read_bytes() + framed(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]))
    run = read_run(path)
    assert run.findings == ()
    assert "it bears GradWatch's marks" in run.problems[0]


def test_no_record_left_says_what_the_run_reported(tmp_path):
    path = write(tmp_path)
    frames = frames_of(path)
    path.write_bytes(b"".join((frames[0], *(frame[:40] + b"!" + frame[41:] for frame in frames[1:5]), frames[5])))
    with pytest.raises(RunError, match=r"no GradWatch record that can be read: .*; while it ran, it reported GW101 x"):
        read_run(path)
