"""Parameters that several processes hold: which part is here, and how much of a sum over the processes it stands for.

Each process measures what it holds, as its *share*: an entry that n processes hold counts 1/n in each (and so a norm
1/sqrt(n)), so that sums of squares over all processes are those of the whole, whatever the placement. Sharded tensors
(DTensor) are told by their placements, without importing what makes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_gradwatch.measure.unobserved import PLAIN, is_opaque

if TYPE_CHECKING:
    from collections.abc import Iterable

SHARDED = "its parameters are sharded over processes, of which only this one is measured"
PARTIAL = "its gradients are sums that the processes haven't added up yet (Partial)"


def placed(tensor: Tensor) -> Any:
    """Return the placements of a DTensor; None for any other tensor."""
    # To ask a plain tensor for an attribute that it lacks takes as long as measuring it.
    return None if type(tensor) in PLAIN else getattr(tensor, "placements", None)


class Shards:
    """How the processes that are measured together hold a model's parameters, as the tensors themselves say it.

    A strategy whose tensors don't say it brings a class of its own (`fit.strategies`).

    Args:
        processes: How many are measured together; 1 for this one alone.
    """

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes

    def local_parts(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return what this process holds of each tensor, without its history."""
        # A net may have thousands, nearly always plain ones: no call each.
        return [
            (tensor.detach() if tensor.requires_grad else tensor) if type(tensor) in PLAIN else _local_part(tensor)
            for tensor in tensors
        ]

    def replicas(self, tensors: Iterable[Tensor]) -> list[int]:
        """Return of each parameter how many of the processes hold each entry; 0 where some are held by none of them.

        A tensor that isn't sharded is on all of them.
        """
        return [self.processes if type(tensor) in PLAIN else _replicas(tensor, self.processes) for tensor in tensors]

    def why_unreadable(self, parameter: Tensor) -> str:
        """Say why a parameter's numbers can't be had from what each process holds; empty where they can."""
        gradient = parameter.grad
        if type(parameter) in PLAIN and (gradient is None or type(gradient) in PLAIN):
            return ""
        for what, tensor in (("parameters", parameter), ("gradients", gradient)):
            if tensor is not None and is_opaque(tensor) and placed(tensor) is None:
                return f"its {what} are of the class {type(tensor).__name__}, whose values only that class knows"
        if not all(self.replicas([parameter])):
            return SHARDED
        if gradient is not None and any(placement.is_partial() for placement in placed(gradient) or ()):
            return PARTIAL
        return ""


ALONE = Shards()
"""One process, which is all there is."""


def _local_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, detached."""
    if placed(tensor) is None:
        return tensor.detach()
    with torch.no_grad():
        local: Tensor = tensor.to_local()  # type: ignore[attr-defined]  # of a DTensor
    return local


def _replicas(tensor: Tensor, processes: int) -> int:
    placements = placed(tensor)
    if placements is None:
        return processes
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]  # of a DTensor
    held: int = processes // mesh.size()
    for size, placement in zip(mesh.shape, placements, strict=True):
        if placement.is_replicate():
            held *= size
    return held
