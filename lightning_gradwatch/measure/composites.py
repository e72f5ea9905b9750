"""Activation functions written by hand, recognised by what they compute.

``x * sigmoid(c * x)`` shows as a sigmoid that is multiplied by another tensor, as a gate does. What tells it apart is that
both factors are functions of one tensor. So each tensor remembers of which tensor it is an elementwise function, as long
as nothing else came in, and which activation call it carries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from lightning_gradwatch.measure.sites import GATES
from lightning_gradwatch.measure.tags import Op, Tag, Tags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from lightning_gradwatch.measure.collect import SiteSums
    from lightning_gradwatch.measure.mask import Samples
    from lightning_gradwatch.measure.signal import Origin
    from lightning_gradwatch.measure.sites import Roles, Site


class SiteCall:
    """One call of a site, for as long as the forward pass may show what it is part of."""

    of: Origin | None = None
    """Of the value of which the argument is an arithmetic function."""
    samples: Samples | None = None
    """Which positions of the argument count; None: all."""
    origin: Origin | None = None
    """Where the argument's gradient goes; until the function has run."""
    handles: Sequence[RemovableHandle] = ()

    def __init__(self, site: Site, sums: SiteSums, axis: int, tag: Tag | None, *, in_place: bool) -> None:
        self.site = site
        self.sums = sums
        self.axis = axis
        self.in_place = in_place
        self.layer = None if tag is None else tag.layer
        self.inner = None if tag is None else tag.call
        """The call whose output is the argument, as softplus is of the tanh in Mish."""


class Composite(NamedTuple):
    """A hand-written activation function whose last step was just done."""

    function: str
    call: SiteCall | None
    """Its inner activation call; None where that is no activation function by itself (erf)."""
    u: Tensor | None
    """The argument of the inner function, where it isn't an activation function."""
    root: Origin
    """Of z, of which all of it is a function."""


def combine(op: Op, arguments: Sequence[Tensor], tag: Tag, tags: Tags, roles: Roles) -> Composite | None:
    """Complete the tag of an arithmetic result; return the activation function that it completes, if it does."""
    operands = [argument for argument in arguments if argument.dim() > 0]
    if not operands:
        return None
    roots = [tags.root(operand) for operand in operands]
    known = [tags.get(operand) for operand in operands]
    if op is Op.MULTIPLY and len(operands) == 2:
        for factor, root in zip(known, reversed(roots), strict=True):
            if factor is not None and factor.of is root and (function := _function(factor)) is not None:
                return Composite(function, factor.call, factor.u, root)
    if all(root is roots[0] for root in roots):
        tag.root = roots[0]
        carried = next((found for found in known if found is not None and found.of is not None), None)
        if carried is not None:
            tag.call, tag.u, tag.of = carried.call, carried.u, carried.of
            tag.shifted = carried.shifted or (op is Op.ARITHMETIC and len(operands) == 1)
    elif op is Op.MULTIPLY and not any(isinstance(operand, nn.Parameter) for operand in operands):
        for factor in known:
            if factor is not None and factor.call is not None and factor.call.site.function in GATES:
                roles.gates(factor.call.site)
    return None


def _function(factor: Tag) -> str | None:
    """Name what a tensor times this function of the same tensor computes."""
    if factor.u is not None:
        return "gelu" if factor.shifted else None
    assert factor.call is not None
    site = factor.call.site
    if site.composite is not None:
        return site.composite
    if site.function == "sigmoid" and not factor.shifted:
        return "silu"
    if site.function == "tanh":
        if factor.shifted:
            return "gelu"
        if factor.call.inner is not None and factor.call.inner.site.function == "softplus":
            return "mish"
    return None
