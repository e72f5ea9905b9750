"""What becomes of damaged and hostile event files: many are made, read, judged and reported.

    python benchmarks/fuzz.py [--files 100000] [--kinds flip cut …] [--seed 0] [--first 0]

Each file is a small sound run that was changed in one of these ways:

- ``flip``: one to four bits;
- ``cut``: stretches are missing, or all from some byte on;
- ``splice``: stretches are doubled, moved, overwritten by zeros, noise or a piece of another run;
- ``checksum``: an event's bytes are changed and the file's checksums are right again;
- ``seal``: numbers and texts that no writer of ours would write, under the right seal and the right checksums.

It prints a table: files; uncaught exceptions; files that took more than a second of processor time, and more than 200 MB;
silent losses (a record isn't read, or not as it was written, and nothing is said); and verdicts that aren't those of the
records as read. A line names each file that isn't in order: `--kinds KIND --first N --files 1` makes it again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
from tensorboard.compat.proto import event_pb2

from lightning_gradwatch.cli.check import judge
from lightning_gradwatch.cli.settings import FORMATS, Settings
from lightning_gradwatch.judge.catalog import DEFAULT_RULES
from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.judge.run import RunError, evaluate, read_run
from lightning_gradwatch.judge.selection import settings_of
from lightning_gradwatch.record.events.encoding import content
from lightning_gradwatch.record.events.file import EventFile, masked_crc32c
from lightning_gradwatch.record.events.step_events import RUN_TAG, STEP_TAG, _seal, findings_event, step_event
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.record.metrics import METRICS
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, NotCovered, OptimizerInfo, SiteInfo, StepRecord
from lightning_gradwatch.tell.formats import render

SECONDS = 1.0
MEGABYTES = 200
_HANGS = 20.0
_CHUNK = 2000
_AGAIN, _REWRITTEN = 5, 50
"""Every so many files the records as read are judged on their own, and are written to a file of their own before."""
_FORMATS = (
    *[name for name in FORMATS if name != "text"] * 4,
    "text",
)  # a terminal's table takes longer than all the rest


_STEPS = (8, 7)


@dataclass
class Sound:
    """A run as it was written."""

    data: bytes
    starts: list[int]
    """Of the frames."""
    records: dict[int, str]
    """By step, everything that a record holds."""

    def frame(self, place):
        return self.data[self.starts[place] : [*self.starts, len(self.data)][place + 1]]


def bits(record):
    """Return everything a record holds in a form that compares bit for bit."""
    data = dict(vars(record))
    arrays = {name: data.pop(name) for name in list(data) if isinstance(data[name], np.ndarray)}
    metrics = data.pop("metrics")
    return repr((data, sorted((name, vector.tobytes()) for name, vector in (arrays | metrics).items())))


def make_info(layers=3):
    names = [f"net.{2 * place}" for place in range(layers)]
    return RunInfo(
        layers=tuple(LayerInfo(name, "Linear", ((4, 4), (4,)), 20, weight=True) for name in names),
        sites=tuple(
            SiteInfo(f"net.{2 * place + 1}", "relu", "hidden", 4, (f"net.{2 * place - 1}",) if place else ())
            for place in range(layers - 1)
        ),
        optimizers=(OptimizerInfo("SGD", {"lr": 0.1, "momentum": 0.9}, tuple(names)),),
        coverage=(NotCovered("attention", "fused", 1),),
        planned_steps=100,
        rules=settings_of(DEFAULT_RULES),
    )


def make_record(info, step, chance, *, ill):
    layers, sites = len(info.layers), len(info.sites)
    metrics = {name: 0.3 + 0.1 * chance.random(len(info.names(name))) for name in METRICS}
    metrics["update_ratio"] = np.full(layers, 1e-3)
    metrics["signal_norm"] = np.geomspace(1e-9 if ill else 0.5, 1.0, sites)
    metrics["dead_fraction"] = np.full(sites, 0.95 if ill and step % 2 else 0.0)
    return StepRecord(
        step=step,
        layout=info.layout,
        metrics=metrics,
        layer_state=np.full(layers, 5 if ill and step == 4 else 1, np.uint8),
        window_fill=np.ones(sites),
        forward_rms=np.ones(sites),
        loss=2.3,
        learning_rates=(0.1,),
        global_grad_norm=1.0,
    )


@cache
def sound(variety):
    """Return one of a few sound runs: healthy, ill, beside another program's events, with layers that are added."""
    ill, foreign, grows = bool(variety & 1), bool(variety & 2), bool(variety & 4)
    chance, live, records = np.random.default_rng(variety), Evaluator(DEFAULT_RULES), {}
    scalar = event_pb2.Event(wall_time=1.0, step=1)
    scalar.summary.value.add(tag="loss, as gradwatch sees it" if ill else "loss", simple_value=1.0)
    with tempfile.TemporaryDirectory() as folder, EventFile(folder) as file:
        starts, told = [0], ()
        for step in range(_STEPS[grows]):
            info = make_info(4 if grows and step > 3 else 3)
            record = make_record(info, step, chance, ill=ill)
            live.feed(record, info)
            records[step] = bits(record)
            events = [
                step_event(
                    record,
                    info,
                    describe=step == 0 or (grows and step == 4),
                    findings=live.findings if live.findings != told else None,
                    max_curves=64 if foreign else 0,
                )
            ]
            told = live.findings
            events += [scalar] * foreign
            events += [findings_event(live.findings, step=step)] * (step == _STEPS[grows] - 1)
            for event in events:
                starts.append(file.path.stat().st_size)
                file.write(event)
        return Sound(file.path.read_bytes(), starts, records)


