"""From a step's numbers, once they are on the host, to its record. numpy only from here on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.measure.gradients import Gradient, combined_norm, entries_with_gradient, layer_state
from lightning_gradwatch.measure.updates import Move, rms_and_ratio
from lightning_gradwatch.record import FloatVector, LayerState, StepRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lightning_gradwatch.measure.collect import SiteSlots
    from lightning_gradwatch.measure.layers import Layer
    from lightning_gradwatch.measure.sites import Site
    from lightning_gradwatch.measure.step import Measured
    from lightning_gradwatch.measure.windows import Window


@dataclass(frozen=True)
class StepFacts:
    """What the training loop knows of a step and no tensor says."""

    step: int = 0
    batch_idx: int = 0
    partial: bool = False
    world_size: int = 1
    optimizers: int = 1
    """How many optimizers the run has."""


@dataclass
class Columns:
    """The layers and sites as they were when the step ended."""

    layout: str
    layers: Sequence[Layer]
    sites: Sequence[Site]
    windows: Mapping[Site, Window] = field(default_factory=dict)


def fill_windows(measured: Measured, values: list[FloatVector], windows: Mapping[Site, Window]) -> None:
    """Add a step's counts to the windows of its sites."""
    for slots in measured.slots:
        chunk = slots.chunk(values)
        if chunk is not None and slots.site in windows:
            windows[slots.site].add(chunk)


def assemble(measured: Measured, values: list[FloatVector], columns: Columns, facts: StepFacts) -> StepRecord:
    """Build the record of a step; the windows must hold the step already."""
    gradients: dict[int, Gradient] = {}
    clipped: dict[int, Gradient] = {}
    held: set[int] = set()
    weights: dict[str, list[Move]] = {}
    for step in measured.steps.values():
        if step.gradients is not None:
            gradients.update(step.gradients.read(values))
            held.update(id(parameter) for parameter in step.gradients.parameters)
        if step.clipped is not None:
            clipped.update(step.clipped.read(values))
        if step.snapshot is not None:
            for name, move in step.snapshot.read(values):
                weights.setdefault(name, []).append(move)
    layer_metrics, states = _layer_metrics(columns.layers, gradients, held, weights)
    by_site = {slots.site: slots for slots in measured.slots}
    scale = 1.0 if measured.scale is None else float(values[measured.scale][0])
    total = math.hypot(*(gradient.norm for gradient in gradients.values())) if gradients else float("nan")
    after = math.hypot(*(gradient.norm for gradient in clipped.values())) if clipped else float("nan")
    return StepRecord(
        step=facts.step,
        layout=columns.layout,
        metrics={**layer_metrics, **_site_metrics(columns, by_site, values, scale)},
        layer_state=states,
        window_fill=np.array(
            [columns.windows[site].fill if site in columns.windows else np.nan for site in columns.sites]
        ),
        forward_rms=_by_site(columns.sites, by_site, lambda slots: slots.forward_rms(values))
        .astype(np.float32)
        .astype(np.float64),
        batch_idx=facts.batch_idx,
        optimizers=tuple(sorted(index for index, step in measured.steps.items() if step.done)),
        loss=math.fsum(float(values[slot][0]) for slot in measured.losses)
        if measured.losses and facts.optimizers == 1
        else float("nan"),
        learning_rates=tuple(
            measured.steps[index].learning_rate if index in measured.steps else float("nan")
            for index in range(facts.optimizers)
        ),
        gradient_scale=scale,
        skipped=any(not step.done for step in measured.steps.values()),
        partial=facts.partial,
        clip_factor=after / total if total > 0 else float("nan"),
        global_grad_norm=total,
        world_size=facts.world_size,
    )


def _layer_metrics(
    layers: Sequence[Layer],
    gradients: dict[int, Gradient],
    held: set[int],
    weights: Mapping[str, Sequence[Move]],
) -> tuple[dict[str, FloatVector], npt.NDArray[np.uint8]]:
    states = np.array([layer_state(layer, gradients, held) for layer in layers], dtype=np.uint8)
    norms = np.full(len(layers), np.nan)
    rms = np.full(len(layers), np.nan)
    weight_rms = np.full(len(layers), np.nan)
    ratios = np.full(len(layers), np.nan)
    for column, layer in enumerate(layers):
        if states[column] not in (LayerState.UNMEASURED, LayerState.FROZEN):
            norms[column] = combined_norm(layer.parameters, gradients)
            matrices = layer.matrices
            entries = entries_with_gradient(matrices, gradients)
            if entries:
                rms[column] = combined_norm(matrices, gradients) / math.sqrt(entries)
        if layer.name in weights:
            weight_rms[column], ratios[column] = rms_and_ratio(weights[layer.name])
    return {"grad_norm": norms, "grad_rms": rms, "weight_rms": weight_rms, "update_ratio": ratios}, states


def _site_metrics(
    columns: Columns, by_site: Mapping[Site, SiteSlots], values: list[FloatVector], scale: float
) -> dict[str, FloatVector]:
    windows = [columns.windows.get(site) for site in columns.sites]
    return {
        "dead_fraction": np.array([np.nan if window is None else window.dead_fraction() for window in windows]),
        "saturated_fraction": np.array(
            [np.nan if window is None else window.saturated_fraction() for window in windows]
        ),
        "inactive_share": _by_site(columns.sites, by_site, lambda slots: slots.inactive_share(values)),
        "signal_norm": _by_site(columns.sites, by_site, lambda slots: slots.signal_norm(values) / scale),
    }


def _by_site(
    sites: Sequence[Site], by_site: Mapping[Site, SiteSlots], measure: Callable[[SiteSlots], float]
) -> FloatVector:
    return np.array([measure(by_site[site]) if site in by_site else np.nan for site in sites], dtype=np.float64)
