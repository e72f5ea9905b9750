"""What is left of a run whose process is killed, or whose disk fills up: real processes, real signals, real limits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from background import LISTENS_TO_CTRL_C

from lightning_gradwatch import read_run

pytestmark = pytest.mark.slow

TRAIN = """
import sys, warnings
warnings.filterwarnings("ignore")
import pytorch_lightning as pl
from integration.nets import Classifier, batches, trainer
from lightning_gradwatch import GradWatch

class Tells(pl.Callback):
    def on_train_batch_end(self, trainer, module, *args):
        print("step", trainer.global_step, flush=True)

folder, own, steps = sys.argv[1], sys.argv[2] == "own", int(sys.argv[3])
logger = False if own else pl.loggers.TensorBoardLogger(folder, name="", version="tb")
{before}
watch = GradWatch(every_n_steps=1)
trainer(folder, watch, Tells(), max_steps=steps, logger=logger).fit(Classifier(), batches())
print("records", len(watch.records))
print("coverage", *(entry.reason for entry in watch.coverage))
"""


def start(folder, kind, *, steps, before=""):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
        "PYTHONUNBUFFERED": "1",
    }
    program = textwrap.dedent(TRAIN).format(before=before)
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, str(folder), kind, str(steps)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def run_folder(folder, kind):
    return folder / "tb" if kind == "logger" else folder / "gradwatch" / "version_0"


@pytest.mark.parametrize("kind", ["own", "logger"])
def test_a_killed_run_is_read_back_but_for_its_last_records(kind, tmp_path):
    """SIGKILL runs no handler: what the operating system has is what there is."""
    process = start(tmp_path, kind, steps=100_000)
    try:
        reached = 0
        for line in process.stdout:
            word, _, number = line.partition(" ")
            reached = int(number) if word == "step" else reached
            if reached >= 60:
                break
        assert reached >= 60
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    finally:
        process.kill()
        process.communicate(timeout=30)
    run = read_run(run_folder(tmp_path, kind))
    steps = [record.step for record in run.records]
    assert steps == list(range(len(steps)))
    assert len(steps) >= reached - 20
    assert run.info is not None
    assert len(run.problems) <= 1  # a record that was cut in two


WRITE = """
import sys, time
from lightning_gradwatch.record.events.file import EventFile, write_to
from lightning_gradwatch.record.events.step_events import step_event
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from written import make_info, make_record

class Writer:
    def __init__(self, folder):
        self.writer = EventFileWriter(folder)
    def get_logdir(self):
        return self.writer.get_logdir()
    def add_event(self, event, step=None, walltime=None):
        self.writer.add_event(event)

folder, own, info = sys.argv[1], sys.argv[2] == "own", make_info(30)
file = EventFile(folder) if own else Writer(folder)
for step in range(1_000_000):
    event = step_event(make_record(info, step), info, describe=step == 0)
    if own:
        file.write(event)
    else:
        write_to(file, event)
        file.writer.flush()
    print("written", step, flush=True)
"""


@pytest.mark.parametrize("kind", ["own", "logger"])
@pytest.mark.parametrize("seed", range(int(os.environ.get("KILLS", "3"))))
def test_what_had_been_written_when_a_process_is_killed_is_read(kind, seed, tmp_path):
    """At a random moment of its writing; KILLS=20 asks for more of them."""
    last = random.Random(f"{kind}{seed}").randrange(60)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", WRITE, str(tmp_path), kind],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    told = -1
    for line in process.stdout:
        told = int(line.split()[1])
        if told >= last:
            process.kill()
            break
    rest = process.communicate(timeout=60)[0].split("\n")  # what it wrote while the signal was under way
    told = max([told, *(int(line.split()[1]) for line in rest[:-1])])
    run = read_run(tmp_path)
    steps = [record.step for record in run.records]
    assert steps == list(range(len(steps)))
    assert len(steps) > told >= last
    assert all("still being written" in problem for problem in run.problems)
    assert run.records[-1].metrics["grad_norm"].shape == (30,)


LIMIT = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
"""


def test_a_file_that_may_not_grow_any_more_ends_the_writing_and_not_the_run(tmp_path):
    """A limit on the size of files fails a real write in the middle, as a full disk does."""
    process = start(tmp_path, "own", steps=80, before=LIMIT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "step 80" in out
    assert "records 80" in out
    assert "writing switched off" in out
    run = read_run(run_folder(tmp_path, "own"))
    steps = [record.step for record in run.records]
    assert 5 < len(steps) < 80
    assert steps == list(range(len(steps)))


def test_an_interrupted_run_is_complete(tmp_path):
    """Ctrl-C: Lightning ends the fit, and the file with it."""
    process = start(tmp_path, "own", steps=100_000, before=LISTENS_TO_CTRL_C)
    try:
        for line in process.stdout:
            if line.startswith("step 3"):
                break
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 60
        process.communicate(timeout=max(1.0, deadline - time.monotonic()))
    finally:
        process.kill()
    run = read_run(run_folder(tmp_path, "own"))
    assert run.problems == ()
    assert len(run.records) >= 3
