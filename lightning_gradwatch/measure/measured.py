"""What a measured step leaves when it is over: numbers on their way to the host, and what they are numbers of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.optim import Optimizer

    from lightning_gradwatch.measure.gradients import OptimizerGradients
    from lightning_gradwatch.measure.model.path import Site
    from lightning_gradwatch.measure.trace.lost_gradients import Trail
    from lightning_gradwatch.measure.transfer.host import Pending, Slot, Values
    from lightning_gradwatch.measure.units.site_stats import SiteStatistics
    from lightning_gradwatch.measure.updates import WeightSnapshot
    from lightning_gradwatch.measure.wiring.watch import Unwatched


class OptimizerStep:
    """What one optimizer's step was measured by."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.learning_rate = max(
            (float(group["lr"]) for group in optimizer.param_groups if "lr" in group), default=float("nan")
        )
        self.gradients: OptimizerGradients | None = None
        self.clipped: OptimizerGradients | None = None
        self.clipped_by_hand = False
        """Whether the program itself did it, or something like it, between the backward pass and the step."""
        self.snapshot: WeightSnapshot | None = None
        self.losses: list[Slot] = []
        """Of the passes since another optimizer had stepped, where the run has several."""
        self.done = False
        """Whether the optimizer stepped; a gradient scaler leaves a step with inf out."""
        self.found_inf: Slot | None = None
        """Of an optimizer that leaves such a step out itself: above 0 if it did."""

    def taken(self, values: Values) -> bool:
        """Whether the step was really taken."""
        return self.done and (self.found_inf is None or not values[self.found_inf][0] > 0)


@dataclass(kw_only=True)
class Measured:
    """A step whose numbers are on their way to the host."""

    steps: Mapping[int, OptimizerStep]
    """By the optimizer's place."""
    activations_only: bool
    """Whether it is for the windows only, and makes no record."""
    sums: Sequence[SiteStatistics]
    losses: Sequence[Slot]
    scale: Slot | None
    """What the signals are multiplied by."""
    scaled_losses: bool
    """Whether the losses are, too."""
    segments: Mapping[Site, Site]
    chains: Mapping[Site, Sequence[Sequence[int]]]
    trail: Trail | None
    wiring: Unwatched
    pending: Pending
