"""Whether a run learned, which is what it is judged by: its name only says what was meant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from benchmarks.galleries.losses import energy_distance
from benchmarks.galleries.training import Adversaries

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.galleries.data import Examples
    from benchmarks.galleries.training import Prepared

_JUDGED_POINTS = 1000


@dataclass(frozen=True)
class Outcome:
    """How a run ended, on the examples it was trained on."""

    score: float
    """Accuracy; share of the variance explained; for a GAN, how much nearer to the real points than its noise it came."""
    chance: float
    """What the largest class, the mean or the noise would score."""
    needed: float
    """Score from which a run has learned."""
    finite: bool
    """Whether all weights and outputs are finite."""

    @property
    def learned(self) -> bool:
        """Whether the net learned."""
        return self.finite and self.score >= self.needed


@torch.no_grad()
def outcome(prepared: Prepared) -> Outcome:
    """Judge a trained module on its own examples, in evaluation mode."""
    module, shown = prepared.module, prepared.examples
    module.eval()
    if isinstance(module, Adversaries):
        outputs = module.generate(_JUDGED_POINTS)
        noise = torch.randn(_JUDGED_POINTS, outputs.shape[1])
        score = 1 - energy_distance(outputs, shown.inputs) / energy_distance(noise, shown.inputs)
    else:
        kind = next(module.parameters()).dtype
        inputs = shown.inputs.to(kind) if shown.inputs.is_floating_point() else shown.inputs
        outputs = module.net(inputs).double()
        score = _accuracy(outputs, shown) if shown.task.kind == "classification" else _explained(outputs, shown.targets)
    chance = _chance(shown)
    needed = chance + shown.task.learned * (1 - chance)
    finite = all(bool(values.isfinite().all()) for values in (outputs, *module.parameters()))
    return Outcome(score=score if math.isfinite(score) else -math.inf, chance=chance, needed=needed, finite=finite)


def _accuracy(outputs: Tensor, shown: Examples) -> float:
    answers = outputs.argmax(1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0.5).long()
    return float((answers == shown.targets).double().mean())


def _explained(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of the targets' variance that the first outputs explain; the others say how sure they are."""
    targets = targets.double()
    wrong = (outputs[:, : targets.shape[1]] - targets).square().sum()
    return float(1 - wrong / (targets - targets.mean(0)).square().sum())


def _chance(shown: Examples) -> float:
    if shown.task.kind != "classification":
        return 0.0
    return float(torch.bincount(shown.targets).max() / len(shown.targets))
