"""Whether a loss lies far above the run's own recent past: a jump that gives up a good part of what was learned.

By differences alone, so that it holds for a loss below zero as well. Beyond the scatter isn't enough: near the floor of a
loss, where all scatter is small, one odd batch lies far beyond it and gives up nothing of what was learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lightning_gradwatch.judge.evidence.loss_trend import middle

if TYPE_CHECKING:
    from collections.abc import Sequence

RANGE = 8
"""Latest readings that say how far a number goes by itself."""
LEAST = 3
"""Readings without which nothing is called a jump."""
WINDOW = 20
"""Latest losses that a jump is compared with."""
_BEYOND = 3.0
"""How many times their range a jump is; with fewer of them, twice as many."""
_UNLEARNED = 0.5
"""Share of its own size by which a loss that never fell must rise."""
GIVEN_UP = 0.25
"""Share of what was learned."""


class LossJump(NamedTuple):
    """A loss beside those before it."""

    usual: float
    """The median of the losses before."""
    highest: float
    """The highest of them."""
    given_up: float
    """Share of what was learned since the start that it gives up; of a loss that never fell, its rise over its size."""
    fell: bool
    """Whether it had fallen."""


def read_jump(loss: float, losses: Sequence[float], start: float, given_up: float = GIVEN_UP) -> LossJump | None:
    """Compare a loss with those before; None where it is no jump.

    Args:
        loss: The latest; finite.
        losses: Those before, 20 at most.
        start: The loss at the start.
        given_up: Share of what was learned since the start that a jump gives up at least.

    >>> read_jump(2.0, [0.55, 0.5, 0.5, 0.45], start=2.5)
    LossJump(usual=0.5, highest=0.55, given_up=0.75, fell=True)
    >>> read_jump(0.05, [1e-3] * 8, start=2.3) is None
    True
    """
    if len(losses) < LEAST:
        return None
    highest = max(losses)
    if loss <= highest:
        return None
    usual, spread = middle(sorted(losses)), highest - min(losses)
    rise = loss - usual
    if rise <= (_BEYOND if len(losses) >= WINDOW else 2 * _BEYOND) * spread:
        return None
    fell = start - usual > spread
    way = start - usual if fell else abs(usual)
    least = given_up if fell else max(given_up, _UNLEARNED)
    return LossJump(usual, highest, rise / way, fell) if way > 0 and rise >= least * way else None
