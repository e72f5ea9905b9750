"""From a step's tally to its record. numpy only."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.measure.totals import tally
from lightning_gradwatch.measure.units.window import fractions
from lightning_gradwatch.record.metrics import METRICS, OfLayer, OfSite, StepSums, ratio
from lightning_gradwatch.record.step import FloatVector, LayerState, StepRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from lightning_gradwatch.measure.measured import Measured
    from lightning_gradwatch.measure.totals import Columns, Totals
    from lightning_gradwatch.measure.transfer.host import Values
    from lightning_gradwatch.measure.units.window import Window
    from lightning_gradwatch.measure.units.windows import Windows
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import LostGradient

_NAN = float("nan")
_LACKING = (LayerState.NONE, LayerState.ZERO)
_UNKNOWN = (LayerState.UNMEASURED, LayerState.UNUSED)
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


def assemble(tally: Totals, layout: str, windows: Sequence[Window | None], facts: StepFacts) -> StepRecord:
    """Build the record of a step; the windows, one a site with units, must hold the step already."""
    norms = tally.layers[:, OfLayer.GRADIENT]
    sums = _sums(tally, windows)
    total = math.hypot(*norms) if tally.layers[:, OfLayer.GRADIENTS].any() and not tally.unreadable else _NAN
    return StepRecord(
        step=facts.step,
        layout=layout,
        metrics={metric.name: metric.follows(sums) for metric in METRICS.values()},
        layer_state=_states(tally),
        window_fill=np.array([_NAN if window is None else window.fill for window in windows]),
        forward_rms=_forward_rms(tally),
        **_loops(tally),
        batch_idx=facts.batch_idx,
        optimizers=tally.stepped,
        loss=tally.loss,
        learning_rates=tally.learning_rates,
        optimizer_losses=tally.optimizer_losses,
        gradient_scale=tally.scale,
        skipped=tally.skipped,
        partial=facts.partial,
        clip_factor=tally.clipped / total if total > 0 else _NAN,
        global_grad_norm=total,
        world_size=facts.world_size,
        constant_answer=tally.constant_answer,
    )


def _states(tally: Totals) -> npt.NDArray[np.uint8]:
    columns = tally.layers.T
    untouched = columns[OfLayer.NONZERO] == 0
    # The first that holds, decided by the entries; so the last one is set first.
    state = np.full(len(tally.layers), LayerState.OK, dtype=np.uint8)
    state[untouched] = LayerState.ZERO
    state[~np.isfinite(columns[OfLayer.GRADIENT])] = LayerState.NON_FINITE
    state[columns[OfLayer.GRADIENTS] == 0] = LayerState.NONE
    state[untouched & (columns[OfLayer.USED] == 0) & (columns[OfLayer.KNOWN] > 0)] = LayerState.UNUSED
    state[columns[OfLayer.HELD] == 0] = LayerState.UNMEASURED
    state[columns[OfLayer.TRAINED] == 0] = LayerState.FROZEN
    return state


def _sums(tally: Totals, windows: Sequence[Window | None]) -> StepSums:
    """Return what the metrics follow from."""
    dead, saturated = fractions(windows)
    judged = [_NAN if chunk is None else chunk.observations * chunk.inactive.size for chunk in tally.chunks]
    return StepSums(
        layers=tally.layers.T,
        sites=tally.sites.T,
        observations=np.array(judged),
        dead=dead,
        saturated=saturated,
        starts=np.array([-1 if start is None else start for start in tally.starts], dtype=np.intp),
        scale=tally.scale,
    )


def _loops(tally: Totals) -> dict[str, FloatVector]:
    """Return what is known of sites that a pass called several times; nothing where there is none."""
    columns = tally.sites.T
    loops = np.where(columns[OfSite.INCOMPLETE] + columns[OfSite.NOT_COMBINABLE] == 0, columns[OfSite.LOOPS], 0)
    if not np.count_nonzero(loops):
        return {}
    return {
        "loop_calls": ratio(columns[OfSite.CALLS], loops),
        "loop_attenuation": np.where(loops > 0, ratio(columns[OfSite.FIRST_CALL], columns[OfSite.LAST_CALL]), _NAN),
    }


def _forward_rms(tally: Totals) -> FloatVector:
    columns = tally.sites.T
    entries = np.where(columns[OfSite.NOT_COMBINABLE] > 0, 0, columns[OfSite.OUTPUT_ENTRIES])
    rms = ratio(columns[OfSite.OUTPUT], np.sqrt(entries))
    rms[(entries > 0) & ~np.isfinite(rms)] = math.inf
    # Rounded to float32, in which what is finite stays so: infinity has a meaning of its own.
    rms[(rms > _FLOAT32_MAX) & np.isfinite(rms)] = _FLOAT32_MAX
    return rms.astype(np.float32).astype(np.float64)


@dataclass
class PendingRecord:
    """A measured step on its way to the host; resolve them in the order of their steps."""

    measured: Measured
    columns: Columns
    facts: StepFacts
    info: RunInfo
    windows: Windows

    @property
    def arrived(self) -> bool:
        """Whether `resolve` would return at once."""
        return self.measured.pending.arrived

    @property
    def activations_only(self) -> bool:
        """Whether it is for the windows only, and makes no record."""
        return self.measured.activations_only

    def resolve(self) -> StepRecord | None:
        """Wait for the numbers, move the windows on, and build the record, if it makes one."""
        step = self.read()
        windows = self.windows.take(self.columns.sites, step.chunks, due=not self.activations_only)
        return None if self.activations_only else assemble(step, self.info.layout, windows, self.facts)

    def read(self) -> Totals:
        """Wait for the numbers; where they show at which operation a layer's gradient is lost, or that it wasn't emptied, `info` knows it from now on."""
        values = self.measured.pending.wait()
        step = tally(self.measured, values, self.columns, self.facts.optimizers)
        wiring = self.measured.wiring
        factors = () if self.activations_only or step.skipped else self._zero_factors(values, step)
        if wiring.read(values, scaled=self.measured.scale is not None, factors=factors):
            self.info = replace(self.info, wiring=wiring.described())
        if not self.activations_only and not step.skipped:
            self._explain(values, _states(step))
        return step

    def _zero_factors(self, values: Values, step: Totals) -> Sequence[LostGradient]:
        """Return the products of parameters that are all 0, where the layers of each get a gradient by other parameters."""
        partly = (step.layers[:, OfLayer.GRADIENTS] > step.layers[:, OfLayer.NONZERO]) & (
            step.layers[:, OfLayer.NONZERO] > 0
        )
        layers, trail = self.columns.layers, self.measured.trail
        if not np.count_nonzero(partly):
            return ()
        for layer, some in zip(layers, partly.tolist(), strict=True):
            layer.partly = some
        names = {layer.name for layer, some in zip(layers, partly.tolist(), strict=True) if some}
        found = () if trail is None else trail.zero_factors(values)
        return [each for each in found if {name.rpartition(".")[0] or name for name in each.factors} <= names]

    def _explain(self, values: Values, states: npt.NDArray[np.uint8]) -> None:
        layers, trail = self.columns.layers, self.measured.trail
        for layer, state in zip(layers, states.tolist(), strict=True):
            lacks = state in _LACKING
            if (lacks or layer.lacks) and state not in _UNKNOWN:
                layer.note(lacks=lacks)
                if lacks and trail is not None and layer.lost is None:
                    layer.lost = trail.explain(layer, values)
        described = self.info.layers
        if any(layer.lost != info.lost for layer, info in zip(layers, described, strict=True)):
            told = tuple(replace(info, lost=layer.lost) for layer, info in zip(layers, described, strict=True))
            self.info = replace(self.info, layers=told)
