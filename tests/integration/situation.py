"""A situation: one way to train, as a row of a table that every test of the monitor's promises runs over."""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from integration.captures import Captures
from integration.nets import batches, seed, trainer
from integration.traces import TracesEachBatch, traces
from torch._dynamo.utils import counters

from lightning_gradwatch import GradWatch, GradWatchWarning, LayerState
from lightning_gradwatch.measure import faults

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pytorch_lightning as pl

STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Situation:
    """One way to train, and what the monitor is to say of it."""

    make: Callable[[], pl.LightningModule]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The Trainer's arguments; a function is called for each fit, as for plugins and callbacks."""
    data: Callable[[], Any] = lambda: batches(3, shuffle=True)
    watch: Mapping[str, Any] = field(default_factory=dict)
    """GradWatch's arguments."""
    steps: int | None = STEPS
    """Batches that step, each of which is measured; None: not counted."""
    records: int | None = None
    """Measured steps; None: as many as `steps`."""
    sites: Sequence[str] = ()
    """Names of the activation sites, in order."""
    uncovered: Mapping[str, str] = field(default_factory=dict)
    """By name, what the reason must say; nothing else may be there."""
    states: Mapping[str, Sequence[LayerState]] = field(default_factory=dict)
    """Layers that aren't always OK, with all the states they go through."""
    zeros: Sequence[str] = ()
    """Metrics that are 0 where nothing else is right."""
    tolerance: float = 1e-6
    """Relative, of gradient norms against the reference."""
    compared: bool = True
    """Whether the reference in Lightning's hooks applies."""
    compiles: bool = False
    """Whether something is compiled, which takes long."""


@dataclass(frozen=True)
class Fitted:
    """All that a fit can leave or say."""

    end: Mapping[str, Any]
    """Weights, buffers, optimizer state, gradients, random generators, what was logged."""
    traces: Mapping[str, Any]
    between: Sequence[Mapping[str, Any]]
    """The traces at the start of each batch."""
    captures: Captures
    warned: Sequence[tuple[type[Warning], str]]
    trainer: pl.Trainer
    module: pl.LightningModule
    graphs: int
    """How many were compiled."""
    breaks: int
    """Where a graph had to end early."""


@dataclass(frozen=True)
class Pair:
    """One situation, without the monitor and with it."""

    name: str
    situation: Situation
    without: Fitted
    watched: Fitted
    watch: GradWatch


def fit(situation: Situation, folder: Any, *watch: GradWatch) -> Fitted:
    if situation.compiles:
        torch._dynamo.reset()
    counters.clear()
    seed()
    settings = {key: value() if callable(value) else value for key, value in situation.settings.items()}
    callbacks = settings.pop("callbacks", [])
    settings = {"log_every_n_steps": 1} | settings
    if not settings.keys() & {"max_steps", "max_epochs", "fast_dev_run", "min_epochs"}:
        settings["max_steps"] = STEPS
    whole = situation.make()
    module = getattr(whole, "_orig_mod", whole)
    looks, captures = TracesEachBatch(), Captures()
    with warnings.catch_warnings(record=True) as caught, pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("always")
        patch.setattr(faults, "RAISE", True)
        folder.mkdir()
        patch.chdir(folder)  # where loggers that are told "." write
        run = trainer(folder, looks, captures, *watch, *callbacks, **settings)
        run.fit(whole, situation.data())
    stepped = run.fit_loop.epoch_loop._batches_that_stepped
    assert situation.steps in (None, stepped), stepped
    return Fitted(
        end=end_of(run, module),
        traces=traces(run, module),
        between=looks.seen,
        captures=captures,
        warned=[(entry.category, str(entry.message)) for entry in caught],
        trainer=run,
        module=module,
        graphs=counters["stats"]["unique_graphs"],
        breaks=sum(counters["graph_break"].values()),
    )


def fit_both(name: str, situation: Situation, folder: Any) -> Pair:
    without = fit(situation, folder / "without")
    watch = GradWatch(**{"every_n_steps": 1, **situation.watch})
    return Pair(name, situation, without, fit(situation, folder / "with", watch), watch)


def end_of(run, module):
    return {
        "weights": module.state_dict(),
        "gradients": [parameter.grad for parameter in module.parameters()],
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - as in nets.seed
        "python": random.getstate(),
        "logged": {name: value for name, value in run.logged_metrics.items() if not name.startswith("gradwatch")},
    }


def as_bytes(tensor):
    """As bytes NaN equals NaN, and 0 isn't -0."""
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def differences(one, other, where=""):
    """Yield where two nested structures aren't equal bit for bit."""
    if isinstance(one, (dict, list, tuple)):
        left, right = (dict(each) if isinstance(each, dict) else dict(enumerate(each)) for each in (one, other))
        if left.keys() != right.keys():
            yield where
        for key in left.keys() & right.keys():
            yield from differences(left[key], right[key], f"{where}/{key}")
    elif isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(as_bytes(one), as_bytes(other)):
            yield where
    elif not np.array_equal(one, other):
        yield where


def ours(warned):
    return [text for category, text in warned if issubclass(category, GradWatchWarning)]


def others(warned):
    return sorted(text for category, text in warned if not issubclass(category, GradWatchWarning))
