"""Losses by name, each with the number of outputs it wants; those that divide by or take the logarithm of 0 are meant to."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Loss(NamedTuple):
    """A loss of outputs [N, K] and targets."""

    compute: Callable[[Tensor, Tensor], Tensor]
    outputs: int | None = None
    """None: as many as the task has."""


def _binary(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy(outputs[:, 0], targets.to(outputs.dtype))


def _binary_of_logits(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs[:, 0], targets.to(outputs.dtype))


def _tempered(outputs: Tensor, targets: Tensor) -> Tensor:
    """Take the outputs for similarities, which a temperature spreads."""
    return F.cross_entropy(20 * outputs, targets)


def _logarithm(outputs: Tensor, targets: Tensor) -> Tensor:
    """Take the outputs for probabilities, with nothing to keep them from 0."""
    return -outputs.gather(1, targets.unsqueeze(1)).log().mean()


def _root(outputs: Tensor, targets: Tensor) -> Tensor:
    """Keep a batch's outputs apart, each from itself as well: the root's derivative there is 0 times infinity."""
    distances = (outputs.unsqueeze(0) - outputs.unsqueeze(1)).square().sum(2).sqrt()
    return F.mse_loss(outputs, targets) - 0.01 * distances.mean()


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(F.cross_entropy),
    "mse": Loss(F.mse_loss),
    "bce": Loss(_binary, 1),
    "log": Loss(_logarithm),
    "bce_of_logits": Loss(_binary_of_logits, 1),
    "nll": Loss(F.nll_loss),
    "tempered": Loss(_tempered),
    "root": Loss(_root),
}


def energy_distance(first: Tensor, second: Tensor) -> float:
    """Return how far apart two samples' distributions are (Székely and Rizzo 2013): 0 where they are the same."""
    between = torch.cdist(first, second).mean()
    within = torch.cdist(first, first).mean() + torch.cdist(second, second).mean()
    return float(2 * between - within)