VARIETIES = 8


def flip(chance, run):
    data = bytearray(run.data)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def cut(chance, run):
    data = run.data
    if chance.random() < 0.3:
        return data[: chance.randrange(len(data))]
    for _ in range(chance.choice([1, 1, 2, 3])):
        at, length = piece(chance, run, data)
        data = data[:at] + data[at + length :]
    return data


def splice(chance, run):
    data = run.data
    for _ in range(chance.choice([1, 1, 2, 3])):
        at, length = piece(chance, run, data)
        taken = data[at : at + length]
        other = sound(chance.randrange(VARIETIES)).data
        kind = chance.choice(["double", "move", "zero", "noise", "other", "over"])
        if kind == "move":
            data = data[:at] + data[at + length :]
        to, _ = piece(chance, run, data)
        start = chance.randrange(len(other))
        put = {
            "zero": bytes(len(taken)),
            "noise": chance.randbytes(len(taken)),
            "other": other[start : start + length],
        }.get(kind, taken)
        behind = to if kind in {"double", "move", "other"} else to + len(put)
        data = data[:to] + put + data[behind:]
    return data


def piece(chance, run, data):
    """Choose a stretch: a few bytes, whole frames, or what begins or ends at one."""
    frames = [start for start in run.starts if start <= len(data)] + [len(data)]
    at, end = sorted(chance.choice([chance.randrange(len(data) + 1), chance.choice(frames)]) for _ in range(2))
    return at, chance.choice([end - at, min(end - at, chance.choice([1, 4, 12, 100, 3000]))])


def framed(payload):
    header = struct.pack("<Q", len(payload))
    return header + struct.pack("<I", masked_crc32c(header)) + payload + struct.pack("<I", masked_crc32c(payload))


def checksum(chance, run):
    frames = [run.frame(place) for place in range(len(run.starts))]
    for _ in range(chance.choice([1, 1, 2])):
        place = chance.randrange(1, len(frames))
        payload = bytearray(frames[place][12:-4])
        for _ in range(chance.choice([1, 1, 1, 3])):
            at, kind = (
                chance.randrange(len(payload) + 1),
                chance.choice(["flip", "flip", "byte", "cut", "add", "end", "next"]),
            )
            if kind == "flip" and at < len(payload):
                payload[at] ^= 1 << chance.randrange(8)
            elif kind == "byte" and at < len(payload):
                payload[at] = chance.choice([0, 1, 0x0A, 0x7F, 0x80, 0xFF])
            elif kind == "cut":
                del payload[at : at + chance.choice([1, 3, 30])]
            elif kind == "add":
                payload[at:at] = chance.choice([b"\0", b"\n\0" * 50, chance.randbytes(9)])
            elif kind == "end":
                del payload[at:]
            elif kind == "next" and place + 1 < len(frames):  # a header that claims the next event too
                payload += frames[place][-4:] + frames[place + 1][: chance.choice([12, len(frames[place + 1]) - 4])]
                if chance.random() < 0.5:
                    frames[place + 1] = b""
        frames[place] = framed(bytes(payload))
    return b"".join(frames)


