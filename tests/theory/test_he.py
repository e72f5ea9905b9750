"""He et al. 2015, Delving Deep into Rectifiers: 30 ReLU layers with Xavier's weights stall, with He's they converge."""

import itertools
import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from integration.nets import QUIET
from sklearn.datasets import load_digits
from theory.published import agrees, factor, he, measure, points, random_upstream, show, stack, xavier
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch, Severity

pytestmark = pytest.mark.judges

LAYERS = 30
EPOCHS = 20


@pytest.mark.parametrize(("initialize", "published"), [(xavier, 4.3e-5), (he, 1.0)])
def test_over_30_layers_the_signal_keeps_what_29_factors_leave(initialize, published):
    """Xavier's factor is √(1/2) a layer: 29 of them leave 4.3e-5."""
    logs = []
    for seed in range(8):
        torch.manual_seed(seed)
        probe = measure(stack(nn.ReLU, initialize, depth=LAYERS), torch.randn(16, 256), random_upstream)
        signal = probe.record.metrics["signal_norm"]
        logs.append(math.log(signal[0] / signal[-1]))
    what = f"30 ReLU layers, {initialize.__name__}, δ first / last"
    agrees(what, math.exp(np.mean(logs)), published, factor(1.2))


class Digits(pl.LightningModule):
    def __init__(self, initialize, width=128):
        super().__init__()
        sizes = [64, *[width] * LAYERS]
        self.net = nn.Sequential()
        for inputs, units in itertools.pairwise(sizes):
            self.net.extend([nn.Linear(inputs, units), nn.ReLU()])
        self.net.append(nn.Linear(width, 10))
        for layer in self.net[::2]:
            initialize(layer)
            nn.init.zeros_(layer.bias)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.003, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / EPOCHS)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")
@pytest.mark.parametrize(("initialize", "published", "stalls"), [(xavier, 0.1, True), (he, 1.0, False)])
def test_a_net_of_30_layers_learns_with_he_and_stalls_with_xavier(initialize, published, stalls, tmp_path):
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32)
    data = TensorDataset((x - x.mean()) / x.std(), torch.tensor(digits.target))
    model, watch = Digits(initialize), GradWatch()
    trainer = pl.Trainer(default_root_dir=tmp_path, callbacks=[watch], **{**QUIET, "max_epochs": EPOCHS})
    trainer.fit(model, DataLoader(data, 64, shuffle=True))
    with torch.no_grad():
        right = model.net(data.tensors[0]).argmax(1) == data.tensors[1]
    what = f"digits, 30 ReLU layers, {initialize.__name__}"
    agrees(f"{what}, training accuracy", right.float().mean().item(), published, points(3))
    found = [finding for finding in watch.findings if finding.code == "GW101"]
    show(f"{what}, GW101 findings", len(found), stalls, "as many")
    assert len(found) == stalls
    assert all(finding.severity == Severity.ERROR for finding in found)
