"""Trains a case in a real Trainer, at its own precision; what watches it is handed in."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.galleries.data import Examples, examples
from benchmarks.galleries.losses import LOSSES
from benchmarks.galleries.nets import build, stack
from benchmarks.galleries.spec import Case, Gan, Training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytorch_lightning.loggers import Logger

_NOISE = 2
"""Features that a generator starts from."""


class Batches:
    """Whole batches of shuffled examples, epoch by epoch: a `DataLoader` takes longer than these nets' steps."""

    def __init__(self, examples: Examples, size: int, seed: int) -> None:
        self._examples = examples
        self._size = min(size, len(examples.inputs))
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self._examples.inputs) // self._size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._examples.inputs), generator=self._generator)
        for chosen in order[: len(self) * self._size].view(len(self), self._size):
            yield self._examples.inputs[chosen], self._examples.targets[chosen]


class Learner(pl.LightningModule):
    """A net, its loss and its optimizer."""

    def __init__(self, net: nn.Module, training: Training, loss: str) -> None:
        super().__init__()
        self.net = net
        self.automatic_optimization = not training.by_hand
        self._training = training
        self._loss = LOSSES[loss].compute

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        inputs, targets = batch
        step, factor = self._training.odd or (None, 1.0)
        if self.global_step == step:
            inputs = factor * inputs
        if self.global_step == self._training.stopped:
            self.trainer.should_stop = True
        loss = self._loss_of(inputs, targets)
        if self.automatic_optimization:
            return loss
        optimizer, added = self.optimizers(), self._training.by_hand
        if self._training.empties and batch_idx % added == 0:
            optimizer.zero_grad()
        self.manual_backward(loss / added)
        if (batch_idx + 1) % added == 0:
            optimizer.step()
        return loss.detach()

    def _loss_of(self, inputs: Tensor, targets: Tensor) -> Tensor:
        inputs.requires_grad_(self._training.penalty > 0)
        loss = self._training.loss_scale * self._loss(self.net(inputs), targets) + getattr(self.net, "term", 0.0)
        if self._training.penalty:
            (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
            loss = loss + self._training.penalty * len(inputs) * gradient.square().sum()
        return loss

    def on_train_batch_start(self, *_: object) -> None:
        if self.global_step == self._training.thawed:
            self.net.requires_grad_(requires_grad=True)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if self._training.empties:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.net.get_submodule(self._training.held), self._training)
        steps = self._training.steps
        if self._training.schedule == "warmup":
            rising = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / (steps / 4)))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rising, "interval": "step"}}
        if self._training.schedule == "cosine":
            falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}
        if self._training.schedule == "cyclic":
            top = self._training.rate
            cycling = torch.optim.lr_scheduler.CyclicLR(
                optimizer, top / 20, top, step_size_up=steps // 10, cycle_momentum=False
            )
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycling, "interval": "step"}}
        if self._training.schedule == "restarts":
            again = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, steps // 4)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": again, "interval": "step"}}
        return optimizer


