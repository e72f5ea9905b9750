"""What measures the steps of a run, and lives as long as the run: what each step finds out is there for the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_gradwatch.measure.faults import Faults
    from lightning_gradwatch.measure.model.call_site import ModuleNames
    from lightning_gradwatch.measure.model.layers import Layers
    from lightning_gradwatch.measure.model.path import Path
    from lightning_gradwatch.measure.model.shards import Shards
    from lightning_gradwatch.measure.model.sites import Sites
    from lightning_gradwatch.measure.trace.uncovered import Uncovered
    from lightning_gradwatch.measure.units.batched_reductions import BatchedReductions
    from lightning_gradwatch.measure.updates import Snapshots
    from lightning_gradwatch.measure.wiring.watch import WiringWatch


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """What the steps of a run are measured with."""

    layers: Layers
    sites: Sites
    path: Path
    """The way of the data through both."""
    names: ModuleNames
    shards: Shards
    """What this process holds of the model."""
    staging: BatchedReductions
    """Memory of what is reduced together."""
    snapshots: Snapshots
    """Takes the weights before a step."""
    unseen: Uncovered
    """What isn't measured, and why."""
    wiring: WiringWatch
    faults: Faults
    eager: bool = False
    """Run what is compiled eagerly."""
