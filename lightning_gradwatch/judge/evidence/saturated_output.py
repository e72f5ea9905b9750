"""Outputs that pass next to nothing back while the loss stands: softmax, sigmoid or tanh, far out, for nearly all samples.

A net that has learned and is sure of it looks the same, but for its loss: that has come down, or was next to nothing from
the start. So the loss decides, and how much of its gradient gets through the function says where it stops.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lightning_gradwatch.judge.rule import Sentences, Sighting
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
_FALL = 0.05
_FUNCTIONS = ("softmax", "softmin", "sigmoid", "tanh")


def saturated_outputs(
    record: StepRecord, info: RunInfo, state: State, trend: LossTrend, rule: Rule, *, learned: bool
) -> tuple[dict[str, Sighting], dict[str, str]]:
    """Return what holds and what has healed, by site: an output must be so while the loss stands for the rule's patience and warm-up.

    With `learned` it is known that the loss can't come down any further, as of a net that has learned through two sigmoids.
    """
    memory: dict[str, list[int]] = state.get("saturated", {})
    learns = learned or bool(trend.unknown) or trend.come_down or trend.falls_by(_FALL) or trend.level < _RIGHT
    if learns and not memory:
        return {}, {}
    gains = record.values("activation_gain", len(info.sites))
    low = {} if learns else _low(info, gains)
    told: list[str] = state.setdefault("told_saturated", [])
    findings, healed = {}, {}
    for name in [*memory]:
        if name not in low:
            del memory[name]
    for name, gain in low.items():
        count, first = memory.get(name, (0, int(record.step)))
        memory[name] = [min(count + 1, rule.patience), first]
        if memory[name][0] == rule.patience and record.step >= first + rule.warm_up_steps:
            if name not in told:
                told.append(name)
            findings[f"saturated-output {name}"] = Sighting(
                severity=Severity.ERROR,
                layers=(name,),
                first_step=first,
                last_step=int(record.step),
                value=gain,
                threshold=LEAST_GAIN,
                write=partial(_write, name, info.sites[info.site_names.index(name)].function, gain, trend),
            )
    for name in [each for each in told if each not in memory]:
        told.remove(name)
        healed[f"saturated-output {name}"] = "more of its gradient gets through again, or the loss falls"
    state["saturated"] = memory
    return findings, healed


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
        message=f"{trend.sentence(_FALL)} Reported below {number(LEAST_GAIN)}.",
        causes=(Cause(CauseKind.SATURATED_UNITS, (name,)),),
    )
