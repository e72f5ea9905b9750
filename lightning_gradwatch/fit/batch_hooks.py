"""What a measured batch has in place, and nothing of it when the batch has ended."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.fit.trainer import TracedTrainingStep, is_compiled_step
from lightning_gradwatch.measure.optimizer_step import OptimizerSteps

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer

    from lightning_gradwatch.measure.step import StepMeter


class BatchHooks:
    """The traced training step, and what tells that an optimizer steps."""

    def __init__(self) -> None:
        self._traced: TracedTrainingStep | None = None
        self._steps: dict[int, tuple[Optimizer, OptimizerSteps]] = {}
        """By the optimizer's place."""
        self._hear: Callable[[Optimizer, int], OptimizerSteps] | None = None
        self._left: list[TracedTrainingStep | OptimizerSteps] = []
        """What others have put something over."""

    def place(
        self,
        trainer: Any,
        pl_module: Any,
        meter: StepMeter,
        *,
        traced: bool,
        eager: bool,
        begins: Callable[[], None],
        before: Callable[[Optimizer, int, bool], None],
        after: Callable[[int], None],
    ) -> None:
        """Put in place what has to be there from the start of a batch.

        Args:
            trainer: The Trainer.
            pl_module: What it trains.
            meter: Measures the step.
            traced: Whether the forward pass is to be watched.
            eager: Run what is compiled eagerly.
            begins: Called when the forward pass is about to begin.
            before: Called before an optimizer's step that Lightning doesn't tell of, with the optimizer, its index, and
                whether it is again: a compiled one, and under manual optimization one that the user calls past Lightning.
            after: Called when an optimizer has stepped, with its index.
        """
        # A training step that is compiled as a whole would be compiled again under the tracer.
        if traced and (eager or not is_compiled_step(trainer, pl_module)):
            self._traced = TracedTrainingStep(trainer, meter, begins=begins)
        automatic = pl_module.automatic_optimization

        def hear(optimizer: Optimizer, index: int) -> OptimizerSteps:
            return OptimizerSteps(
                optimizer,
                index,
                meter,
                before=partial(before, optimizer, index),
                after=partial(after, index),
                told=automatic,
                eager=eager,
                closes=automatic,
            )

        self._hear = hear
        for index, optimizer in enumerate(trainer.optimizers):
            self.hear(optimizer, index)

    def hear(self, optimizer: Optimizer, index: int) -> None:
        """Have the optimizer at some place tell of its steps, which may be another one than at the start of the batch."""
        known, steps = self._steps.get(index, (None, None))
        if known is optimizer or self._hear is None:
            return
        if steps is not None:
            steps.remove()
        self._steps[index] = optimizer, self._hear(optimizer, index)

    def release(self) -> None:
        """Take it all away; fine when there is nothing. What others have put something over goes when that has gone."""
        placed = [*self._left, *([] if self._traced is None else [self._traced])]
        placed += [steps for _, steps in self._steps.values()]
        self._traced = self._hear = None
        self._steps.clear()
        self._left = [each for each in placed if not each.remove()]
