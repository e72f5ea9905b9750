"""What clipping leaves of a step, and how far it would have to be raised.

A step in proportion to the gradient is cut as much as that is. One that is divided by the gradient's own size, as Adam's,
isn't cut at all, until what is left of the gradient is no more than the optimizer's eps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.judge.evidence.unscaled_targets import WHY_HUGE, unscaled_targets
from lightning_gradwatch.judge.rates import aimed_update, spelled_rates
from lightning_gradwatch.judge.readings import layer_values
from lightning_gradwatch.judge.remedies import SCALE_TARGETS
from lightning_gradwatch.judge.rule import Explanation
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Remedy
from lightning_gradwatch.record.wording import number

if TYPE_CHECKING:
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

_TWICE = 2.0
"""A limit of twice the usual norm lets nearly every gradient through."""
_USUAL_LIMIT = 0.1
"""Norm from which a limit is one that suits many nets: then it is the gradient that is odd."""


def left_of_step(record: StepRecord, info: RunInfo) -> float:
    """Return what clipping leaves of a step, 0 to 1: in the median weight layer; NaN where nothing was clipped, or it isn't known."""
    factor = record.clip_factor
    if math.isnan(factor) or info.steps_follow_gradient:
        return factor
    if len(info.optimizers) != 1:
        return math.nan
    eps = info.optimizers[0].settings.get("eps")
    if not isinstance(eps, float):
        return 1.0  # by its sign (Lion), or by what else isn't known
    gradients = layer_values(record, info, "grad_rms")[info.weight_mask]
    gradients = gradients[gradients > 0]
    if not gradients.size:
        return math.nan
    return float(np.median(factor * (gradients + eps) / (factor * gradients + eps)))


def why_clipped(record: StepRecord, info: RunInfo, top: float, left: float) -> Explanation:
    """Say that clipping takes the steps away, and how far its limit is to be raised.

    Args:
        record: One whose gradient was clipped.
        info: Describes its columns.
        top: The largest update ratio of a weight layer.
        left: What `left_of_step` gave.
    """
    if record.global_grad_norm * record.clip_factor >= _USUAL_LIMIT and unscaled_targets(record, info):
        return Explanation(
            f"The loss is so large that hardly anything of the gradient is left by clipping: it {WHY_HUGE}.",
            SCALE_TARGETS,
            (Cause(CauseKind.UNSCALED_TARGETS), Cause(CauseKind.TIGHT_CLIPPING)),
        )
    norm, factor = record.global_grad_norm, record.clip_factor
    by, limit = _limit(info)
    whole = top / left
    aim = aimed_update(info)
    free = whole <= _TWICE * aim
    wanted = _TWICE / factor if free or not info.steps_follow_gradient else aim / top
    now = limit if limit is not None and by == "norm" else norm * factor
    raised = _rounded(now * wanted)
    through = (
        f"which lets the gradient through, whose norm is {number(norm)}"
        if free
        else f"which makes the largest update ratio about {number(aim)}; the whole gradient, with a norm of {number(norm)}, would make it {number(whole)}"
    )
    knob, argument, where = _knob(info, by)
    if by == "value" and limit is not None:
        raised = _rounded(limit * wanted)
        through = through.replace("which lets the gradient through", "which lets most of the gradient through")
    set_to = "The limit in your code" if limit is None else f"The limit ({by} {number(limit)})"
    eps = "" if info.steps_follow_gradient else " and what it leaves is below the optimizer's eps,"
    return Explanation(
        f"{set_to} is far below the usual size of the gradient,{eps} so the steps are a fraction of what the learning rate "
        f"({spelled_rates(record)}) implies.",
        Remedy(
            f"Raise {knob} to {number(raised)}, {through}.",
            (Action("raise_clip", (), ((argument, raised), *where)),),
        ),
        (Cause(CauseKind.TIGHT_CLIPPING),),
    )


def _limit(info: RunInfo) -> tuple[str, float | None]:
    """Return by what the Trainer clips, and its limit; None where it doesn't, so that the code does."""
    by, _, limit = info.clipping.partition(" ")
    try:
        return by or "norm", float(limit)
    except ValueError:
        return "norm", None


def _knob(info: RunInfo, by: str) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """Return what is to be raised, the argument that says to what, and where that is set if it isn't the Trainer's."""
    if info.clipping:
        return "the Trainer's gradient_clip_val", by, ()
    return "max_norm where your code clips", by, (("where", "code"),)


def _rounded(value: float) -> float:
    """Return a number with one significant digit, no smaller."""
    if not 0 < value < math.inf:
        return value
    digit = 10.0 ** math.floor(math.log10(value))
    return float(f"{math.ceil(value / digit - 1e-9) * digit:.6g}")
