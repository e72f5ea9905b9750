"""What a loss would be if the net gave one constant answer: carried along beside the loss, through what is made of it.

A loss function that is seen gets a *shadow*: what it gives where all classes are equally likely (cross-entropy, BCE), or
where each output is the mean of the targets (squared and absolute errors). What the program then does to the loss (masks,
means, factors, sums) is done to the shadow too, so that both are on the same scale. Where something else that is trained
takes part, as a penalty or a term of another kind, or where the targets aren't data, there is no shadow: the number is
right or absent. All of it are a few operations on targets and losses, on the device, in the first measured steps alone.
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from lightning_gradwatch.measure.unobserved import is_opaque
from lightning_gradwatch.measure.wiring.constant_losses import (
    REDUCTIONS,
    Call,
    Source,
    errors,
    is_uniform,
    of_classes,
    of_log_probabilities,
    of_shares,
    reduced,
    rms,
    where_they_differ,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_CARRIES = frozenset(
    (
        *("add", "sub", "rsub", "subtract", "mul", "multiply", "div", "true_divide", "divide", "neg", "negative"),
        *("__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__", "__mul__", "__rmul__", "__imul__"),
        *("__truediv__", "__itruediv__", "__neg__", "add_", "sub_", "mul_", "div_", "neg_"),
        *(
            "sum",
            "mean",
            "nansum",
            "nanmean",
            "amax",
            "amin",
            "logsumexp",
            "norm",
            "linalg_vector_norm",
            "linalg_norm",
            "dot",
        ),
        *("pow", "square", "__pow__", "sqrt", "exp", "log", "log1p", "abs", "absolute", "__abs__", "relu", "kl_div"),
        *("clamp", "clamp_min", "clamp_max", "clip", "where", "masked_fill", "masked_select", "maximum", "minimum"),
        *(
            "view",
            "reshape",
            "flatten",
            "unflatten",
            "view_as",
            "reshape_as",
            "squeeze",
            "unsqueeze",
            "expand",
            "expand_as",
        ),
        *("contiguous", "clone", "t", "transpose", "permute", "movedim", "float", "double", "to", "type", "type_as"),
        *("__getitem__", "gather", "index_select", "take_along_dim", "select", "narrow"),
        *("stack", "cat", "concat", "concatenate", "hstack", "vstack"),
    )
)
"""Functions that give what they would of a constant answer, too, if they are given that."""
_WEIGHS = frozenset(
    (
        "mul",
        "multiply",
        "__mul__",
        "__rmul__",
        "__imul__",
        "mul_",
        "dot",
        "div",
        "true_divide",
        "divide",
        "__truediv__",
        "div_",
    )
)
_NEW = frozenset(
    (
        *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like"),
        *("new_empty", "new_zeros", "new_ones", "new_full"),
    )
)
"""Functions that take of a tensor its shape alone."""
_DIFFERENCES = frozenset(("sub", "rsub", "subtract", "__sub__", "__rsub__"))
_DISTANCES = frozenset(("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"))
_MOST_ENTRIES = 1 << 24
"""Entries of targets, weights and shadows at most: a loss of more isn't followed."""
_FACTORS = ("DivBackward0", "MulBackward0", "ToCopyBackward0")
_MOST_FACTORS = 8
_LOG_2 = math.log(2)


class _Shadow(NamedTuple):
    of: weakref.ref[Tensor]
    version: int
    value: Tensor
    source: Source | None


_Begun: TypeAlias = "tuple[Tensor, Source | None]"


class Answer(NamedTuple):
    """What the loss of a backward pass would be of a constant answer."""

    loss: Tensor
    """Without dimensions."""
    source: Source | None


