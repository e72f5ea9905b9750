"""Small tensors judged together: what a deep net of narrow layers costs is calls, not arithmetic.

Up to a size, the argument and the output of an activation call are kept until the forward pass ends, δ and dL/da until
the step ends, and then one comparison, one sum and one norm serve all that have the same shape. What is changed in place meanwhile
(torch counts the changes) is measured at once from then on; this once its numbers are absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

from lightning_gradwatch.measure.counting import count_many
from lightning_gradwatch.measure.norms import l2_norm, stacked_norms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from lightning_gradwatch.measure.collect import SiteSums
    from lightning_gradwatch.measure.composites import SiteCall
    from lightning_gradwatch.measure.functions import Zones
    from lightning_gradwatch.measure.sites import Site

_Item = TypeVar("_Item")
_SMALL = 32_768
"""Entries up to which a tensor is kept: above, arithmetic outweighs the calls."""
_MOST = 4_194_304
"""Entries kept at a time at most, 16 MB of float32."""


class Kept:
    """A tensor as it was when it was kept."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        self.version = tensor._version  # noqa: SLF001 - how autograd itself notices changes; it has no public name

    @property
    def unchanged(self) -> bool:
        """Whether nothing wrote into it since."""
        return self.tensor._version == self.version  # noqa: SLF001 - as above


class _Call(NamedTuple):
    site: Site
    sums: SiteSums
    zones: Zones
    axis: int
    z: Kept
    output: Kept


class Batch:
    """What was kept of one step and waits to be judged."""

    def __init__(self) -> None:
        self._entries = 0
        self._calls: list[_Call] = []
        self._tried: list[tuple[Site, Kept, Kept]] = []
        self._gradients: list[tuple[SiteSums, list[Tensor], Kept]] = []

    def takes(self, tensor: Tensor) -> bool:
        """Whether a tensor is small enough, and there is room."""
        entries = tensor.numel()
        return 0 < entries <= _SMALL and self._entries + entries <= _MOST and type(tensor) is torch.Tensor

    def add_call(self, seen: SiteCall, z: Kept, zones: Zones, output: Tensor) -> None:
        """Keep an activation call's argument and output until `end_pass`."""
        self._entries += 2 * z.tensor.numel()
        self._calls.append(_Call(seen.site, seen.sums, zones, seen.axis, z, Kept(output)))

    def try_out(self, site: Site, z: Kept, output: Tensor) -> None:
        """Find out until `end_pass` whether the tensors of a new site stay as they are."""
        self._tried.append((site, z, Kept(output)))

    def add_gradient(self, sums: SiteSums, norms: list[Tensor], gradient: Tensor | None) -> None:
        """Add the norm of a gradient of a call to `norms`, which is a list of `sums`: of a small one at `end_step`."""
        if gradient is None:
            return
        if self.takes(gradient):
            self._entries += gradient.numel()
            self._gradients.append((sums, norms, Kept(gradient)))
        else:
            norms.append(l2_norm(gradient))

    def end_pass(self) -> None:
        """Count the calls of a forward pass."""
        for site, z, output in self._tried:
            site.batched = z.unchanged and output.unchanged
        self._tried.clear()
        calls, self._calls = self._calls, []
        self._entries -= sum(2 * call.z.tensor.numel() for call in calls)
        whole = []
        for call in calls:
            if call.z.unchanged and call.output.unchanged:
                whole.append(call)
            else:
                call.site.batched = False
                call.sums.lost = True
        for group in _alike(whole, lambda call: (id(call.zones), call.axis, *_kind(call.z.tensor))):
            first = group[0]
            many = count_many(first.zones, torch.stack([call.z.tensor for call in group]), first.axis)
            if many is not None:
                for call, counts in zip(group, many, strict=True):
                    call.sums.count(counts, batch_elements(call.z.tensor, call.axis))
        for group in _alike(whole, lambda call: _kind(call.output.tensor)):
            for call, norm in zip(group, _norms([call.output.tensor for call in group]), strict=True):
                call.sums.output_norms.append(norm)
                call.sums.output_entries += call.output.tensor.numel()

    def end_step(self) -> None:
        """Measure the gradients of a step."""
        gradients, self._gradients = self._gradients, []
        self._entries = 0
        for sums, _, gradient in gradients:
            sums.signal_complete = sums.signal_complete and gradient.unchanged
        for group in _alike(gradients, lambda entry: _kind(entry[2].tensor)):
            for (_, norms, _), norm in zip(group, _norms([gradient.tensor for _, _, gradient in group]), strict=True):
                norms.append(norm)


def batch_elements(z: Tensor, unit_axis: int) -> int:
    """Return how many batch elements a tensor holds: the length of its first axis, unless that is the unit axis."""
    return z.shape[0] if z.dim() > 1 and unit_axis > 0 else 1


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _alike(items: Iterable[_Item], key: Callable[[_Item], tuple[Any, ...]]) -> list[list[_Item]]:
    groups: dict[tuple[Any, ...], list[_Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _norms(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return stacked_norms(torch.stack(list(tensors))).unbind()
