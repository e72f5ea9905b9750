"""What single torch calls of a forward pass show: an output function applied twice, a norm over one value, evaluation mode."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_gradwatch.measure.model.call_site import line_of, line_of_call, locate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lightning_gradwatch.measure.model.call_site import ModuleNames
    from lightning_gradwatch.measure.trace.tensor_state import TensorStates
    from lightning_gradwatch.measure.wiring.facts import Facts
    from lightning_gradwatch.record.step import WiringKind

_SQUASHES = frozenset(("softmax", "softmin", "sigmoid"))
"""Functions whose outputs are probabilities: what a loss that applies one of them itself shouldn't be given."""
_APPLIES = frozenset(
    ("cross_entropy", "log_softmax", "binary_cross_entropy_with_logits", "multilabel_soft_margin_loss", "logsigmoid")
)
"""Functions that apply softmax or sigmoid themselves, and take the logarithm of what comes out."""
_LOGARITHMS = frozenset(("log", "log2", "log10"))
_DROPOUT = frozenset(("dropout", "alpha_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d"))
_TRAINED_SHARE = 0.5
"""Share of a module's parameters that are trained from which on it is no frozen one that something was added to, as LoRA is."""


class Calls:
    """Looks at the calls of one forward pass, one by one, before they run."""

    def __init__(self, model: nn.Module, facts: Facts, tags: TensorStates, names: ModuleNames) -> None:
        self._model = model
        self._facts = facts
        self._tags = tags
        self._names = names

    def see(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Look at a call that is about to run."""
        name = getattr(func, "__name__", "").strip("_")
        look = _LOOKS.get(name)
        if look is None:
            return
        given = _given(args, kwargs, 0, "input")
        if isinstance(given, Tensor) and given.requires_grad and torch.is_grad_enabled() and not self._is_weight(given):
            look(self, name, given, args, kwargs)

    def _is_weight(self, given: Tensor) -> bool:
        """Whether a tensor is made of parameters alone: standardised weights go through a norm of batch size 1."""
        tag = self._tags.get(given)
        return isinstance(given, nn.Parameter) if tag is None else tag.weights_only

    def _output(self, name: str, given: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """See whether a function that applies softmax or sigmoid is given what one of them has put out."""
        del args, kwargs
        tag = self._tags.get(given)
        call = None if tag is None else tag.call or tag.picked
        if tag is None or call is None or call.site.function not in _SQUASHES or tag.shifted or tag.scale != 1:
            return  # scaled, as by a temperature, it may reach any probability
        kind: WiringKind = "log-of-output" if name in _LOGARITHMS else "output-twice"
        place = call.site.location
        origin = "" if place.leaf else line_of(place.place)
        self._facts.note(kind, call.site, operation=name, line=self._line(), origin=origin)

    def _norm(self, name: str, given: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """See whether a normalisation has one value only, which it makes 0 whatever it is."""
        if name == "group_norm":
            groups = _given(args, kwargs, 1, "num_groups")
            values = given[0].numel() // groups if len(given) and groups else 0
        else:
            values = math.prod(_given(args, kwargs, 1, "normalized_shape"))
        if values == 1:
            self._facts.note("norm-of-one", self._module(name), operation=name, line=self._line(), value=1)

    def _batch_norm(self, name: str, given: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """See whether a batch normalisation has one sample, or was left in evaluation mode."""
        if _given(args, kwargs, 5, "training", default=False):
            if given.dim() > 2 and len(given) == 1 and given.shape[1]:
                values = given.numel() // given.shape[1]
                self._facts.note("norm-of-sample", self._module(name), operation=name, line=self._line(), value=values)
            return
        weight = _given(args, kwargs, 3, "weight")
        if weight is None or weight.requires_grad:
            self._left(name)

    def _dropout(self, name: str, given: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """See whether a dropout was left in evaluation mode."""
        del given
        if not _given(args, kwargs, 2, "training", default=True) and _given(args, kwargs, 1, "p", default=0.5) > 0:
            self._left(name)

    def _left(self, name: str) -> None:
        """Note a module that was left in evaluation mode with all that is around it, and is trained.

        A module of its own that somebody has put in evaluation mode by itself, as batch normalisations in fine-tuning, is
        meant to be; one whose parameters are nearly all frozen too.
        """
        inner = locate(self._names, above=3).module
        parts = inner.split(".") if inner else []
        modules = [self._model]
        for part in parts:
            modules.append(modules[-1].get_submodule(part))
        alone = isinstance(modules[-1], (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd))  # noqa: SLF001 - they have no public names
        place = len(modules) - 1
        if modules[place].training:
            return  # a function that is told so by the program
        while place and not modules[place - 1].training:
            place -= 1
        if alone and place == len(modules) - 1:
            return
        around = modules[max(len(modules) - 2, place) if alone else len(modules) - 1]
        trained = [each.requires_grad for each in around.parameters() for _ in range(bool(each.numel()))]
        if trained and sum(trained) >= _TRAINED_SHARE * len(trained):
            self._facts.note("evaluation-mode", ".".join(parts[:place]), operation=name, line=self._line())

    def _module(self, name: str) -> str:
        return locate(self._names, above=3).module or f":{name}"

    def _line(self) -> str:
        return line_of_call(self._names, above=3)


def _given(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str, *, default: Any = None) -> Any:
    """Return an argument of a call, by its place or its name."""
    return args[place] if len(args) > place else kwargs.get(name, default)


_LOOKS: dict[str, Any] = {
    **dict.fromkeys((*_APPLIES, *_LOGARITHMS), Calls._output),  # noqa: SLF001 - of the class above
    **dict.fromkeys(("layer_norm", "rms_norm", "group_norm"), Calls._norm),  # noqa: SLF001 - as above
    **dict.fromkeys(_DROPOUT, Calls._dropout),  # noqa: SLF001 - as above
    "batch_norm": Calls._batch_norm,  # noqa: SLF001 - as above
}
