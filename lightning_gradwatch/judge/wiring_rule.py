"""What the rules about wiring share: they read facts of the first measured steps, and the loss says how urgent those are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from lightning_gradwatch.judge.evidence.loss_trend import LossTrend, loss_trend
from lightning_gradwatch.judge.rule import HEALTHY, NEAR, Rule, Sentences, Sighting, Verdict, cant_judge, not_yet
from lightning_gradwatch.judge.streaks import State
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord, Wiring
from lightning_gradwatch.record.wording import percent

if TYPE_CHECKING:
    from collections.abc import Sequence

LOSS_FALL = 0.05
"""Share by which the loss must have fallen since half as many steps to count as falling, as with every rule."""
_NOT_LOOKED_FOR = cant_judge("the release that recorded the run didn't look at how it is wired")
_NOT_SEEN = cant_judge("the forward pass isn't seen")


class Standing(NamedTuple):
    """What the loss has to do with what waits for it."""

    falls: bool
    broken: bool
    """It isn't finite any more."""
    steps: int = 0
    """Measured steps in a row in which it hasn't fallen, up to the rule's patience."""
    due: float = math.inf
    """The step from which on it has stood for long enough."""


class Urgency(NamedTuple):
    """What is to be made of a fact."""

    learns: bool
    """The net learns with it."""
    due: bool
    """It is to be told at its full severity."""
    nears: bool = False
    """It may be in the next steps."""


@dataclass(frozen=True, kw_only=True)
class WiringRule(Rule):
    """A rule without a threshold: what its facts say is so. They are information where the net learns all the same."""

    kinds: ClassVar[tuple[str, ...]]
    """The kinds of facts that it tells, each a finding of its own."""
    waiting: ClassVar[tuple[str, ...]] = ()
    """Those with which nets often learn: they are information until the loss is seen to stand."""
    urgent: ClassVar[Severity] = Severity.WARNING
    """How bad they are where the net doesn't learn."""
    traced: ClassVar[bool] = True
    """Whether they are seen in the forward pass."""
    numbered: ClassVar[bool] = False

    # Of the facts that wait: for so many steps the loss must stand; a threshold only of a rule that states it.
    warm_up_steps = 50

    def write(self, fact: Wiring, urgency: str) -> Sentences:
        """Say what is wrong, why it matters and what to do; `urgency` says what the loss has to do with it."""
        raise NotImplementedError(f"{type(self).__name__} has no words for {fact.kind} ({urgency})")

    def _waits_with(self, fact: Wiring) -> bool:
        """Whether a fact is information until the loss is seen to stand."""
        return fact.kind in self.waiting

    def _learned(self, fact: Wiring, trend: LossTrend) -> bool:
        """Whether the loss shows that the net learns with a fact."""
        del fact
        return trend.come_down

    def _trend(self, info: RunInfo, state: State) -> LossTrend:
        """Return what the losses say."""
        return loss_trend(state, info).from_start()

    def _facts(self, wiring: Sequence[Wiring]) -> dict[str, Wiring]:
        """Return what the rule is about, by key."""
        return {f"{fact.kind} {fact.operation}": fact for fact in wiring if fact.kind in self.kinds}

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Tell what is known, as urgently as the loss has it."""
        if info.wiring is None:
            return _NOT_LOOKED_FOR
        if not info.layers:
            return not_yet("no layer was seen")
        facts = self._facts(info.wiring)
        if not facts:
            unseen = self.traced and all(layer.used is None for layer in info.layers)
            return _NOT_SEEN if unseen else HEALTHY
        trend = self._trend(info, state)
        told, since = state.setdefault("told", []), state.setdefault("since", {})
        healed, findings = {}, {}
        standing, nears = self._standing(record, trend, state), False
        for key, fact in facts.items():
            urgency = self._urgency(fact, record, trend, standing)
            if urgency.learns and key in told:
                told.remove(key)
                healed[key] = "the net learns all the same, so this is information only"
                continue
            if urgency.due and key not in told:
                told.append(key)
            nears = nears or (urgency.nears and key not in told)
            findings[key] = Sighting(
                severity=self.urgent if key in told else Severity.INFO,
                layers=fact.names,
                first_step=since.setdefault(key, int(record.step)),
                last_step=int(record.step),
                value=_number(fact),
                threshold=0.0,
                write=partial(self.write, fact, self._urgency_of(fact, trend)),
            )
        # A step that is due to be measured may be far: what the loss says meanwhile would come too late.
        return Verdict(findings, healed=healed, confirming=nears, dated=True)

    def _urgency_of(self, fact: Wiring, trend: LossTrend) -> str:
        """Say what the loss has to do with it."""
        if self._learned(fact, trend):
            return (
                f"The loss has come down to {percent(trend.of_first)} of where it began, so this is information only."
            )
        return trend.sentence(LOSS_FALL)

    def _standing(self, record: StepRecord, trend: LossTrend, state: State) -> Standing:
        """Count for how long the loss hasn't fallen."""
        if not math.isnan(record.loss):  # NaN stands for no loss, too, and infinity only for one that is
            state["loss_known"] = True
        broken = not math.isfinite(record.loss) and state.get("loss_known", False)
        falls = not broken and (trend.come_down or trend.falls_by(LOSS_FALL))
        if falls or trend.unknown:
            state.pop("stood", None)
            return Standing(falls=falls, broken=broken)
        count, first = state.get(
            "stood", (0, int(record.step))
        )  # for some steps, as a few losses of small batches tell little
        state["stood"] = [min(count + 1, self.patience), first]
        # Where it is still at its start, it has stood since then, whatever a few noisy losses in between looked like.
        since = 0 if trend.at_start(LOSS_FALL) else first
        return Standing(falls=falls, broken=broken, steps=state["stood"][0], due=since + self.warm_up_steps)

    def _urgency(self, fact: Wiring, record: StepRecord, trend: LossTrend, standing: Standing) -> Urgency:
        """Say how urgent a fact is."""
        learned = not standing.broken and self._learned(fact, trend)
        if not self._waits_with(fact):
            return Urgency(learns=learned, due=not learned)
        stands = standing.steps == self.patience and record.step >= standing.due
        return Urgency(
            learns=standing.falls or learned,
            due=(standing.broken or stands) and not learned,
            nears=record.step + NEAR >= standing.due and not learned,
        )


@dataclass(frozen=True, kw_only=True)
class StandingLossRule(WiringRule):
    """One whose facts all wait, and whose users may say for how long."""

    warm_up_steps: int = 50
    patience: int = 3

    def __post_init__(self) -> None:
        self._require_count(0, "warm_up_steps")
        self._require_count(1, "patience")

    def _waits_with(self, fact: Wiring) -> bool:
        del fact
        return True


def _number(fact: Wiring) -> float:
    """Return what there is to count of a fact: what it measured, or else its names."""
    return float(len(fact.names)) if fact.value is None else float(fact.value)


def at(fact: Wiring) -> str:
    """Say where a fact is called; empty where that isn't known."""
    return f", in {fact.line}" if fact.line else ""


def named(names: Sequence[str], root: str = "the whole model") -> list[str]:
    """Return names of modules, of which the root has none."""
    return [name or root for name in names]
