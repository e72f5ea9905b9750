"""`check_training`: a few dozen steps in CI, every one measured, that say whether a module can learn.

A check must not change what it checks: weights, modes and random generators are put back, nothing is logged or written.
"""

from __future__ import annotations

import copy
import importlib
import logging
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from lightning_gradwatch.judge.rule import Rule
from lightning_gradwatch.measure.units.mask import Mask
from lightning_gradwatch.record.arguments import check_choice, check_count, check_flag
from lightning_gradwatch.record.finding import Finding, GradWatchError, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.showing import contents_text, shown
from lightning_gradwatch.record.step import StepRecord
from lightning_gradwatch.record.wording import counted
from lightning_gradwatch.tell.training import training_text, waiting_for_the_loss
from lightning_gradwatch.testing.restoring import generators_restored, module_restored
from lightning_gradwatch.testing.trials import Prepared, RemedyTrial, end_loss, trial_of, trial_text
from lightning_gradwatch.testing.watch import Watch

_PACKAGES = ("pytorch_lightning", "lightning.pytorch")
_CHATTY = (*_PACKAGES, "lightning_fabric", "lightning.fabric", "lightning")


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainingReport:
    """What a few dozen measured steps said about a module."""

    findings: tuple[Finding, ...]
    records: tuple[StepRecord, ...]
    """The measured steps (the last 1,000 of them)."""
    info: RunInfo | None
    """The description of the run; None where nothing was measured."""
    judged: int
    """How many rules could judge."""
    unjudged: Mapping[str, str] = field(default_factory=dict)
    """Rules that couldn't, by code, with the reason."""
    fail_on: Severity = Severity.WARNING
    """Severity from which on a finding makes it not `ok`."""
    path: Path | None = None
    """Folder of the run, for `gradwatch check` and TensorBoard; None where no folder was given."""
    trial: RemedyTrial | None = None
    """What the first root's remedy did to a copy of the module; None where it wasn't tried, or nothing was found."""
    infos: tuple[RunInfo, ...] = ()
    """One description for each list of layers and sites that records have (``record.layout``), the newest last."""

    @property
    def ok(self) -> bool:
        """Whether rules judged and none objects; never true where nothing was measured."""
        return self.judged > 0 and not self.failing

    @property
    def failing(self) -> tuple[Finding, ...]:
        """The findings of severity `fail_on` or above."""
        return tuple(finding for finding in self.findings if finding.severity >= self.fail_on)

    def __repr__(self) -> str:
        told = contents_text(self.records, self.info, self.findings)
        return f"TrainingReport(ok={self.ok}: {told}, by {counted(self.judged, 'rule')})"

    def _repr_html_(self) -> str | None:
        """Show the page in a notebook."""
        return shown("of_report", self)

    def __str__(self) -> str:
        """Answer: do gradients reach the first layer, does a layer die, what was found, what couldn't be judged."""
        return training_text(
            self.records,
            self.info,
            self.findings,
            judged=self.judged,
            unjudged=self.unjudged,
            ok=self.ok,
            trial=None if self.trial is None else trial_text(self.trial),
        )


