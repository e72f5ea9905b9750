"""What the rules about wiring share: they read facts of the first measured steps, and the loss says how urgent those are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from lightning_gradwatch.judge.evidence.loss_trend import LossTrend, loss_trend
from lightning_gradwatch.judge.rule import HEALTHY, Rule, Sentences, Sighting, Verdict, cant_judge, not_yet
from lightning_gradwatch.judge.streaks import State
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord, Wiring

if TYPE_CHECKING:
    from collections.abc import Sequence

LOSS_FALL = 0.05
"""Share by which the loss must have fallen since half as many steps to count as falling, as with every rule."""
_NOT_LOOKED_FOR = cant_judge("the release that recorded the run didn't look at how it is wired")
_NOT_SEEN = cant_judge("the forward pass isn't seen")


@dataclass(frozen=True, kw_only=True)
class WiringRule(Rule):
    """A rule without a threshold: what its facts say is so. It is information once the net has learned all the same."""

    kinds: ClassVar[tuple[str, ...]]
    """The kinds of facts that it tells, each a finding of its own."""
    urgent: ClassVar[Severity] = Severity.WARNING
    """How bad they are where the net doesn't learn."""
    traced: ClassVar[bool] = True
    """Whether they are seen in the forward pass."""

    def write(self, fact: Wiring, urgency: str) -> Sentences:
        """Say what is wrong, why it matters and what to do; `urgency` says what the loss has to do with it."""
        raise NotImplementedError(f"{type(self).__name__} has no words for {fact.kind} ({urgency})")

    def _learns(self, trend: LossTrend) -> bool:
        """Whether the loss shows that the net learns all the same."""
        return trend.come_down

    def _is_due(self, record: StepRecord, trend: LossTrend, state: State, *, learns: bool) -> bool:  # noqa: ARG002 - for others
        """Whether it is told at its full severity."""
        return not learns

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Tell what is known, as urgently as the loss has it."""
        if info.wiring is None:
            return _NOT_LOOKED_FOR
        facts = {f"{fact.kind} {fact.operation}": fact for fact in info.wiring if fact.kind in self.kinds}
        if not info.layers:
            return not_yet("no layer was seen")
        if not facts:
            unseen = self.traced and all(layer.used is None for layer in info.layers)
            return _NOT_SEEN if unseen else HEALTHY
        trend = loss_trend(state, info).from_start()
        broken = not math.isfinite(record.loss) and state.get("loss_known", False)
        if math.isfinite(record.loss):
            state["loss_known"] = True
        learns = not broken and self._learns(trend)
        due = broken or self._is_due(record, trend, state, learns=learns)
        if learns and state.get("told", False):
            state["told"] = False
            return Verdict(healed=dict.fromkeys(facts, "the net learns all the same, so this is information only"))
        state["told"] = due or state.get("told", False)
        severity = self.urgent if state["told"] else Severity.INFO
        since = state.setdefault("since", {})
        return Verdict(
            {
                key: Sighting(
                    severity=severity,
                    layers=fact.names,
                    first_step=since.setdefault(key, int(record.step)),
                    last_step=int(record.step),
                    value=float(len(fact.names)),
                    threshold=1.0,
                    write=partial(self.write, fact, trend.sentence(LOSS_FALL)),
                )
                for key, fact in facts.items()
            }
        )


@dataclass(frozen=True, kw_only=True)
class StandingLossRule(WiringRule):
    """One whose facts are information until the loss is seen to stand: some nets learn with them."""

    warm_up_steps: int = 20
    patience: int = 3

    def __post_init__(self) -> None:
        self._require_count(0, "warm_up_steps")
        self._require_count(1, "patience")

    def _learns(self, trend: LossTrend) -> bool:
        return trend.come_down or trend.falls_by(LOSS_FALL)

    def _is_due(self, record: StepRecord, trend: LossTrend, state: State, *, learns: bool) -> bool:
        stood = 0 if learns or trend.unknown else min(state.get("stood", 0) + 1, self.patience)
        state["stood"] = stood
        return bool(stood == self.patience) and record.step >= self.warm_up_steps


def at(fact: Wiring) -> str:
    """Say where a fact is called; empty where that isn't known."""
    return f", in {fact.line}" if fact.line else ""


def named(names: Sequence[str], root: str = "the whole model") -> list[str]:
    """Return names of modules, of which the root has none."""
    return [name or root for name in names]
