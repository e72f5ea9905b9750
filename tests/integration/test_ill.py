"""Nets that fall ill in a real Trainer are told so, for the right reason, and what only looks ill is left alone."""

from __future__ import annotations

import warnings

import pytest
import torch
from integration.nets import CLASSES, FEATURES, Classifier, batches, relu_net, seed, trainer
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import GradWatch, GradWatchWarning, Severity, evaluate, read_run

pytestmark = pytest.mark.judges


def stack(function, depth, *, width=16, fill=None):
    layers = [layer for _ in range(depth) for layer in (nn.LazyLinear(width), function())]
    net = nn.Sequential(*layers, nn.LazyLinear(CLASSES))
    net(torch.zeros(2, FEATURES))
    for layer in net:
        if fill is not None and isinstance(layer, nn.Linear):
            fill(layer.weight)
            nn.init.zeros_(layer.bias)
    return net


def sgd(rate):
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


def adam(rate, **settings):
    return lambda parameters: torch.optim.Adam(parameters, lr=rate, **settings)


def train(folder, module, *, every=1, steps=24, ignore=(), loader=None, healed=False, **settings):
    """Fit, expect the findings of the file to be those of the fit; return them by code."""
    watch = GradWatch(every_n_steps=every, ignore=ignore)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradWatchWarning)
        trainer(folder, watch, max_steps=steps, **settings).fit(module, batches(size=64) if loader is None else loader)
    run = read_run(folder / "gradwatch" / "version_0")
    assert run.findings == watch.findings == evaluate(run)
    return {finding.code: finding for finding in watch.findings if healed or finding.severity > Severity.INFO}


class TestNonFinite:
    def test_a_rate_that_is_too_high_explodes(self, tmp_path):
        class Regression(Classifier):
            def training_step(self, batch, batch_idx):
                x, _ = batch
                return F.mse_loss(self(x), x[:, :CLASSES])

        seed()
        module = Regression(stack(nn.ReLU, 3, fill=nn.init.kaiming_normal_), sgd(3.0))
        finding = train(tmp_path, module)["GW103"]
        assert "The net exploded: the" in finding.cause
        assert finding.severity == Severity.ERROR

    def test_an_operation_that_is_undefined_comes_out_of_nothing(self, tmp_path):
        class Undefined(Classifier):
            def training_step(self, batch, batch_idx):
                x, y = batch
                loss = F.cross_entropy(self(x), y)
                return loss + (0 * self(x)).sum().sqrt() if batch_idx == 5 else loss

        finding = train(tmp_path, Undefined(stack(nn.ReLU, 3)), steps=8)["GW103"]
        assert finding.first_step == 5
        assert finding.layers == ("net.6",)
        assert "It began in the backward pass: net.6" in finding.cause
        assert "out of nothing" in finding.cause

    @pytest.mark.parametrize(("place", "name"), [(0, "net.1"), (4, "net.5")])
    def test_the_first_output_that_isnt_finite_is_named(self, place, name, tmp_path):
        class Overflows(Classifier):
            def training_step(self, batch, batch_idx):
                if batch_idx == 3:
                    with torch.no_grad():
                        self.net[place].bias[0] = float("inf")
                return super().training_step(batch, batch_idx)

        assert train(tmp_path, Overflows(stack(nn.ReLU, 3)), steps=6)["GW103"].layers == (name,)

    def test_a_batch_without_targets_does_no_harm(self, tmp_path):
        class Ignores(Classifier):
            def training_step(self, batch, batch_idx):
                x, y = batch
                return F.cross_entropy(self(x), torch.full_like(y, -100) if batch_idx == 3 else y)

        assert train(tmp_path, Ignores(), steps=6) == {}


def half(*, scale, **settings):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, **settings)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


class TestGradientScaler:
    def test_its_skips_are_no_finding(self, tmp_path):
        """The scale starts far too high, and is raised until it is too high again, time after time."""
        found = train(tmp_path, Classifier(relu_net()), steps=60, **half(scale=2.0**40, growth_interval=3))
        assert found == {}

    def test_a_net_that_makes_no_step_at_all_is(self, tmp_path):
        class Hopeless(Classifier):
            def training_step(self, batch, batch_idx):
                return super().training_step(batch, batch_idx) * float("inf")

        found = train(tmp_path, Hopeless(relu_net()), every=50, steps=40, **half(scale=2.0**16))
        assert found.keys() == {"GW103"}
        assert (found["GW103"].first_step, found["GW103"].threshold) == (0, 20)


