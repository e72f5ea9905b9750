"""Nets that learn raise no warning: real digits, default thresholds, measured often."""

from __future__ import annotations

import warnings

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch, GradWatchWarning, Severity, evaluate, read_run

pytestmark = pytest.mark.judges


def digits():
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)


def dense(activation, depth=6, width=64):
    layers = [layer for _ in range(depth) for layer in (nn.LazyLinear(width), activation())]
    net = nn.Sequential(nn.Flatten(), *layers, nn.LazyLinear(10))
    net(torch.zeros(2, 64))
    gain = "tanh" if activation is nn.Tanh else "relu"
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight, nn.init.calculate_gain(gain))
            nn.init.zeros_(layer.bias)
    return net


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))

    def forward(self, x):
        hidden = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(hidden)) + x)


def residual_cnn():
    blocks = [Residual(16) for _ in range(3)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), *blocks, *head)


class Branches(nn.Module):
    """Pre-norm branches that start at next to nothing, as a layer scale has them, between a trunk's two functions."""

    def __init__(self, scale, width=32):
        super().__init__()
        self.stem, self.head = (
            nn.Linear(64, width),
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 10)),
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(8)
        )
        self.scales = nn.ParameterList(nn.Parameter(torch.full((width,), scale)) for _ in self.blocks)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for scale, block in zip(self.scales, self.blocks, strict=True):
            x = x + scale * block(x)
        return self.head(x)


def batch_norm(depth=10):
    layers = [layer for _ in range(depth) for layer in (nn.LazyLinear(64), nn.BatchNorm1d(64), nn.ReLU())]
    net = nn.Sequential(*layers, nn.LazyLinear(10))
    net(torch.zeros(2, 64))
    return net


def zero_head():
    net = dense(nn.ReLU)
    nn.init.zeros_(net[-1].weight)
    return net


NETS = {
    "relu": lambda: dense(nn.ReLU),
    "tanh": lambda: dense(nn.Tanh),
    "leaky relu": lambda: dense(nn.LeakyReLU),
    "residual cnn": residual_cnn,
}
MORE = {"batch norm": batch_norm, "small branches": lambda: Branches(1e-5), "zero head": zero_head}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
}


class Classifier(pl.LightningModule):
    def __init__(self, net, optimizer):
        super().__init__()
        self.net, self.optimizer = net, optimizer

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", [*NETS, *[pytest.param(name, marks=pytest.mark.slow) for name in MORE]])
@pytest.mark.parametrize("steps", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_net_that_learns_raises_no_warning(net, optimizer, steps, tmp_path):
    torch.manual_seed(0)
    x, y = digits()
    model = Classifier((NETS | MORE)[net](), OPTIMIZERS[optimizer])
    watch = GradWatch(every_n_steps=5)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[watch],
        logger=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        trainer.fit(model, DataLoader(TensorDataset(x, y), 64, shuffle=True))
    with torch.no_grad():
        accuracy = (model.net(x).argmax(1) == y).float().mean()
    assert accuracy > 0.9, "a net that doesn't learn proves nothing"
    assert [str(each.message) for each in raised if issubclass(each.category, GradWatchWarning)] == []
    assert all(finding.severity is Severity.INFO for finding in watch.findings)
    run = read_run(tmp_path / "gradwatch" / "version_0")
    assert evaluate(run) == watch.findings == run.findings
