"""Layers: who owns which trainable parameter, under which name, in which order."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import ParametrizationList

from lightning_gradwatch.measure.model.call_site import qualified_name
from lightning_gradwatch.measure.model.path import Layer, Path, is_lazy, is_matrix
from lightning_gradwatch.measure.model.shards import placed
from lightning_gradwatch.record.step import PARAMETRIZED, TURNED_KIND, NotCovered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import torch
    from torch.optim import Optimizer

    from lightning_gradwatch.measure.model.path import Site

_NOT_WEIGHT = (nn.Embedding, nn.EmbeddingBag, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_FABRIC = "_forward_module"
"""Under which Lightning Fabric's wrapper holds what its forward pass runs."""


Owned: TypeAlias = tuple[Layer, nn.Parameter]
"""A parameter with its owner."""


class Layers:
    """All layers of a model, in the order of the data's path through it."""

    def __init__(self, model: nn.Module, path: Path | None = None) -> None:
        self._model = unwrapped(model)
        self._path = path or Path()
        self._by_name: dict[str, Layer] = {}
        self._frozen: dict[str, Layer] = {}
        """By name, those of which nothing was trained so far; they are no layers of the run, and feed sites like any."""
        self._of_frozen: dict[int, tuple[weakref.ref[nn.Parameter], Layer]] = {}
        self._by_parameter: dict[int, Layer] = {}
        self._buffers: dict[int, weakref.ref[Tensor]] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self.ordered: list[Layer] = []
        """Those that were used, along the path, and behind them those that weren't, in registration order."""
        self.places: dict[str, int] = {}
        """By name, how many layers were listed before each; those of a checkpoint too."""
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
        held, frozen = self._held()
        owned: dict[str, list[nn.Parameter]] = {}
        for full, parameter in held.items():
            owned.setdefault(_owner_name(full), []).append(parameter)
        earlier, self._by_name = self._by_name, {}
        left = set(earlier.values())
        thawed = set(self._frozen.values())
        for name, parameters in owned.items():
            layer = self._same(earlier.get(name), parameters, left, set(map(id, held.values())))
            if layer is None:
                layer = self._same_frozen(self._frozen.get(name), parameters, thawed) or Layer(name=name, kind="")
                self.unused += 1
            left.discard(layer)
            thawed.discard(layer)
            layer.parameters = parameters
            layer.seek(again=True)
            _describe(layer, name, modules)
            self._by_name[name] = layer
        self._parameters = held
        self._by_parameter = {id(each): layer for layer in self._by_name.values() for each in layer.parameters}
        self._sharded = self._sharded or any(placed(each) is not None for each in held.values())
        self.unused -= sum(not layer.used for layer in left)
        self._listed -= left
        self.ordered = [layer for layer in self.ordered if layer in self._listed]
        self._take_frozen(frozen, modules, thawed)
        self._buffers = {id(each): weakref.ref(each) for each in self._model.buffers()}
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

    def _same_frozen(self, namesake: Layer | None, parameters: list[nn.Parameter], left: set[Layer]) -> Layer | None:
        """Return the layer, frozen from the start, that some parameters belong to, or else the one of their name."""
        for parameter in parameters:
            layer = self._owner_of_frozen(parameter)
            if layer in left:
                return layer
        return namesake if namesake in left else None

    def _held(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """Return the parameters that make layers, by name: those that are trained or once were, and those that never were."""
        held: dict[str, nn.Parameter] = {}
        frozen: dict[str, nn.Parameter] = {}
        for name, parameter in self._model.named_parameters():
            if not (is_lazy(parameter) or parameter.numel()):
                continue  # one without entries trains nothing, so it makes no layer
            full = qualified_name(name)
            if not (parameter.requires_grad or id(parameter) in self._by_parameter):
                frozen[full] = parameter
                continue
            before = self._parameters.get(full)
            if before is not None and placed(before) is not None and placed(parameter) is None:
                held[full] = before  # what is there stands in for its shards, as after a validation pass
                continue
            held[full] = parameter
        return held, frozen

    def _take_frozen(
        self, parameters: Mapping[str, nn.Parameter], modules: Mapping[str, nn.Module], left: set[Layer]
    ) -> None:
        """Know the owners of the parameters that were never trained; the parameters themselves are left to the model."""
        earlier, self._frozen = self._frozen, {}
        of_frozen: dict[int, tuple[weakref.ref[nn.Parameter], Layer]] = {}
        for full, parameter in parameters.items():
            name = _owner_name(full)
            layer = self._by_name.get(name) or self._frozen.get(name)
            if layer is None:
                layer = self._same_frozen(earlier.get(name), [parameter], left) or Layer(name=name, kind="")
                left.discard(layer)
                _describe(layer, name, modules)
                self._frozen[name] = layer
            if is_matrix(parameter):
                layer.outputs = layer.outputs or parameter.shape[-1 if layer.kind == TURNED_KIND else 0]
            of_frozen[id(parameter)] = weakref.ref(parameter), layer
        self._of_frozen = of_frozen

    def _owner_of_frozen(self, parameter: object) -> Layer | None:
        found = self._of_frozen.get(id(parameter))
        return found[1] if found is not None and found[0]() is parameter else None

    def __contains__(self, parameter: nn.Parameter) -> bool:
        # One without entries trains nothing, so it makes no layer.
        return id(parameter) in self._by_parameter or not (is_lazy(parameter) or parameter.numel())

    @property
    def owners(self) -> Mapping[int, Layer]:
        """The layer of each parameter, by the `id` of the parameter."""
        return self._by_parameter

    def owner(self, parameter: object) -> Layer | None:
        """Return the layer that owns a parameter; None for a tensor that isn't one of the model's."""
        if type(parameter) is Tensor:
            return None  # as most are that are asked for: parameters are of a class of their own
        layer = self._by_parameter.get(id(parameter))
        if layer is None:
            layer = self._owner_of_frozen(parameter) if self._of_frozen else None
            if layer is None and self._sharded and isinstance(parameter, nn.Parameter):
                return self._owner_of_gathered(parameter)
        return layer

    def named(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Return the parameters of all layers, with their names."""
        return self._parameters.items()

    @property
    def writes(self) -> int:
        """How often something was written into their parameters, as far as torch counts that."""
        return sum(0 if each.is_inference() else each._version for each in self._parameters.values())  # noqa: SLF001 - it has no public name

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor of which nothing else is known is no data: a buffer of the model, or a single number."""
        if tensor.requires_grad:
            return False
        buffer = self._buffers.get(id(tensor))
        return not tensor.dim() or (buffer is not None and buffer() is tensor)

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
            name = _owner_name(qualified_name(next(names, "")))
            found = self._gathered[id(parameter)] = (
                weakref.ref(parameter),
                self._by_name.get(name, self._frozen.get(name)),
            )
        return found[1]

    def use(self, layer: Layer) -> None:
        """Note that the forward pass of this step uses a layer."""
        layer.step = self.step
        layer.number = layer.number or self._path.add_layer(layer)
        if not layer.used and layer.parameters:
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

    def arrange(self, sites: Iterable[Site]) -> bool:
        """Put the layers in the order of the path; return whether that, or which of the sites they feed, has changed.

        Args:
            sites: All of them, in that order.
        """
        ranks = self._path.ranks
        ordered = sorted(self.ordered, key=lambda layer: ranks[layer.number] if layer.used else len(ranks))
        fed = self._path.first_fed(sites)
        same = ordered == self.ordered and all(layer.feeds is fed.get(layer) for layer in ordered)
        self.ordered = ordered
        for layer in ordered:
            layer.feeds = fed.get(layer)
        return not same

    def _list(self, layer: Layer) -> None:
        if layer not in self._listed:
            self._listed.add(layer)
            self.ordered.append(layer)
            layer.place = self.places.setdefault(layer.name, len(self.places))

    def without_optimizer(self, optimizers: Sequence[Optimizer]) -> Iterator[NotCovered]:
        """Yield the layers with trainable parameters that no optimizer holds."""
        held = {id(parameter) for optimizer in optimizers for parameter in parameters_of(optimizer)}
        for layer in self.ordered:
            if not any(id(parameter) in held for parameter in layer.parameters):
                yield NotCovered(layer.name, "no optimizer holds its parameters")


def _owner_name(full: str) -> str:
    """Return the name of the layer that a parameter belongs to, given its fully qualified name."""
    prefix, _, own = full.rpartition(".")
    return prefix or own


def _describe(layer: Layer, name: str, modules: Mapping[str, nn.Module]) -> None:
    layer.name = name
    module = modules.get(f"{name}.")
    kind = "" if module is None else type(module).__name__
    if isinstance(module, ParametrizationList):  # of the kind of what it makes a weight for
        outer = PARAMETRIZED.sub("", name)
        module = modules.get(f"{outer}." if outer else "")
        kind = type(module).__name__.removeprefix("Parametrized")
    layer.kind = kind.removeprefix("Lazy") or "Parameter"
    layer.normalizes = isinstance(module, _NOT_WEIGHT)


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


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the user's module inside of wrappers that hold it under a name of their own."""
    while True:
        if isinstance(model, _PARALLEL):
            model = model.module
        elif (inside := model._modules.get(_FABRIC)) is not None:  # noqa: SLF001 - known by its name: Fabric exists as two packages
            model = inside
        else:
            return model
