"""Rules that say what a test tells them to, record by record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lightning_gradwatch.judge.rule import LazyFinding, Rule, Sentences, Verdict
from lightning_gradwatch.judge.rules.stalled import StalledUpdate
from lightning_gradwatch.judge.rules.vanishing import VanishingGradient
from lightning_gradwatch.record.finding import Action, Remedy, Severity, StalledUpdateWarning, VanishingGradientWarning


@dataclass(frozen=True, kw_only=True)
class Scripted(Rule):
    """By step: the severity of what it sees, a sentence on what has healed, or ``...`` where it has hit and lacks patience."""

    says: tuple = ()
    layers: tuple = ("net.0",)
    dated: bool = False
    since: int | None = None

    def judge(self, record, info, state):
        del info, state
        now = dict(self.says).get(record.step)
        if isinstance(now, str):
            return Verdict(healed={"it": now})
        if now is None:
            return Verdict()
        if now is ...:
            return Verdict(confirming=True, dated=self.dated, unjudged="not yet")
        words = Sentences(
            f"Why {self.code}.",
            Remedy(f"Do as {self.code} says.", (Action("initialize", self.layers),)),
            f"Seen by {self.code} at step {record.step}. Reported always.",
        )
        step = int(record.step)
        since = step if self.since is None else self.since
        return Verdict({"it": LazyFinding(now, self.layers, since, step, 1e-3, 0.1, lambda: words)})

    def settings(self):
        return {}


class Fades(Scripted, VanishingGradient):
    code: ClassVar[str] = "GW101"
    name: ClassVar[str] = "vanishing-gradient"
    warning: ClassVar = VanishingGradientWarning


class Stalls(Scripted, StalledUpdate):
    """Follows from `Fades`."""

    code: ClassVar[str] = "GW301"
    name: ClassVar[str] = "stalled-update"
    warning: ClassVar = StalledUpdateWarning


INFO, WARNING, ERROR = Severity
