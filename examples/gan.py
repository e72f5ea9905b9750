"""A GAN with manual optimization: two optimizers, and a measured step holds what both of them did."""

import argparse

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch

NOISE = 16


class GAN(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(NOISE, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.Tanh()
        )
        self.discriminator = nn.Sequential(
            nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)
        )

    def training_step(self, batch: list[torch.Tensor], _: int) -> None:
        (real,) = batch
        generator_optimizer, discriminator_optimizer = self.optimizers()
        real_label, fake_label = torch.ones(len(real), 1), torch.zeros(len(real), 1)

        fake = self.generator(torch.randn(len(real), NOISE))
        loss_real = F.binary_cross_entropy_with_logits(self.discriminator(real), real_label)
        loss_fake = F.binary_cross_entropy_with_logits(self.discriminator(fake.detach()), fake_label)
        discriminator_optimizer.zero_grad()
        self.manual_backward(loss_real + loss_fake)
        discriminator_optimizer.step()

        self.toggle_optimizer(generator_optimizer)
        loss = F.binary_cross_entropy_with_logits(self.discriminator(fake), real_label)
        generator_optimizer.zero_grad()
        self.manual_backward(loss)
        generator_optimizer.step()
        self.untoggle_optimizer(generator_optimizer)
        self.log_dict({"generator": loss, "discriminator": loss_real + loss_fake})

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=5e-4, betas=(0.5, 0.999)),
            torch.optim.Adam(self.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999)),
        ]


def main() -> None:
    """Train, and look at both halves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-steps", type=int, default=1000, help="optimizer steps; each batch takes two")
    parser.add_argument("--logdir", default="lightning_logs")
    options = parser.parse_args()

    torch.manual_seed(0)
    images = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1  # in [-1, 1], as Tanh gives
    batches = DataLoader(TensorDataset(images), batch_size=64, shuffle=True, drop_last=True)
    watch = GradWatch()
    trainer = pl.Trainer(
        max_steps=options.max_steps,
        callbacks=[watch],
        logger=pl.loggers.TensorBoardLogger(options.logdir, name="gan"),
        accelerator="cpu",
        log_every_n_steps=10,
        enable_checkpointing=False,
    )
    trainer.fit(GAN(), batches)

    last = watch.records[-1]
    print("layer               optimizer      gradient norm  update ratio")
    owners = {name: optimizer for optimizer, each in enumerate(watch.info.optimizers) for name in each.layers}
    for column, layer in enumerate(watch.info.layers):
        owner = ("generator", "discriminator")[owners[layer.name]]
        gradient, update = last.metrics["grad_norm"][column], last.metrics["update_ratio"][column]
        print(f"{layer.name:<19} {owner:<13} {gradient:>14.3g} {update:>13.3g}")
    print("findings:", ", ".join(f"{finding.code} {finding.name}" for finding in watch.findings) or "none")


if __name__ == "__main__":
    main()
