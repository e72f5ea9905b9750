"""The learning rate of each layer, and where in its schedule a run is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.record.wording import number

if TYPE_CHECKING:
    from lightning_gradwatch.judge.streaks import Mask, State
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import FloatVector, StepRecord

_AT_PEAK = 0.5
"""Of the highest learning rate so far: below it, a schedule is warming up or cooling down."""
_TURNOVERS = 3.0
"""How many times over training from scratch changes a layer, in all its steps together."""
_USUAL = (1e-3, 1e-2)
"""Update ratios that are usual, in long runs and in short ones."""
_FALLING = 3.0
"""How much larger the first steps of plain SGD may be: they shrink with the gradient."""
_MOST = 1e6
_WARM_UP = 5000
"""Planned steps where none are known."""


def schedule_phase(record: StepRecord, state: State) -> str:
    """Say that a learning rate still rises, or was lowered to less than half its highest; empty in between.

    Updates follow the learning rate, so they are small on purpose in both cases.

    Args:
        record: The step; each must be given, in order.
        state: The memory: each optimizer's highest and latest rate.
    """
    phase = ""
    for index, rate in enumerate(record.learning_rates):
        if not rate >= 0:
            continue  # NaN: this optimizer didn't step
        highest, latest = state.get(str(index), (rate, rate))
        if rate > latest:
            phase = "the learning rate still rises"
        elif rate < _AT_PEAK * highest:
            phase = phase or "the learning rate was lowered to less than half its highest"
        if (rate, rate) != (highest, latest):
            state[str(index)] = [max(rate, highest), rate]
        elif str(index) not in state:
            state[str(index)] = [rate, rate]
    return phase


def relative_rates(record: StepRecord, info: RunInfo) -> FloatVector | None:
    """Return each layer's learning rate over the largest of its optimizer, shape [L]; None where all have that one.

    0 where a layer rests, 1 where its optimizer isn't known.
    """
    if 0 not in record.learning_rates and not info.rates_differ:
        return None
    known = info.layer_rates[: len(record.learning_rates)]
    stepped = np.array(record.learning_rates)[: len(known), None]
    rates = np.fmax.reduce(np.where(stepped >= 0, np.sign(stepped) * known, np.nan), axis=0, initial=np.nan)
    return np.where(np.isnan(rates), 1.0, rates)


def rates_of(record: StepRecord, info: RunInfo, where: Mask) -> tuple[float, ...]:
    """Return the learning rates of some layers, the largest first, each once; all of the step's where they aren't known."""
    stepped = np.array(record.learning_rates)
    known = info.layer_rates[: len(stepped)]
    rates = (stepped[: len(known), None] * known)[:, where]
    found = rates[rates >= 0].tolist() or stepped[stepped >= 0].tolist()
    return tuple(sorted({float(f"{rate:.6g}") for rate in found}, reverse=True))


def aimed_update(info: RunInfo) -> float:
    """Return the update ratio that the first steps of a run should have: the shorter the run, the larger."""
    low, high = _USUAL
    aim = min(max(_TURNOVERS / info.planned_steps, low), high) if info.planned_steps else math.sqrt(low * high)
    plain = info.steps_follow_gradient and not any(each.settings.get("momentum") for each in info.optimizers)
    return aim * _FALLING if plain else aim


def rate_factor(info: RunInfo, update: float) -> float:
    """Return what to multiply the learning rate by so that the largest update ratio, now `update`, is what it should be.

    To one digit, between 1e-6 and 1e6.
    """
    return float(f"{min(max(aimed_update(info) / max(update, 1 / _MOST**2), 1 / _MOST), _MOST):.0e}")


def warm_up_steps(info: RunInfo) -> int:
    """Return over how many steps a learning rate should rise: a tenth of the planned ones, 20 to 1,000."""
    return min(max((info.planned_steps or _WARM_UP) // 10, 20), 1000)


def spelled_rates(record: StepRecord) -> str:
    """Return the learning rates of a step, each once."""
    return ", ".join(dict.fromkeys(number(rate) for rate in record.learning_rates if rate >= 0))
