"""What is remembered of a tensor between the call that made it and the call that takes it.

The unit axis is decided by the operation that produced a tensor (shapes alone can't tell [batch, channel, position] from
[batch, position, feature]), so each result inherits or changes what its argument had. They live in a table of the
tracer and die with the step: an attribute on a user's tensor would outlive it, in a checkpoint for instance.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from enum import IntEnum, unique
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_gradwatch.measure.signal import Origin
from lightning_gradwatch.measure.trace.comparisons import Comparisons
from lightning_gradwatch.measure.trace.operands import EINSUMS
from lightning_gradwatch.measure.trace.unknown_functions import UNKNOWN_FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from torch import nn
    from torch.autograd.graph import Node
    from torch.utils.hooks import RemovableHandle

    from lightning_gradwatch.measure.model.call_site import CallSite
    from lightning_gradwatch.measure.model.path import Layer, Site
    from lightning_gradwatch.measure.transfer.host import Slot
    from lightning_gradwatch.measure.units.mask import Samples
    from lightning_gradwatch.measure.units.site_stats import SiteStatistics
    from lightning_gradwatch.record.step import FloatVector


_HELD = 4
"""Arguments of formulas that are kept: a tanh written out has up to four exponentials."""


@unique
class Op(IntEnum):
    """What an operation does to the unit axis."""

    IGNORE = 0
    """Gives no tensor that an activation could take (sizes, properties, in-place fills)."""
    KEEP = 1
    """Same axis as its first tagged argument of the same rank: elementwise, pooling, concatenation, slices."""
    ARITHMETIC = 2
    """KEEP, and a function of one tensor as long as all its tensor arguments are functions of that one."""
    MULTIPLY = 3
    LAST = 4
    """Makes features along the last axis: linear, matmul, layer norm, embedding."""
    CHANNEL = 5
    """Makes channels along axis 1 (0 without a batch axis): convolutions, batch, group and instance norm."""
    RESHAPE = 6
    TRANSPOSE = 7
    ERF = 8
    SHIFT = 11
    """ARITHMETIC that adds: with a constant, it makes another function of an activation's output."""
    POWER = 12
    """ARITHMETIC whose result is a function of its argument, and no multiple of it."""
    CHANGE = 18
    """May change gradients that are there, as clipping does; as a call on other tensors it is one of these."""
    GRAD = 9
    """``autograd.grad``: whatever backward it runs isn't the step's own."""
    BACKWARD = 10
    CUT = 13
    """KEEP, and an activation function where it cuts its argument off (see `cuts`)."""
    EINSUM = 16
    """Makes features along the axis that its output string has from the weights."""
    FUNCTION = 17
    """KEEP, and a step of a function that is written out."""
    COMPARE = 14
    ZEROS = 15
    PIECE = 19
    """KEEP, and takes some of the entries: a head of several, a step of a sequence."""
    JOIN = 20
    """KEEP, and puts several tensors together."""
    ALIAS = 21
    """KEEP, and gives its argument's own values, without a way for gradients."""


