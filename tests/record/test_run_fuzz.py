"""Whatever happens to an event file, reading it ends with records or with a message; the variable FUZZ_EXAMPLES asks for more.

`benchmarks/fuzz.py` makes as many files as one has time for, and says what became of them; here are the first few.
"""

from __future__ import annotations

import json
import os
import tempfile
import tracemalloc
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto import event_pb2
from written import make_info, make_record, write_run

from benchmarks import fuzz
from lightning_gradwatch.cli.check import judge
from lightning_gradwatch.cli.settings import Settings
from lightning_gradwatch.record.events import encoding, step_events
from lightning_gradwatch.record.events.file import EventFile
from lightning_gradwatch.record.events.step_events import step_event
from lightning_gradwatch.tell.formats import FORMATS, render

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


@cache
def sound_file():
    with tempfile.TemporaryDirectory() as folder:
        _, path = write_run(Path(folder) / "run", make_info(4), steps=range(0, 24, 3))
        return path.read_bytes()


@cache
def warm_up():
    """Import what is imported on first use: it isn't memory that a file takes."""
    with tempfile.TemporaryDirectory() as folder:
        for depth in (2, 4):
            path, _ = write_run(Path(folder) / str(depth), make_info(depth), attenuation=1e-9, dead_fraction=1.0)
            for name in FORMATS:
                render([judge(path, Settings()), judge(folder, Settings())], name)


def outcome(path, size):
    """Check a run; whatever is in it, there is a verdict, and memory stays within what the file holds."""
    warm_up()
    tracemalloc.start()
    verdict = judge(str(path), Settings())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert verdict.exit_code in {0, 1, 2}
    assert (verdict.exit_code == 2) == bool(verdict.failure)
    assert verdict.failure or verdict.counts["steps"] > 0
    assert peak < 12 * size + (4 << 20)  # 4 MiB: blocks that are read
    for name in FORMATS:
        render([verdict], name).encode("utf-8", "backslashreplace")
    return verdict


@st.composite
def mutations(draw):
    """A real file, of which pieces were flipped, cut out, doubled, moved, or overwritten."""
    data = bytearray(sound_file())
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([1, 4, 12, 100, 3000]))
        kind = draw(st.sampled_from(["flip", "cut", "double", "noise", "zero", "truncate", "number"]))
        piece = bytes(data[at : at + length])
        if kind == "flip" and piece:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = piece
        elif kind == "noise":
            data[at : at + length] = draw(st.binary(max_size=200))
        elif kind == "zero":
            data[at : at + length] = bytes(len(piece))
        elif kind == "truncate":
            del data[at:]
        elif kind == "number":
            data[at : at + 8] = draw(st.sampled_from([0, 1, 1 << 31, 1 << 62, (1 << 64) - 1])).to_bytes(8, "little")
    return bytes(data)


@FUZZ
@given(mutations())
def test_a_mutated_file_gives_records_or_a_message(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.out.tfevents.1.x"
        path.write_bytes(data)
        outcome(path, len(data))


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 10**30, 1.5, float("nan"), float("inf"), "", "GW101", "x" * 50, [], {}, [[]], {"": 0}]),
)


def mutated_json(draw, data):
    """Replace, drop or add one thing somewhere inside plain data."""
    if isinstance(data, dict) and data and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(data)))
        kind = draw(st.sampled_from(["deeper", "deeper", "drop", "rename"]))
        rest = {name: value for name, value in data.items() if name != key}
        if kind == "deeper":
            return {**data, key: mutated_json(draw, data[key])}
        return rest if kind == "drop" else {**rest, key + "x": data[key]}
    if isinstance(data, list) and data and draw(st.integers(0, 5)):
        place = draw(st.integers(0, len(data) - 1))
        return [*data[:place], mutated_json(draw, data[place]), *data[place + 1 :]]
    return draw(ODD)


@FUZZ
@given(st.data())
def test_sealed_nonsense_gives_records_or_a_message(data):
    """The checksums are right and what they seal is not what a writer of ours would write."""
    info = make_info(3)
    with tempfile.TemporaryDirectory() as folder:
        with EventFile(folder) as file:
            for step in range(9, 14):
                event = event_pb2.Event.FromString(
                    bytes(step_event(make_record(info, step), info, describe=step == 9).SerializeToString())
                )
                if step in {9, 10} and data.draw(st.booleans()):
                    mutate_event(data.draw, event)
                file.write(event)
        outcome(folder, file.path.stat().st_size)


def mutate_event(draw, event):
    values = {value.tag: value for value in event.summary.value}
    tag = draw(st.sampled_from([tag for tag in (step_events.RUN_TAG, step_events.STEP_TAG) if tag in values]))
    texts = values[tag].tensor.string_val
    texts[0] = json.dumps(mutated_json(draw, json.loads(texts[0]))).encode()
    if draw(st.booleans()):
        tensor = draw(st.sampled_from([value for value in event.summary.value if value.tensor.tensor_content])).tensor
        tensor.tensor_content = draw(st.binary(max_size=40))
    ours = [value for value in event.summary.value if value.metadata.plugin_data.plugin_name == encoding.PLUGIN]
    envelope = values[step_events.STEP_TAG].tensor.string_val
    contents = {value.tag: encoding.content(value.tensor) for value in ours if value.tag != step_events.STEP_TAG}
    envelope[1] = step_events._seal(envelope[0], contents)


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_no_record_of_a_changed_file_vanishes_and_the_verdict_is_that_of_the_records(kind):
    found = fuzz.look_at_many(kind, range(4 * EXAMPLES), seed=0)
    assert found.files == 4 * EXAMPLES
    assert not found.notes, found.notes[0]
    assert found.told > EXAMPLES
    assert found.judged > 2 * EXAMPLES


@pytest.mark.parametrize("lost", ["a record", "a bit of a record"])
def test_a_silent_loss_would_be_seen(monkeypatch, lost):
    """The program that looks for losses can find one."""
    real = fuzz.read_run

    def read_run(path):
        run = real(path)
        record = run.records.pop()
        if lost != "a record":
            run.records.append(replace(record, loss=record.loss + 1e-9))
        return replace(run, problems=())

    monkeypatch.setattr(fuzz, "read_run", read_run)
    found = fuzz.look_at_many("flip", range(20), seed=0)
    assert found.silent > 10
    assert "silent: missing [" in found.notes[0]
