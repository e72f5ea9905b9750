"""Does what a finding recommends, by program, and trains again: a remedy is right if the net then learns.

Only `Remedy.actions` is read, never the case's name or the finding's text.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from torch import nn

from benchmarks.galleries.arithmetic import computing_in
from benchmarks.galleries.nets import norm
from benchmarks.galleries.outcome import Outcome, outcome
from benchmarks.galleries.spec import Gan
from benchmarks.galleries.training import prepare, quiet, train
from lightning_gradwatch.testing.remedies import NotApplicableError, apply_action, place_of
from lightning_gradwatch.testing.trials import Prepared as Hands

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.galleries.spec import Case
    from lightning_gradwatch.record.finding import Action, Remedy


@dataclass(frozen=True)
class Trial:
    """What became of a run after its remedy."""

    outcome: Outcome
    refused: tuple[str, ...]
    """Actions that can't be applied to this net, with the reason; the others were."""


def try_remedy(case: Case, seed: int, remedy: Remedy) -> Trial:
    """Apply a remedy's actions as a whole and train at the same seed."""
    refused: list[str] = []
    with quiet():
        for action in remedy.actions:
            if action.targets and isinstance(case.net, Gan) and action.kind == "set_learning_rate":
                case = _set_rate_of_part(case, action)
            elif action.kind in _OF_CASE:
                case = _OF_CASE[action.kind](case, **dict(action.arguments))
            elif action.kind == "replace_output" and dict(action.arguments)["with"] == "LogSoftmax":
                case = _without_logarithm(case)
        prepared = prepare(case, seed)
        of_users: list[Action] = []
        for action in remedy.actions:
            if action.kind in _OF_NET:
                refused += _apply(prepared.module, action)
            elif action.kind not in _OF_CASE:
                of_users.append(action)
        hands = Hands(prepared.module, of_users)
        train(prepared, [_Start(hands)], logger=False, batches=hands.batches)
        refused += [f"{action.kind}: {why}" for action, why in hands.refused]
        return Trial(outcome(prepared), tuple(refused))


def try_remedies(runs: Sequence[tuple[Case, int, Remedy]], *, jobs: int, arithmetic: str = "") -> list[Trial]:
    """Try several, on so many processes."""
    if jobs == 1 and not arithmetic:
        return [try_remedy(*run) for run in runs]
    with computing_in(arithmetic), ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(try_remedy, *zip(*runs, strict=True)))


class _Start(pl.Callback):
    """Has the optimizers changed once they are there."""

    def __init__(self, hands: Hands) -> None:
        self._hands = hands

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._hands.start()


def _apply(module: nn.Module, action: Action) -> list[str]:
    try:
        if (change := _OF_NET.get(action.kind)) is None:
            apply_action(module, action)
        else:
            change(module, action.targets, **dict(action.arguments))
    except NotApplicableError as error:
        return [f"{action.kind}: {error}"]
    return []


def _training(**changes: Callable[[Case, Any], Any]) -> Callable[..., Case]:
    """Return what changes a case's training; each value is computed from the case and the action's argument."""

    def change(case: Case, **arguments: Any) -> Case:
        given = next(iter(arguments.values()), None)
        return replace(
            case, training=replace(case.training, **{name: compute(case, given) for name, compute in changes.items()})
        )

    return change


def _without_logarithm(case: Case) -> Case:
    """Have the loss take logarithms of probabilities, as the net will put them out, for what they are."""
    return replace(case, training=replace(case.training, loss="nll"))


def _normalize_inputs(case: Case) -> Case:
    return replace(case, data=replace(case.data, inputs="standard", scale=1.0))


def _normalize_targets(case: Case) -> Case:
    return replace(case, data=replace(case.data, targets="standard"))


def _raise_clip(case: Case, **arguments: float) -> Case:
    ((by, limit),) = arguments.items()
    return replace(case, training=replace(case.training, clip=limit, clip_by=by))


def _set_rate_of_part(case: Case, action: Action) -> Case:
    """Change one of two optimizers' learning rates, as its targets' owner says: these step by hand, at rates of the case's."""
    assert isinstance(case.net, Gan)
    of_generator, of_discriminator = case.net.rates or (case.training.rate,) * 2
    factor = dict(action.arguments)["factor"]
    if action.targets[0].startswith("generator."):
        of_generator *= factor
    else:
        of_discriminator *= factor
    return replace(case, net=replace(case.net, rates=(of_generator, of_discriminator)))


def _scale_weight_decay(case: Case, *, factor: float) -> Case:
    options = dict(case.training.options)
    options["weight_decay"] = factor * options["weight_decay"]
    return replace(case, training=replace(case.training, options=options))


_OF_CASE: dict[str, Callable[..., Case]] = {
    "set_learning_rate": _training(rate=lambda case, factor: factor * case.training.rate),
    "clip_gradients": _training(clip=lambda _, bound: bound, clip_by=lambda *_: "norm"),
    "raise_clip": _raise_clip,
    "scale_weight_decay": _scale_weight_decay,
    "warm_up": _training(schedule=lambda *_: "warmup"),
    "set_precision": _training(precision=lambda _, to: to),
    "use_gradient_scaler": _training(precision=lambda *_: "16-mixed", scaler=lambda *_: True),
    "normalize_inputs": _normalize_inputs,
    "normalize_targets": _normalize_targets,
}


def _add_skip_connections(module: nn.Module, targets: tuple[str, ...]) -> None:
    # Of n blocks each adds 1/n of itself: added whole, n of them would make the signal explode.
    for target in targets:
        _block(module, target).skip = 1 / len(targets)


def _add_normalization(module: nn.Module, targets: tuple[str, ...], **arguments: str) -> None:
    for target in targets:
        block = _block(module, target)
        block.norm = norm(arguments.get("with", "LayerNorm"), block.layer)


def _reconnect_graph(module: nn.Module, _: tuple[str, ...]) -> None:
    cut = [part for part in module.modules() if getattr(part, "detached", False)]
    if not cut:
        raise NotApplicableError("the graph is whole")
    for part in cut:
        part.detached = False


def _replace_output(module: nn.Module, _: tuple[str, ...], **arguments: str) -> None:
    net = module.get_submodule("net")
    if not hasattr(net, "output"):
        raise NotApplicableError("nothing follows the output layer")
    net.output = getattr(nn, arguments["with"])()


# What a gallery's nets have a place for; the rest is done as to a net of anybody's.
_OF_NET: dict[str, Callable[..., None]] = {
    "add_skip_connections": _add_skip_connections,
    "add_normalization": _add_normalization,
    "reconnect_graph": _reconnect_graph,
    "replace_output": _replace_output,
}


def _block(module: nn.Module, site: str) -> nn.Module:
    owner, _ = place_of(module, site)
    if not hasattr(owner, "norm") or not hasattr(owner, "skip"):
        raise NotApplicableError(f"{site} isn't in a block that takes it")
    return owner
