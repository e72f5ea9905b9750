"""Time and size of one measured step in an event file: 160 layers and 160 sites, all ten metrics, twelve summaries."""

import argparse
import platform
import tempfile
import time
from pathlib import Path

import numpy as np

from lightning_gradwatch.judge.run import read_run
from lightning_gradwatch.record.events.file import EventFile, masked_crc32c
from lightning_gradwatch.record.events.step_events import step_event
from lightning_gradwatch.record.heatmap import heatmap_png
from lightning_gradwatch.record.metrics import METRICS
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, SiteInfo, StepRecord


def milliseconds(function, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", type=int, default=160, help="layers, and as many sites")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    count, repeats = arguments.columns, arguments.steps
    names = [f"transformer.blocks.{index // 4}.mlp.{index % 4}" for index in range(count)]
    info = RunInfo(
        layers=tuple(LayerInfo(name, "Linear", ((512, 512),), 512 * 512, weight=True) for name in names),
        sites=tuple(SiteInfo(f"{name}:relu", "relu", "hidden", 512) for name in names),
    )
    random = np.random.default_rng(0)

    def record(step):
        return StepRecord(
            step=step,
            layout=layout,
            metrics={name: random.random(count) for name in METRICS},
            layer_state=np.ones(count, np.uint8),
            window_fill=random.integers(0, 1025, count) / 1024,
            forward_rms=random.random(count, np.float32).astype(np.float64),
            loss=random.random(),
            learning_rates=(random.random(),),
            clip_factor=random.random(),
            global_grad_norm=random.random(),
        )

    layout = info.layout
    records = [record(step) for step in range(repeats)]
    rest = iter(records[1:])
    sample = step_event(records[0], info, describe=False)
    payload = sample.SerializeToString()
    curves = step_event(records[0], info, describe=False, max_curves=None)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, {count} layers and {count} sites, median of {repeats}"
    )
    print(f"bytes a step on disk        {len(payload) + 16:8d}")
    print(f"bytes with a curve each     {curves.ByteSize() + 16:8d}")
    print(
        f"encode                   ms {milliseconds(lambda: step_event(records[0], info, describe=False), repeats):8.2f}"
    )
    print(
        f"encode, with curves      ms {milliseconds(lambda: step_event(records[0], info, describe=False, max_curves=None), repeats):8.2f}"
    )
    print(f"encode, with description ms {milliseconds(lambda: step_event(records[0], info, describe=True), 20):8.2f}")
    print(f"checksum of the data     ms {milliseconds(lambda: masked_crc32c(payload), repeats):8.2f}")
    with tempfile.TemporaryDirectory() as folder:
        with EventFile(folder) as file:
            file.write(step_event(records[0], info, describe=True))
            total = milliseconds(lambda: file.write(step_event(next(rest), info, describe=False)), repeats - 1)
        print(f"encode and write         ms {total:8.2f}")
        start = time.perf_counter()
        run = read_run(Path(folder))
        print(f"read {repeats} steps back   ms {1e3 * (time.perf_counter() - start):8.2f}")
    steps, values = run.series("grad_norm")
    start = time.perf_counter()
    png = heatmap_png(steps, values, run.names("grad_norm"), "Gradient norm by layer")
    print(f"heatmap                  ms {1e3 * (time.perf_counter() - start):8.2f}   {len(png)} bytes")


if __name__ == "__main__":
    main()