HOSTILE = (
    *(
        None,
        True,
        0,
        -1,
        1,
        255,
        2**31,
        2**53,
        2**63,
        -(2**63),
        10**30,
        10**400,
        0.0,
        -0.0,
        -1.5,
        1e-320,
        1e308,
        -1e308,
    ),
    *(
        float("nan"),
        float("inf"),
        -float("inf"),
        "",
        "GW101",
        "GW999",
        "nan",
        "x" * 5000,
        "\x1b[2J\n::error::",
        "\ud800",
    ),
    *([], {}, [[]], {"": 0}, [None], ["x"] * 300, [1e300] * 300, [[[[[[[[[]]]]]]]]]),
)
NUMBERS = (
    0.0,
    -0.0,
    -1.0,
    1e-320,
    -1e-300,
    1e-45,
    1e-9,
    0.5,
    1.0,
    2.0,
    1e10,
    1e38,
    1e154,
    -1e154,
    1e200,
    1e308,
    -1e308,
)


def seal(chance, run):
    frames = [run.frame(place) for place in range(len(run.starts))]
    for _ in range(chance.choice([1, 1, 1, 2, 12])):
        place = chance.randrange(1, len(frames))
        event = event_pb2.Event.FromString(frames[place][12:-4])
        if any(value.tag == STEP_TAG for value in event.summary.value):
            frames[place] = framed(resealed(chance, event))
    return b"".join(frames)