class Adversaries(pl.LightningModule):
    """A generator and a discriminator, each with its optimizer, stepped by hand."""

    def __init__(self, spec: Gan, training: Training, features: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = stack(spec.generator, nn.Identity(), _NOISE, features)
        self.discriminator = stack(spec.discriminator, nn.Identity(), features, 1)
        self._spec = spec
        self._training = training

    def generate(self, count: int) -> Tensor:
        """Return so many points."""
        return self.generator(torch.randn(count, _NOISE))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        real, _ = batch
        of_generator, of_discriminator = self.optimizers()
        turn = batch_idx % 2 if self._spec.alternating else None
        if turn != 1:
            self._step(
                of_discriminator,
                self._loss(real, real=True) + self._loss(self.generate(len(real)).detach(), real=False),
            )
        if turn == 1 or (turn is None and batch_idx % self._spec.critic_steps == 0):
            made = self.generate(len(real))
            saturating = self._spec.loss == "saturating"
            self._step(of_generator, -self._loss(made, real=False) if saturating else self._loss(made, real=True))

    def _loss(self, points: Tensor, *, real: bool) -> Tensor:
        judged = self.discriminator(points)
        wanted = torch.full_like(judged, float(real))
        if self._spec.loss == "squares":
            return F.mse_loss(judged, wanted)
        return F.binary_cross_entropy_with_logits(judged, wanted)

    def _step(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        rates = self._spec.rates or (self._training.rate,) * 2
        return [
            make_optimizer(part, replace(self._training, rate=rate))
            for part, rate in zip((self.generator, self.discriminator), rates, strict=True)
        ]


@dataclass(frozen=True)
class Prepared:
    """A case that is ready to be trained: its objects can still be changed."""

    case: Case
    seed: int
    examples: Examples
    module: Learner | Adversaries


def prepare(case: Case, seed: int) -> Prepared:
    """Load the data, build the net, and train it beforehand where the case says so."""
    torch.manual_seed(seed)
    shown = examples(case.data)
    if isinstance(case.net, Gan):
        return Prepared(case, seed, shown, Adversaries(case.net, case.training, shown.outputs))
    loss = case.training.loss or shown.task.loss
    net = build(case.net, shown, outputs=LOSSES[loss].outputs or shown.outputs)
    if case.training.pretrained:
        _pretrain(net, shown, case.training, seed)
    for part in case.training.evaluated:
        net.get_submodule(part).eval()
    return Prepared(case, seed, shown, Learner(net, case.training, loss))


def train(
    prepared: Prepared,
    callbacks: Sequence[pl.Callback],
    logger: Logger | bool,
    *,
    batches: Callable[[Any], Any] | None = None,
) -> None:
    """Fit, in the Trainer's defaults but for what the case asks for; `batches` changes what the Trainer is handed."""
    training = prepared.case.training
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=_trainer_steps(prepared.case),
        max_epochs=-1,
        accumulate_grad_batches=training.accumulate,
        gradient_clip_val=training.clip,
        gradient_clip_algorithm=training.clip_by if training.clip is not None else None,
        logger=logger,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **_precision(training),
    )
    handed = Batches(prepared.examples, training.batch, prepared.seed)
    trainer.fit(prepared.module, handed if batches is None else batches(handed))


def make_optimizer(module: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Return the case's optimizer for what trains of a module."""
    options = dict(training.options)
    if "beta1" in options:
        options["betas"] = (options.pop("beta1"), 0.999)
    trained = [each for each in module.parameters() if each.requires_grad or training.thawed is not None]
    return getattr(torch.optim, training.optimizer)(trained, lr=training.rate, **options)


@contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Keep Lightning's advice off the terminal, and hand out the warnings that were raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            yield raised
    finally:
        torch.set_num_threads(threads)
        logging.disable(disabled)


def _precision(training: Training) -> dict[str, Any]:
    if training.precision == "16-mixed":
        # Given as a plugin: the Trainer's own choice on a CPU would be bfloat16.
        scaler = torch.amp.GradScaler("cpu", enabled=training.scaler)
        return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
    return {"precision": training.precision}


def _trainer_steps(case: Case) -> int:
    """Return the Trainer's count of steps, which in manual optimization counts those of both optimizers."""
    if not isinstance(case.net, Gan):
        return case.training.steps
    if case.net.alternating:
        return case.training.steps
    return case.training.steps + case.training.steps // case.net.critic_steps


def _pretrain(net: nn.Module, shown: Examples, training: Training, seed: int) -> None:
    """Train all of a net on the first half of the classes."""
    frozen = [parameter for parameter in net.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(requires_grad=True)
    known = shown.targets < shown.outputs // 2
    part = Examples(shown.inputs[known], shown.targets[known], shown.task, shown.tokens, shown.outputs)
    batches = Batches(part, training.batch, seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    steps = 0
    while steps < training.pretrained:
        for inputs, targets in batches:
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), targets).backward()
            optimizer.step()
            steps += 1
    for parameter in frozen:
        parameter.requires_grad_(requires_grad=False)
