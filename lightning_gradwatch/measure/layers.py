"""Layers: who owns which trainable parameter, under which name, in which order."""

from __future__ import annotations

import re
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedParameter

from lightning_gradwatch.measure.shards import placed
from lightning_gradwatch.record import LayerInfo, LostGradient, NotCovered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import torch
    from torch.optim import Optimizer

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_NOT_WEIGHT = (nn.Embedding, nn.EmbeddingBag, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_FABRIC = "_forward_module"
"""Under which Lightning Fabric's wrapper holds what its forward pass runs."""


def qualified_name(name: str) -> str:
    """Strip the prefixes that wrappers put into fully qualified names.

    >>> qualified_name("_orig_mod.net.0._orig_mod.weight")
    'net.0.weight'
    """
    return _WRAPPERS.sub("", name)


@dataclass(eq=False)
class Layer:
    """A module that directly owns trainable parameters."""

    name: str
    kind: str
    normalizes: bool = False
    """Whether it is an embedding or a norm, whose matrices are no weight layer's."""
    parameters: list[nn.Parameter] = field(default_factory=list)
    used: bool = False
    step: int = 0
    """The measured step (`Layers.step`) whose forward pass used it last."""
    lacks: bool = False
    """Whether it had no gradient, or one of 0, in the last measured step that it was in."""
    lost: LostGradient | None = None
    """Where its gradient is lost, if that was seen."""
    followed: int = 0
    """In how many steps that was looked for since it last had one."""

    def note(self, *, lacks: bool) -> None:
        """Note whether it has no gradient, or one of 0."""
        self.lacks = lacks
        if not lacks:
            self.lost, self.followed = None, 0

    @property
    def frozen(self) -> bool:
        """Whether nothing of it is being trained."""
        return not any(parameter.requires_grad for parameter in self.parameters)

    @property
    def weight(self) -> bool:
        """Whether it is a weight layer."""
        return not self.normalizes and bool(self.matrices)

    @property
    def matrices(self) -> list[nn.Parameter]:
        """The parameters of two or more dimensions."""
        return [parameter for parameter in self.parameters if is_matrix(parameter)]

    @property
    def features(self) -> int:
        """How many output features it makes, as the rows of its first matrix have it; 0 without one."""
        return next((parameter.shape[0] for parameter in self.matrices), 0)

    def info(self, *, seen: bool) -> LayerInfo:
        """Describe the layer; `seen` says whether the forward pass can be watched at all."""
        known = [parameter for parameter in self.parameters if not is_lazy(parameter)]
        return LayerInfo(
            name=self.name,
            kind=self.kind,
            shapes=tuple(tuple(parameter.shape) for parameter in known),
            parameters=sum(parameter.numel() for parameter in known),
            weight=self.weight,
            used=True if self.used else (False if seen else None),
            lost=self.lost,
        )


Owned: TypeAlias = tuple[Layer, nn.Parameter]
"""A parameter with its owner."""


class Layers:
    """All layers of a model, in the order of their first use; a layer once in the list keeps its place."""

    def __init__(self, model: nn.Module) -> None:
        self._model = unwrapped(model)
        self._by_name: dict[str, Layer] = {}
        self._by_parameter: dict[int, Layer] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self.ordered: list[Layer] = []
        self._sharded = False
        self._gathered: dict[int, tuple[weakref.ref[nn.Parameter], Layer | None]] = {}
        """What stands in for sharded parameters while a module runs, by its `id`."""
        self._listed: set[Layer] = set()
        self.step = 0
        """Measured steps so far, the one under way included."""
        self.unused = 0
        """Layers that no forward pass was seen to use; while there are none, nothing needs to look."""
        self.changes = 0
        """How often parameters came, went or changed their names."""
        self.refresh()

    def refresh(self) -> None:
        """Take in what the model holds now: parameters that came, or became trainable, or have another name than before.

        A layer is the same one as before while a parameter of it is; where all of them were replaced, while its name is.
        """
        modules = {qualified_name(f"{name}."): module for name, module in self._model.named_modules()}
        held = self._held()
        owned: dict[str, list[nn.Parameter]] = {}
        for full, parameter in held.items():
            prefix, _, own = full.rpartition(".")
            owned.setdefault(prefix or own, []).append(parameter)
        earlier, self._by_name = self._by_name, {}
        left = set(earlier.values())
        for name, parameters in owned.items():
            layer = self._same(earlier.get(name), parameters, left, set(map(id, held.values())))
            if layer is None:
                layer = Layer(name=name, kind="Parameter")
                self.unused += 1
            left.discard(layer)
            module = modules.get(f"{name}.")
            layer.name, layer.parameters = name, parameters
            layer.kind = "Parameter" if module is None else type(module).__name__.removeprefix("Lazy")
            layer.normalizes = isinstance(module, _NOT_WEIGHT)
            self._by_name[name] = layer
        self._parameters = held
        self._by_parameter = {id(each): layer for layer in self._by_name.values() for each in layer.parameters}
        self._sharded = self._sharded or any(placed(each) is not None for each in held.values())
        self.unused -= sum(not layer.used for layer in left)
        self._listed -= left
        self.ordered = [layer for layer in self.ordered if layer in self._listed]
        self.changes += 1

    def _same(
        self, namesake: Layer | None, parameters: list[nn.Parameter], left: set[Layer], present: set[int]
    ) -> Layer | None:
        """Return the layer that some parameters belonged to, or whose place they take; None where they are new."""
        for parameter in parameters:
            layer = self._by_parameter.get(id(parameter))
            if layer in left:
                return layer
        if namesake in left and not any(id(each) in present for each in namesake.parameters):
            return namesake
        return None

    def _held(self) -> dict[str, nn.Parameter]:
        """Return the parameters that make layers, by name: those that are trained, and those that were once."""
        held: dict[str, nn.Parameter] = {}
        for name, parameter in self._model.named_parameters():
            if not (parameter.requires_grad or id(parameter) in self._by_parameter):
                continue
            if not (is_lazy(parameter) or parameter.numel()):
                continue  # one without entries trains nothing, so it makes no layer
            full = qualified_name(name)
            before = self._parameters.get(full)
            if before is not None and placed(before) is not None and placed(parameter) is None:
                held[full] = before  # what is there stands in for its shards, as after a validation pass
                continue
            held[full] = parameter
        return held

    def __contains__(self, parameter: nn.Parameter) -> bool:
        # One without entries trains nothing, so it makes no layer.
        return id(parameter) in self._by_parameter or not (is_lazy(parameter) or parameter.numel())

    @property
    def owners(self) -> Mapping[int, Layer]:
        """The layer of each parameter, by the `id` of the parameter."""
        return self._by_parameter

    def owner(self, parameter: object) -> Layer | None:
        """Return the layer that owns a parameter; None for a tensor that isn't one of the model's."""
        layer = self._by_parameter.get(id(parameter))
        if layer is None and self._sharded and isinstance(parameter, nn.Parameter):
            return self._owner_of_gathered(parameter)
        return layer

    def unknown(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer trains something that isn't taken in yet."""
        owners = self._by_parameter
        new = [each for each in parameters_of(optimizer) if id(each) not in owners]
        return any(parameter.requires_grad and parameter not in self for parameter in new)

    def trained_by(self, optimizer: Optimizer) -> list[Owned]:
        """Return the parameters that an optimizer trains at present, with their owners."""
        owners = self._by_parameter
        return [
            (layer, parameter)
            for parameter in parameters_of(optimizer)
            if parameter.requires_grad and (layer := owners.get(id(parameter)) or self.owner(parameter)) is not None
        ]

    def _owner_of_gathered(self, parameter: nn.Parameter) -> Layer | None:
        """Return the layer of a whole parameter that a module holds in place of a sharded one, while it runs."""
        found = self._gathered.get(id(parameter))
        if found is None or found[0]() is not parameter:
            names = (name for name, held in self._model.named_parameters() if held is parameter)
            prefix, _, own = qualified_name(next(names, "")).rpartition(".")
            found = self._gathered[id(parameter)] = weakref.ref(parameter), self._by_name.get(prefix or own)
        return found[1]

    def use(self, layer: Layer) -> None:
        """Note that the forward pass of this step uses a layer."""
        layer.step = self.step
        if not layer.used:
            layer.used = True
            self.unused -= 1
            self._list(layer)

    def uses(self, layer: Layer) -> bool:
        """Whether this step's forward pass was seen to use a layer."""
        return layer.used and layer.step == self.step

    def list_unused(self) -> None:
        """Append what no forward pass used so far, in registration order."""
        if len(self.ordered) < len(self._by_name):
            for layer in self._by_name.values():
                self._list(layer)

    def _list(self, layer: Layer) -> None:
        if layer not in self._listed:
            self._listed.add(layer)
            self.ordered.append(layer)

    def without_optimizer(self, optimizers: Sequence[Optimizer]) -> Iterator[NotCovered]:
        """Yield the layers with trainable parameters that no optimizer holds."""
        held = {id(parameter) for optimizer in optimizers for parameter in parameters_of(optimizer)}
        for layer in self.ordered:
            if not any(id(parameter) in held for parameter in layer.parameters):
                yield NotCovered(layer.name, "no optimizer holds its parameters")


def parameters_of(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    """Yield the parameters an optimizer updates."""
    for group in optimizer.param_groups:
        yield from group["params"]


def by_device(owned: Iterable[Owned]) -> list[list[Owned]]:
    """Return parameters with their owners by the device they are on."""
    groups: dict[torch.device, list[Owned]] = {}
    for each in owned:
        groups.setdefault(each[1].device, []).append(each)
    return list(groups.values())


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether a parameter has two or more dimensions."""
    return not is_lazy(parameter) and parameter.dim() > 1


def is_lazy(parameter: nn.Parameter) -> bool:
    """Whether a parameter gets its shape in the first forward pass; it stays the same object then."""
    # Asked of each parameter at each step; torch has this `isinstance` run in Python.
    return type(parameter) is not nn.Parameter and isinstance(parameter, UninitializedParameter)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the user's module inside of wrappers that hold it under a name of their own."""
    while True:
        if isinstance(model, _PARALLEL):
            model = model.module
        elif (inside := model._modules.get(_FABRIC)) is not None:  # noqa: SLF001 - known by its name: Fabric exists as two packages
            model = inside
        else:
            return model
