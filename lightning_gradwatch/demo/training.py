"""Trains one net of the demo as a user would, with nothing on the terminal but the progress and GradWatch's warnings."""

from __future__ import annotations

import logging
import signal
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gradwatch.fit.callback import GradWatch
from lightning_gradwatch.record.finding import Finding, GradWatchWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lightning_gradwatch.demo.data import Data
    from lightning_gradwatch.demo.gallery import DemoRun
    from lightning_gradwatch.demo.screen import Bar, Screen
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

_BATCH = 64
_LOG_EVERY = 10


@dataclass(frozen=True)
class Outcome:
    """What became of one net."""

    demo_run: DemoRun
    info: RunInfo
    last: StepRecord
    findings: tuple[Finding, ...]
    score: str
    """Such as ``accuracy 97 %``, on examples that weren't trained on."""
    seconds: float


class _Learner(pl.LightningModule):
    """A net, its loss and SGD or Adam."""

    def __init__(self, net: nn.Module, demo_run: DemoRun, data: Data) -> None:
        super().__init__()
        self.net = net
        self._patient = demo_run
        self._data = data

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        inputs, targets = batch
        loss = self._data.loss(self.net(inputs), targets)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._patient.optimizer(self.parameters(), lr=self._patient.learning_rate)

    @torch.no_grad()
    def score(self) -> str:
        """Judge the net on the examples it hasn't seen."""
        inputs, targets = self._data.test.tensors
        self.eval()
        outputs = self.net(inputs)
        if targets.is_floating_point():
            return f"loss {self._data.loss(outputs, targets):.3f}"
        return f"accuracy {100 * (outputs.argmax(1) == targets).float().mean():.0f} %"


class _Reporter(pl.Callback):
    """Moves the progress bar and keeps the loss beside it."""

    def __init__(self, screen: Screen, bar: Bar) -> None:
        super().__init__()
        self._screen = screen
        self._bar = bar

    def on_train_batch_end(self, *args: Any, **_: Any) -> None:
        outputs = args[2]
        if self._bar.advance(f"loss {outputs['loss'].item():.3f}"):
            self._screen.redraw()


def train(demo_run: DemoRun, *, folder: Path, steps: int, seed: int, screen: Screen) -> Outcome:
    """Train a demo_run under GradWatch's eyes; its run is `folder`, which TensorBoard names after its last part.

    Raises:
        KeyboardInterrupt: the user stopped it; what was measured is in the event file.
    """
    torch.manual_seed(seed)
    data = demo_run.data()
    learner = _Learner(demo_run.build(), demo_run, data)
    batches = DataLoader(
        data.train, _BATCH, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(seed)
    )
    watch = GradWatch(rules=demo_run.rules)
    started = time.monotonic()
    with quiet(screen.clear), one_thread(), screen.bar(demo_run.run, steps) as bar:
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=steps,
            max_epochs=-1,
            log_every_n_steps=_LOG_EVERY,
            logger=TensorBoardLogger(folder.parent, name="", version=folder.name, default_hp_metric=False),
            callbacks=[watch, _Reporter(screen, bar)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        _fit(trainer, learner, batches)
    seconds = time.monotonic() - started
    assert watch.info is not None
    return Outcome(demo_run, watch.info, watch.records[-1], watch.findings, learner.score(), seconds)


def _fit(trainer: pl.Trainer, learner: _Learner, batches: DataLoader[Any]) -> None:
    """Fit, and let Ctrl-C be what it is: Lightning catches it, ignores any more of them and exits with 1."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(learner, batches)
    except SystemExit:
        if not trainer.interrupted:
            raise
    if trainer.interrupted:
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt


@contextmanager
def quiet(make_room: Callable[[], None]) -> Iterator[None]:
    """Silence all but GradWatch's warnings, which are printed without the line of code that Python adds."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        make_room()
        sys.stderr.write(f"\n{category.__name__}: {message}\n\n")

    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", GradWatchWarning)
            warnings.showwarning = show  # the context puts the old one back
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def one_thread() -> Iterator[None]:
    """Train with one thread: nets this small gain nothing from a second, and on a busy machine lose a lot by it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
