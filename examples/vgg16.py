"""VGG-16 (Simonyan and Zisserman 2015), plain and fixed, on scikit-learn's digits enlarged to 32x32.

The 13 convolutions and 3 dense layers of the paper, with fewer channels. With PyTorch's default weights and no
normalisation each layer weakens the gradient, and the net doesn't learn; with BatchNorm and He's weights it does.
"""

import argparse

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch

CHANNELS = (1, 1, "pool", 2, 2, "pool", 4, 4, 4, "pool", 8, 8, 8, "pool", 8, 8, 8, "pool")


class VGG16(pl.LightningModule):
    """VGG-16; `channels` is the width of its first convolution, 64 in the paper."""

    def __init__(self, *, fixed: bool, channels: int = 8, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for entry in CHANNELS:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(before, entry * channels, 3, padding=1))
            if fixed:
                layers.append(nn.BatchNorm2d(entry * channels))
            layers.append(nn.ReLU())
            before = entry * channels
        dense = 64 * channels
        layers += [nn.Flatten(), nn.Linear(before, dense), nn.ReLU(), nn.Dropout(), nn.Linear(dense, dense), nn.ReLU()]
        layers += [nn.Dropout(), nn.Linear(dense, classes)]
        self.net = nn.Sequential(*layers)
        if fixed:
            for layer in self.net:
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(layer.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def load_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the digits, shuffled, as [1797, 1, 32, 32] with mean 0 and variance 1, and their labels."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    images = F.interpolate((images - images.mean()) / images.std(), size=(32, 32), mode="bilinear", align_corners=False)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.tensor(digits.target)[order]


def main() -> None:
    """Train both and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-steps", type=int, default=150)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--logdir", default="lightning_logs")
    options = parser.parse_args()

    images, labels = load_images()
    batches = DataLoader(TensorDataset(images[:1437], labels[:1437]), batch_size=64, shuffle=True, drop_last=True)
    for name in ("plain", "fixed"):
        torch.manual_seed(0)
        model = VGG16(fixed=name == "fixed", channels=options.channels)
        watch = GradWatch()
        trainer = pl.Trainer(
            max_steps=options.max_steps,
            callbacks=[watch],
            logger=pl.loggers.TensorBoardLogger(options.logdir, name=f"vgg16-{name}"),
            accelerator="cpu",
            log_every_n_steps=10,
            enable_checkpointing=False,
        )
        trainer.fit(model, batches)
        model.eval()
        with torch.no_grad():
            accuracy = (model(images[1437:]).argmax(1) == labels[1437:]).float().mean().item()
        found = ", ".join(f"{finding.code} {finding.name}" for finding in watch.findings) or "none"
        print(f"{name}: accuracy {accuracy:.0%}, findings: {found}")


if __name__ == "__main__":
    main()
