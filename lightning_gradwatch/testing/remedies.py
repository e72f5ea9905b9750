"""Does to a module what the actions of a remedy say, as far as a program can."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_gradwatch.record.finding import Action

if TYPE_CHECKING:
    from collections.abc import Callable

_BY_HAND = {
    "add_skip_connections": "a skip connection is written in forward",
    "add_normalization": "a normalisation is written where the function is called",
    "reconnect_graph": "what cuts the graph is in the code",
    "keep_gradient": "what throws the gradient away is in the code",
    "use_or_remove": "whether it is to be used is for its author to say",
    "trace_gradient": "nothing that a program could do",
    "zero_gradients": "zero_grad() is called in the code",
    "pack_sequences": "how sequences are handed over is in the code",
    "larger_batch": "batches are made by the data loader",
    "add_to_optimizer": "optimizers are made by configure_optimizers",
    "replace_output": "the logarithm that goes with it is in the code",
}
"""What is changed in the user's code, and why no program does it."""


class NotApplicableError(Exception):
    """An action that can't be done to this module by a program; the message says why."""


def apply_action(module: nn.Module, action: Action) -> None:
    """Do to a module what an action of a remedy says, in place.

    Args:
        module: The module that the names in ``action.targets`` are of, as the LightningModule that was trained.
        action: One that changes a module: ``replace_activation``, ``initialize``, ``remove_output``,
            ``remove_normalization``, ``register_parameters`` or ``set_training_mode``.

    Raises:
        NotApplicableError: a program can't do it to this module, or it changes something else than a module.
    """
    change = _CHANGES.get(action.kind)
    if change is None:
        why = _BY_HAND.get(action.kind, "it changes the training, and not the module")
        raise NotApplicableError(why)
    for target in action.targets:
        change(module, target, **{name: value for name, value in action.arguments if name != "where"})


def _replace_activation(module: nn.Module, site: str, **arguments: str) -> None:
    owner, leaf = place_of(module, site)
    name = arguments["with"]
    if leaf is not None:
        setattr(owner, leaf, getattr(nn, name)())
    elif callable(getattr(owner, "activation", None)):  # torch's encoder layers call a function that they hold
        owner.activation = getattr(nn.functional, {"LeakyReLU": "leaky_relu"}.get(name, name.lower()))
        vars(owner)["activation_relu_or_gelu"] = 0  # by which torch's fast path goes
    else:
        raise NotApplicableError(f"{site} is a function that is called in forward")


@torch.no_grad()
def _initialize(module: nn.Module, target: str, *, method: str, gain: float = 1.0, bias: float | None = None) -> None:
    owner, _, leaf = target.rpartition(".")
    own = _parameter(module, owner, leaf)
    if own is not None:
        _draw(own, target, method).mul_(gain)
        return
    layer = _submodule(module, target)
    held = dict(layer.named_parameters(recurse=False))
    made = [*cast("nn.ModuleDict", layer.parametrizations)] if parametrize.is_parametrized(layer) else []
    for name, parameter in (*held.items(), *((name, getattr(layer, name).clone()) for name in made)):
        if parameter.dim() > 1:
            getattr(nn.init, method)(parameter)
            parameter.mul_(gain)
        elif bias is not None and "bias" in name:
            parameter.fill_(bias)
        if name in made:  # what it is made from takes it
            setattr(layer, name, parameter)


def _parameter(module: nn.Module, owner: str, leaf: str) -> nn.Parameter | None:
    """Return a parameter that a module owns itself; None where there is none of that name."""
    try:
        held = module.get_submodule(owner)
    except AttributeError:
        return None
    return dict(held.named_parameters(recurse=False)).get(leaf)


def _draw(parameter: nn.Parameter, target: str, method: str) -> torch.Tensor:
    try:
        return cast("torch.Tensor", getattr(nn.init, method)(parameter))
    except ValueError as error:  # of what has no fan
        raise NotApplicableError(f"{method} can't fill {target}: {error}") from None


def _remove(module: nn.Module, target: str) -> None:
    owner, leaf = place_of(module, target)
    if leaf is None:
        raise NotApplicableError(f"{target} is a function that is called in forward")
    setattr(owner, leaf, nn.Identity())


def _register_parameters(module: nn.Module, target: str) -> None:
    path, _, attribute = target.rpartition(".")
    owner = _submodule(module, path)
    held = vars(owner).get(attribute)
    registered = _registered(held)
    if registered is None:
        raise NotApplicableError(f"{target} is {_called(held)}, for which torch has no counterpart")
    delattr(owner, attribute)
    setattr(owner, attribute, registered)


def _registered(held: Any) -> nn.Module | nn.Parameter | None:
    """Return what torch has in the place of a container, which holds the same; None where it has nothing."""
    if isinstance(held, Tensor):
        return nn.Parameter(held.detach()) if held.is_leaf else None
    if not isinstance(held, (list, tuple, dict)):
        return None
    names = [*held] if isinstance(held, dict) else None
    if names is not None and not all(isinstance(name, str) and name and "." not in name for name in names):
        return None  # they can't be names of modules
    entries: list[Any] = [*(held.values() if isinstance(held, dict) else held)]
    if all(isinstance(each, Tensor) and each.is_leaf for each in entries):
        made = [nn.Parameter(each.detach(), requires_grad=each.requires_grad) for each in entries]
        return nn.ParameterList(made) if names is None else nn.ParameterDict(dict(zip(names, made, strict=True)))
    modules: list[Any] = [each if isinstance(each, nn.Module) else _registered(each) for each in entries]
    if not all(isinstance(each, nn.Module) for each in modules):
        return None
    return nn.ModuleList(modules) if names is None else nn.ModuleDict(dict(zip(names, modules, strict=True)))


def _called(held: Any) -> str:
    return "gone" if held is None else f"a {type(held).__name__}"


def _set_training_mode(module: nn.Module, target: str) -> None:
    _submodule(module, target).train()


_CHANGES: dict[str, Callable[..., None]] = {
    "replace_activation": _replace_activation,
    "initialize": _initialize,
    "remove_output": _remove,
    "remove_normalization": _remove,
    "register_parameters": _register_parameters,
    "set_training_mode": _set_training_mode,
}


def place_of(module: nn.Module, site: str) -> tuple[nn.Module, str | None]:
    """Return the module that owns a site or module, and its name there; None for a function that is called in ``forward``.

    Raises:
        NotApplicableError: the module has no such part.
    """
    path, colon, _ = site.partition(":")
    path = path.partition("#")[0].partition("@")[0]
    if colon:
        return _submodule(module, path), None
    owner, _, leaf = path.rpartition(".")
    held = _submodule(module, owner)
    if not isinstance(getattr(held, leaf, None), nn.Module):
        raise NotApplicableError(f"there is no module {path or site}")
    return held, leaf


def _submodule(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise NotApplicableError(f"there is no module {name}") from None
