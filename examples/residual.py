"""A residual CNN with and without its skip connections: everything else is the same, weights included."""

import argparse

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch


class Block(nn.Module):
    """Two convolutions, beside a skip connection or alone."""

    def __init__(self, channels: int, *, skip: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.second(F.relu(self.first(x)))
        return F.relu(x + out if self.skip else out)


class Net(pl.LightningModule):
    def __init__(self, *, skip: bool, blocks: int = 10, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(channels, skip=skip) for _ in range(blocks)))
        self.head = nn.Linear(channels * 64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(F.relu(self.stem(images))).flatten(1))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def main() -> None:
    """Train both and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--logdir", default="lightning_logs")
    options = parser.parse_args()

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    images = (images - images.mean()) / images.std()
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    batches = DataLoader(TensorDataset(images[:1437], labels[:1437]), batch_size=64, shuffle=True, drop_last=True)

    for name in ("without", "with"):
        torch.manual_seed(0)
        model = Net(skip=name == "with")
        watch = GradWatch()
        trainer = pl.Trainer(
            max_steps=options.max_steps,
            callbacks=[watch],
            logger=pl.loggers.TensorBoardLogger(options.logdir, name=f"{name}-skip"),
            accelerator="cpu",
            log_every_n_steps=10,
            enable_checkpointing=False,
        )
        trainer.fit(model, batches)
        model.eval()
        with torch.no_grad():
            accuracy = (model(images[1437:]).argmax(1) == labels[1437:]).float().mean().item()
        found = ", ".join(f"{finding.code} {finding.name}" for finding in watch.findings) or "none"
        print(f"{name} skip connections: accuracy {accuracy:.0%}, findings: {found}")


if __name__ == "__main__":
    main()
