"""Why weights hardly change: a learning rate, a gradient, a number format, or weights that are too large for their steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.judge.evidence.branches import stronger_before
from lightning_gradwatch.judge.evidence.initial_weights import starting_remedy
from lightning_gradwatch.judge.rates import rate_factor, spelled_rates
from lightning_gradwatch.judge.readings import hidden_sites, layer_values
from lightning_gradwatch.judge.remedies import CLIP_GRADIENTS, Prescription
from lightning_gradwatch.judge.rule import Explanation
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Remedy
from lightning_gradwatch.record.wording import mention, number

if TYPE_CHECKING:
    from lightning_gradwatch.judge.streaks import Mask
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import FloatVector, StepRecord

LARGE_WEIGHTS = 10
"""How many times PyTorch's default, by convention: initialisations for any function lie within a factor of 3 of it."""
THROWN = 2.0
"""How many times larger weights have become that their steps, and not how they started, made large."""
_LEAST_SQUARED = 1e-17
"""Gradient whose tenth, squared, float32 still holds as Adam does."""
_COARSE = {"bf16-true": "bfloat16", "16-true": "float16"}


def weight_size(record: StepRecord, info: RunInfo, judged: Mask) -> float:
    """Return how many times as large as PyTorch's default initialisation makes them the median layer's weights are."""
    sizes = layer_values(record, info, "weight_rms")[judged] / info.default_rms[judged]
    known = sizes[np.isfinite(sizes)]
    return float(np.median(known)) if len(known) else 1.0


def why_slow(record: StepRecord, info: RunInfo, judged: Mask, top: float, *, at_first: float) -> Explanation:
    """Say why no layer moves: weights that are large, from the start or by their steps, a coarse format, or the learning rate.

    Args:
        record: One in which none moves.
        info: Describes its columns.
        judged: Which layers take part.
        top: The largest update ratio.
        at_first: The `weight_size` of the first measured step.
    """
    size = weight_size(record, info, judged)
    if size > LARGE_WEIGHTS:
        large = (
            f"The weights are {number(size)} times as large as PyTorch's default initialisation makes them, so a step is a small "
            "part of them"
        )
        if at_first > size / THROWN:
            return Explanation(
                f"{large}: they were nearly as large in the first measured step.",
                _start(info),
                (Cause(CauseKind.LARGE_WEIGHTS),),
            )
        return Explanation(
            f"{large}: steps that were too large threw them there, from {number(at_first)} times in the first measured step.",
            Remedy(
                "Multiply the learning rate by 0.1, or warm it up; clip the gradient norm to 1.",
                (
                    Action("set_learning_rate", (), (("factor", 0.1),)),
                    CLIP_GRADIENTS,
                ),
            ),
            (Cause(CauseKind.HIGH_LEARNING_RATE), Cause(CauseKind.LARGE_WEIGHTS)),
        )
    cause = f"No weight layer moves: the learning rate ({spelled_rates(record)}) is too small for these weights and gradients."
    rounding = _rounding(info)
    if rounding is not None:
        return Explanation(cause, rounding, (Cause(CauseKind.LOW_LEARNING_RATE), Cause(CauseKind.NUMBER_FORMAT)))
    return Explanation(cause, _faster(info, top), (Cause(CauseKind.LOW_LEARNING_RATE),))


def _faster(info: RunInfo, top: float) -> Remedy:
    """Say how much higher the learning rate must be for updates of the usual size."""
    factor = rate_factor(info, top)
    return Remedy(
        f"Raise the learning rate {factor:g} times, which makes the largest update ratio about {number(factor * top)}.",
        (Action("set_learning_rate", (), (("factor", factor),)),),
    )


def _rounding(info: RunInfo) -> Remedy | None:
    """Say how to keep small changes, where the weights' number format is too coarse for them."""
    if info.precision not in _COARSE:
        return None
    return Remedy(
        f'Keep the weights in float32, precision="bf16-mixed": in {_COARSE[info.precision]} a small change is rounded away.',
        (Action("set_precision", (), (("to", "bf16-mixed"),)),),
    )


