"""The description of a run, as far as the model and its optimizers tell it."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata
from typing import TYPE_CHECKING

import torch

from lightning_gradwatch.measure.coverage import not_covered
from lightning_gradwatch.measure.model.path import is_matrix
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import OptimizerInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from torch.optim import Optimizer

    from lightning_gradwatch.measure.model.layers import Layers
    from lightning_gradwatch.measure.model.sites import Sites
    from lightning_gradwatch.measure.trace.uncovered import Uncovered
    from lightning_gradwatch.measure.wiring.facts import Facts


def describe(
    model: nn.Module,
    layers: Layers,
    sites: Sites,
    optimizers: Sequence[Optimizer],
    unseen: Uncovered,
    *,
    facts: Facts,
    estimated: bool,
    eager: bool,
) -> RunInfo:
    """Describe what was seen of a run so far; the arguments are those of `not_covered`, the sites, and what is known of the wiring."""
    seen = any(layer.used for layer in layers.ordered)
    return RunInfo(
        layers=tuple(layer.info(column, seen=seen) for column, layer in enumerate(layers.ordered)),
        sites=sites.infos(),
        optimizers=tuple(_describe_optimizer(optimizer, layers) for optimizer in optimizers),
        coverage=tuple(not_covered(model, layers, sites, optimizers, unseen, estimated=estimated, eager=eager)),
        wiring=facts.described(),
        versions=_versions(),
    )


def _describe_optimizer(optimizer: Optimizer, layers: Layers) -> OptimizerInfo:
    rates: dict[str, float] = {}
    decays: dict[str, float] = {}
    usual = optimizer.defaults.get("weight_decay", 0.0)
    for group in optimizer.param_groups:
        rate = float(group.get("lr", 0.0))
        decay = group.get("weight_decay", 0.0)
        for parameter in group["params"]:
            owner = layers.owner(parameter)
            if owner is not None and owner.parameters:
                rates[owner.name] = max(rates.get(owner.name, 0.0), rate)
                if is_matrix(parameter):
                    decays[owner.name] = max(decays.get(owner.name, 0.0), float(decay))
    largest = max(rates.values(), default=0.0)
    alike = all(rate == largest for rate in rates.values())
    return OptimizerInfo(
        name=type(optimizer).__name__,
        settings={
            key: value for key, value in optimizer.defaults.items() if isinstance(value, (bool, int, float, str))
        },
        layers=tuple(rates),
        rates=() if alike else tuple(rate / largest for rate in rates.values()),
        decays=() if set(decays.values()) <= {usual} else tuple(decays.get(name, 0.0) for name in rates),
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("lightning-gradwatch", "lightning", "pytorch-lightning"):
        # Each is in a file: where none can be opened any more, the run is measured all the same.
        with contextlib.suppress(metadata.PackageNotFoundError, OSError):
            found[name] = metadata.version(name)
    return found
