"""Runs of two layers, written record by record: what is damaged or cut off of them is known to the byte."""

from __future__ import annotations

import numpy as np

from lightning_gradwatch.record.events.file import EventFile
from lightning_gradwatch.record.events.step_events import step_event
from lightning_gradwatch.record.metrics import METRICS, is_over_layers
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, SiteInfo, StepRecord


def make_info(layers=2, sites=1, first=0):
    return RunInfo(
        layers=tuple(LayerInfo(f"net.{2 * i}", "Linear", ((4, 4),), 16, weight=True) for i in range(first, layers)),
        sites=tuple(SiteInfo(f"net.{2 * i + 1}", "relu", "hidden", 4) for i in range(sites)),
    )


def make_record(info, step, fill=0.0):
    layers, sites = len(info.layers), len(info.sites)
    return StepRecord(
        step=step,
        layout=info.layout,
        metrics={name: np.full(layers if is_over_layers(name) else sites, fill + step) for name in METRICS},
        layer_state=np.ones(layers, np.uint8),
        window_fill=np.ones(sites),
        forward_rms=np.ones(sites),
    )


def write(folder, steps=(0, 1, 2), *, info=None, fill=0.0):
    """Write a run and return the file and where each record starts in it."""
    info = info or make_info()
    starts = []
    with EventFile(folder) as file:
        for number, step in enumerate(steps):
            starts.append(file.path.stat().st_size)
            file.write(step_event(make_record(info, step, fill), info, describe=number == 0, max_curves=0))
    return file.path, starts


def steps_of(run):
    return [record.step for record in run.records]