class TestStart:
    def test_weights_far_too_large_explode_over_depth(self, tmp_path):
        seed()
        net = stack(nn.Tanh, 20, width=64, fill=lambda weight: nn.init.xavier_normal_(weight, gain=4.0))
        # Chance, and so the processor's arithmetic, decides how long it lasts, and whether the loss has come down by the end.
        found = train(tmp_path, Classifier(net, sgd(0.03)), steps=24, healed=True)
        assert {"GW102", "GW401"} <= found.keys()
        assert found["GW401"].first_step == found["GW102"].first_step == 0
        assert "too large for Tanh" in found["GW401"].cause

    def test_the_default_initialisation_of_a_deep_relu_net(self, tmp_path):
        seed()
        found = train(tmp_path, Classifier(stack(nn.ReLU, 20, width=64)), steps=6)
        assert "PyTorch's default" in found["GW401"].cause

    def test_a_resumed_fit_isnt_judged_by_its_start(self, tmp_path):
        seed()
        module = Classifier(stack(nn.ReLU, 20, width=64))
        first = trainer(tmp_path / "first", max_steps=4)
        first.fit(module, batches(1, 64))
        first.save_checkpoint(tmp_path / "kept.ckpt")
        watch = GradWatch(every_n_steps=1, ignore=("GW1", "GW2", "GW3"))
        trainer(tmp_path / "second", watch, max_steps=8).fit(
            module, batches(1, 64), ckpt_path=tmp_path / "kept.ckpt", weights_only=True
        )
        assert watch.findings == ()
        assert [record.step for record in watch.records] == [4, 5, 6, 7]


class TestUpdates:
    def test_adam_far_too_fast(self, tmp_path):
        seed()
        module = Classifier(stack(nn.ReLU, 4, width=64, fill=nn.init.kaiming_normal_), adam(0.5))
        finding = train(tmp_path, module, steps=8, loader=batches(size=64))["GW302"]
        assert (finding.first_step, len(finding.layers)) == (0, 5)
        assert finding.remedy.actions[0].arguments == (("factor", 2e-3),)

    @pytest.mark.parametrize("make", [sgd(1e-7), adam(1e-9)])
    def test_far_too_slow(self, make, tmp_path):
        finding = train(tmp_path, Classifier(stack(nn.ReLU, 3), make))["GW301"]
        assert "too small for these weights" in finding.cause
        assert dict(finding.remedy.actions[0].arguments)["factor"] >= 100

    def test_adams_eps_stalls_what_the_gradient_hardly_reaches(self, tmp_path):
        seed()
        found = train(tmp_path, Classifier(stack(nn.Sigmoid, 12), adam(1e-4, eps=1e-6)), steps=16)
        assert "below the eps of Adam (1e-6)" in found["GW301"].cause

    def test_a_slow_group_beside_a_fast_one_is_meant(self, tmp_path):
        """A pretrained body at a hundredth of the head's rate; without knowing its rate, it would look stalled."""

        def both(parameters):
            *body, weight, bias = parameters
            return torch.optim.SGD([{"params": body, "lr": 1e-4}, {"params": [weight, bias], "lr": 0.1}], lr=0.1)

        seed()
        module = Classifier(stack(nn.ReLU, 3, fill=nn.init.kaiming_normal_), both)
        assert "GW301" not in train(tmp_path, module)
        run = read_run(tmp_path / "gradwatch" / "version_0")
        assert run.info.optimizers[0].rates == pytest.approx((1e-3,) * 3 + (1.0,))
        lowest = min(run.series("update_ratio")[1][-1])
        assert 1e-6 < lowest < 1e-4

    def test_nothing_moves_at_the_end_of_a_schedule_and_that_is_meant(self, tmp_path):
        class Cools(Classifier):
            def configure_optimizers(self):
                optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
                falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1e-9 if step > 12 else 1.0)
                return [optimizer], [{"scheduler": falling, "interval": "step"}]

        assert "GW301" not in train(tmp_path, Cools(), steps=30)
