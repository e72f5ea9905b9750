"""Optimizers that want several passes a step, in a fit: each sample is counted once, also in the steps that are only looked at."""

import pytest
import pytorch_lightning as pl
import torch
from integration.nets import batches, relu_net, seed, trainer
from torch.nn import functional as F

from lightning_gradwatch import DeadUnitsWarning, GradWatch

pytestmark = pytest.mark.judges
STEPS, BATCH = 12, 8
WINDOW = 256


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation whose step makes both passes, or the second one alone where gradients are there."""

    def __init__(self, parameters, *, both):
        super().__init__(parameters, {"lr": 0.1})
        self.base, self.both = torch.optim.SGD(self.param_groups, lr=0.1), both

    @torch.no_grad()
    def step(self, closure):
        again = torch.enable_grad()(closure)
        if self.both:
            again()
        held = [each for each in self.param_groups[0]["params"] if each.grad is not None]
        old = [each.clone() for each in held]
        for each in held:
            each.add_(each.grad, alpha=0.5)
        if not self.both:
            self.zero_grad()
        loss = again()
        for each, before in zip(held, old, strict=True):
            each.copy_(before)
        self.base.step()
        return loss


class Net(pl.LightningModule):
    def __init__(self, way):
        super().__init__()
        self.net, self.way = relu_net(), way
        self.automatic_optimization = way in ("plain", "automatic")
        self.losses, self.outputs = [], []
        self.steps = -1

    def loss(self, batch):
        x, y = batch
        hidden = self.net[:2](x)
        loss = F.cross_entropy(self.net[2:](hidden), y)
        if self.steps < self.global_step:
            self.steps = self.global_step
            self.losses.append(loss.item())
            self.outputs.append(hidden.detach().square().mean().sqrt().item())
        return loss

    def training_step(self, batch, index):
        loss = self.loss(batch)
        if self.automatic_optimization:
            return loss

        def closure():
            again = self.loss(batch)
            self.manual_backward(again)
            return again

        self.manual_backward(loss)
        optimizer = self.optimizers()
        optimizer.step(closure)
        optimizer.zero_grad()
        return None

    def configure_optimizers(self):
        if self.way == "plain":
            return torch.optim.SGD(self.parameters(), lr=0.1)
        return SAM(self.parameters(), both=self.way == "automatic")


def fitted(folder, way):
    seed()
    watch, module = GradWatch(every_n_steps=50), Net(way)
    trainer(folder, watch, max_steps=STEPS).fit(module, batches(STEPS, BATCH))
    return watch, module


@pytest.mark.parametrize("way", ["plain", "automatic", "manual"])
def test_each_sample_is_counted_once(way, tmp_path):
    watch, module = fitted(tmp_path, way)
    assert [record.step for record in watch.records] == [0, 1, 2, 4, 8]
    for record in watch.records:
        assert record.loss == pytest.approx(module.losses[record.step])
        assert record.forward_rms[0] == pytest.approx(module.outputs[record.step], rel=1e-5)
        assert (record.window_fill * WINDOW).tolist() == [BATCH * (record.step + 1)] * 2


def test_a_dead_layer_that_the_second_pass_revives_is_dead(tmp_path):
    class Revived(Net):
        passes = 0

        def loss(self, batch):
            with torch.no_grad():
                self.net[0].bias.fill_(1e3 if self.passes % 2 else -1e3)
            self.passes += 1
            return super().loss(batch)

    seed()
    watch, module = GradWatch(every_n_steps=50, ignore=("GW1", "GW3", "GW4", "GW5", "GW6")), Revived("manual")
    with pytest.warns(DeadUnitsWarning, match=r"net\.1"):
        trainer(tmp_path, watch, max_steps=40).fit(module, batches(40, BATCH))
    assert watch.records[-1].metrics["dead_fraction"][0] == 1.0
