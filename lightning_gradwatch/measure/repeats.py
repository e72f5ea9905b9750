"""Which passes of a step go through what the step has seen already, for other weights: of a SAM, an extragradient, a line search.

The loss, the signals and the counts of units of a step are those of the first pass through each micro-batch, for the weights
that the step began with; its gradients are those that the optimizer uses, which of a SAM come from the second one. A pass through a further
micro-batch is told from a repeated one by what lies before it: whoever repeats a pass has moved the weights, or throws away
what the first one has left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.measure.model.layers import parameters_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor
    from torch.optim import Optimizer


class Repeats:
    """What one step's backward passes found before them.

    Args:
        optimizers: Returns those that train the model.
    """

    def __init__(self, optimizers: Callable[[], Iterable[Optimizer]]) -> None:
        self._optimizers = optimizers
        self._trained: Sequence[Tensor] | None = None
        self._version = 0
        """How often the weights had been changed when the first pass was propagated back."""
        self._left: tuple[Tensor, Tensor, int] | None = None
        """A parameter, its gradient and that one's version, from when an optimizer began to step to the pass after."""
        self._dropped = False

    def step_begins(self, optimizer: Optimizer) -> None:
        """Note that an optimizer begins a step in which it may call for further passes."""
        if self._trained is None:
            return  # what gradients there are an earlier step has left
        for parameter in parameters_of(optimizer):
            if parameter.grad is not None:
                self._left = parameter, parameter.grad, parameter.grad._version  # noqa: SLF001 - it has no public name
                return

    def is_one(self) -> bool:
        """Whether the pass that is about to be propagated back repeats one of this step."""
        if self._trained is None:
            self._trained = [each for optimizer in self._optimizers() for each in parameters_of(optimizer)]
            self._version = self._count()
            return False
        if self._left is not None:
            parameter, gradient, version = self._left
            self._left = None
            # By the weights' own version what was written into their ``data`` doesn't show.
            self._dropped = parameter.grad is not gradient or gradient._version != version  # noqa: SLF001 - as above
        return self._dropped or self._count() != self._version

    def _count(self) -> int:
        return sum([each._version for each in self._trained or ()])  # noqa: SLF001 - as above
