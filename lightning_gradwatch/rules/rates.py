"""The learning rate of each layer, and where in its schedule a run is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lightning_gradwatch.record import FloatVector, RunInfo, StepRecord
    from lightning_gradwatch.rules.protocol import State

_AT_PEAK = 0.5


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
    if 0 not in record.learning_rates and not any(optimizer.rates for optimizer in info.optimizers):
        return None
    known = info.layer_rates[: len(record.learning_rates)]
    stepped = np.array(record.learning_rates)[: len(known), None]
    rates = np.fmax.reduce(np.where(stepped >= 0, np.sign(stepped) * known, np.nan), axis=0, initial=np.nan)
    return np.where(np.isnan(rates), 1.0, rates)
