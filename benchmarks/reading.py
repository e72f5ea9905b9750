"""What checking a stored run costs: time and peak memory, beside TensorBoard's `EventAccumulator` on the same file.

    python benchmarks/reading.py [--full]

Runs of 160 layers and 160 sites with all ten metrics; a healthy one, and an ill one in which five rules fire at every
step. Each figure is of a fresh process, its start-up included; where other programs run beside it, the time that it was
busy says more. `--full` writes 10,000 steps and 1 GB of foreign events; the default is a tenth of it.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2

from lightning_gradwatch.judge.catalog import DEFAULT_RULES
from lightning_gradwatch.judge.selection import settings_of
from lightning_gradwatch.record.events.file import EventFile
from lightning_gradwatch.record.events.step_events import step_event
from lightning_gradwatch.record.metrics import METRICS
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, OptimizerInfo, SiteInfo, StepRecord

COLUMNS = 160
CHECK = "import sys; from lightning_gradwatch.cli.command import main; sys.exit(main(['check', '--no-config', sys.argv[1]]))"
STOCK = (
    "import sys; from tensorboard.backend.event_processing.event_accumulator import EventAccumulator as A; "
    "A(sys.argv[1], size_guidance={'tensors': 0, 'scalars': 0, 'images': 1}).Reload()"
)


def make_info():
    names = [f"transformer.blocks.{place // 4}.mlp.{place % 4}" for place in range(COLUMNS)]
    return RunInfo(
        layers=tuple(LayerInfo(name, "Linear", ((512, 512),), 512 * 512, weight=True) for name in names),
        sites=tuple(SiteInfo(f"{name}:relu", "relu", "hidden", 512) for name in names),
        optimizers=(OptimizerInfo("SGD", {"lr": 0.1}, tuple(names)),),
        rules=settings_of(DEFAULT_RULES),
    )


def make_record(info, step, random, *, ill):
    metrics = {name: 0.3 * random.random(COLUMNS) for name in METRICS}
    metrics["signal_norm"] = np.geomspace(1e-30 if ill else 0.5, 1.0, COLUMNS) * (0.5 + random.random(COLUMNS))
    metrics["update_ratio"] = (0.5 + random.random(COLUMNS)) * (0.3 if ill else 1e-3)
    if ill:
        metrics["dead_fraction"] = np.where(np.arange(COLUMNS) % 2, 0.95, 0.0)
        metrics["saturated_fraction"] = np.where(np.arange(COLUMNS) % 2, 0.0, 0.9)
    return StepRecord(
        step=step,
        layout=info.layout,
        metrics=metrics,
        layer_state=np.where(np.arange(COLUMNS) < 20 * ill, 3, 1).astype(np.uint8),
        window_fill=np.ones(COLUMNS),
        forward_rms=random.random(COLUMNS, np.float32).astype(np.float64),
        loss=2.3,
        learning_rates=(0.1,),
        global_grad_norm=1.0,
    )


def write(folder, steps, foreign_bytes=0, *, ill=False):
    """Write a run, and behind it foreign images and scalars of so many bytes in all."""
    info, random = make_info(), np.random.default_rng(0)
    image = event_pb2.Event(wall_time=1.0, step=1)
    image.summary.value.add(tag="samples", image=summary_pb2.Summary.Image(encoded_image_string=os.urandom(500_000)))
    scalar = event_pb2.Event(wall_time=1.0, step=1)
    scalar.summary.value.add(tag="train/loss", simple_value=1.0)
    with EventFile(folder) as file:
        path = file.path
        for step in range(steps):
            file.write(step_event(make_record(info, step, random, ill=ill), info, describe=step == 0, max_curves=0))
    if foreign_bytes:
        frames = []
        for event in (image, scalar):
            with EventFile(Path(folder) / "frames") as file:
                start = file.path.stat().st_size
                file.write(event)
            frames.append(file.path.read_bytes()[start:])
            file.path.unlink()
        (Path(folder) / "frames").rmdir()
        with path.open("ab") as out:
            for _ in range(foreign_bytes // (len(frames[0]) + 1000 * len(frames[1]))):
                out.write(frames[0] + 1000 * frames[1])
    return path.stat().st_size


def measure(program, folder):
    """Return seconds, seconds of processor time and MB of a fresh process."""
    reader, writer = os.pipe()
    before, start = os.times(), time.perf_counter()
    wrapped = (
        "import resource, os, sys, atexit\n"
        f"atexit.register(lambda: os.write({writer}, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).encode()))\n"
        f"{program}"
    )
    subprocess.run(
        [sys.executable, "-c", wrapped, str(folder)], pass_fds=(writer,), stdout=subprocess.DEVNULL, check=False
    )
    seconds, after = time.perf_counter() - start, os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    os.close(writer)
    peak = int(os.read(reader, 32) or b"0")
    os.close(reader)
    return seconds, busy, peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="10,000 steps and 1 GB of foreign events")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many is printed")
    parser.add_argument("--no-stock", action="store_true", help="leave EventAccumulator out")
    arguments = parser.parse_args()
    steps, foreign = (10_000, 1_000_000_000) if arguments.full else (1_000, 100_000_000)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {steps} steps of 160 + 160"
    )
    with tempfile.TemporaryDirectory() as root:
        for name, size, ill in (("healthy", 0, False), ("ill", 0, True), ("healthy, foreign", foreign, False)):
            folder = Path(root) / name.replace(", ", "_")
            written = write(folder, steps, size, ill=ill)
            programs = {"gradwatch check": CHECK} | ({} if arguments.no_stock else {"EventAccumulator": STOCK})
            for label, program in programs.items():
                figures = [measure(program, folder) for _ in range(arguments.repeats if program is CHECK else 1)]
                seconds, busy, megabytes = map(min, zip(*figures, strict=True))
                print(
                    f"{name:18} {written / 1e6:7.0f} MB  {label:18} {seconds:7.2f} s ({busy:.2f} s busy)  {megabytes:6.0f} MB peak",
                    flush=True,
                )


if __name__ == "__main__":
    main()
