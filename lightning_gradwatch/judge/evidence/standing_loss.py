"""What is reported only where the loss stands as well: from which step on, and after how many measured steps in a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.judge.rule import Verdict, cant_judge

if TYPE_CHECKING:
    from lightning_gradwatch.judge.evidence.loss_trend import LossTrend
    from lightning_gradwatch.judge.rule import Rule
    from lightning_gradwatch.record.step import StepRecord


def awaits_standing_loss(rule: Rule, record: StepRecord, trend: LossTrend, count: int, *, told: bool) -> Verdict | None:
    """Return why what holds while the loss stands isn't reported yet; None: it is due.

    Args:
        rule: Whose `warm_up_steps` say when it shows at all whether the loss stands, and whose `patience` how often it must.
        record: The latest.
        trend: Of the loss.
        count: For how many measured steps in a row both hold.
        told: Whether it was reported before, and hasn't healed: then there is nothing to wait for.
    """
    if not told and record.step < rule.warm_up_steps:
        reason = f"not yet: whether the loss stands shows by step {rule.warm_up_steps}"
        return Verdict(confirming=True, dated=True, unjudged=reason)
    if not told and count < rule.patience:
        return Verdict(confirming=True, unjudged=rule.waits)
    return cant_judge(trend.unknown) if trend.unknown else None
