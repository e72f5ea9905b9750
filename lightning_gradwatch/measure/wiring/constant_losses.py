"""What loss functions give where a net gives one constant answer: all classes alike, or the mean of the targets everywhere.

Pure functions of targets and options, in float64. No scores are needed but for their shape, so nothing of their size is made.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REDUCTIONS = ("none", "mean", "sum")


class Source(NamedTuple):
    """What a shadow began with, each a tensor without dimensions; None: not known."""

    output: Tensor
    """rms of what the net put out."""
    mean: Tensor | None = None
    """Mean of the targets; None where their scale isn't the net's to meet, as those of classes."""
    deviation: Tensor | None = None


class Call(NamedTuple):
    """The arguments of a call."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    def get(self, place: int, name: str, default: Any = None) -> Any:
        """Return an argument, by its place or its name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def tensor(self, place: int, *names: str) -> Tensor | None:
        """Return an argument that is a tensor."""
        value = next((found for name in names if (found := self.get(place, name)) is not None), None)
        return value if isinstance(value, Tensor) else None

    def legacy(self, *places: int) -> bool:
        """Whether it says in the old way how to reduce."""
        names = ("size_average", "reduce")
        return any(self.get(place, name) is not None for place, name in zip(places, names, strict=True))


def rms(outputs: Tensor) -> Tensor:
    """Return the rms of what a net put out, without another tensor of its size."""
    norm: Tensor = torch.linalg.vector_norm(outputs.detach(), dtype=torch.promote_types(outputs.dtype, torch.float32))
    return norm.double() / math.sqrt(outputs.numel())


def reduced(value: Tensor, reduction: Any) -> Tensor | None:
    """Return errors put together as a loss function does; None for an unknown way."""
    if reduction not in REDUCTIONS:
        return None
    return value if reduction == "none" else value.mean() if reduction == "mean" else value.sum()


def where_they_differ(target: Tensor, value: Tensor) -> Tensor:
    """Return a value; NaN where all targets are alike, so that the right constant answer costs nothing (as in a GAN)."""
    return value if target.numel() == 1 else torch.where(target.min() == target.max(), math.nan, value)


def is_uniform(value: Tensor) -> bool:
    """Whether all entries are one in memory."""
    return not any(step for step, size in zip(value.stride(), value.shape, strict=True) if size > 1)


def errors(outputs: Tensor, target: Tensor) -> tuple[Tensor, Source]:
    """Return by how much a constant answer is off, in the shape of both, and what is known of outputs and targets."""
    wide = target.detach().double()
    mean = wide.mean()
    off = mean - wide
    source = Source(rms(outputs), mean, off.square().mean().sqrt())
    return torch.broadcast_tensors(off, outputs)[0], source  # type: ignore[no-untyped-call]  # torch leaves it untyped


def of_classes(
    target: Tensor, weight: Tensor | None, classes: int, ignored: int, reduction: str, *, smoothing: float = 0.0
) -> Tensor:
    """Return the cross-entropy of classes that are all alike, over the logarithm of their number."""
    valid = target != ignored
    if weight is None:
        own = shared = valid.double()
    else:
        own = weight.double()[torch.where(valid, target, 0)] * valid
        shared = valid * (weight.double().sum() / classes)
    total = (1 - smoothing) * own + smoothing * shared
    if reduction == "none":
        return total
    return total.sum() / own.sum() if reduction == "mean" else total.sum()


def of_shares(target: Tensor, weight: Tensor | None, classes: int, reduction: str, smoothing: float) -> Tensor:
    """Return the cross-entropy of all classes alike where the targets say each one's share."""
    dim = 1 if target.dim() > 1 else 0
    if weight is None:
        shares, whole = target.sum(dim, dtype=torch.float64), 1.0
    else:
        shape = [1] * target.dim()
        shape[dim] = classes
        shares = (target.double() * weight.double().view(shape)).sum(dim)
        whole = weight.double().sum() / classes  # type: ignore[assignment]  # a number of the device's
    total = math.log(classes) * ((1 - smoothing) * shares + smoothing * whole)
    return total if reduction == "none" else total.mean() if reduction == "mean" else total.sum()


def of_log_probabilities(call: Call) -> Tensor | None:
    """Return the negative log likelihood of log probabilities that are all alike."""
    value, target, weight = call.tensor(0, "input"), call.tensor(1, "target"), call.get(2, "weight")
    reduction = call.get(6, "reduction", "mean")
    if value is None or target is None or call.legacy(3, 5) or reduction not in REDUCTIONS or not is_uniform(value):
        return None
    classes = value.shape[1 if value.dim() > 1 else 0]
    one = of_classes(target, weight, classes, call.get(4, "ignore_index", -100), reduction)
    return where_they_differ(target, one * -value[(0,) * value.dim()])
