"""Tells what became of a remedy that was tried."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lightning_gradwatch.record.wording import number

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning_gradwatch.testing.trials import RemedyTrial


def trial_text(trial: RemedyTrial) -> str:
    """Say what was done to a copy, what its loss came to, and what is still found."""
    by_hand = "; ".join(f"{action.kind}: {why}" for action, why in trial.refused)
    by_hand = f" To be done in your code: {by_hand}." if by_hand else ""
    if trial.error:
        return f"The remedy of {trial.code} couldn't be tried: {trial.error}.{by_hand}"
    if not trial.applied:
        return f"The remedy of {trial.code} wasn't tried: nothing of it can be done by a program.{by_hand}"
    done = ", ".join(_once(action.kind for action in trial.applied))
    found = ", ".join(_once(finding.code for finding in trial.findings)) or "nothing"
    verdict = "So few steps don't tell" if trial.works is None else "It works" if trial.works else "It doesn't help"
    return (
        f"The remedy of {trial.code} was tried on a copy ({done}). {verdict}: after as many steps the loss is "
        f"{_loss(trial.loss_after)} in place of {_loss(trial.loss_before)}; found then: {found}.{by_hand}"
    )


def _once(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _loss(loss: float) -> str:
    return number(loss) if math.isfinite(loss) else "not finite"
