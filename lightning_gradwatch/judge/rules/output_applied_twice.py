"""GW501: the loss applies softmax or sigmoid to what one of them has put out, or an output is saturated and nothing is learned.

A net that has learned and is sure of it has saturated outputs, too, but for its loss: that has come down, or was next to nothing
from the start. So the loss decides, and how much of its gradient gets through the function says where it stops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lightning_gradwatch.judge.evidence.loss_trend import LossTrend
from lightning_gradwatch.judge.evidence.standing_loss import LOSS_FALL, count_standing
from lightning_gradwatch.judge.rule import HEALTHY, LazyFinding, Sentences, Verdict
from lightning_gradwatch.judge.streaks import State
from lightning_gradwatch.judge.wiring_rule import WiringRule, at
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, OutputAppliedTwiceWarning, Remedy, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord, Wiring
from lightning_gradwatch.record.wording import listed, number

if TYPE_CHECKING:
    from lightning_gradwatch.judge.rule import Rule
    from lightning_gradwatch.record.step import FloatVector

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
_LEAST_GAIN = 1e-3
"""Share of the gradient that must get through: a confident net's few doubtful samples let through more, as theirs is large."""
_RIGHT = 0.02
"""A loss below that is one of right answers: of outputs beyond 4 a sigmoid's cross-entropy is 0.018 at most."""
_FALL_TO_HEAL = 0.2
"""Share of the loss at the start by which it must lie below that for a fall to show that what was told of is over."""
_FUNCTIONS = ("softmax", "softmin", "sigmoid", "tanh")


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
        seen = _saturated_outputs(record, info, state, trend, self, learned=learned)
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


def _saturated_outputs(
    record: StepRecord, info: RunInfo, state: State, trend: LossTrend, rule: Rule, *, learned: bool
) -> Verdict:
    """Return what holds and what has healed, by site: an output must be so while the loss stands for the rule's patience and warm-up.

    Where no layer gets any gradient it needn't wait: no step can change that. With `learned` it is known that the loss can't
    come down any further, as of a net that has learned through two sigmoids.
    """
    memory: dict[str, list[int]] = state.get("saturated", {})
    right = learned or bool(trend.unknown) or trend.come_down or trend.level < _RIGHT
    stuck = not right and not np.any(record.values("grad_norm", len(info.layers)) > 0)
    falls = trend.falls_by(LOSS_FALL) and not (state.get("told_saturated") and trend.at_start(_FALL_TO_HEAL))
    learns = right or (falls and not stuck)
    if learns and not memory and not state.get("told_saturated"):
        return HEALTHY
    low = {} if learns else _low(info, record.values("activation_gain", len(info.sites)))
    told: list[str] = state.setdefault("told_saturated", [])
    findings, nears = {}, False
    for name in [*memory]:
        if name not in low:
            del memory[name]
    for name, gain in low.items():
        standing = count_standing(memory, record.step, trend, key=name)
        nears = nears or stuck or standing.nears(rule, record.step)
        if standing.steps >= rule.patience if stuck else standing.is_due(rule, record.step):
            if name not in told:
                told.append(name)
            findings[f"saturated-output {name}"] = LazyFinding(
                severity=Severity.ERROR,
                layers=(name,),
                first_step=standing.since,
                last_step=int(record.step),
                value=gain,
                threshold=_LEAST_GAIN,
                write=partial(_write, name, info.sites[info.site_names.index(name)].function, gain, trend),
            )
    gone = [name for name in told if name not in memory]
    state["told_saturated"] = [name for name in told if name in memory]
    state["saturated"] = memory
    healed = {f"saturated-output {name}": "more of its gradient gets through again, or the loss falls" for name in gone}
    nears = nears and len(findings) < len(low)
    return Verdict(findings, healed=healed, confirming=nears, dated=True)


def _low(info: RunInfo, gains: FloatVector) -> dict[str, float]:
    return {
        site.name: float(gains[column])
        for column, site in enumerate(info.sites)
        if site.role == "output" and site.function in _FUNCTIONS and gains[column] < _LEAST_GAIN
    }


def _write(name: str, function: str, gain: float, trend: LossTrend) -> Sentences:
    return Sentences(
        cause=f"{function} is flat far from 0, and that is where nearly all of what {name} is given lies: it is sure of answers that "
        "are wrong, and the loss can't tell the net so.",
        remedy=Remedy(
            f"Scale the inputs to mean 0 and variance 1, and start the layer before {name} with small weights; or remove {name} and take "
            "a loss of the raw outputs, as cross_entropy and binary_cross_entropy_with_logits, whose gradient doesn't fade.",
            (Action("normalize_inputs"),),
        ),
        headline=f"{name} passes {number(gain)} of its gradient back, as its outputs are saturated",
        message=f"{trend.sentence(LOSS_FALL)} Reported below {number(_LEAST_GAIN)}.",
        causes=(Cause(CauseKind.SATURATED_UNITS, (name,)),),
    )
