"""Tries what a remedy says, on a copy of the user's own net: whether it works there is worth more than whether it should."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.record.finding import Action, Finding, Severity
from lightning_gradwatch.record.step import StepRecord
from lightning_gradwatch.record.wording import listed, number
from lightning_gradwatch.testing.remedies import NotApplicableError, apply_action

_LAST = 3
"""Losses at the end whose median is compared, as one batch may be easier than another."""
_TOGETHER = 16
"""Batches that are put together where larger ones are wanted."""
_CLEARLY = 0.05
"""Share by which losses have to differ for one to count as lower: as with the rules, which take a loss that falls by as much to fall."""


@dataclass(frozen=True, kw_only=True)
class RemedyTrial:
    """What became of a copy of the module after a remedy."""

    code: str
    """Of the finding whose remedy it is."""
    applied: tuple[Action, ...] = ()
    refused: tuple[tuple[Action, str], ...] = ()
    """What a program can't do, each with the reason."""
    loss_before: float = math.nan
    """Loss at the end of as many steps without the remedy, and with it; NaN where it wasn't trained."""
    loss_after: float = math.nan
    findings: tuple[Finding, ...] = ()
    """What was found with it."""
    error: str = ""
    """Why it couldn't be tried, or how its training failed."""

    @property
    def works(self) -> bool | None:
        """Whether the loss ends clearly lower and nothing is found any more; None where so few steps don't tell, or none were taken."""
        if not self.applied or self.error or not math.isfinite(self.loss_after):
            return False if self.applied and not self.error else None
        if any(finding.severity >= Severity.WARNING for finding in self.findings):
            return False
        if not math.isfinite(self.loss_before) or self.loss_after < self.loss_before - _CLEARLY * abs(self.loss_before):
            return True
        return False if self.loss_after > self.loss_before + _CLEARLY * abs(self.loss_before) else None


def end_loss(records: Sequence[StepRecord]) -> float:
    """Return the loss at the end of a run: the median of the last few; NaN where none is finite."""
    losses = [record.loss for record in records[-_LAST:] if math.isfinite(record.loss)]
    return float(median(losses)) if losses else math.nan


