"""What the rules about wiring share: they read facts of the first measured steps, and the loss says how urgent those are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from lightning_gradwatch.judge.evidence.loss_trend import LossTrend, loss_trend
from lightning_gradwatch.judge.evidence.standing_loss import LOSS_FALL, Standing, count_standing, forget_standing
from lightning_gradwatch.judge.rule import HEALTHY, LazyFinding, Rule, Sentences, Verdict, cant_judge, not_yet
from lightning_gradwatch.judge.streaks import State
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord, Wiring
from lightning_gradwatch.record.wording import percent

if TYPE_CHECKING:
    from collections.abc import Sequence

_NOT_LOOKED_FOR = cant_judge("the release that recorded the run didn't look at how it is wired")
_NOT_SEEN = cant_judge("the forward pass isn't seen")


class Urgency(NamedTuple):
    """What is to be made of a fact."""

    learns: bool
    """The net learns with it."""
    due: bool
    """It is to be told at its full severity."""
    nears: bool = False
    """It may be in the next steps."""


_NO_LOSS = Urgency(learns=False, due=True)
"""Of a loss that isn't finite: no net learns by it."""


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
        broken, nears = _is_broken(record, state), False
        stands = not trend.unknown and (broken or not trend.learns(LOSS_FALL))
        standing = count_standing(state, record.step, trend) if stands else forget_standing(state)
        for key, fact in facts.items():
            urgency = _NO_LOSS if broken else self._urgency(fact, record.step, trend, standing)
            if urgency.learns and key in told:
                told.remove(key)
                healed[key] = "the net learns all the same, so this is information only"
                continue
            if urgency.due and key not in told:
                told.append(key)
            nears = nears or (urgency.nears and key not in told)
            findings[key] = LazyFinding(
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

    def _urgency(self, fact: Wiring, step: int, trend: LossTrend, standing: Standing) -> Urgency:
        """Say how urgent a fact is, where the loss is finite."""
        learned = self._learned(fact, trend)
        if fact.kind not in self.waiting:
            return Urgency(learns=learned, due=not learned)
        return Urgency(
            learns=learned or trend.learns(LOSS_FALL),
            due=standing.is_due(self, step) and not learned,
            nears=standing.nears(self, step) and not learned,
        )


def _is_broken(record: StepRecord, state: State) -> bool:
    """Tell whether the loss isn't finite any more."""
    if not math.isnan(record.loss):  # NaN stands for no loss, too, and infinity only for one that is
        state["loss_known"] = True
    return not math.isfinite(record.loss) and state.get("loss_known", False)


def _number(fact: Wiring) -> float:
    """Return what there is to count of a fact: what it measured, or else its names."""
    return float(len(fact.names)) if fact.value is None else float(fact.value)


def at(fact: Wiring) -> str:
    """Say where a fact is called; empty where that isn't known."""
    return f", in {fact.line}" if fact.line else ""


def named(names: Sequence[str], root: str = "the whole model") -> list[str]:
    """Return names of modules, of which the root has none."""
    return [name or root for name in names]
