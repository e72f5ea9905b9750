"""What a measured batch has in place, and nothing of it when the batch has ended."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.measure.compiled import AroundStep, has_compiled_step
from lightning_gradwatch.trainer import TracedTrainingStep, is_compiled_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

    from lightning_gradwatch.measure.step import StepMeter


class BatchHooks:
    """The traced training step, and what tells that an optimizer has stepped."""

    def __init__(self) -> None:
        self._traced: TracedTrainingStep | None = None
        self._steps: dict[int, RemovableHandle | AroundStep] = {}
        """By optimizer."""
        self._left: list[TracedTrainingStep | RemovableHandle | AroundStep] = []

    def place(
        self,
        trainer: Any,
        pl_module: Any,
        meter: StepMeter,
        *,
        eager: bool,
        before: Callable[[Optimizer, int, bool], None],
    ) -> None:
        """Put in place what has to be there from the start of a batch.

        Args:
            trainer: The Trainer.
            pl_module: What it trains.
            meter: Measures the step.
            eager: Run what is compiled eagerly.
            before: Called before an optimizer's compiled step, with the optimizer, its index, and whether it is again.
        """
        # A training step that is compiled as a whole would be compiled again under the tracer.
        if eager or not is_compiled_step(trainer, pl_module):
            self._traced = TracedTrainingStep(trainer.strategy, meter)
        for index, optimizer in enumerate(trainer.optimizers):
            if has_compiled_step(optimizer):
                self._steps[index] = AroundStep(
                    optimizer,
                    meter,
                    eager=eager,
                    before=partial(before, optimizer, index),
                    closes=pl_module.automatic_optimization,
                )

    def call_after(self, optimizer: Optimizer, index: int, stepped: Callable[..., None]) -> None:
        """Have a function called when an optimizer has stepped."""
        around = self._steps.get(index)
        if isinstance(around, AroundStep):
            around.then = stepped
        else:
            # Taken away when the batch ends: a hook that removes itself breaks the optimizer's loop over the user's hooks.
            self._steps[index] = optimizer.register_step_post_hook(stepped)

    def release(self) -> None:
        """Take it all away; fine when there is nothing. What others have put something over goes when that has gone."""
        placed = [*self._left, *([] if self._traced is None else [self._traced]), *self._steps.values()]
        self._traced = None
        self._steps.clear()
        self._left = [each for each in placed if each.remove() is False]
