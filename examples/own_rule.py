"""A rule of your own: one layer's gradient is far larger than those of the others, as where one of two losses drowns the other."""

import argparse
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch, Remedy, RunInfo, StepRecord, evaluate, read_run
from lightning_gradwatch.rules import Found, Rule, Seen, Sentences, State, Verdict, not_yet, register_rule


@register_rule
@dataclass(frozen=True, kw_only=True)
class LoudLayer(Rule):
    """One layer's gradient is far larger than those of the others.

    What: the rms of a weight layer's gradient is more than ``ratio`` times the median of all weight layers', in ``patience``
    measured steps in a row, after ``warm_up_steps``.

    Why: where two losses are added up, the larger one decides what the layers that both share learn.

    What to do: give the losses weights that make their gradients about as large.

    Attributes:
        ratio: how many times the median is too much.
        warm_up_steps: steps that aren't judged.
        patience: measured steps in a row that must agree.
    """

    code: ClassVar[str] = "LAB001"
    name: ClassVar[str] = "loud-layer"

    ratio: float = 100.0
    warm_up_steps: int = 5
    patience: int = 3

    def check(self, record: StepRecord, info: RunInfo, state: State) -> Seen | Verdict:
        """The condition: which layers a record shows it at."""
        del state  # what a rule remembers beside how long its condition has held: nothing here
        rms = np.where(info.weight_mask, record.values("grad_rms", len(info.layers)), np.nan)
        if not np.isfinite(rms).any():
            return not_yet("no gradient of a weight layer was measured")
        louder = rms / np.nanmedian(rms)
        return Seen(of="layers", values=louder, hit=louder > self.ratio, threshold=self.ratio)

    def words(self, found: Found) -> Sentences:
        """The words, written when somebody reads them."""
        return Sentences(
            cause=f"What trains {found.worst} is far larger than what trains the rest of the net.",
            remedy=Remedy("Weight the losses so that their gradients are about as large."),
            headline=f"The gradient of {found.worst} is {found.value:.3g} times the median",
            message=f"Reported above {self.ratio:g} times.",
        )


class TwoLosses(pl.LightningModule):
    """Says which digit it is, and how bright: the second loss counts a million times as much."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.digit = nn.Linear(64, 10)
        self.brightness = nn.Linear(64, 1)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        images, labels = batch
        features = self.trunk(images)
        brightness = self.brightness(features.detach()).squeeze(1)
        return F.cross_entropy(self.digit(features), labels) + 1e6 * F.mse_loss(brightness, images.mean(1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main() -> None:
    """Train, be told, and judge the stored run again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-steps", type=int, default=40)
    parser.add_argument("--logdir", default="lightning_logs")
    options = parser.parse_args()

    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32)
    images = (images - images.mean()) / images.std()
    batches = DataLoader(TensorDataset(images, torch.tensor(digits.target)), batch_size=64, shuffle=True)

    torch.manual_seed(0)
    watch = GradWatch(rules=[LoudLayer(ratio=200.0)])
    logger = pl.loggers.TensorBoardLogger(options.logdir, name="own-rule")
    trainer = pl.Trainer(
        max_steps=options.max_steps,
        callbacks=[watch],
        logger=logger,
        accelerator="cpu",
        log_every_n_steps=5,
        enable_checkpointing=False,
    )
    trainer.fit(TwoLosses(), batches)

    for finding in evaluate(read_run(logger.log_dir)):
        print(f"{finding.code} {finding.name} at {', '.join(finding.layers)}: {finding.message}")


if __name__ == "__main__":
    main()
