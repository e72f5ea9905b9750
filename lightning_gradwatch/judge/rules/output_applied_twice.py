"""GW501: the loss applies softmax or sigmoid to what one of them has put out, or an output is saturated and nothing is learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lightning_gradwatch.judge.evidence.loss_trend import LossTrend
from lightning_gradwatch.judge.evidence.saturated_output import saturated_outputs
from lightning_gradwatch.judge.rule import HEALTHY, Sentences, Verdict
from lightning_gradwatch.judge.streaks import State
from lightning_gradwatch.judge.wiring_rule import WiringRule, at
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, OutputAppliedTwiceWarning, Remedy, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord, Wiring
from lightning_gradwatch.record.wording import listed

_LEARNED = 0.5
"""Of what lies between one constant answer and the right ones, in a loss of probabilities, the share from which on a net has learned."""
_BEGUN = 0.1
"""The share up to which what looks like a fall may be noise."""
_OF_HALF = math.log1p(math.exp(0.5)), math.log1p(math.exp(-0.5))
"""Losses of the probability 0.5, taken for a logit, where the label is 0 and where it is 1."""
_OF_ONE_AT_ONE = math.log1p(math.exp(-1))
"""That of the probability 1, where the label is 1."""
_LARGEST = 30.0
"""A loss that starts above is no mean of cross-entropies, whose start tells how many classes there are."""
_OF_ONE = ("binary_cross_entropy_with_logits", "multilabel_soft_margin_loss", "logsigmoid")
"""Those that apply sigmoid, and not softmax."""


@dataclass(frozen=True, kw_only=True)
class OutputAppliedTwice(WiringRule):
    """The loss applies softmax or sigmoid to what a softmax or sigmoid has put out, or takes its logarithm.

    What: read off the first measured steps. ``cross_entropy``, ``binary_cross_entropy_with_logits`` and ``log_softmax``
    apply softmax or sigmoid themselves and are given the output of one, unscaled; or ``log`` is taken of such an output.
    An error where the loss doesn't fall, in ``patience`` measured steps in a row and for ``warm_up_steps``, or isn't finite;
    information as long as the net learns, or once it has: such a loss can't get near 0. And an error where the loss stands in
    the same way, above 0.02, and a function at the output passes less than a thousandth of its gradient back: it is saturated. Where
    no layer gets any gradient, no step can change that, and it is an error at once.

    Why: probabilities lie between 0 and 1, and a softmax over such numbers gives none of C classes more than
    e / (e + C - 1): of ten, 23 %. So the loss can't get far below where it begins, and the gradient is small where the net
    is wrong and sure of it. The logarithm of a probability that has rounded to 0 is minus infinity, and its gradient NaN.

    What to do: give the loss the raw outputs (logits), and apply softmax or sigmoid only where probabilities are read. In
    place of ``log(softmax(x))``, call ``log_softmax(x)``; in place of ``log(sigmoid(x))``, ``logsigmoid(x)``. Where an output is
    saturated, scale the inputs, start the output layer with smaller weights, or take a loss of raw outputs.

    Attributes:
        warm_up_steps: steps for which the loss must stand; until then it is information.
        patience: measured steps in a row in which the loss must stand for it to be an error.
    """

    code: ClassVar[str] = "GW501"
    name: ClassVar[str] = "output-applied-twice"
    warning: ClassVar[type[OutputAppliedTwiceWarning]] = OutputAppliedTwiceWarning
    kinds: ClassVar[tuple[str, ...]] = ("output-twice", "log-of-output")
    waiting: ClassVar[tuple[str, ...]] = kinds
    urgent: ClassVar[Severity] = Severity.ERROR

    warm_up_steps: int = 50
    patience: int = 3

    def __post_init__(self) -> None:
        self._require_count(0, "warm_up_steps")
        self._require_count(1, "patience")

    def _learned(self, fact: Wiring, trend: LossTrend) -> bool:
        return trend.come_down or (
            fact.kind == "output-twice"
            and not trend.unknown
            and trend.level <= _loss_at(_LEARNED, fact.operation, trend)
        )

    def _trend(self, info: RunInfo, state: State) -> LossTrend:
        """Return what the losses say: a fall that doesn't get away from what one constant answer gives may be noise."""
        trend = super()._trend(info, state)
        twice = [fact for fact in info.wiring or () if fact.kind == "output-twice"]
        if trend.fall and any(trend.level > _loss_at(_BEGUN, fact.operation, trend) for fact in twice):
            return trend._replace(discounted="which leaves it near what one constant answer gives")
        return trend

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Tell of the wiring, and of outputs that have no gradient left while the loss stands."""
        verdict = super().look(record, info, state)
        if verdict.unjudged:
            return verdict
        trend = self._trend(info, state)
        learned = any(self._learned(fact, trend) for fact in info.wiring or () if fact.kind in self.kinds)
        seen = saturated_outputs(record, info, state, trend, self, learned=learned)
        if seen is HEALTHY:
            return verdict
        return verdict._replace(
            findings={**verdict.findings, **seen.findings},
            healed={**verdict.healed, **seen.healed},
            confirming=verdict.confirming or seen.confirming,
            dated=True,
        )

    def write(self, fact: Wiring, urgency: str) -> Sentences:
        """Say what is applied to what."""
        sites = listed(fact.names, "activation")
        if fact.kind == "log-of-output":
            return Sentences(
                cause="A probability that has rounded to 0 has the logarithm minus infinity and a gradient of NaN, and one that is "
                "nearly 0 a gradient that is huge.",
                remedy=Remedy(
                    f"Compute both at once from what goes into {sites}: log_softmax in place of log and softmax, logsigmoid in "
                    "place of log and sigmoid.",
                    (Action("replace_output", fact.names, (("with", "LogSoftmax"), ("where", fact.line))),),
                ),
                headline=f"{sites} puts out probabilities, and {fact.operation} is taken of them{at(fact)}",
                message=urgency,
                causes=(Cause(CauseKind.LOG_OF_OUTPUT, fact.names),),
            )
        calls = f", in {fact.origin}" if fact.origin else ""
        inner = "sigmoid" if fact.operation in _OF_ONE else "softmax"
        return Sentences(
            cause=f"{fact.operation} applies {inner} itself. Given probabilities, which lie between 0 and 1, it can't tell one "
            "answer from another by more than a factor of e, so the loss can't get far below where it begins.",
            remedy=Remedy(
                f"Remove {sites}{calls}, so that {fact.operation} gets the raw outputs; apply it only where probabilities are read.",
                (Action("remove_output", fact.names, (("where", fact.origin),) if fact.origin else ()),),
            ),
            headline=f"{inner.capitalize()} is applied twice: {fact.operation} is given what {sites} has put out, and applies it once more{at(fact)}",
            message=urgency,
            causes=(Cause(CauseKind.OUTPUT_APPLIED_TWICE, fact.names),),
        )


def _loss_at(share: float, operation: str, trend: LossTrend) -> float:
    """Return the loss of probabilities at a share of the way to the right answers, told from where it began; NaN: that can't be told.

    Such a net begins near the same probability for each class, so the loss tells how many there are, or of how many entries the
    label is 1. What one constant answer comes to is not learned yet; what the right one comes to is the least.
    """
    start = trend.level / trend.of_start if trend.of_start > 0 else math.nan
    if operation in _OF_ONE:
        ones = (_OF_HALF[0] - start) / (_OF_HALF[0] - _OF_HALF[1])
        if not 0 < ones < 1:
            return math.nan
        constant = math.log(2) if ones <= 0.5 else -ones * math.log(ones) - (1 - ones) * math.log(1 - ones)
        least = ones * _OF_ONE_AT_ONE + (1 - ones) * math.log(2)
    elif 0 < start < _LARGEST:
        constant, least = start, math.log(math.e + math.expm1(start)) - 1
    else:
        return math.nan
    return constant - share * (constant - least)
