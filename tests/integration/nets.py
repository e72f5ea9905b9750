"""Nets, data and a Trainer that the integration tests share: as small as shows the behaviour."""

from __future__ import annotations

import random

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

FEATURES = 6
CLASSES = 3
QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": -1,
}

MODULE_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_forward_hooks_with_kwargs",
)


def seed(value=0):
    torch.manual_seed(value)
    np.random.seed(value)  # noqa: NPY002 - the global generator is what a monitor could disturb
    random.seed(value)


def trainer(folder, *callbacks, of=pl, **settings):
    """Return a quiet Trainer; `max_steps` is 30 unless something else limits it."""
    limits = {} if settings.keys() & {"max_steps", "max_epochs", "fast_dev_run"} else {"max_steps": 30}
    return of.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**QUIET, **limits, **settings})


def batches(count=8, size=8, *, shuffle=False, dtype=torch.float32):
    """Return a loader whose data doesn't depend on the global generator; shuffling it draws from that one."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count * size, FEATURES, generator=generator).to(dtype)
    y = torch.randint(0, CLASSES, (count * size,), generator=generator)
    return DataLoader(TensorDataset(x, y), size, shuffle=shuffle)


class Classifier(pl.LightningModule):
    """Any net, cross-entropy, SGD unless told otherwise."""

    def __init__(self, net=None, make_optimizer=None):
        super().__init__()
        self.net = net if net is not None else relu_net()
        self.make_optimizer = make_optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.1))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


class CountsPatches(pl.Callback):
    """Notes the batches that ran under the monitor, by what it puts on the strategy."""

    def __init__(self):
        self.watched = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if "training_step" in vars(trainer.strategy):
            self.watched.append(trainer.fit_loop.total_batch_idx)


def relu_net(width=8):
    return nn.Sequential(
        nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, CLASSES)
    )


def vanishing_net(depth=12, width=8):
    """A sigmoid net whose signal is gone after a dozen layers: GW101 fires."""
    layers = [nn.Linear(FEATURES, width)]
    for _ in range(depth):
        layers += [nn.Sigmoid(), nn.Linear(width, width)]
    return nn.Sequential(*layers, nn.Sigmoid(), nn.Linear(width, CLASSES))


class Everything(nn.Module):
    """Dropout, BatchNorm, in-place ReLU, a shared module, functional calls, a hand-written function, a gate."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(FEATURES, 12)
        self.norm = nn.BatchNorm1d(12)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.3)
        self.second = nn.Linear(12, 12)
        self.gate = nn.Linear(12, 12)
        self.last = nn.Linear(12, CLASSES)

    def forward(self, x):
        h = self.relu(self.norm(self.first(x)))
        h = self.dropout(h)
        h = h + self.relu(self.second(h))
        h = torch.tanh(self.second(h)) * torch.sigmoid(self.gate(h))
        h = F.gelu(h) + h * torch.sigmoid(1.7 * h)
        return self.last(F.leaky_relu_(F.dropout(h, 0.1, self.training)))


class Recomputed(nn.Module):
    """A block under activation checkpointing, with Dropout so that the recomputation must restore the generator."""

    def __init__(self, *, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.first = nn.Linear(FEATURES, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(8, 8), nn.Tanh())
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x):
        h = F.relu(self.first(x))
        return self.last(checkpoint(self.block, h, use_reentrant=self.reentrant))


class Penalized(Classifier):
    """A gradient penalty: the loss holds an `autograd.grad` of the net."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = x.requires_grad_()
        out = self(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        loss = F.cross_entropy(out, y) + 0.1 * slope.square().sum()
        self.log("loss", loss)
        return loss


class Gan(pl.LightningModule):
    """Two optimizers, stepped by hand; the discriminator's backward leaves gradients on the generator."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, FEATURES))
        self.discriminator = nn.Sequential(nn.Linear(FEATURES, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        real, _ = batch
        for_generator, for_discriminator = self.optimizers()
        fake = self.generator(torch.randn(len(real), 4))
        for_discriminator.zero_grad()
        critic = F.softplus(self.discriminator(fake)).mean() + F.softplus(-self.discriminator(real)).mean()
        self.manual_backward(critic, retain_graph=True)
        for_discriminator.step()
        for_generator.zero_grad()
        loss = F.softplus(-self.discriminator(self.generator(torch.randn(len(real), 4)))).mean()
        self.manual_backward(loss)
        for_generator.step()
        self.log("loss", loss)

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.generator.parameters(), lr=0.01),
            torch.optim.SGD(self.discriminator.parameters(), lr=0.05),
        ]


class FrozenEncoder(Classifier):
    """Features from a frozen stock TransformerEncoder in eval mode, whose fast path torch takes without gradients."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES)))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).requires_grad_(requires_grad=False)

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.encoder.eval()
        with torch.no_grad():
            features = self.encoder(F.pad(x, (0, 2)).unsqueeze(1).expand(-1, 3, -1))
        return F.cross_entropy(self.net(features.mean(1)), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1)