def check_training(
    model: Any,
    data: Any = None,
    *,
    max_steps: int = 32,
    fail_on: Literal["warning", "error"] | None = None,
    rules: Sequence[Rule] = (),
    ignore: Sequence[str] = (),
    seed: int | None = 0,
    accelerator: str = "cpu",
    folder: str | Path | None = None,
    restore: bool = True,
    mask: Callable[[Any], Mask | None] | None = None,
    trainer_options: Mapping[str, Any] | None = None,
    try_remedies: bool = False,
) -> TrainingReport:
    """Train a LightningModule for a few dozen steps, measure each of them, and report whether it learns.

    Silent; no logger, checkpoint, validation or progress bar, and nothing is left in the working directory.

    Args:
        model: A LightningModule of ``pytorch_lightning`` or ``lightning.pytorch``.
        data: What ``Trainer.fit`` takes: a DataLoader, a DataModule; None: the module's own ``train_dataloader``.
        max_steps: Optimizer steps. The rules about units need 256 observations, which is 4 batches of 64.
        fail_on: Raise for a finding of this severity or above, and if nothing could be judged; None: only report,
            with `ok` judged by ``"warning"``.
        rules: Rules that replace the default ones of the same code.
        ignore: Codes of rules to leave out, or prefixes of them.
        seed: Seed of the training; None: go on from the generators' present state, which comes back in any case.
        accelerator: As for the Trainer.
        folder: Keep the run below this folder, as ``gradwatch/version_N``, for `gradwatch check` and TensorBoard.
        restore: Put the module's parameters, gradients, buffers, modes and device back; other attributes stay as
            training left them. False: keep the trained module.
        mask: From a batch to what of it are samples and no padding, as for `GradWatch`.
        trainer_options: More arguments of the Trainer, such as ``{"precision": "bf16-mixed"}``; they beat ours.
        try_remedies: Do what the first root's remedy says to a copy of the module, train that for as many steps from the same
            data, and report both losses and what is still found. Where there is none, and the loss doesn't fall, do it for what of
            the wiring would be a warning if that went on. What has to be done in your code is listed, and not guessed.

    Raises:
        TypeError, ValueError: an argument can't be used; the message says which, and what would do.
        GradWatchError: see `fail_on`; its text is the report, `findings` what failed.
    """
    module = getattr(model, "_orig_mod", model)  # of `torch.compile(module)`
    package = _package_of(module)
    of = check_training.__name__
    check_count(of, "max_steps", max_steps, least=1, also=", such as 32")
    check_choice(of, "fail_on", fail_on, (None, "warning", "error"))
    check_flag(of, "try_remedies", try_remedies)
    watch = Watch(rules=rules, ignore=ignore, folder=None if folder is None else Path(folder), mask=mask)
    options = dict(trainer_options or {})
    trial: RemedyTrial | None = None
    with ExitStack() as stack:
        stack.enter_context(generators_restored())
        if restore:
            stack.enter_context(module_restored(module))
        stack.enter_context(_detached_afterwards(module))
        stack.enter_context(_quiet())
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="gradwatch-"))
        untrained = _copy_of(module) if try_remedies else None

        def train(
            trained: Any, watch: Watch, *more: Any, batches: Callable[[Any], Any] | None = None, **changes: Any
        ) -> None:
            if seed is not None:
                _seed(seed)
            settings = _settings(max_steps, accelerator, place) | options | changes
            if "precision" in changes and settings.get("plugins"):
                settings["plugins"] = _without_precision(settings["plugins"])
            callbacks = [*settings.pop("callbacks", ()), *more, watch]
            package.Trainer(**settings, callbacks=callbacks).fit(trained, data if batches is None else batches(data))

        train(model, watch)
        roots = [each for each in watch.findings if each.severity >= Severity.WARNING]
        root = next(iter(roots or waiting_for_the_loss(watch.findings, watch.records)), None)
        if untrained is not None and root is not None:
            again = Watch(rules=rules, ignore=ignore, mask=mask)
            trial = _try(root, untrained, end_loss(watch.records), again, train)
    report = TrainingReport(
        findings=watch.findings,
        records=watch.records,
        info=watch.info,
        judged=watch.outcome.judged,
        unjudged=watch.outcome.unjudged,
        fail_on=Severity[(fail_on or "warning").upper()],
        path=watch.path,
        trial=trial,
        infos=watch.infos,
    )
    if fail_on is not None and not report.ok:
        raise GradWatchError(str(report), report.failing)
    return report


def _without_precision(plugins: Any) -> list[Any]:
    """Return the plugins of a Trainer's but the one that stands for its precision, beside which it takes no other."""
    given = plugins if isinstance(plugins, (list, tuple)) else [plugins]
    return [each for each in given if not any(kind.__name__ == "Precision" for kind in type(each).__mro__)]


def _copy_of(module: Any) -> Any:
    """Return a copy of a module; why there is none, where it can't be copied."""
    before = module.__dict__.pop("_trainer", None)  # of an earlier fit, which is no part of it
    try:
        return copy.deepcopy(module)
    except Exception as error:  # noqa: BLE001 - whatever the user's module holds
        return f"the module can't be copied ({type(error).__name__}: {error})"
    finally:
        if before is not None:
            module.__dict__["_trainer"] = before


def _try(root: Finding, untrained: Any, loss: float, watch: Watch, train: Callable[..., None]) -> RemedyTrial:
    """Try the remedy of a root on a copy of the module that was checked, which came to a loss."""
    if isinstance(untrained, str):
        return RemedyTrial(code=root.code, loss_before=loss, error=untrained)

    def fit(prepared: Prepared) -> tuple[Sequence[StepRecord], tuple[Finding, ...]]:
        class Start(_package_of(untrained).Callback):  # type: ignore[misc]  # of whichever package is here
            def on_train_start(self, trainer: Any, pl_module: Any) -> None:
                del trainer, pl_module
                prepared.start()

        train(prepared.module, watch, Start(), batches=prepared.batches, **prepared.trainer_options)
        return watch.records, watch.findings

    return trial_of(root, untrained, loss, fit)


def _settings(max_steps: int, accelerator: str, place: str) -> dict[str, Any]:
    return {
        "max_steps": max_steps,
        "max_epochs": -1,  # small data goes round as often as the steps need
        "accelerator": accelerator,
        "devices": 1,
        "default_root_dir": place,
        "logger": False,
        "log_every_n_steps": 1,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def _package_of(model: Any) -> Any:
    """Return the Lightning package whose Trainer takes a module."""
    for name in _PACKAGES:
        if name in sys.modules and isinstance(model, sys.modules[name].LightningModule):
            return importlib.import_module(name)
    hint = "an instance, not the class" if isinstance(model, type) else "a LightningModule"
    if isinstance(model, nn.Module):
        hint += "; for a plain torch module use Probe in its own training loop"
    raise TypeError(f"check_training(model={type(model).__name__}): must be {hint}")


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the user's code may draw from the global generator
    torch.manual_seed(seed)


@contextmanager
def _detached_afterwards(model: Any) -> Iterator[None]:
    """Give the module back the Trainer it had, or none."""
    before = model.__dict__.get("_trainer")
    try:
        yield
    finally:
        model.trainer = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says and warns of itself: nobody asked for its advice on these few steps."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning|lightning_fabric)\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
