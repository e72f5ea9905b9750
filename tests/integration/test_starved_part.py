"""GW106 in training: a generator whose discriminator wins, one that is in balance with it, and factors that are both 0."""

from __future__ import annotations

import warnings

import pytest
import torch
from integration.nets import pl, trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch, GradWatchWarning, StarvedPartWarning, apply_action

pytestmark = pytest.mark.judges


class Gan(pl.LightningModule):
    """A generator far from the data, trained by ``log(1 - D(G(z)))`` or by ``-log D(G(z))``."""

    def __init__(self, *, saturating, toggled, noise=0.0, rates=(1e-4, 5e-3)):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        self.discriminator = nn.Sequential(
            nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )
        self.saturating, self.toggled, self.noise, self.rates = saturating, toggled, noise, rates

    def judge(self, x):
        return self.discriminator(x + self.noise * torch.randn_like(x))

    def step_by(self, optimizer, loss_of):
        if self.toggled:
            self.toggle_optimizer(optimizer)
        loss = loss_of()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        if self.toggled:
            self.untoggle_optimizer(optimizer)

    def training_step(self, batch, _):
        (real,) = batch
        for_generator, for_discriminator = self.optimizers()

        def of_discriminator():
            fake = self.generator(torch.randn(len(real), 4)).detach()
            return F.softplus(self.judge(fake)).mean() + F.softplus(-self.judge(real)).mean()

        def of_generator():
            fake = self.judge(self.generator(torch.randn(len(real), 4)))
            return -F.softplus(fake).mean() if self.saturating else F.softplus(-fake).mean()

        self.step_by(for_discriminator, of_discriminator)
        self.step_by(for_generator, of_generator)

    def configure_optimizers(self):
        parts = (self.generator, self.discriminator)
        return [torch.optim.Adam(part.parameters(), lr=rate) for part, rate in zip(parts, self.rates, strict=True)]


def fit(module, data, tmp_path, *, steps):
    watch = GradWatch()
    run = trainer(tmp_path, watch, max_steps=steps)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run.fit(module, DataLoader(TensorDataset(*data), batch_size=32))
    return watch, {each.category for each in told if issubclass(each.category, GradWatchWarning)}


def points(centre):
    return (torch.randn(256, 2, generator=torch.Generator().manual_seed(0)) * 0.1 + centre,)


@pytest.mark.parametrize("toggled", [True, False], ids=["toggled", "not toggled"])
def test_a_generator_whose_discriminator_has_won(tmp_path, toggled):
    torch.manual_seed(0)
    watch, told = fit(Gan(saturating=True, toggled=toggled), points(5.0), tmp_path, steps=600)
    (finding,) = (each for each in watch.findings if each.code == "GW106")
    assert finding.layers == ("generator.0", "generator.2")
    assert "optimizer 1 (Adam) has won" in finding.cause[:1].lower() + finding.cause[1:]
    assert StarvedPartWarning in told
    assert all(each.consequence_of == "GW106" for each in watch.findings if each.code == "GW301")


def test_a_generator_in_balance(tmp_path):
    torch.manual_seed(0)
    module = Gan(saturating=False, toggled=True, noise=0.5, rates=(1e-3, 1e-3))
    watch, _ = fit(module, points(0.5), tmp_path, steps=600)
    assert "GW106" not in {each.code for each in watch.findings}


class LowRank(pl.LightningModule):
    """A frozen layer with two factors beside it and a bias that learns."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(6, 6)
        self.base.weight.requires_grad_(False)
        self.base.down = nn.Parameter(torch.zeros(6, 2))
        self.base.up = nn.Parameter(torch.zeros(2, 6))

    def training_step(self, batch, _):
        x, y = batch
        return F.mse_loss(self.base(x) + x @ self.base.down @ self.base.up, y)

    def configure_optimizers(self):
        return torch.optim.Adam([each for each in self.parameters() if each.requires_grad], lr=0.02)


def low_rank_data():
    source = torch.Generator().manual_seed(1)
    x = torch.randn(256, 6, generator=source)
    return x, 3 * x @ torch.randn(6, 2, generator=source) @ torch.randn(2, 6, generator=source)


def test_factors_that_are_both_0_beside_a_bias_that_learns(tmp_path):
    torch.manual_seed(0)
    watch, _ = fit(LowRank(), low_rank_data(), tmp_path, steps=80)
    (finding,) = (each for each in watch.findings if each.code == "GW106")
    assert finding.layers == ("base.down",)
    torch.manual_seed(0)
    module = LowRank()
    for action in finding.remedy.actions:
        apply_action(module, action)
    watch, _ = fit(module, low_rank_data(), tmp_path, steps=80)
    assert "GW106" not in {each.code for each in watch.findings}
    assert module.base.up.detach().abs().max() > 0.1


def test_what_it_recommends_brings_the_generator_to_the_data(tmp_path):
    """A tenth of the learning rate for the one that has won, five times for the other, and a loss that doesn't saturate."""
    torch.manual_seed(0)
    lost = Gan(saturating=True, toggled=True)
    watch, _ = fit(lost, points(5.0), tmp_path / "lost", steps=600)
    (finding,) = (each for each in watch.findings if each.code == "GW106")
    factors = {
        action.targets[0].partition(".")[0]: dict(action.arguments)["factor"] for action in finding.remedy.actions
    }
    assert factors == {"discriminator": 0.1, "generator": pytest.approx(5.0)}
    torch.manual_seed(0)
    rates = [rate * factors[name] for name, rate in zip(("generator", "discriminator"), lost.rates, strict=True)]
    helped = Gan(saturating=False, toggled=True, rates=rates)
    watch, _ = fit(helped, points(5.0), tmp_path / "helped", steps=1500)
    assert "GW106" not in {each.code for each in watch.findings}
    assert far_from(lost, 5.0) > 5.0
    assert far_from(helped, 5.0) < 3.0


def far_from(module, centre):
    """How far from the data's centre the generator's points are, at a median."""
    with torch.no_grad():
        made = module.generator(torch.randn(256, 4, generator=torch.Generator().manual_seed(1)))
    return float((made - centre).norm(dim=1).median())