def resealed(chance, event):
    values = {value.tag: value for value in event.summary.value}
    envelope = values[STEP_TAG].tensor.string_val
    kind = chance.choice(["text", "text", "numbers", "numbers", "step", "tag", "size"])
    if kind == "text":
        texts = values[chance.choice([tag for tag in (RUN_TAG, STEP_TAG) if tag in values])].tensor.string_val
        data = json.loads(texts[0])
        for _ in range(chance.choice([1, 1, 2])):
            data = mutated(chance, data)
        texts[0] = json.dumps(data).encode()
    elif kind == "step" and isinstance(data := json.loads(envelope[0]), dict) and isinstance(data.get("record"), dict):
        event.step = data["record"]["step"] = chance.choice([0, 3, 7, 10**6, 2**62, 2**63 - 1])
        envelope[0] = json.dumps(data).encode()
    else:
        vectors = [value for value in event.summary.value if value.tensor.tensor_content]
        for value in chance.sample(vectors, min(len(vectors), chance.choice([1, 3, 20]))):
            count = len(value.tensor.tensor_content)
            if kind == "tag":
                value.tag = chance.choice([value.tag + "x", chance.choice(vectors).tag, "gradwatch/step", "x"])
            elif kind == "size":
                value.tensor.tensor_content = chance.randbytes(chance.choice([0, 1, 7, 8, 24, 800]))
            elif value.tensor.dtype == 2:
                value.tensor.tensor_content = np.array(chance.choices(NUMBERS, k=count // 8)).tobytes()
            else:
                value.tensor.tensor_content = chance.randbytes(count)
    ours = [value for value in event.summary.value if value.metadata.plugin_data.plugin_name == "gradwatch"]
    contents = {value.tag: content(value.tensor) for value in ours if value.tag != STEP_TAG}
    envelope[1] = _seal(envelope[0], contents)
    return event.SerializeToString()


def mutated(chance, data):
    """Replace, drop, rename or double one thing somewhere inside plain data."""
    if isinstance(data, dict) and data and chance.random() < 0.85:
        key = chance.choice(sorted(data))
        kind = chance.choice(["deeper", "deeper", "deeper", "drop", "rename"])
        rest = {name: value for name, value in data.items() if name != key}
        if kind == "deeper":
            return {**data, key: mutated(chance, data[key])}
        return rest if kind == "drop" else {**rest, key + "x": data[key]}
    if isinstance(data, list) and data and chance.random() < 0.85:
        place = chance.randrange(len(data))
        if chance.random() < 0.1:
            return [*data, *data[place:]] * chance.choice([1, 20])
        return [*data[:place], mutated(chance, data[place]), *data[place + 1 :]]
    return chance.choice(HOSTILE)


KINDS = {"flip": flip, "cut": cut, "splice": splice, "checksum": checksum, "seal": seal}


@dataclass
class Outcome:
    """What became of some files."""

    files: int = 0
    uncaught: int = 0
    slow: int = 0
    large: int = 0
    silent: int = 0
    differs: int = 0
    judged: int = 0
    told: int = 0
    longest: float = 0.0
    largest: float = 0.0
    notes: list[str] = field(default_factory=list)

    def add(self, other):
        for name, value in vars(other).items():
            mine = getattr(self, name)
            setattr(self, name, max(mine, value) if name in {"longest", "largest"} else mine + value)


def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def look(kind, number, seed, folder, most):
    """Make a file and see what becomes of it; `most` is the memory of a process, in MB, that is too much."""
    chance = random.Random(f"{seed}/{kind}/{number}")
    run = sound(chance.randrange(VARIETIES))
    data = KINDS[kind](chance, run)
    path = folder / "events.out.tfevents.1.fuzz"
    path.write_bytes(data)
    found = Outcome(files=1)
    before, start = megabytes(), time.process_time()
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, _HANGS)
        verdict, read = judged(path)
        render([verdict], _FORMATS[number % len(_FORMATS)]).encode("utf-8", "backslashreplace")
        found.longest = time.process_time() - start
        problems = [verdict.fault] if verdict.fault else []
    except Exception:  # noqa: BLE001 - that is what is looked for
        found.longest = time.process_time() - start
        problems, verdict, read = [traceback.format_exc()], None, None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    found.largest = megabytes()
    found.uncaught = bool(problems)
    found.slow = found.longest > SECONDS
    found.large = found.largest > max(most, before)
    if verdict is not None and not problems:
        if read is not None:
            found.judged, found.told = 1, bool(read.problems)
            lost = what_is_lost(kind, run, data, read)
            found.silent = bool(lost)
            problems += [f"silent: {lost}"] * bool(lost)
        differs = how_the_verdict_differs(read, verdict, folder, number)
        found.differs = bool(differs)
        problems += [f"verdict: {differs}"] * bool(differs)
    bad = problems + [f"{found.longest:.1f} s"] * found.slow + [f"{found.largest:.0f} MB"] * found.large
    found.notes = [f"{kind} {number}: {problem.strip()}" for problem in bad]
    return found


def judged(path):
    """Return the verdict on a file, and what was read of it for that."""
    read = []

    def keep(path):
        read.append(read_run(path))
        return read[-1]

    with mock.patch("lightning_gradwatch.judge.run.read_run", keep):
        verdict = judge(str(path), Settings())
    return verdict, read[-1] if read else None


def what_is_lost(kind, run, data, read):
    """Say which records aren't as they were written though nothing is told; of a sealed change, whether there are fewer."""
    if read.problems:
        wrong = [record.step for record in read.records if not is_written(record)] if kind != "seal" else []
        return f"read wrongly: {wrong}" if wrong else ""
    if run.data.startswith(data) and len(data) in run.starts:  # a run that ended there looks the same
        return ""
    steps = {record.step for record in read.records}
    if kind == "seal":
        missing = run.records.keys() - steps
        changed = steps - run.records.keys()
        return f"fewer records: {sorted(missing)}" if len(missing) > max(len(changed), _repeated(run, data)) else ""
    missing = sorted(run.records.keys() - steps)
    wrong = [record.step for record in read.records if not is_written(record)]
    return f"missing {missing}, read wrongly {wrong}" if missing or wrong else ""


def _repeated(run, data):
    """Return how many records of a hostile file say that they are of another's step, and take its place."""
    steps, at = [], 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
        if any(value.tag == STEP_TAG and b'"record"' in value.tensor.string_val[0] for value in event.summary.value):
            steps.append(event.step)
        at += 16 + length
    return len(steps) - len(set(steps))


@cache
def all_written():
    return frozenset(text for variety in range(VARIETIES) for text in sound(variety).records.values())


def is_written(record):
    return bits(record) in all_written()


def how_the_verdict_differs(read, verdict, folder, number):
    """Say how the verdict isn't that of the records as read; empty where it is."""
    if read is None:
        right = verdict.exit_code == 2 and verdict.failure
        return "" if right else f"exit {verdict.exit_code} of a file that can't be read"
    if (verdict.exit_code == 2) != bool(verdict.failure):
        return f"exit {verdict.exit_code}, {verdict.failure!r}"
    if number % _AGAIN or not (verdict.rules or not verdict.failure):
        return ""
    try:
        found = rewritten(read, folder) if number % _REWRITTEN == 0 else evaluate(read)
    except RunError:
        return "" if verdict.failure else "judged where judging fails"
    expected, given = (sorted(map(outline, findings)) for findings in (found, verdict.findings))
    ill = any(finding.severity >= Severity.WARNING for finding in found)
    if expected == given and (verdict.failure or verdict.exit_code == ill):
        return ""
    return f"exit {verdict.exit_code} with {given} where the records say {expected}"


def outline(finding):
    return finding.code, finding.severity.label, finding.layers, finding.first_step, finding.last_step


def rewritten(read, folder):
    """Write the records as they were read to a file of their own; return what is found there."""
    with tempfile.TemporaryDirectory(dir=folder) as clean:
        layout = None
        with EventFile(clean) as file:
            for record in read.records:
                info = replace(read.infos[record.layout], rules=read.info.rules)
                file.write(step_event(record, info, describe=record.layout != layout, max_curves=0))
                layout = record.layout
        again = read_run(clean)
        assert not again.problems
        return evaluate(replace(again, info=read.info))


def _hangs(*_):
    raise TimeoutError(f"more than {_HANGS} s")


def look_at_many(kind, numbers, seed, pipe=None):
    signal.signal(signal.SIGVTALRM, _hangs)
    outcome = Outcome()
    most = max(MEGABYTES, 2 * megabytes())  # within a suite of tests, other things have taken memory before
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            outcome.add(look(kind, number, seed, Path(folder), most))
    if pipe is not None:
        pipe.send(outcome)
    return outcome


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}; seed {arguments.seed}")
    print(f"{'kind':10}{'files':>9}{'uncaught':>10}{'> 1 s':>7}{'> 200 MB':>10}{'silent':>8}{'differs':>9}", end="")
    print(f"{'read':>9}{'told':>9}{'longest':>10}{'largest':>10}")
    bad = False
    context = multiprocessing.get_context("fork")
    for kind in arguments.kinds:
        total = Outcome()
        last = arguments.first + arguments.files
        for start in range(
            arguments.first, last, _CHUNK
        ):  # a process each: what one file takes must not hide another's
            receive, send = context.Pipe(duplex=False)
            numbers = range(start, min(start + _CHUNK, last))
            process = context.Process(target=look_at_many, args=(kind, numbers, arguments.seed, send))
            process.start()
            send.close()
            part = receive.recv()
            process.join()
            total.add(part)
            for note in part.notes[:10]:
                print(note, file=sys.stderr, flush=True)
            if sys.stderr.isatty():
                print(f"\r{kind} {total.files:,}", end="", file=sys.stderr, flush=True)
        print(
            f"{kind:10}{total.files:9,}{total.uncaught:10}{total.slow:7}{total.large:10}{total.silent:8}{total.differs:9}"
            f"{total.judged:9,}{total.told:9,}{total.longest:8.2f} s{total.largest:7.0f} MB",
            flush=True,
        )
        bad |= bool(total.uncaught or total.slow or total.large or total.silent or total.differs)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