MAKES_FEATURES = frozenset((Op.LAST, Op.CHANNEL, Op.EINSUM))
MOVES = frozenset((Op.RESHAPE, Op.TRANSPOSE))
_NAMES: dict[Op, str] = {
    Op.IGNORE: "size dim numel stride is_contiguous storage_offset item tolist numpy requires_grad_ zero_ fill_ copy_ "
    "backward_ set_ data_ptr element_size is_floating_point is_complex is_signed get_device ndimension nelement "
    "register_hook retain_grad detach_ cpu_ isnan isinf isfinite eq ne equal allclose argmax argmin "
    "__len__ __bool__ __float__ __int__ __repr__ __format__ __hash__ __contains__ __get__ __set__ __delete__ "
    "ones empty rand randn full arange ones_like empty_like rand_like randn_like "
    "_set_grad_enabled is_grad_enabled set_grad_enabled _record_function_enter_new _record_function_exit "
    "new_ones new_empty new_full is_tensor is_storage manual_seed _assert",
    Op.SHIFT: "add sub rsub subtract add_ sub_ __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ "
    "lerp lerp_ addcmul addcmul_ addcdiv addcdiv_",
    Op.POWER: "pow square pow_ square_ __pow__ __ipow__ __rtruediv__ __rdiv__ reciprocal reciprocal_",
    Op.FUNCTION: "exp exp2 expm1 abs absolute __abs__ sqrt rsqrt log log1p sinh cosh exp_ exp2_ expm1_ abs_ absolute_ sqrt_ "
    "rsqrt_ log_ log1p_ sinh_ cosh_ __rpow__ logaddexp sign sign_ "
    + " ".join(f"{name} {name}_" for name in UNKNOWN_FUNCTIONS),
    Op.ARITHMETIC: "div true_divide divide neg negative div_ divide_ neg_ "
    "__truediv__ __itruediv__ __div__ __neg__ float half bfloat16 double to type clone contiguous type_as",
    Op.MULTIPLY: "mul multiply mul_ multiply_ __mul__ __rmul__ __imul__",
    Op.EINSUM: " ".join(EINSUMS),
    Op.LAST: "linear matmul linalg_matmul linalg_multi_dot chain_matmul __matmul__ __rmatmul__ mm bmm addmm baddbmm addbmm mv bilinear layer_norm rms_norm embedding "
    "embedding_bag scaled_dot_product_attention multi_head_attention_forward lstm gru rnn_tanh rnn_relu lstm_cell "
    "gru_cell rnn_tanh_cell rnn_relu_cell scaled_mm _scaled_mm grouped_mm _grouped_mm native_layer_norm",
    Op.CHANNEL: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution "
    "batch_norm group_norm instance_norm native_batch_norm native_group_norm local_response_norm",
    Op.RESHAPE: "view reshape flatten unflatten view_as reshape_as squeeze unsqueeze expand expand_as ravel "
    "_unsafe_view squeeze_ unsqueeze_ repeat",
    Op.CUT: "clamp clip clamp_min clamp_max clamp_ clip_ clamp_min_ clamp_max_ maximum max fmax amax amin minimum min fmin where masked_fill "
    "masked_fill_ masked_scatter masked_scatter_",
    Op.COMPARE: "gt ge lt le greater greater_equal less less_equal",
    Op.ALIAS: "detach",
    Op.ZEROS: "zeros zeros_like new_zeros",
    Op.PIECE: "split chunk tensor_split split_with_sizes unsafe_chunk unsafe_split hsplit vsplit dsplit unbind narrow select "
    "index_select gather take_along_dim __getitem__ sort msort topk",
    Op.JOIN: "cat concat concatenate stack vstack row_stack hstack dstack column_stack",
    Op.TRANSPOSE: "transpose permute t mT movedim moveaxis swapaxes swapdims transpose_ t_ swapaxes_ swapdims_ adjoint",
}
_PROPERTIES = {**dict.fromkeys(("T", "mT", "H", "mH"), Op.TRANSPOSE), "data": Op.ALIAS}
_OP_OF_NAME = {name: op for op, names in _NAMES.items() for name in names.split()}


def classify(func: Callable[..., Any]) -> Op:
    """Say what an operation does to the unit axis, by its name; what isn't known keeps it."""
    if func is torch.autograd.grad:
        return Op.GRAD
    if func is torch.autograd.backward or func is Tensor.backward:
        return Op.BACKWARD
    name = getattr(func, "__name__", "")
    if name == "__get__":
        # Properties: these give tensors, the others nothing that we follow.
        return _PROPERTIES.get(getattr(getattr(func, "__self__", None), "__name__", ""), Op.IGNORE)
    return _OP_OF_NAME.get(name, Op.KEEP)


def is_in_place(func: Callable[..., Any]) -> bool:
    """Whether an operation changes an argument, as its name has it."""
    name = getattr(func, "__name__", "")
    return name.startswith("__i") if name.endswith("__") else name.endswith("_")


class Part(NamedTuple):
    """A part of an axis, as the heads are of an axis of batch and heads together."""

    size: int
    of: Literal["batch", "positions", "units"]


Parts: TypeAlias = "tuple[Part, ...]"


class Split(NamedTuple):
    """Of each axis of a tensor what it is made of, from the outermost part to the innermost; none of them has size 1."""

    axes: tuple[Parts, ...]

    @property
    def with_units(self) -> list[int]:
        """The axes that have units, or a part of them."""
        return [place for place, parts in enumerate(self.axes) if any(part.of == "units" for part in parts)]


LOST = Split(())
"""Stands for units that lie where they can't be told from positions any more."""


NO_UNITS = Split((((Part(0, "positions"),)),))
"""Stands for a tensor that has none, as one that no layer has made."""


Axis: TypeAlias = "int | Split"
"""The axis of the units, or the parts of axes."""


class Ended:
    """A call of a hand-written function that has been measured as it stands."""

    before: tuple[int, int, int]
    """The outputs of its site before it."""
    handles: Sequence[RemovableHandle]
    node: Node | None

    def __init__(self, site: Site, sums: SiteStatistics, root: Origin, axis: Axis, missing: float) -> None:
        self.site = site
        self.sums = sums
        self.root = root
        self.axis = axis
        self.missing = missing
        """The constant that its formula still wants."""


