"""Contracts 3 and 4 in a Trainer: every number against one that the test computes by itself from what it captured."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from integration.captures import Captures, by_layer, columns, compare, norm
from integration.nets import CLASSES, FEATURES, Classifier, Gan, batches, relu_net, seed, trainer
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import GradWatch, LayerState

pytestmark = pytest.mark.judges

SCALE = 1024.0


def run(folder, module, *, limit=None, loader=None, **settings):
    seed()
    watch, captures = GradWatch(every_n_steps=1), Captures()
    settings = {"max_steps": 8, **settings} if limit is None else {"max_epochs": limit, **settings}
    fitted = trainer(folder, captures, watch, **settings)
    fitted.fit(module, batches() if loader is None else loader)
    return fitted, watch, captures


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


@pytest.mark.parametrize("optimizer", [None, adam], ids=["sgd", "adam"])
def test_a_plain_fit(optimizer, tmp_path):
    _, watch, captures = run(tmp_path, Classifier(make_optimizer=optimizer))
    compare(watch, captures)
    for record, step in zip(watch.records, captures.steps, strict=True):
        assert record.learning_rates == (step["lr"],)
        assert (record.skipped, record.partial, record.gradient_scale) == (False, False, 1.0)
        assert math.isnan(record.clip_factor)
        assert record.optimizers == (0,)


def test_accumulation_and_its_last_partial_window(tmp_path):
    """Seven batches, three a step: the third step of an epoch has one batch, and its loss a third of the weight."""
    _, watch, captures = run(tmp_path, Classifier(), limit=2, loader=batches(7), accumulate_grad_batches=3)
    compare(watch, captures)
    assert [record.partial for record in watch.records] == [False, False, True] * 2
    assert [len(step["losses"]) for step in captures.steps[:3]] == [3, 3, 1]
    assert [record.batch_idx for record in watch.records] == [2, 5, 6] * 2


@pytest.mark.parametrize(("algorithm", "value"), [("norm", 0.01), ("value", 0.001)])
def test_clipping_is_read_before_and_after(algorithm, value, tmp_path):
    _, watch, captures = run(tmp_path, Classifier(), gradient_clip_val=value, gradient_clip_algorithm=algorithm)
    compare(watch, captures)
    for record, step in zip(watch.records, captures.steps, strict=True):
        after, before = math.hypot(*step["clipped"].values()), math.hypot(*step["norms"].values())
        assert after < before / 2
        assert record.clip_factor == pytest.approx(after / before, rel=1e-6)
    assert watch.info.clipping == f"{algorithm} {value}"


def scaled(scale=SCALE):
    return [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3))]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gradient_scale_is_taken_out_of_everything(accumulate, tmp_path):
    seed()
    module = Classifier()
    same = copy.deepcopy(module)
    _, watch, captures = run(tmp_path, module, plugins=scaled(), accumulate_grad_batches=accumulate)
    scales = [SCALE * 2.0 ** (place // 3) for place in range(8)]
    assert [record.gradient_scale for record in watch.records] == scales
    for step, scale in zip(captures.steps, scales, strict=True):
        step["losses"] = [loss / scale for loss in step["losses"]]
    compare(watch, captures)
    _, plain, _ = run(tmp_path, same, accumulate_grad_batches=accumulate)
    # Half precision keeps about three digits; a scale that was forgotten is off by a factor of a thousand.
    for metric in ("grad_norm", "signal_norm"):
        assert watch.records[0].metrics[metric] == pytest.approx(plain.records[0].metrics[metric], rel=0.02)


def test_a_fused_optimizer_that_unscales_by_itself(tmp_path):
    """Its gradients are still scaled when Lightning calls on_before_optimizer_step."""
    module = Classifier(make_optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True))
    _, watch, captures = run(tmp_path, module, plugins=scaled())
    for step, record in zip(captures.steps, watch.records, strict=True):
        step["losses"] = [loss / record.gradient_scale for loss in step["losses"]]
    compare(watch, captures)
    assert {record.gradient_scale for record in watch.records} == {SCALE, 2 * SCALE, 4 * SCALE}


def test_a_step_that_the_scaler_skips_is_recorded_as_skipped(tmp_path):
    _, watch, captures = run(tmp_path, Classifier(), max_steps=12, plugins=scaled(2.0**20))
    skipped = [record.skipped for record in watch.records]
    assert skipped == [not step["moved"] for step in captures.steps]
    assert skipped[0]
    assert not skipped[-1]
    for record in watch.records:
        assert record.optimizers == (() if record.skipped else (0,))
        if record.skipped:
            assert LayerState.NON_FINITE in record.layer_state
            assert np.isnan(record.metrics["update_ratio"]).all()
    assert watch.findings == ()


def test_each_optimizer_has_its_own_layers_and_no_stale_gradient(tmp_path):
    """The critic's backward leaves gradients on the generator, which the generator's zero_grad clears."""
    _, watch, captures = run(tmp_path, Gan(), max_steps=16)
    assert len(watch.records) == 8
    compare(watch, captures)
    for record in watch.records:
        assert record.optimizers == (0, 1)
        assert record.learning_rates == (0.01, 0.05)
    assert {each.layers for each in watch.info.optimizers} == {
        ("generator.0", "generator.2"),
        ("discriminator.0", "discriminator.2"),
    }


def test_an_optimizer_that_sits_a_batch_out_leaves_its_layers_unmeasured(tmp_path):
    class Alternates(Gan):
        def training_step(self, batch, batch_idx):
            which = batch_idx % 2
            real, _ = batch
            score = self.discriminator(self.generator(torch.randn(len(real), 4))).mean()
            self.manual_backward(score if which else -score)
            self.optimizers()[which].step()
            self.optimizers()[which].zero_grad()

    _, watch, captures = run(tmp_path, Alternates(), max_steps=6)
    assert [record.optimizers for record in watch.records] == [(0,), (1,)] * 3
    for record, step in zip(watch.records, captures.steps, strict=True):
        measured = {name: value for name, value in columns(watch, record, "grad_norm").items() if not math.isnan(value)}
        assert measured == pytest.approx(step["norms"], rel=1e-6)
        assert list(record.layer_state).count(LayerState.UNMEASURED) == 2


def test_the_first_closure_of_lbfgs_is_what_is_measured(tmp_path):
    module = Classifier(make_optimizer=lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=3))
    seed()
    seen = []

    class First(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            seen.append((trainer.global_step, by_layer(module, optimizer, lambda own: norm(p.grad for p in own))))

    watch = GradWatch(every_n_steps=1)
    trainer(tmp_path, First(), watch, max_steps=5).fit(module, batches())
    assert len(watch.records) == 5
    assert len(seen) > 5
    for record in watch.records:
        first = next(norms for step, norms in seen if step == record.step)
        assert columns(watch, record, "grad_norm") == pytest.approx(first, rel=1e-6)


class Stores(Classifier):
    """Stores each activation's argument, and dL/dz and dL/da of each by `autograd.grad` on its own graph."""

    def __init__(self):
        super().__init__(nn.ModuleList([nn.Linear(FEATURES, 16), nn.Linear(16, 16), nn.Linear(16, CLASSES)]))
        with torch.no_grad():
            self.net[0].bias[:3] = -50.0  # dead units
            self.net[1].bias[:2] = 30.0  # saturated ones
        self.stored, self.losses = [], []

    def training_step(self, batch, batch_idx):
        x, y = batch
        first = self.net[0](x)
        outputs = [F.relu(first)]
        second = self.net[1](outputs[0])
        outputs.append(torch.tanh(second))
        loss = F.cross_entropy(self.net[2](outputs[1]), y)
        signals = torch.autograd.grad(loss, (first, second, *outputs), retain_graph=True)
        self.losses.append(float(loss.detach()))
        self.stored.append((first.detach().numpy().copy(), second.detach().numpy().copy(), signals))
        self.log("loss", loss)
        return loss


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gains_are_of_the_scaled_loss_and_its_scale_is_in_neither(accumulate, tmp_path):
    module = Stores()
    _, watch, _ = run(tmp_path, module, plugins=scaled(), accumulate_grad_batches=accumulate)
    assert len(watch.records) == 8
    assert [site.predecessors for site in watch.info.sites] == [(), (watch.info.sites[0].name,)]
    for place, record in enumerate(watch.records):
        own = module.stored[place * accumulate : (place + 1) * accumulate]
        relu, tanh, relu_out, tanh_out = (
            math.sqrt(sum((norm([entry[2][each]]) / accumulate) ** 2 for entry in own)) for each in range(4)
        )
        # Half precision rounds the unscaled gradients of the reference otherwise than the scaled ones of the step.
        assert record.metrics["signal_norm"] == pytest.approx([relu, tanh], rel=0.02)
        assert record.metrics["activation_gain"] == pytest.approx([relu / relu_out, tanh / tanh_out], rel=0.01)
        assert record.metrics["weight_gain"] == pytest.approx([math.nan, relu_out / tanh], rel=0.01, nan_ok=True)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_signal_and_units_equal_a_recount_of_stored_activations(accumulate, tmp_path):
    module = Stores()
    _, watch, _ = run(tmp_path, module, max_steps=20, accumulate_grad_batches=accumulate, loader=batches(6, 64))
    assert [site.function for site in watch.info.sites] == ["relu", "tanh"]
    for place, record in enumerate(watch.records):
        # A step's signal is of the loss as Lightning divides it, over all micro-batches.
        own = module.stored[place * accumulate : (place + 1) * accumulate]
        norms = [math.sqrt(sum((norm([entry[2][each]]) / accumulate) ** 2 for entry in own)) for each in range(4)]
        for site in (0, 1):
            assert record.metrics["signal_norm"][site] == pytest.approx(norms[site], rel=1e-6)
            assert record.metrics["activation_gain"][site] == pytest.approx(norms[site] / norms[2 + site], rel=1e-6)
        assert record.metrics["weight_gain"] == pytest.approx([math.nan, norms[2] / norms[1]], rel=1e-6, nan_ok=True)
        # The window: as few of the last steps as hold 1,024 observations, or as there are of 256 or more.
        wanted = -(-1024 // (64 * accumulate)) * accumulate
        seen = module.stored[: (place + 1) * accumulate]
        if len(seen) * 64 < 256:
            assert np.isnan(record.metrics["dead_fraction"]).all()
            assert record.window_fill == pytest.approx([len(seen) * 64 / 256] * 2)
            continue
        window = seen[-wanted:]
        relu = np.concatenate([entry[0] for entry in window])
        tanh = np.concatenate([entry[1] for entry in window])
        assert record.metrics["dead_fraction"].tolist() == [np.mean((relu <= 0).all(0)), 0.0]
        assert record.metrics["dead_fraction"][0] >= 3 / 16
        saturated = record.metrics["saturated_fraction"]
        assert np.isnan(saturated[0])
        assert saturated[1] == np.mean((np.abs(tanh) > 2).mean(0) >= 0.95)
        now = np.concatenate([entry[0] for entry in own])
        assert record.metrics["inactive_share"][0] == np.mean(now <= 0)
        assert (record.window_fill == 1).all()
    assert 2 / 16 <= watch.records[-1].metrics["saturated_fraction"][1] < 1


def test_of_a_line_search_the_first_closure_counts(tmp_path):
    """A step's loss, signal and observations are those of the weights it started from, not of those it tried."""
    module, starts = Stores(), []
    module.make_optimizer = lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)

    class Starts(pl.Callback):
        def on_train_batch_start(self, *args):
            starts.append(len(module.stored))

    watch = GradWatch(every_n_steps=1)
    trainer(tmp_path, Starts(), watch, max_steps=6).fit(module, batches(1, 64))
    assert len(module.stored) > 2 * len(starts) == 12
    for place, (record, start) in enumerate(zip(watch.records, starts, strict=True)):
        first, second, signals = module.stored[start]
        assert record.metrics["signal_norm"] == pytest.approx([norm([each]) for each in signals[:2]], rel=1e-6)
        assert record.metrics["inactive_share"][0] == np.mean(first <= 0)
        assert record.metrics["inactive_share"][1] == np.mean(np.abs(second) > 2)
        assert record.window_fill == pytest.approx([min((place + 1) * 64 / 256, 1)] * 2)
        assert record.loss == pytest.approx(module.losses[start], rel=1e-6)


