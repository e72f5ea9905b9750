"""The torch calls of a step that is followed: which there are, and what is noted of each.

Plain data: it is read once the numbers that belong to it have reached the host.
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lightning_gradwatch.record.step import LostGradient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.autograd.graph import Node

    from lightning_gradwatch.measure.model.path import Layer
    from lightning_gradwatch.measure.transfer.host import Slot


def names_in(text: str) -> frozenset[str]:
    """Return the names of functions that stand in a text."""
    return frozenset(text.split())


BY_SHAPE = names_in(
    "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty new_full size dim "
    "stride numel ndimension nelement element_size is_contiguous is_floating_point is_complex is_signed get_device data_ptr "
    "storage_offset __len__ __hash__ __repr__ __format__ register_hook retain_grad requires_grad_ zero_ fill_ grad"
)
"""Calls that look at the shape of what they are given, not at its values."""
LIKE_ANOTHER = names_in("expand_as view_as reshape_as type_as")
"""Of what these are given only the first is a value."""
LEAVES = names_in("item tolist numpy __array__ __float__ __int__ __bool__ __index__ __complex__")
"""Calls that hand values to the rest of Python."""
ENTERS = names_in("tensor as_tensor asarray from_numpy")
"""Calls that make a tensor of them."""
PRODUCTS = names_in(
    "mul mul_ multiply __mul__ __rmul__ __imul__ linear matmul __matmul__ __rmatmul__ mm bmm addmm baddbmm addbmm mv einsum bilinear "
    "linalg_multi_dot multi_dot chain_matmul "
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
)
_ADDING = names_in("addmm baddbmm addbmm")
"""Products to which their first argument is added."""
_OF_MANY = names_in("einsum linalg_multi_dot multi_dot chain_matmul")
"""Products of as many as they are given."""
MATRIX_PRODUCTS = names_in("matmul __matmul__ mm bmm mv")
FACTORS = names_in("mul mul_ multiply __mul__ __rmul__ __imul__")
SOFTMAX = names_in("softmax log_softmax softmin _softmax")
NORMS = names_in(
    "layer_norm group_norm instance_norm batch_norm rms_norm var std var_mean std_mean mean sum logsumexp amax max"
)
"""Norms, and what they are made of by hand."""
REACHED: Any = object()
"""Stands for the node of a value that is in a loss's graph."""


class Trained(NamedTuple):
    """A parameter that an optimizer holds."""

    name: str
    matrix: bool


class Operand(NamedTuple):
    """What a product is of."""

    value: Value | None
    """Of one that depends on a followed layer."""
    layer: str
    """Its layer's name, if that is or was trained."""
    anything: Slot
    """Whether it isn't all 0."""
    parameter: Trained | None
    """That it is itself."""


class Value:
    """A tensor that depends on a followed layer."""

    __slots__ = ("arrived", "differentiable", "made_by", "node", "ref", "taken_by")

    def __init__(self, tensor: Tensor, made_by: Call) -> None:
        self.ref = weakref.ref(tensor)
        self.node: Node | None = tensor.grad_fn
        self.differentiable = tensor.requires_grad
        self.made_by = made_by
        self.taken_by: list[Call] = []
        self.arrived: list[Slot] = []
        """Whether the gradients that arrived have an entry that isn't 0."""


class Call:
    """A torch call that made such tensors, or took values out of them."""

    __slots__ = (
        "back",
        "entries",
        "given",
        "layers",
        "lines",
        "made",
        "module",
        "name",
        "operands",
        "parameters",
        "recorded",
        "single",
        "surest",
        "zero",
    )

    def __init__(self, name: str, module: str, line: str, given: list[Value], layers: tuple[Layer, ...]) -> None:
        self.name = name
        self.module = module
        self.lines = (line,) if line else ()
        self.given = given
        self.layers = layers
        """The followed layers whose parameters it takes itself."""
        self.made: list[Value] = []
        self.back: Sequence[Call] = ()
        """Calls that had taken out the values which this one takes in."""
        self.entries = 0
        """Of the largest tensor that it made."""
        self.recorded = torch.is_grad_enabled()
        self.operands: list[Operand] = []
        """Of a product."""
        self.parameters: list[tuple[Trained, Slot]] = []
        """Of any other call: the trained parameters that it takes itself, and whether each isn't all 0."""
        self.single = False
        """Whether a softmax or a norm is over a single entry."""
        self.surest: Slot | None = None
        """Of a softmax: whether each of its outputs is exactly 0 or 1."""
        self.zero = False
        """Whether the plain number 0 is a factor."""


def operands_of(name: str, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return what a product is of, among the tensors that it is given."""
    if name in _ADDING:
        return tensors[1:]
    return tensors if name in _OF_MANY else tensors[:2]


def is_over_one(name: str, z: Tensor, arguments: Sequence[Any], made: Sequence[Tensor]) -> bool:
    """Tell whether a norm, or a variance, is taken over single entries."""
    if name in ("layer_norm", "rms_norm"):
        shape = next((each for each in arguments if isinstance(each, (tuple, list, torch.Size))), ())
        return math.prod(shape) == 1
    if name == "group_norm":
        groups = next((each for each in arguments if type(each) is int), 1)
        return z.numel() == z.shape[0] * groups
    if name == "instance_norm":
        return z.dim() > 2 and math.prod(z.shape[2:]) == 1
    if name == "batch_norm":
        return z.numel() == z.shape[1]
    return bool(made) and made[0].numel() == z.numel()


def both_zero(call: Call, factors: Sequence[Trained]) -> LostGradient:
    """Say that a product is of several that are 0; those that can be drawn at random first."""
    names = tuple(each.name for each in sorted(factors, key=lambda each: not each.matrix))
    return LostGradient("zero-factors", call.name, call.module, call.lines, names)
