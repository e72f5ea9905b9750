"""How far the gradient norm of a step lies above the run's own recent past."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from lightning_gradwatch.rules.trend import middle

if TYPE_CHECKING:
    from lightning_gradwatch.record import StepRecord
    from lightning_gradwatch.rules.protocol import State

_WINDOW = 20
_LEAST = 5
_UNKNOWN = -1.0
"""Stands for a loss that isn't known: a memory of plain data has no NaN, and a loss that isn't positive can't be compared."""


class Surge(NamedTuple):
    """A step beside the readings before it."""

    growth: float
    """Gradient norm over the median before."""
    past_norm: float
    """That median."""
    loss_growth: float | None
    """Loss over the median before; None where the losses can't be compared."""


def read_surge(state: State, record: StepRecord, least: float) -> Surge | None:
    """Compare a record with up to 20 before it, and add it to them; None where it doesn't lie `least` times above.

    Args:
        state: The memory: norms and losses by the optimizers that stepped, as steps of different ones (a GAN's) differ.
        record: The step.
        least: Growth from which it is of interest.
    """
    norm = record.global_grad_norm
    if not math.isfinite(norm):
        return None
    norms, losses = state.setdefault(",".join(map(str, record.optimizers)), [[], []])
    loss = record.loss if math.isfinite(record.loss) else _UNKNOWN
    found = None
    # The smallest bounds the median, and is found in a quarter of the time.
    if len(norms) >= _LEAST and norm >= least * min(norms) and 0 < least * (past := middle(sorted(norms))) <= norm:
        comparable = min(losses) > 0 and loss > 0
        found = Surge(norm / past, past, loss / middle(sorted(losses)) if comparable else None)
    norms.append(norm)
    losses.append(loss)
    if len(norms) > _WINDOW:
        del norms[0], losses[0]
    return found