def test_the_loss_is_the_one_that_is_logged(tmp_path):
    logged = {}

    class Reads(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            logged[trainer.global_step - 1] = float(trainer.callback_metrics["loss"])

    watch = GradWatch(every_n_steps=1)
    trainer(tmp_path, Reads(), watch, max_steps=6).fit(Classifier(relu_net()), batches())
    assert {record.step: record.loss for record in watch.records} == pytest.approx(logged, rel=1e-6)


def test_norms_hold_over_the_whole_range_of_float32(tmp_path):
    """Gradients of 1e-24 have squares that float32 can't hold; of 1e-44 they are a few of its smallest steps."""

    class Tiny(Classifier):
        def training_step(self, batch, batch_idx):
            factor = (1.0, 1e-24, 1e-43, 1e30)[batch_idx % 4]
            return super().training_step(batch, batch_idx) * factor

    _, watch, captures = run(tmp_path, Tiny(make_optimizer=lambda p: torch.optim.SGD(p, lr=0.0)), max_steps=4)
    for record, step in zip(watch.records, captures.steps, strict=True):
        assert columns(watch, record, "grad_norm") == pytest.approx(step["norms"], rel=1e-6, abs=0)
    assert 0 < watch.records[2].metrics["grad_norm"].max() < 1e-42