class SiteCall:
    """One call of a site, for as long as the forward pass may show what it is part of."""

    of: Origin | None = None
    """Of the value of which the argument is an arithmetic function."""
    samples: Samples | None = None
    """Which positions of the argument count; None: all."""
    origin: Origin | None = None
    """Where the argument's gradient goes; until the function has run."""
    handles: Sequence[RemovableHandle] = ()
    norm: Slot | None = None
    """Where the norm of the output will be, where it follows from the argument; None: the output is to be measured."""
    columns = False
    """Whether the batch is the last axis."""
    usual = True
    """Whether a softplus was called without parameters of its own."""
    centred = False
    """Whether half of `height` was added to make the argument, as in a hard sigmoid."""
    ended: Ended | None = None
    """Where it has been measured as a hard sigmoid, which may be a step of a hard swish yet."""
    height = math.nan
    """Its upper bound, for a function that is 0 below 0 and constant from some bound on; NaN for any other."""

    def __init__(
        self, site: Site, sums: SiteStatistics, axis: Axis, tag: TensorState | None, *, in_place: bool
    ) -> None:
        self.site = site
        self.sums = sums
        self.axis = axis
        self.in_place = in_place
        self.layer = None if tag is None else tag.layer
        self.piece = 0 if tag is None else tag.piece
        self.factor = 1.0 if tag is None or tag.root is None else tag.factor
        """Of what multiple of `of` it is; None where it is another function of that."""
        self.inner = None if tag is None or tag.shifted or tag.scale != 1.0 else tag.call
        """The call whose output is the argument, as softplus is of the tanh in Mish."""
        self.within = inner_call(tag)
        """The call of whose output the argument is a function, entry by entry."""
        self.formula = None if tag is None else tag.formula
        """What the argument is as a function of another tensor, where that isn't known yet."""

    @property
    def source(self) -> Origin | None:
        """Of the value of which the argument is another function than an arithmetic one, entry by entry; None: of none."""
        if self.within is not None:
            return self.within.of
        return None if self.formula is None else self.formula.of


class Start:
    """The argument of a function's first step."""

    __slots__ = ("argument", "direct", "factor", "name", "named", "place", "tag", "version")

    def __init__(
        self,
        argument: Tensor,
        factor: float,
        tag: TensorState,
        *,
        name: str,
        place: CallSite,
        direct: bool,
        named: bool,
    ) -> None:
        self.argument: Tensor | None = argument.detach()
        """None once there are newer ones."""
        self.version = argument._version  # noqa: SLF001 - it has no public name
        self.factor = factor
        """Of what multiple of the function's own argument it is."""
        self.tag = tag
        self.name = name
        self.place = place
        self.direct = direct
        """Whether a layer has made it, with nothing but constants between."""
        self.named = named
        """Whether coverage names the function where a layer takes it and it isn't known: so, or of a sum or difference of two."""


class Formula(NamedTuple):
    """What a tensor is as a function of another one, entry by entry."""

    of: Origin
    """Of the value of which it is a function."""
    start: Start
    values: FloatVector | None
    """At `POINTS`; None where something came in that isn't known, as a bias or a residual."""


class TensorState:
    """What is known of one tensor.

    Most of it is the rule for nearly all tensors, and so an attribute of the class: there are hundreds of these a step.
    """

    root: Origin | None = None
    """Of the value of which this is an arithmetic function (no activation function between); itself, where of none."""
    call: SiteCall | None = None
    """The activation call whose output this is, up to views, constants and casts."""
    within: SiteCall | None = None
    """The activation call of whose output this is another function, entry by entry."""
    picked: SiteCall | None = None
    """The activation call of whose output this is a choice of entries, as the probabilities of the right classes are."""
    of: Origin | None = None
    """Of the value of which the argument of `call`, or `u`, is an arithmetic function."""
    u: Tensor | None = None
    """The argument of an error function, for as long as it may turn out to be a hand-written GELU."""
    factor: float | None = 1.0
    """What `root` is multiplied by to make it; None for any other function of it."""
    u_factor: float | None = None
    """Of what multiple of its root `u` is; None where it is another function of that."""
    scale = 1.0
    """What the output of `call`, or the error function's, is multiplied by; NaN where the device alone knows."""
    offset = 0.0
    """What was added to it before it was multiplied by `scale`; NaN likewise."""
    gate: tuple[SiteCall, ...] = ()
    """The activation calls of whose outputs this is a function, and of nothing else, where they may turn out to be gates'."""
    formula: Formula | None = None
    """What it is as a function of another tensor, if it isn't known yet which one that is."""
    ended: Ended | None = None
    """Where it is a hand-written function but for a constant that is still to come."""
    shift = 0.0
    """The constant that was added to make it; NaN where it isn't known, 0 where none was."""
    columns = False
    """Whether the samples are its columns, as in ``W @ X``."""
    product: tuple[Layer, nn.Parameter] | None = None
    """The matrix of a layer whose entries it is multiplied by one by one, as in ``(x[:, None] * W).sum(-1)``."""
    piece = 0
    """Which of the units that its layer has made it has, by a number (see `pieces`); 0: all, or the first."""
    buffer = False
    """Whether it was filled by assigning to its parts."""
    shifted = False
    """Whether a constant was added to the activation's output since, as in ``1 + tanh(u)``."""
    weights_only = False
    """Whether it was made without data: from parameters, as a normalised weight is, and from buffers and numbers."""

    def __init__(self, tensor: Tensor, axis: Axis | None, layer: Layer | None) -> None:
        self.ref = weakref.ref(tensor)
        self.axis = axis
        self.layer = layer


