"""What is reported only where the loss stands as well: for how many measured steps in a row it has, and from which step on it is due.

What must hold beside it, and how far the loss must have fallen not to stand, is each rule's own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from lightning_gradwatch.judge.rule import NEAR, Verdict, cant_judge

if TYPE_CHECKING:
    from lightning_gradwatch.judge.evidence.loss_trend import LossTrend
    from lightning_gradwatch.judge.rule import Rule
    from lightning_gradwatch.judge.streaks import State

LOSS_FALL = 0.05
"""Share by which the loss must have fallen since half as many steps to count as falling, as with every rule."""


class Standing(NamedTuple):
    """For how long something has held while the loss stood."""

    steps: int = 0
    """Measured steps in a row."""
    since: int = 0
    """The first of them."""
    begun: float = math.inf
    """The step from which on the warm-up counts."""

    def is_due(self, rule: Rule, step: int) -> bool:
        """Tell whether it has for the rule's patience, and the warm-up is over."""
        return self.steps >= rule.patience and step >= self.begun + rule.warm_up_steps

    def nears(self, rule: Rule, step: int) -> bool:
        """Tell whether the warm-up is over in the next steps."""
        return step + NEAR >= self.begun + rule.warm_up_steps


def count_standing(memory: State, step: int, trend: LossTrend | None = None, *, key: str = "stood") -> Standing:
    """Count one more measured step at which it holds; `forget_standing` begins anew.

    Args:
        memory: What keeps it, under `key`.
        step: The latest.
        trend: Of the loss: where that has left its start, the warm-up counts from where it came to stand. Without one, it counts
            from the start of the run.
        key: Names it in memory.
    """
    steps, since = memory.get(key, (0, int(step)))
    memory[key] = [steps + 1, since]
    # Where it is still at its start, it has stood since then, whatever a few noisy losses in between looked like.
    return Standing(steps + 1, since, 0 if trend is None or trend.at_start(LOSS_FALL) else since)


def forget_standing(memory: State, *, key: str = "stood") -> Standing:
    """Let go of it, as it doesn't hold or the loss doesn't stand."""
    memory.pop(key, None)
    return Standing()


def awaits_standing_loss(rule: Rule, step: int, trend: LossTrend, standing: Standing, *, told: bool) -> Verdict | None:
    """Return why what holds while the loss stands isn't reported yet; None: it is due.

    Args:
        rule: Whose `warm_up_steps` say when it shows at all whether the loss stands, and whose `patience` how often it must.
        step: The latest.
        trend: Of the loss.
        standing: For how long both hold.
        told: Whether it was reported before, and hasn't healed: then there is nothing to wait for.
    """
    if not told and step < rule.warm_up_steps:
        reason = f"not yet: whether the loss stands shows by step {rule.warm_up_steps}"
        return Verdict(confirming=True, dated=True, unjudged=reason)
    if not told and standing.steps < rule.patience:
        return Verdict(confirming=True, unjudged=rule.waits)
    return cant_judge(trend.unknown) if trend.unknown else None
