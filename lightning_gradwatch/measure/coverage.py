"""What isn't measured, and why; said at the start of a run and stored in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from lightning_gradwatch.measure.model.call_site import qualified_name
from lightning_gradwatch.measure.model.layers import parameters_of
from lightning_gradwatch.measure.trace.compiled import COMPILED, is_compiled
from lightning_gradwatch.measure.trace.hidden_ops import UNSEEN_USE
from lightning_gradwatch.measure.trace.uncovered import UNTRAINED
from lightning_gradwatch.record.step import NotCovered

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from torch.optim import Optimizer

    from lightning_gradwatch.measure.model.call_site import CallSite
    from lightning_gradwatch.measure.model.layers import Layers
    from lightning_gradwatch.measure.model.sites import Sites
    from lightning_gradwatch.measure.trace.uncovered import Note, Uncovered

_SCRIPTED = "scripted: its activations aren't seen"
NOT_CALLED = "not called in a measured step"
OUT_OF_SIGHT = f"{NOT_CALLED} where that shows: the forward pass runs in another thread, or inside of a compiled step"
VARIES = "its size isn't the same from batch to batch: its units aren't counted"
_FUNCTIONS: Mapping[str, type[nn.Module]] = {
    name: getattr(nn, name) for name in nn.modules.activation.__all__ if name != "MultiheadAttention"
}


def not_covered(
    model: nn.Module,
    layers: Layers,
    sites: Sites,
    optimizers: Sequence[Optimizer],
    unseen: Uncovered,
    *,
    estimated: bool,
    eager: bool,
) -> Iterator[NotCovered]:
    """Yield everything that isn't measured.

    Args:
        model: The module that is trained.
        layers: Its layers.
        sites: The activation sites that were seen.
        optimizers: The optimizers.
        unseen: What the passes ran into.
        estimated: Whether update ratios are taken from a part of the weights.
        eager: Whether compiled modules run eagerly in measured steps.
    """
    modules: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        modules.setdefault(qualified_name(f"{name}.")[:-1], module)  # a wrapper has the name of what it wraps
    closed = dict(_closed(modules, eager=eager))
    for name, (reason, inside) in closed.items():
        yield NotCovered(name, reason, inside)
    hidden = sum(inside for reason, inside in closed.values() if reason == _SCRIPTED)
    trained = _trained(model, optimizers)
    called = {site.location.module for site in sites.ordered}
    notes = [note for note in unseen if note.reason is not UNSEEN_USE or not _within(note.name, closed)]
    merged = [*_merged(_told(notes, unseen.outside, modules, sites, trained=trained, hidden=hidden))]
    yield from merged
    used = any(layer.used for layer in layers.ordered)
    if used or (layers.step and all(entry.name for entry in merged)):  # else what is said of the whole says it
        reason = NOT_CALLED if used else OUT_OF_SIGHT
        # What the training step calls itself says nothing about the modules, though all are within it.
        noted = [note.location.module for note in unseen if note.location is not None and note.location.module]
        for name in _functions(modules):
            if name not in called and not _within(name, closed) and not _within(name, noted):
                yield NotCovered(name, reason, 1)
    for site in sites.ordered:
        if site.varies:
            yield NotCovered(site.name, VARIES)
    yield from layers.without_optimizer(optimizers)
    if estimated:
        yield NotCovered("update_ratio", "estimated from a fixed part of the entries: the weights exceed 64 MB")


def _closed(modules: Mapping[str, nn.Module], *, eager: bool) -> Iterator[tuple[str, tuple[str, int]]]:
    """Yield the modules that can't be looked into, with the reason and how many activation modules each holds."""
    for name, module in modules.items():
        outer = modules.get(name.rpartition(".")[0]) if name else None
        if is_compiled(module) and not eager:
            yield name, (COMPILED, _count_inside(name, modules))
        elif isinstance(module, torch.jit.ScriptModule) and not isinstance(outer, torch.jit.ScriptModule):
            yield name, (_SCRIPTED, _count_inside(name, modules))


def _count_inside(name: str, modules: Mapping[str, nn.Module]) -> int:
    return sum(_within(inner, (name,)) for inner in _functions(modules))


def _functions(modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Yield the names of the modules that are activation functions."""
    for name, module in modules.items():
        if getattr(module, "original_name", type(module).__name__) in _FUNCTIONS:
            yield name


def _within(name: str, outer: Iterable[str]) -> bool:
    return any(not each or name == each or name.startswith(f"{each}.") for each in outer)


def _trained(model: nn.Module, optimizers: Sequence[Optimizer]) -> set[str]:
    """Return the names of all modules with a parameter inside that is being trained."""
    held = {id(parameter) for optimizer in optimizers for parameter in parameters_of(optimizer)}
    return _with_ancestors(
        qualified_name(name).rpartition(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) in held
    )


def _with_ancestors(names: Iterable[str]) -> set[str]:
    found = {""}
    for name in names:
        while name and name not in found:
            found.add(name)
            name = name.rpartition(".")[0]  # noqa: PLW2901 - towards the root
    return found


def _told(
    notes: Iterable[Note],
    outside: Note | None,
    modules: Mapping[str, nn.Module],
    sites: Sites,
    *,
    trained: Collection[str],
    hidden: int,
) -> Iterator[Note]:
    """Yield the notes as a reader wants them: a frozen part once, nothing that was seen after all."""
    busy = {*trained, *_with_ancestors(site.location.module for site in sites.ordered)}
    seen = {site.location for site in sites.ordered}
    owners = {"", *_functions(modules)}
    owners |= {name for name, module in modules.items() if next(module.parameters(), None) is not None}
    for note in notes:
        location = note.location
        if note.reason is UNTRAINED and location is not None:
            if location in seen or not _is_part(location, owners):
                continue
            yield note._replace(name=_outermost(location.module, busy) or note.name)
        elif note is outside and hidden:
            if note.sites > hidden:
                yield note._replace(sites=note.sites - hidden)
        else:
            yield note


def _is_part(location: CallSite, owners: Collection[str]) -> bool:
    """Whether a place belongs to the net: a metric has no parameters, and what the training step calls is no module's."""
    name = location.module
    outer = name.rpartition(".")[0] if location.leaf else ""
    return bool(name) and (name in owners or (bool(outer) and outer in owners))


def _outermost(name: str, busy: Collection[str]) -> str:
    """Return the outermost module around a frozen one in which nothing is trained; ``""`` where there is none."""
    found = ""
    while name and name not in busy:
        found, name = name, name.rpartition(".")[0]
    return found


def _merged(notes: Iterable[Note]) -> Iterator[NotCovered]:
    """Put together what has one name and one reason."""
    counts: dict[tuple[str, str], int] = {}
    for note in notes:
        key = (note.name, note.reason)
        counts[key] = counts.get(key, 0) + note.sites
    for (name, reason), count in counts.items():
        yield NotCovered(name, reason, count)