class Sources(NamedTuple):
    """Where the arguments of a call come from."""

    user: Layer | None
    """The first layer that one of them is a parameter of, or made from parameters of alone."""
    users: Sequence[Layer]
    """All such layers."""
    tag: TensorState | None
    """Of the first other argument of which something is known."""
    tensor: Tensor | None
    """That argument."""
    weights_only: bool
    """Whether there is no data: nothing but parameters, buffers, numbers and what was made from them, as in weight normalisation."""
    gates: bool
    """Whether one is made of the output of an activation function that may turn out to gate."""
    formula: Formula | None
    """Of the first that is a function of another tensor."""


class TensorStates:
    """The tags of one forward pass."""

    def __init__(self) -> None:
        self._tags: dict[int, TensorState] = {}
        self._untagged: dict[int, tuple[weakref.ref[Tensor], Origin]] = {}
        """Origins of tensors of which nothing else is known."""
        self.comparisons = Comparisons()
        self.pieces: dict[Hashable, int] = {}
        """The numbers of pieces of layers' features."""
        self.apart = False
        """Whether some of them are pieces of weights."""
        self.named: set[Origin] = set()
        """Of the values of which unknown functions are put together that coverage names already."""
        self._starts: deque[Start] = deque()

    def get(self, tensor: object) -> TensorState | None:
        """Return what is known of a tensor; an id that was reused by another tensor is not it."""
        tag = self._tags.get(id(tensor))
        return tag if tag is not None and tag.ref() is tensor else None

    def put(self, tensor: Tensor, tag: TensorState) -> None:
        """Remember a tag."""
        self._tags[id(tensor)] = tag

    def clear(self) -> None:
        """Forget all."""
        self._tags.clear()
        self._untagged.clear()
        self.comparisons.clear()
        self.pieces.clear()
        self.apart = False
        self.named.clear()
        self._starts.clear()

    def hold(self, start: Start) -> None:
        """Keep the argument of a formula's first step for as long as few others came after it."""
        self._starts.append(start)
        if len(self._starts) > _HELD:
            self._starts.popleft().argument = None

    def is_of(self, tensor: object, origin: Origin) -> bool:
        """Whether a tensor is an arithmetic function of a value, or that value."""
        tag = self.get(tensor)
        if tag is not None:
            return tag.root is origin
        known = self._untagged.get(id(tensor))
        return known is not None and known[0]() is tensor and known[1] is origin

    def root(self, tensor: Tensor) -> Origin:
        """Return the origin of the value of which a tensor is an arithmetic function (of its own, where of none).

        It stands for the value: made once, when the value is first asked for, it stays the same object when the tensor is
        changed in place afterwards, and so do the edges that lead to it.
        """
        return self.root_of(tensor, self.get(tensor))

    def root_of(self, tensor: Tensor, tag: TensorState | None, origin: Origin | None = None) -> Origin:
        """Return `root` of a tensor whose tag is known, and whose origin may be."""
        if tag is not None:
            if tag.root is None:
                tag.root = origin or Origin(tensor)
            return tag.root
        known = self._untagged.get(id(tensor))
        if known is None or known[0]() is not tensor:
            known = self._untagged[id(tensor)] = weakref.ref(tensor), origin or Origin(tensor)
        return known[1]

    def unit_axis(self, tensor: Tensor) -> Axis:
        """Return where the units of a tensor lie: along its producer's axis, else 1 for four or more axes, else the last."""
        return unit_axis(tensor, self.get(tensor))


def inner_call(tag: TensorState | None) -> SiteCall | None:
    """Return the activation call whose output a tensor is, or is a function of, entry by entry."""
    return None if tag is None else tag.call or tag.within


def unit_axis(tensor: Tensor, tag: TensorState | None) -> Axis:
    """Return where the units of a tensor lie whose tag is known."""
    rank = tensor.dim()
    axis = None if tag is None else tag.axis
    if axis is not None and (axis.__class__ is not int or axis < rank):
        return axis
    return 1 if rank >= 4 else max(rank - 1, 0)