class Prepared:
    """A module with a remedy's actions done to it, and what the Trainer and its hooks have to do for the others."""

    def __init__(self, module: Any, actions: Sequence[Action]) -> None:
        self.module = module
        self.applied: list[Action] = []
        self.refused: list[tuple[Action, str]] = []
        self.trainer_options: dict[str, Any] = {}
        self._rates: list[tuple[tuple[str, ...], float]] = []
        self._warm_up = 0
        self._decays: list[tuple[tuple[str, ...], float]] = []
        self._emptied: set[str] = set()
        self._joined: list[Action] = []
        self._together = 1
        for action in actions:
            try:
                self._do(action)
            except NotApplicableError as error:
                self.refused.append((action, str(error)))
            else:
                self.applied.append(action)

    def _do(self, action: Action) -> None:
        arguments = dict(action.arguments)
        by_hand = not getattr(self.module, "automatic_optimization", True)
        if action.kind == "set_learning_rate":
            if by_hand:
                raise NotApplicableError("under manual optimization the code may set it at each step")
            self._rates.append((action.targets, float(arguments["factor"])))
        elif action.kind == "scale_weight_decay":
            self._decays.append((action.targets, float(arguments["factor"])))
        elif action.kind == "warm_up":
            self._warm_up = int(arguments["steps"])
        elif action.kind in {"clip_gradients", "raise_clip"}:
            if by_hand or arguments.pop("where", "") == "code":
                raise NotApplicableError(
                    "under manual optimization it is clipped in the code" if by_hand else "it is clipped in the code"
                )
            ((by, limit),) = arguments.items()
            self.trainer_options |= {"gradient_clip_val": limit, "gradient_clip_algorithm": by}
        elif action.kind == "set_precision":
            self.trainer_options |= {"precision": arguments["to"]}
        elif action.kind in {"normalize_inputs", "normalize_targets"}:
            self._normalize(first=action.kind == "normalize_inputs")
        else:
            self._do_wiring(action)

    def _do_wiring(self, action: Action) -> None:
        if action.kind == "zero_gradients":
            self._emptied.add(str(dict(action.arguments)["optimizer"]))
        elif action.kind == "larger_batch":
            self._together = _TOGETHER
        else:
            if action.kind != "add_to_optimizer":
                apply_action(self.module, action)
            if action.kind in {"add_to_optimizer", "register_parameters"}:
                self._joined.append(action)

    def batches(self, data: Any) -> Any:
        """Return what is handed to ``Trainer.fit`` in the place of `data`: a loader, a DataModule or None."""
        if self._together == 1:
            return data
        owner = self.module if data is None else copy.copy(data) if hasattr(data, "train_dataloader") else None
        if owner is None:
            return _Together(data, self._together)
        original: Callable[[], Any] = owner.train_dataloader

        def train_dataloader() -> Any:
            return _Together(original(), self._together)

        owner.train_dataloader = train_dataloader
        return None if data is None else owner

    def start(self) -> None:
        """Change the optimizers that there are now."""
        for action in self._joined:
            try:
                _join(self.module, action)
            except NotApplicableError as error:
                self.applied.remove(action)
                self.refused.append((action, str(error)))
        for optimizer in self.module.trainer.optimizers:
            if type(optimizer).__name__ in self._emptied:
                optimizer.register_step_post_hook(_empty)
        for targets, factor in self._decays:
            for group in self._groups(targets):
                if "weight_decay" in group:
                    group["weight_decay"] *= factor
        self._set_rates()

    def _set_rates(self) -> None:
        for targets, factor in self._rates:
            self._scale_rates(targets, factor)
        for optimizer in self.module.trainer.optimizers if self._warm_up else ():
            WarmUp(optimizer, self._warm_up)

    def _scale_rates(self, targets: Sequence[str], factor: float) -> None:
        for group in self._groups(targets):
            group["lr"] *= factor
            if "initial_lr" in group:
                group["initial_lr"] *= factor
        for config in self.module.trainer.lr_scheduler_configs:
            rates = getattr(config.scheduler, "base_lrs", None)
            if rates is not None and not targets:
                config.scheduler.base_lrs = [factor * rate for rate in rates]

    def _groups(self, targets: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the parameter groups that hold parameters of some layers; of none, all."""
        held = {id(each) for name in targets for each in _parameters(self.module, name)}
        for optimizer in self.module.trainer.optimizers:
            yield from (
                group
                for group in optimizer.param_groups
                if not targets or any(id(each) in held for each in group["params"])
            )

    def _normalize(self, *, first: bool) -> None:
        """Scale inputs, or targets, to mean 0 and variance 1 by the first batch's."""
        original: Callable[[Any, int], Any] = self.module.on_after_batch_transfer
        known: list[tuple[Tensor, Tensor]] = []

        def scaled(batch: Any, place: int) -> Any:
            batch = original(batch, place)
            if not isinstance(batch, (list, tuple)) or len(batch) < 2:
                return batch
            parts, which = [*batch], 0 if first else -1
            given = parts[which]
            if not isinstance(given, Tensor) or not given.is_floating_point():
                return batch
            if not known:
                wide = given.double()
                spread = wide.std(0) if len(wide) > 1 else torch.ones_like(wide[0])
                known.append((wide.mean(0), torch.where(spread > 0, spread, 1.0)))
            mean, spread = known[0]
            parts[which] = ((given - mean) / spread).to(given.dtype)
            return parts

        self.module.on_after_batch_transfer = scaled


def _empty(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    optimizer.zero_grad()


def _join(module: Any, action: Action) -> None:
    """Hand parameters that no optimizer holds to the module's only one."""
    optimizers = module.trainer.optimizers
    held = {id(each) for optimizer in optimizers for group in optimizer.param_groups for each in group["params"]}
    new: dict[int, nn.Parameter] = {}
    for target in action.targets:
        found = _below(module, target) if action.kind == "register_parameters" else _parameters(module, target)
        new |= {id(each): each for each in found if each.requires_grad and id(each) not in held}
    if new and len(optimizers) != 1:
        raise NotApplicableError(f"which of {len(optimizers)} optimizers is to hold them isn't known")
    if new:  # no group of their own, as the module's scheduler has no rate for it
        optimizers[0].param_groups[0]["params"].extend(new.values())


def _below(module: nn.Module, name: str) -> list[nn.Parameter]:
    return [each for path, each in module.named_parameters() if f"{path}.".startswith(f"{name}.")]


class _Together:
    """A loader of which several batches in a row are one."""

    def __init__(self, loader: Any, count: int) -> None:
        if isinstance(loader, (Mapping, list, tuple)):
            raise NotApplicableError("several loaders feed it")
        self._loader = loader
        self._count = count

    def __len__(self) -> int:
        return max(len(self._loader) // self._count, 1)

    def __iter__(self) -> Iterator[Any]:
        batches: list[Any] = []
        whole = False
        for batch in self._loader:
            batches.append(batch)
            if len(batches) == self._count:
                whole = True
                yield _joined(batches)
                batches = []
        if batches and not whole:  # of a last one, less may be left than was meant
            yield _joined(batches)


def _joined(batches: Sequence[Any]) -> Any:
    """Put batches together, entry by entry, along their first axis."""
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat([each if each.dim() else each[None] for each in batches])
    if isinstance(first, Mapping):
        return {name: _joined([each[name] for each in batches]) for name in first}
    if isinstance(first, (list, tuple)):
        entries = [_joined([*each]) for each in zip(*batches, strict=True)]
        return type(first)(*entries) if hasattr(first, "_fields") else type(first)(entries)
    return first


class WarmUp:
    """Has an optimizer's learning rate rise over its first steps, whatever schedule goes on beside it."""

    def __init__(self, optimizer: Optimizer, steps: int) -> None:
        self._steps, self._taken = steps, 0
        self._rates: list[Any] = []
        # They stay there: torch goes through an optimizer's hooks while it calls them.
        optimizer.register_step_pre_hook(self._lower)
        optimizer.register_step_post_hook(self._restore)

    def _lower(self, optimizer: Optimizer, *_: Any) -> None:
        self._rates = []
        if self._taken >= self._steps:
            return
        self._rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * ((self._taken + 1) / self._steps)

    def _restore(self, optimizer: Optimizer, *_: Any) -> None:
        self._taken += 1
        for group, rate in zip(optimizer.param_groups, self._rates, strict=False):
            group["lr"] = rate


def _parameters(module: nn.Module, name: str) -> list[nn.Parameter]:
    try:
        return [*module.get_submodule(name).parameters(recurse=False)]
    except AttributeError:
        return []


def trial_of(
    finding: Finding,
    module: Any,
    before: float,
    train: Callable[[Prepared], tuple[Sequence[StepRecord], tuple[Finding, ...]]],
) -> RemedyTrial:
    """Do to a module, which is a copy, what a finding's remedy says, and train it.

    Args:
        finding: The finding.
        module: The copy.
        before: The loss at the end without the remedy.
        train: Trains what was prepared; returns the records and the findings.
    """
    prepared = Prepared(module, finding.remedy.actions)
    result: dict[str, Any] = {}
    if prepared.applied:
        try:
            records, findings = train(prepared)
        except Exception as error:  # noqa: BLE001 - the user's code, with a change that he didn't make
            result = {"error": f"its training failed ({type(error).__name__}: {error})"}
        else:
            result = {"loss_after": end_loss(records), "findings": findings}
    if not prepared.applied:  # nor was any once its optimizers were there
        result = {}
    return RemedyTrial(
        code=finding.code,
        applied=tuple(prepared.applied),
        refused=tuple(prepared.refused),
        loss_before=before,
        **result,
    )


def trial_text(trial: RemedyTrial) -> str:
    """Say what was done to a copy, what its loss came to, and what is still found."""
    lines = [f"{_named(action)}: {why}" for action, why in trial.refused]
    lines += [_named(action) for action in trial.applied if action.in_code]
    by_hand = "; ".join(lines)
    by_hand = f" In your code: {by_hand}." if by_hand else ""
    if trial.error:
        return f"The remedy of {trial.code} couldn't be tried: {trial.error}.{by_hand}"
    if not trial.applied:
        return f"The remedy of {trial.code} wasn't tried: nothing of it can be done by a program.{by_hand}"
    done = ", ".join(_once(action.kind for action in trial.applied))
    found = ", ".join(_once(finding.code for finding in trial.findings)) or "nothing"
    verdict = "So few steps don't tell" if trial.works is None else "It works" if trial.works else "It doesn't help"
    return (
        f"The remedy of {trial.code} was tried on a copy ({done}). {verdict}: after as many steps the loss is "
        f"{_loss(trial.loss_after)} in place of {_loss(trial.loss_before)}; found then: {found}.{by_hand}"
    )


def _named(action: Action) -> str:
    """Name an action with what it is about, and the line to change."""
    about = listed(action.targets, "name") or str(dict(action.arguments).get("optimizer", ""))
    where = f" in {action.where}" if action.where else ""
    return f"{action.kind}({about}){where}" if about else f"{action.kind}{where}"


def _once(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _loss(loss: float) -> str:
    return number(loss) if math.isfinite(loss) else "not finite"
