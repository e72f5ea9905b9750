"""How much of a step is weight decay, and by how much that would have to be lowered.

Where the optimizer adds the decay to the gradient (SGD, Adam), the shares are those of the gradient that it then uses. Where it
takes a part of the weights away beside the step (AdamW), that part is the learning rate times the decay, and what the
step changes is measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.judge.readings import layer_values
from lightning_gradwatch.judge.rule import Explanation
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Remedy
from lightning_gradwatch.record.wording import number

if TYPE_CHECKING:
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import FloatVector, OptimizerInfo, StepRecord

_ADDED = frozenset(("SGD", "Adam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "ASGD"))
"""Optimizers of torch that add the decay to the gradient, unless they are told to keep it apart."""
_APART = frozenset(("AdamW", "Lion", "Adafactor", "Muon"))
_USUAL = 0.02
"""Share of the decay in the first steps with which nets learn."""
_LEAST, _MOST = 1e-6, 0.1


def decay_shares(record: StepRecord, info: RunInfo) -> FloatVector:
    """Return which share of a step's change is decay, shape [L]; NaN for a layer that has none, or where it isn't known."""
    shares = np.full(len(info.layers), np.nan)
    weights, gradients = layer_values(record, info, "weight_rms"), layer_values(record, info, "grad_rms")
    ratios = layer_values(record, info, "update_ratio")
    kept = record.clip_factor if record.clip_factor >= 0 else 1.0
    for index, (optimizer, columns) in enumerate(zip(info.optimizers, info.optimizer_columns, strict=True)):
        if index not in record.optimizers or index >= len(record.learning_rates):
            continue
        decays = info.layer_decays[index][columns]
        pull = decays * weights[columns]
        added = pull / (pull + kept * gradients[columns])
        apart = np.fmin(decays * record.learning_rates[index] * info.layer_rates[index][columns] / ratios[columns], 1.0)
        kind = _kind(optimizer)
        share = added if kind == "added" else apart if kind == "apart" else np.minimum(added, apart)
        shares[columns] = np.where(decays > 0, share, np.nan)
    return np.where(info.weight_mask & np.isfinite(shares), shares, np.nan)


def _kind(optimizer: OptimizerInfo) -> str:
    """Say how an optimizer decays weights; empty where that isn't known."""
    apart = optimizer.settings.get("decoupled_weight_decay")
    if apart is True or optimizer.name in _APART:
        return "apart"
    return "added" if optimizer.name in _ADDED else ""


def why_decayed(info: RunInfo, share: float) -> Explanation:
    """Say that decay moves the weights, and by how much it is to be lowered.

    Args:
        info: Describes the run.
        share: That of the decay in the first steps, of the median layer.
    """
    decays = sorted({float(f"{decay:.6g}") for row in info.layer_decays for decay in row if decay > 0}, reverse=True)
    factor = float(f"{min(max(_USUAL * (1 - share) / share if share < 1 else _LEAST, _LEAST), _MOST):.0e}")
    told = ", ".join(map(number, decays))
    lowered = ", ".join(number(factor * decay) for decay in decays)
    return Explanation(
        f"The weight decay ({told}) is too strong for these gradients: it pulls the weights towards 0 by more than the loss holds "
        "against it.",
        Remedy(
            f"Multiply weight_decay by {number(factor)}, to {lowered}.",
            (Action("scale_weight_decay", (), (("factor", factor),)),),
        ),
        (Cause(CauseKind.STRONG_DECAY),),
    )
