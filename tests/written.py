"""Runs made of numbers, written to event files: what a net would have left behind, without a net."""

from __future__ import annotations

import numpy as np

from lightning_gradwatch.judge.catalog import DEFAULT_RULES
from lightning_gradwatch.judge.selection import settings_of
from lightning_gradwatch.record.events.file import EventFile
from lightning_gradwatch.record.events.step_events import step_event
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, OptimizerInfo, SiteInfo, StepRecord


def make_info(depth=6, *, prefix="net.", function="sigmoid", rules=None):
    """A plain stack: Linear, function, …, Linear."""
    return RunInfo(
        layers=tuple(LayerInfo(f"{prefix}{2 * place}", "Linear", ((4, 4),), 16, weight=True) for place in range(depth)),
        sites=tuple(SiteInfo(f"{prefix}{2 * place + 1}", function, "hidden", 4) for place in range(depth - 1)),
        optimizers=(OptimizerInfo("SGD", {"lr": 0.1}),),
        rules=settings_of(DEFAULT_RULES) if rules is None else rules,
    )


def make_record(info, step, *, attenuation=0.5, noise=0.0, random=None, **changes):
    """A step: signal and gradient rise evenly from `attenuation` at the first column to 1 at the last."""
    random = random or np.random.default_rng(step)
    layers, sites = len(info.layers), len(info.sites)

    def around(values):
        return values * np.exp(noise * random.standard_normal(len(values)))

    norms = np.geomspace(attenuation, 1.0, layers)
    metrics = {
        "grad_norm": around(norms),
        "grad_rms": norms / 4,
        "weight_rms": np.ones(layers),
        "update_ratio": around(np.full(layers, 1e-3)),
        "dead_fraction": np.zeros(sites),
        "saturated_fraction": np.zeros(sites),
        "inactive_share": np.zeros(sites),
        "signal_norm": around(np.geomspace(attenuation, 1.0, sites)),
        "activation_gain": np.ones(sites),
        "weight_gain": np.ones(sites),
    }
    metrics |= {
        name: np.broadcast_to(changes.pop(name), len(metrics[name])) for name in list(changes) if name in metrics
    }
    values = {
        "step": step,
        "layout": info.layout,
        "layer_state": np.ones(layers, np.uint8),
        "window_fill": np.ones(sites),
        "forward_rms": np.ones(sites),
        "loss": 2.3,
        "learning_rates": (0.1,),
        "global_grad_norm": 1.0,
    }
    return StepRecord(metrics=metrics, **{**values, **changes})


def write_run(folder, info=None, *, steps=range(0, 60, 3), seed=0, **changes):
    """Write a run and return its folder as text, and its event file."""
    info = info or make_info()
    random = np.random.default_rng(seed)
    with EventFile(folder) as file:
        for place, step in enumerate(steps):
            record = make_record(info, step, random=random, **changes)
            file.write(step_event(record, info, describe=place == 0))
    return str(folder), file.path


def frames_of(path):
    """Return the frames of a file, the one of its version first."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        end = at + 16 + int.from_bytes(data[at : at + 8], "little")
        found.append(data[at:end])
        at = end
    return found
