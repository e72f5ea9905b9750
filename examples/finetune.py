"""Fine-tuning with a frozen backbone: GradWatch watches what is trained, and frozen layers are no fault.

The backbone learns the digits 0 to 4, is frozen, and gets a new head for the digits 5 to 9.
"""

import argparse

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch


class Classifier(pl.LightningModule):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(64, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam((each for each in self.parameters() if each.requires_grad), lr=1e-2)


def fit(model: Classifier, data: TensorDataset, name: str, options: argparse.Namespace) -> GradWatch:
    """Train a model under GradWatch's eyes."""
    watch = GradWatch()
    trainer = pl.Trainer(
        max_steps=options.max_steps,
        callbacks=[watch],
        logger=pl.loggers.TensorBoardLogger(options.logdir, name=name),
        accelerator="cpu",
        log_every_n_steps=10,
        enable_checkpointing=False,
    )
    trainer.fit(model, DataLoader(data, batch_size=64, shuffle=True, drop_last=True))
    return watch


def main() -> None:
    """Train, freeze, train again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--logdir", default="lightning_logs")
    options = parser.parse_args()

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32)
    images, labels = (images - images.mean()) / images.std(), torch.tensor(digits.target)
    old, new = labels < 5, labels >= 5

    backbone = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    fit(Classifier(backbone), TensorDataset(images[old], labels[old]), "pretrain", options)

    backbone.requires_grad_(False)
    model = Classifier(backbone)
    watch = fit(model, TensorDataset(images[new], labels[new] - 5), "finetune", options)

    last = watch.records[-1]
    for layer, norm in zip(watch.info.layers, last.metrics["grad_norm"], strict=True):
        print(f"trained: {layer.name}, gradient norm {norm:.3g}")
    for entry in watch.coverage:
        print(f"not measured: {entry.name}: {entry.reason}")
    model.eval()
    with torch.no_grad():
        accuracy = (model(images[new]).argmax(1) == labels[new] - 5).float().mean().item()
    found = ", ".join(f"{finding.code} {finding.name}" for finding in watch.findings) or "none"
    print(f"accuracy on the new digits {accuracy:.0%}, findings: {found}")


if __name__ == "__main__":
    main()
