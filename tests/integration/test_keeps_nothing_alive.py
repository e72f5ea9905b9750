"""No tensor of the user's lives longer, or carries more, because it was measured."""

from __future__ import annotations

import gc
import weakref

import torch
from integration.nets import CLASSES, FEATURES, Classifier, batches, trainer
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import GradWatch


class Remembers(Classifier):
    """Keeps weak references to what the forward pass makes."""

    def __init__(self):
        super().__init__()
        self.made = []
        self.alive = []
        self.block = nn.Linear(FEATURES, CLASSES)

    def training_step(self, batch, batch_idx):
        x, y = batch
        hidden = torch.relu(self.net[0](x))
        gated = hidden * torch.sigmoid(hidden)
        written = 0.5 * gated * (1 + torch.erf(gated / 2**0.5))
        logits = self.net[2:](written) + self.block(x)
        loss = F.cross_entropy(logits, y)
        self.made += [weakref.ref(tensor) for tensor in (hidden, gated, written, logits, loss)]
        return loss

    def on_train_batch_start(self, batch, batch_idx):
        self.alive.append(sum(made() is not None for made in self.made))
        self.made.clear()


def test_no_activation_outlives_its_batch(tmp_path):
    """Without the collector's help: a reference cycle through a graph would hold a step's memory into the next."""
    module = Remembers()
    watch = GradWatch(every_n_steps=1)
    gc.collect()
    gc.disable()
    try:
        trainer(tmp_path, watch, max_steps=6).fit(module, batches())
    finally:
        gc.enable()
    assert len(watch.records) == 6
    assert module.alive == [0] * 6


def test_no_tensor_attribute_reaches_a_saved_batch(tmp_path):
    """An attribute on a tensor would travel with `torch.save`."""
    kept = []

    class Keeps(Classifier):
        def training_step(self, batch, batch_idx):
            x, y = batch
            hidden = self.net[1](self.net[0](x))
            out = self.net[2:](hidden)
            kept.extend([x, hidden, out])
            return F.cross_entropy(out, y)

    trainer(tmp_path, GradWatch(every_n_steps=1), max_steps=3).fit(Keeps(), batches())
    assert [vars(tensor) for tensor in kept] == [{}] * 9
    assert not any(tensor._backward_hooks for tensor in kept)


def test_a_graph_that_the_user_keeps_has_no_hook_of_ours(tmp_path, monkeypatch):
    """A second backward pass through it, after its batch, runs nothing of ours."""
    from lightning_gradwatch.measure.units.site_stats import SiteStatistics  # noqa: PLC0415 - only this test goes below the callback

    calls = []
    for name in ("add_signal", "add_arriving"):
        add = getattr(SiteStatistics, name)
        monkeypatch.setattr(SiteStatistics, name, lambda *args, add=add: calls.append(1) or add(*args))
    kept = []

    class Keeps(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = F.cross_entropy(self(x), y)
            self.manual_backward(loss, retain_graph=True)
            self.optimizers().step()
            self.optimizers().zero_grad()
            kept.append(self.net[0](x).relu().sum())

    trainer(tmp_path, GradWatch(every_n_steps=1), max_steps=3).fit(Keeps(), batches())
    assert len(calls) == 12  # two sites, what arrives and what is passed on, in three steps
    for loss in kept:
        loss.backward()
    assert len(calls) == 12
