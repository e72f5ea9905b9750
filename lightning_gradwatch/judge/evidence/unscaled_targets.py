"""Targets that aren't scaled: a loss that is huge while the net's own numbers aren't."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

_HUGE_LOSS = 100.0
"""Over C classes a loss starts at ln C, with targets of variance 1 at about 1."""
_HUGE_OUTPUTS = 10.0
"""rms of a site's output from which the net itself could make such a loss."""

WHY_HUGE = "comes from targets that aren't scaled, or from adding up over a batch where others take the mean"


def unscaled_targets(record: StepRecord, info: RunInfo) -> bool:
    """Tell from one of the first records whether the targets make the loss huge, and not the net's inputs or weights."""
    if not _HUGE_LOSS <= record.loss < math.inf:
        return False
    outputs = record.forward_rms[: len(info.sites)][info.hidden_mask[: len(record.forward_rms)]]
    return bool(np.fmax.reduce(outputs, initial=0.0) < _HUGE_OUTPUTS)
