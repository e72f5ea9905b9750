"""Tells what became of a remedy that was tried."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lightning_gradwatch.record.wording import listed, number

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning_gradwatch.record.finding import Action
    from lightning_gradwatch.testing.trials import RemedyTrial


def trial_text(trial: RemedyTrial) -> str:
    """Say what was done to a copy, what its loss came to, and what is still found."""
    lines = [f"{_named(action)}: {why}" for action, why in trial.refused]
    lines += [_named(action) for action in trial.applied if action.in_code]
    by_hand = "; ".join(lines)
    by_hand = f" In your code: {by_hand}." if by_hand else ""
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


def _named(action: Action) -> str:
    """Name an action with what it is about, and the line to change."""
    about = listed(action.targets, "name") or str(dict(action.arguments).get("optimizer", ""))
    where = f" in {action.where}" if action.where else ""
    return f"{action.kind}({about}){where}" if about else f"{action.kind}{where}"


def _once(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _loss(loss: float) -> str:
    return number(loss) if math.isfinite(loss) else "not finite"