class ConstantAnswers:
    """The shadows of one step."""

    def __init__(self) -> None:
        self._shadows: dict[int, _Shadow] = {}
        self._whole: dict[int, tuple[_Shadow, Tensor]] = {}
        """Those of single numbers, each with the number itself, by that of the autograd node that made it."""
        self._refused: set[int] = set()
        """Numbers of the nodes of single numbers that were seen to be made of one, and have none themselves."""
        self._made: dict[int, weakref.ref[Tensor]] = {}
        """Tensors without a gradient that depend on something trained all the same, by their `id`."""

    def clear(self) -> None:
        """Let go of all."""
        self._shadows.clear()
        self._whole.clear()
        self._refused.clear()
        self._made.clear()

    def of(self, loss: Any) -> Answer | None:
        """Return the answer that goes with a loss; None where it isn't known."""
        shadow = self.find(loss)
        if shadow is not None:
            return Answer(shadow.value.reshape(()), shadow.source) if shadow.value.numel() == 1 else None
        node = loss.grad_fn
        for _ in range(_MOST_FACTORS):  # by which the loop multiplies what a training step gave it, out of sight
            if node is None or node.name() not in _FACTORS or node._sequence_nr() in self._refused:  # noqa: SLF001 - it has no public name
                return None
            ways = [way for way, _ in node.next_functions if way is not None]
            if len(ways) != 1:
                return None
            (node,) = ways
            found = self._whole.get(node._sequence_nr())  # noqa: SLF001 - as above
            if found is not None and loss.numel() == 1:
                shadow, whole = found
                factor = loss.detach().reshape(()).double() / whole.reshape(())
                return Answer(shadow.value.reshape(()) * factor, shadow.source)
        return None

    def made(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Look at a call that has run."""
        name = getattr(func, "__name__", "")
        if not isinstance(result, Tensor):
            for each in result if isinstance(result, (tuple, list)) else ():
                if isinstance(each, Tensor) and not each.requires_grad:
                    self._note_made(args, kwargs, each)
        elif not result.requires_grad:
            if name not in _NEW:
                self._note_made(args, kwargs, result)
        elif (self._shadows or name in _BEGINS) and torch.is_grad_enabled() and not is_opaque(result):
            with torch.no_grad():
                found = self._begun(name, args, kwargs) or self._carried(name, func, args, kwargs)
                self._note(result, found)

    def _begun(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Begun | None:
        """Begin a shadow where a call is a loss function's."""
        begins = _BEGINS.get(name)
        found: _Begun | None = None if begins is None else begins(self, name, Call(args, kwargs))
        return found

    def _note(self, result: Tensor, found: _Begun | None) -> None:
        """Note what belongs to a result, if anything does."""
        self._shadows.pop(id(result), None)
        number = result.grad_fn._sequence_nr() if result.numel() == 1 and result.grad_fn is not None else None  # noqa: SLF001 - it has no public name
        if found is None:
            if number is not None:
                self._refused.add(number)
        elif found[0].shape == result.shape and found[0].device == result.device:
            shadow = self._shadows[id(result)] = _Shadow(weakref.ref(result), result._version, *found)  # noqa: SLF001 - as above
            if number is not None:  # a copy of the number, as the tensor may be changed in place
                self._whole[number] = shadow, result.detach().double().clone()

    def _note_made(self, args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> None:
        """Note a tensor that has no gradient and isn't data: detached, or a frozen net's."""
        if any(not self.is_data(each) for each in _tensors((*args, *kwargs.values()))):
            self._made[id(result)] = weakref.ref(result)

    def _carried(
        self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> _Begun | None:
        """Do to shadows what was done to what they are of; None where something else that is trained takes part."""
        if not self._shadows or (name not in _CARRIES and name != "nll_loss"):
            return None
        in_place = _is_in_place(name)
        carried = _Carried(self, args[0] if in_place and args else None, weighs=name in _WEIGHS)
        given = [carried.swap(each) for each in args]
        named = {key: carried.swap(each) for key, each in kwargs.items()}
        if carried.unknown or not carried.shadows:
            return None
        if name == "nll_loss":
            value = of_log_probabilities(Call(given, named))
        else:
            if in_place:  # a shadow is nobody's to change
                given[0] = given[0].clone()
            value = func(*given, **named)
        if not isinstance(value, Tensor) or (value.numel() > _MOST_ENTRIES and not is_uniform(value)):
            return None
        return carried.checked(value), carried.source

    def find(self, tensor: Any, *, changes: int = 0) -> _Shadow | None:
        """Return the shadow of a tensor; of what it was before that was changed in place so many times."""
        shadow = self._shadows.get(id(tensor))
        held = None if shadow is None else shadow.of()
        if shadow is None or held is None or held is not tensor:
            return None
        version: int = held._version  # noqa: SLF001 - it has no public name
        return shadow if shadow.version == version - changes else None

    def is_data(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on nothing that is trained, or was."""
        if tensor.requires_grad or isinstance(tensor, nn.Parameter):
            return False
        made = self._made.get(id(tensor))
        return (made is None or made() is not tensor) and not is_opaque(tensor)

    # -- what a shadow begins with

    def _cross_entropy(self, name: str, call: Call) -> _Begun | None:
        """Of logits: all classes alike."""
        del name
        scores, target = call.tensor(0, "input"), call.tensor(1, "target")
        if not self._are_scores(scores, target, call.get(2, "weight")) or call.legacy(3, 5) or scores is None:
            return None
        assert target is not None
        classes = scores.shape[1 if scores.dim() > 1 else 0]
        reduction, smoothing = call.get(6, "reduction", "mean"), call.get(7, "label_smoothing", 0.0)
        if reduction not in REDUCTIONS or classes < 2:
            return None
        weight, ignored = call.get(2, "weight"), call.get(4, "ignore_index", -100)
        if target.is_floating_point():
            value = of_shares(target, weight, classes, reduction, smoothing)
        else:
            value = of_classes(target, weight, classes, ignored, reduction, smoothing=smoothing) * math.log(classes)
        return where_they_differ(target, value), Source(rms(scores))

    def _log_softmax(self, name: str, call: Call) -> _Begun | None:
        """Of logits: all classes alike, each at -ln C."""
        del name
        scores, dim = call.tensor(0, "input", "self"), call.get(1, "dim")
        if scores is None or not isinstance(dim, int) or not scores.requires_grad or scores.shape[dim] < 2:
            return None
        value = torch.full((), -math.log(scores.shape[dim]), dtype=torch.float64, device=scores.device)
        return value.expand(scores.shape), Source(rms(scores))

    def _binary(self, name: str, call: Call) -> _Begun | None:
        """Of logits or probabilities: each as likely as not, which is ln 2 whatever the targets are."""
        scores, target, weight = call.tensor(0, "input"), call.tensor(1, "target"), call.get(2, "weight")
        positive = call.get(6, "pos_weight") if name.endswith("logits") else None
        if not self._are_scores(scores, target, weight, positive) or call.legacy(3, 4):
            return None
        assert scores is not None
        assert target is not None
        value = torch.full((), _LOG_2, dtype=torch.float64, device=scores.device).expand(scores.shape)
        if positive is not None:
            value = value * (1 + (positive.double() - 1) * target)
        if weight is not None:
            value = value * weight
        total = reduced(value, call.get(5, "reduction", "mean"))
        return None if total is None else (where_they_differ(target, total), Source(rms(scores)))

    def _distance(self, name: str, call: Call) -> _Begun | None:
        """Of an error to targets: their mean, everywhere."""
        huber, smooth = name == "huber_loss", name == "smooth_l1_loss"
        given, target = call.tensor(0, "input"), call.tensor(1, "target")
        if given is None or target is None or not (huber or not call.legacy(2, 3)):
            return None
        if not smooth and call.get(4 if huber else 5, "weight") is not None:
            return None  # what a weighted mean divides by has changed between releases
        outputs, target = (given, target) if given.requires_grad else (target, given)
        if not self._are_scores(outputs, target) or self.find(outputs) is not None:
            return None
        off, source = errors(outputs, target)
        value = off.square() if name == "mse_loss" else off.abs()
        bend = call.get(3, "delta", 1.0) if huber else call.get(5, "beta", 1.0) if smooth else 0.0
        if bend > 0:
            value = torch.where(value < bend, value.square() / 2, bend * (value - bend / 2))
            value = value / bend if smooth else value
        total = reduced(value, call.get(2 if huber else 4, "reduction", "mean"))
        return None if total is None else (total, source)

    def _difference(self, name: str, call: Call) -> _Begun | None:
        """Of outputs less targets, from which errors are made by hand."""
        if name in {"rsub", "__rsub__"}:
            call = Call((*call.args[1::-1], *call.args[2:]), call.kwargs)
        one, two = call.tensor(0, "input", "self"), call.tensor(1, "other")
        if one is None or two is None or call.get(2, "alpha", 1) != 1 or one.requires_grad == two.requires_grad:
            return None
        outputs, target = (one, two) if one.requires_grad else (two, one)
        if not target.dim() or self.find(outputs) is not None or not self._are_scores(outputs, target):
            return None
        if not (target.is_floating_point() and outputs.numel() and target.shape == outputs.shape):
            return None
        value, source = errors(outputs, target)
        return (value if outputs is one else -value), source

    def _are_scores(self, scores: Tensor | None, *data: Any) -> bool:
        """Whether a loss is given outputs that are trained, and beside them data alone."""
        if scores is None or not scores.requires_grad or not scores.is_floating_point() or not scores.numel():
            return False
        return all(each is None or (isinstance(each, Tensor) and self._is_followed(each)) for each in data)

    def _is_followed(self, data: Tensor) -> bool:
        return self.is_data(data) and 0 < data.numel() <= _MOST_ENTRIES and data.layout is torch.strided


class _Carried:
    """Puts shadows in the place of what they are of, among the arguments of a call."""

    def __init__(self, answers: ConstantAnswers, changed: Any, *, weighs: bool) -> None:
        self._answers = answers
        self._changed = changed
        self._weighs = weighs
        self._weights: list[Tensor] = []
        self.shadows: list[_Shadow] = []
        self.unknown = False
        """Whether something that is trained takes part of which no constant answer is known."""

    def swap(self, value: Any) -> Any:
        """Return what goes in the place of an argument."""
        if isinstance(value, Tensor):
            shadow = self._answers.find(value, changes=value is self._changed)
            if shadow is not None:
                self.shadows.append(shadow)
                return shadow.value
            if not self._answers.is_data(value) or value.numel() > _MOST_ENTRIES:
                self.unknown = True
            elif value.numel() > 1 and value.is_floating_point():
                self._weights.append(value)
            return value
        return type(value)(map(self.swap, value)) if type(value) in (tuple, list) else value

    @property
    def source(self) -> Source | None:
        """What they all began with; None where that isn't one and the same."""
        first = self.shadows[0].source
        return first if all(each.source is first for each in self.shadows) else None

    def checked(self, value: Tensor) -> Tensor:
        """Return a value; NaN where classes are weighed by something else than a mask.

        By the returns of a policy, the loss may rise as the net learns.
        """
        if not self._weighs or all(each.source is not None and each.source.mean is not None for each in self.shadows):
            return value
        for weight in self._weights:
            value = torch.where(((weight == 0) | (weight == 1)).all(), value, math.nan)
        return value


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from (each for each in value if isinstance(each, Tensor))


def _is_in_place(name: str) -> bool:
    return (name.endswith("_") and not name.startswith("_")) or (name.startswith("__i") and name != "__index__")


_BEGINS: dict[str, Any] = {
    "cross_entropy": ConstantAnswers._cross_entropy,  # noqa: SLF001 - of the class above
    "log_softmax": ConstantAnswers._log_softmax,  # noqa: SLF001 - as above
    **dict.fromkeys(
        ("binary_cross_entropy", "binary_cross_entropy_with_logits"),
        ConstantAnswers._binary,  # noqa: SLF001 - as above
    ),
    **dict.fromkeys(_DISTANCES, ConstantAnswers._distance),  # noqa: SLF001 - as above
    **dict.fromkeys(_DIFFERENCES, ConstantAnswers._difference),  # noqa: SLF001 - as above
}
