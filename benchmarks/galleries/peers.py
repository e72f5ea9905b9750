"""Reads, in the same training, what the rules of other detectors need; `peer_rules` judges by it.

They are given more than their own tools would take: a reading every fortieth of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pathlib import Path

_READINGS = 40
_NEAR_ZERO = 1e-6
_BINS = 10
_RANGES = {"Sigmoid": (0.0, 1.0), "Tanh": (-1.0, 1.0)}
"""Output ranges, which the bimodality of a histogram is scaled by."""

LAYER_READINGS = ("kernel_norm", "mean_gradient", "zero_gradients", "non_finite", "predicted_update", "measured_update")
SITE_READINGS = (
    "not_positive",
    "far",
    "mean_output",
    "near_zero",
    "bimodality",
    "sagemaker_flat",
    "silent_units",
    "idle_units",
)
RUN_READINGS = ("step", "score")


@dataclass
class Readings:
    """What was read: float arrays, one row a reading; layers and sites in the order of their modules."""

    layers: dict[str, np.ndarray]
    sites: dict[str, np.ndarray]
    runs: dict[str, np.ndarray]

    def save(self, path: Path) -> None:
        """Write all of it to one file."""
        np.savez_compressed(path, **self.layers, **self.sites, **self.runs)

    @classmethod
    def load(cls, path: Path) -> Readings:
        """Read what `save` wrote."""
        with np.load(path) as stored:
            parts = [{name: stored[name] for name in names} for names in (LAYER_READINGS, SITE_READINGS, RUN_READINGS)]
        return cls(*parts)


@dataclass
class _Kept:
    """Readings under way."""

    layers: dict[str, list[list[float]]] = field(default_factory=lambda: {name: [] for name in LAYER_READINGS})
    sites: dict[str, list[list[float]]] = field(default_factory=lambda: {name: [] for name in SITE_READINGS})
    runs: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in RUN_READINGS})


class PeerWatch(pl.Callback):
    """Reads layers that own a matrix, and activation functions that are modules."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._every = max(1, steps // _READINGS)
        self._kept = _Kept()
        self._handles: list[Any] = []
        self._outputs: Tensor | None = None
        self._before: dict[Tensor, Tensor] = {}
        self._gradients: dict[Tensor, dict[str, float]] = {}
        self._of_sites: dict[nn.Module, dict[str, float]] = {}
        self._weights: list[Tensor] = []
        """Those that train from the start, as what is thawed later would make rows of another length."""
        self._reads = False
        self._step = -1

    @property
    def readings(self) -> Readings:
        """What was read so far."""
        return Readings(*({name: np.array(rows) for name, rows in part.items()} for part in vars(self._kept).values()))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        self._reads = step % self._every == 0 and (not self._kept.runs["step"] or self._kept.runs["step"][-1] != step)
        if not self._reads:
            return
        self._step = step
        self._weights = self._weights or layer_weights(pl_module)
        self._of_sites = {}
        self._before, self._gradients = {}, {}
        self._handles = [site.register_forward_hook(self._read_site) for site in sites(pl_module)]
        if hasattr(pl_module, "net"):
            self._handles.append(pl_module.net.register_forward_hook(self._keep_outputs))

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        if not self._reads:
            return
        group = optimizer.param_groups[0]
        of_optimizer = set(group["params"])
        for weight in self._weights:
            if weight in of_optimizer:
                # The first of them: LBFGS asks for the gradient several times a step.
                self._before.setdefault(weight, weight.detach().clone())
                self._gradients[weight] = _read_gradient(weight, group["lr"])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if not self._reads or not self._before:
            return
        for weight, then in self._before.items():
            self._gradients[weight]["measured_update"] = _quotient((weight - then).abs().mean(), then.abs().mean())
        for name in LAYER_READINGS:
            # An optimizer that didn't step leaves NaN.
            self._kept.layers[name].append(
                [self._gradients.get(weight, {}).get(name, np.nan) for weight in self._weights]
            )
        for name in SITE_READINGS:
            rows = [self._of_sites.get(site, {}).get(name, np.nan) for site in sites(pl_module)]
            self._kept.sites[name].append(rows)
        self._kept.runs["step"].append(self._step)
        self._kept.runs["score"].append(self._score(batch[1]))

    def _keep_outputs(self, module: nn.Module, arguments: Any, outputs: Tensor) -> None:
        self._outputs = outputs.detach().float()

    @torch.no_grad()
    def _read_site(self, module: nn.Module, arguments: tuple[Tensor, ...], outputs: Tensor) -> None:
        self._of_sites[module] = _read_activation(type(module).__name__, arguments[0].float(), outputs.float())

    def _score(self, targets: Tensor) -> float:
        """Return the batch's accuracy; NaN where there are no classes."""
        if self._outputs is None or targets.is_floating_point() or self._outputs.shape[1] == 1:
            return np.nan
        return float((self._outputs.argmax(1) == targets).float().mean())


