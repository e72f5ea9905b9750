"""The user's own threshold of GW101: early weight layers whose gradient is below a plain number, with no other gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.judge.evidence.attenuation import diagnose, fading_causes, fading_remedy
from lightning_gradwatch.judge.readings import early_mask
from lightning_gradwatch.judge.rule import LazyFinding, Sentences
from lightning_gradwatch.judge.streaks import State, columns
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.record.step import LayerState, StepRecord
from lightning_gradwatch.record.wording import counted, listed, number

if TYPE_CHECKING:
    from lightning_gradwatch.record.run_info import RunInfo

_RMS, _SINCE = 0, 1


def judge_floor(record: StepRecord, info: RunInfo, state: State, least: float) -> tuple[bool, LazyFinding | None]:
    """Hold the early weight layers to a least root mean square of the gradient.

    A gradient that is exactly 0 isn't judged here: that is GW104's, which says what keeps it away.

    Returns:
        Whether any could be judged, and what to tell while one is below: all that ever were, with their latest numbers.
    """
    rms = record.metrics.get("grad_rms")
    early = early_mask(info)
    states = record.layer_state
    judged = bool(np.count_nonzero(early & ((states == LayerState.OK) | (states == LayerState.ZERO))))
    if rms is None or not judged:
        return False, None
    low = early & (states == LayerState.OK) & (rms < least)
    if not np.count_nonzero(low):
        return True, None
    held = columns(state, "floor", info, "layers", rows=2, fill=float("nan"))
    kept = held.values
    new = low & np.isnan(kept[_SINCE])
    kept[_SINCE, new] = record.step
    kept[_RMS, low] = rms[low]
    names = held.names_where(~np.isnan(kept[_SINCE]))
    lowest = int(np.nanargmin(kept[_RMS]))
    value = float(kept[_RMS, lowest])

    def write() -> Sentences:
        path = info.site_paths.along(record.values("signal_norm", len(info.sites)))
        hidden = path[0] if path else np.empty(0, dtype=np.intp)
        found = diagnose(record, info, hidden, float("nan"))
        return Sentences(
            cause=(
                f"The gradient of {listed(names, 'early weight layer')} is below the plain threshold min_grad_rms that was "
                "set for this run."
            ),
            remedy=fading_remedy(info, found),
            causes=fading_causes(found),
            headline=(
                f"The gradient of {info.layer_names[lowest]} has an rms of {number(value)}, below min_grad_rms={number(least)}, as in "
                f"{counted(len(names), 'early weight layer')}"
            ),
            message="",
        )

    since = int(np.nanmin(kept[_SINCE]))
    return True, LazyFinding(Severity.WARNING, names, since, int(record.step), value, least, write)
