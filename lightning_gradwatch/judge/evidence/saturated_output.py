"""Outputs that pass next to nothing back while the loss stands: softmax, sigmoid or tanh, far out, for nearly all samples.

A net that has learned and is sure of it looks the same, but for its loss: that has come down, or was next to nothing from
the start. So the loss decides, and how much of its gradient gets through the function says where it stops.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.judge.evidence.standing_loss import LOSS_FALL, count_standing
from lightning_gradwatch.judge.rule import HEALTHY, Sentences, Sighting, Verdict
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Remedy, Severity
from lightning_gradwatch.record.wording import number

if TYPE_CHECKING:
    from lightning_gradwatch.judge.evidence.loss_trend import LossTrend
    from lightning_gradwatch.judge.rule import Rule
    from lightning_gradwatch.judge.streaks import State
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import FloatVector, StepRecord

LEAST_GAIN = 1e-3
"""Share of the gradient that must get through: a confident net's few doubtful samples let through more, as theirs is large."""
_RIGHT = 0.02
"""A loss below that is one of right answers: of outputs beyond 4 a sigmoid's cross-entropy is 0.018 at most."""
_FALL_TO_HEAL = 0.2
"""Share of the loss at the start by which it must lie below that for a fall to show that what was told of is over."""
_FUNCTIONS = ("softmax", "softmin", "sigmoid", "tanh")


def saturated_outputs(
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
            findings[f"saturated-output {name}"] = Sighting(
                severity=Severity.ERROR,
                layers=(name,),
                first_step=standing.since,
                last_step=int(record.step),
                value=gain,
                threshold=LEAST_GAIN,
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
        if site.role == "output" and site.function in _FUNCTIONS and gains[column] < LEAST_GAIN
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
        message=f"{trend.sentence(LOSS_FALL)} Reported below {number(LEAST_GAIN)}.",
        causes=(Cause(CauseKind.SATURATED_UNITS, (name,)),),
    )