def why_behind(record: StepRecord, info: RunInfo, worst: int, best: int) -> Explanation:
    """Say why a layer moves less than another: its gradient beside eps or beside the other's, or its weights."""
    gradient, weights = layer_values(record, info, "grad_rms"), layer_values(record, info, "weight_rms")
    here, there = float(gradient[worst]), float(gradient[best])
    names = info.layer_names
    optimizer = next((each for each in info.optimizers if names[worst] in each.layers), None)
    eps = optimizer.settings.get("eps") if optimizer is not None else None
    if optimizer is not None and isinstance(eps, float) and here < eps:
        beside = f" ({names[best]}: {number(there)})" if there >= 0 else ""
        shrinks = (
            f"The gradient of {names[worst]} has an rms of {number(here)}, below the eps of {optimizer.name} ({number(eps)}), so "
            f"its steps shrink with it{beside}."
        )
        if (before := stronger_before(gradient, info, worst)) is not None:
            lower = f", or lower the eps of {optimizer.name} to {here / 10:.0e}" if here >= _LEAST_SQUARED else ""
            return _behind_a_factor(shrinks, gradient, info, before, lower)
        return Explanation(
            f"{shrinks} What weakens the gradient is the cause{mention('GW101')}.",
            _start(info),
            (Cause(CauseKind.WEAK_GRADIENT),),
        )
    large = np.flatnonzero((weights > LARGE_WEIGHTS * info.default_rms) & info.weight_mask).tolist()
    if worst in large:
        cause = (
            f"The weights of {names[worst]} are large: their rms is {number(weights[worst])}, PyTorch's default initialisation "
            f"gives {number(info.default_rms[worst])}. The same step is a smaller part of them."
        )
        cure = Prescription(info)
        cure.initialize(only=large)
        return Explanation(cause, cure.remedy(), (Cause(CauseKind.LARGE_WEIGHTS),))
    if not here < there:
        return _held_back(info, (names[worst], here), (names[best], there))
    weak = f"The gradient of {names[worst]} has an rms of {number(here)}, that of {names[best]} {number(there)}"
    if (before := stronger_before(gradient, info, worst)) is not None:
        return _behind_a_factor(f"{weak}.", gradient, info, before, "")
    return Explanation(
        f"{weak}: it is too weak for the learning rate that suits the others{mention('GW101')}.",
        _rounding(info) or _start(info),
        (Cause(CauseKind.WEAK_GRADIENT),),
    )


def _held_back(info: RunInfo, *gradients: tuple[str, float]) -> Explanation:
    """Say of a layer and of one that moves more, each with its gradient, that the first one's isn't weaker, or that this isn't known."""
    (worst, _), (best, _) = gradients
    remedy = Remedy(
        f"Look for what holds {worst} back: a clip or a limit of its own, or, under Adam and its kin, gradients that were far larger "
        "before.",
        (Action("trace_gradient"),),
    )
    unknown = [name for name, rms in gradients if math.isnan(rms)]
    if unknown:
        cause = f"What holds {worst} back doesn't show, as the gradient of {' and of '.join(unknown)} wasn't measured."
        return Explanation(cause, remedy, (Cause(CauseKind.UNKNOWN),))
    cause = f"The gradient of {worst} isn't weaker than that of {best}: the optimizer gives it smaller steps."
    return Explanation(cause, _rounding(info) or remedy, (Cause(CauseKind.LIMITED_STEPS),))


def _start(info: RunInfo) -> Remedy:
    return starting_remedy(info, [site for _, site in hidden_sites(info)])


def _behind_a_factor(weak: str, gradient: FloatVector, info: RunInfo, before: int, otherwise: str) -> Explanation:
    name = info.layer_names[before]
    return Explanation(
        (
            f"{weak} {name}, before it, has {number(float(gradient[before]))}, so the gradient isn't lost on its way through the net: "
            "of what this branch puts out, little counts, as behind a factor near 0 (a layer scale, a gate, a branch that starts at 0)."
        ),
        Remedy(
            f"If such a factor is meant, nothing: the gradient grows with it. Else start the factor at a larger value{otherwise}.",
            (Action("trace_gradient"),),
        ),
        (Cause(CauseKind.SMALL_FACTOR), Cause(CauseKind.WEAK_GRADIENT)),
    )