def layer_weights(module: nn.Module) -> list[Tensor]:
    """Return the trained matrices, in the order of their modules; norms and embeddings are left out."""
    return [
        parameter
        for part in module.modules()
        if not isinstance(part, nn.Embedding)
        for parameter in part.parameters(recurse=False)
        if parameter.dim() > 1 and parameter.requires_grad
    ]


def sites(module: nn.Module) -> list[nn.Module]:
    """Return the activation functions that are modules, Softmax left out."""
    home = "torch.nn.modules.activation"
    left_out = (nn.Softmax, nn.LogSoftmax, nn.MultiheadAttention)
    return [part for part in module.modules() if type(part).__module__ == home and not isinstance(part, left_out)]


def _read_gradient(weight: Tensor, rate: float) -> dict[str, float]:
    gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
    gradient = gradient.double()
    mean = gradient.abs().mean()
    return {
        "kernel_norm": float(gradient.norm()),
        "mean_gradient": float(mean),
        "zero_gradients": float((gradient == 0).double().mean()),
        "non_finite": float(not gradient.isfinite().all()),
        "predicted_update": _quotient(rate * mean, weight.abs().mean()),
    }


def _read_activation(function: str, z: Tensor, a: Tensor) -> dict[str, float]:
    units = a.movedim(1, -1).flatten(0, -2) if a.dim() == 4 else a.flatten(0, -2)
    low, high = (-9.5, 9.5) if function == "Tanh" else (-23.0, 17.0)
    bounded = function in _RANGES
    high_outputs = torch.quantile(units.abs(), 0.95, dim=0)
    return {
        "not_positive": float((a <= 0).float().mean()),
        "far": float((z.abs() >= 5).float().mean()),
        "mean_output": float(a.abs().mean()),
        "near_zero": float((a.abs() < _NEAR_ZERO).float().mean()),
        "bimodality": _bimodality(a, *_RANGES[function]) if bounded else np.nan,
        "sagemaker_flat": float(((z < low) | (z > high)).float().mean()) if bounded else np.nan,
        "silent_units": float(((units > 0).float().mean(0) < 0.01).float().mean()),
        "idle_units": float((high_outputs < 1e-5).float().mean()),
    }


def _bimodality(a: Tensor, low: float, high: float) -> float:
    """Return the mean distance from the middle of the range, over the bins of a histogram: 1 where all are at an end."""
    scaled = (2 * (a.flatten() - low) / (high - low) - 1).clamp(-1, 1)
    bins = ((scaled + 1) / 2 * _BINS).long().clamp(max=_BINS - 1)
    sums = torch.zeros(_BINS, dtype=scaled.dtype).index_add_(0, bins, scaled)
    return float(sums.abs().sum() / scaled.numel())


def _quotient(value: Tensor, by: Tensor) -> float:
    return float(value / by) if by else np.nan
