"""From a step's numbers, once they are on the host, to its record. numpy only from here on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.measure.gradients import LayerGradient
from lightning_gradwatch.measure.updates import Move, rms_and_ratio
from lightning_gradwatch.record import LAYER_METRICS, FloatVector, RunInfo, StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lightning_gradwatch.measure.collect import SiteSlots
    from lightning_gradwatch.measure.layers import Layer
    from lightning_gradwatch.measure.sites import Site
    from lightning_gradwatch.measure.step import Measured
    from lightning_gradwatch.measure.windows import Window

_NAN = float("nan")
_FLOAT32_MAX = float(np.finfo(np.float32).max)


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
    owners: Mapping[int, Layer]
    """The layer of each parameter, by the `id` of the parameter."""
    windows: Mapping[Site, Window] = field(default_factory=dict)
    frozen: Sequence[bool] = ()
    """Whether nothing of a layer was being trained."""
    left_out: Sequence[bool] = ()
    """Whether the step's forward pass left out a layer that it used before."""


def fill_windows(measured: Measured, values: list[FloatVector], windows: Mapping[Site, Window]) -> None:
    """Add a step's counts to the windows of its sites."""
    for slots in measured.slots:
        chunk = slots.chunk(values)
        if chunk is not None and slots.site in windows:
            windows[slots.site].add(chunk)


def assemble(measured: Measured, values: list[FloatVector], columns: Columns, facts: StepFacts) -> StepRecord:
    """Build the record of a step; the windows must hold the step already."""
    gradients = {
        layer.name: LayerGradient(frozen=frozen, left_out=left_out)
        for layer, frozen, left_out in zip(columns.layers, columns.frozen, columns.left_out, strict=True)
    }
    weights: dict[str, list[Move]] = {}
    norms: list[float] = []
    clipped: list[float] = []
    for step in measured.steps.values():
        if step.gradients is not None:
            for parameter in step.gradients.parameters:
                gradients[columns.owners[id(parameter)].name].held = True
            for gradient in step.gradients.read(values):
                gradients[columns.owners[id(gradient[0])].name].add(gradient)
                norms.append(gradient[1])
        if step.clipped is not None:
            clipped += [norm for _, norm, _ in step.clipped.read(values)]
        if step.snapshot is not None:
            for name, move in step.snapshot.read(values):
                weights.setdefault(name, []).append(move)
    by_site = {slots.site: slots for slots in measured.slots}
    seen = [by_site.get(site) for site in columns.sites]
    windows = [columns.windows.get(site) for site in columns.sites]
    scale = 1.0 if measured.scale is None else float(values[measured.scale][0])
    total = math.hypot(*norms) if norms else float("nan")
    after = math.hypot(*clipped) if clipped else float("nan")
    return StepRecord(
        step=facts.step,
        layout=columns.layout,
        metrics={
            **_layer_metrics(gradients.values(), columns.layers, weights),
            **_site_metrics(windows, seen, values, scale),
            **_gains(columns.sites, seen, values, measured.segments),
        },
        layer_state=np.array([gradient.state for gradient in gradients.values()], dtype=np.uint8),
        window_fill=np.array([np.nan if window is None else window.fill for window in windows]),
        forward_rms=_narrow([_NAN if slots is None else slots.forward_rms(values) for slots in seen]),
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
    gradients: Iterable[LayerGradient], layers: Sequence[Layer], weights: Mapping[str, Sequence[Move]]
) -> dict[str, FloatVector]:
    rows = [
        (*gradient.norms, *rms_and_ratio(weights.get(layer.name, ())))
        for gradient, layer in zip(gradients, layers, strict=True)
    ]
    columns = np.array(rows).reshape(len(layers), 4).T
    return dict(zip(LAYER_METRICS, columns.copy(), strict=True))


def _site_metrics(
    windows: Sequence[Window | None], seen: Sequence[SiteSlots | None], values: list[FloatVector], scale: float
) -> dict[str, FloatVector]:
    fractions = [(_NAN, _NAN) if window is None else window.fractions() for window in windows]
    return {
        "dead_fraction": np.array([dead for dead, _ in fractions]),
        "saturated_fraction": np.array([saturated for _, saturated in fractions]),
        "inactive_share": np.array([_NAN if slots is None else slots.inactive_share(values) for slots in seen]),
        "signal_norm": np.array([_NAN if slots is None else slots.signal_norm(values) / scale for slots in seen]),
    }


def _gains(
    sites: Sequence[Site], seen: Sequence[SiteSlots | None], values: list[FloatVector], segments: Mapping[Site, Site]
) -> dict[str, FloatVector]:
    """Return the gains; the gradient scale, which is in both norms of a ratio, isn't in them."""
    signal = [_NAN if slots is None else slots.signal_norm(values) for slots in seen]
    arriving = [_NAN if slots is None else slots.arriving_norm(values) for slots in seen]
    column = {site: place for place, site in enumerate(sites)}
    starts = [segments.get(site) for site in sites]
    return {
        "activation_gain": np.array([_ratio(*norms) for norms in zip(signal, arriving, strict=True)]),
        "weight_gain": np.array(
            [
                _NAN if start is None else _ratio(arriving[column[start]], norm)
                for start, norm in zip(starts, signal, strict=True)
            ]
        ),
    }


def _ratio(passed_on: float, came: float) -> float:
    return passed_on / came if came > 0 else _NAN


def _narrow(values: list[float]) -> FloatVector:
    """Round to float32, in which what is finite stays so: infinity has a meaning of its own."""
    wide = np.array(values)
    wide[(wide > _FLOAT32_MAX) & np.isfinite(wide)] = _FLOAT32_MAX
    return wide.astype(np.float32).astype(np.float64)


@dataclass
class PendingRecord:
    """A measured step on its way to the host; resolve them in the order of their steps."""

    measured: Measured
    columns: Columns
    facts: StepFacts
    info: RunInfo

    @property
    def arrived(self) -> bool:
        """Whether `resolve` would return at once."""
        return self.measured.pending.arrived

    def resolve(self) -> StepRecord:
        """Wait for the numbers, move the windows on, and build the record."""
        values = self.fill_windows()
        return assemble(self.measured, values, self.columns, self.facts)

    def fill_windows(self) -> list[FloatVector]:
        """Wait for the numbers and move the windows on, which is all that a step of activations only is for."""
        values = self.measured.pending.wait()
        fill_windows(self.measured, values, self.columns.windows)
        return values
