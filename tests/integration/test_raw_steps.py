"""Manual optimization past Lightning: the raw optimizer's steps are measured, and one that is never seen to step ends it."""

import pytest
import pytorch_lightning as pl
import torch
from integration.nets import batches, relu_net, seed, trainer
from torch.nn import functional as F

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.fit import fit as fits
from lightning_gradwatch.measure import faults

pytestmark = pytest.mark.judges


class Uncovered:
    """Steps, and is nothing that torch knows."""

    def __init__(self, parameters):
        self.parameters = list(parameters)

    @torch.no_grad()
    def step(self):
        for each in self.parameters:
            each.sub_(each.grad, alpha=0.1)


class Raw(pl.LightningModule):
    def __init__(self, way="raw", every=1):
        super().__init__()
        self.automatic_optimization = False
        self.net, self.way, self.every = relu_net(), way, every
        self.true = []

    def training_step(self, batch, index):
        optimizer = self.optimizers(use_pl_optimizer=self.way == "lightning")
        x, y = batch
        F.cross_entropy(self.net(x), y).backward()
        if (index + 1) % self.every:
            return
        before = [each.detach().clone() for each in self.net.parameters() if each.dim() > 1]
        norm = torch.stack([each.grad.norm() for each in self.net.parameters()]).norm().item()
        if self.way == "unseen":
            Uncovered(self.net.parameters()).step()
        else:
            optimizer.step()
        after = [each.detach() for each in self.net.parameters() if each.dim() > 1]
        moved = [((now - then).norm() / then.norm()).item() for then, now in zip(before, after, strict=True)]
        self.true.append((norm, moved))
        optimizer.zero_grad()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, module, *callbacks, **settings):
    seed()
    run = trainer(folder, *callbacks, max_epochs=1, **settings)
    run.fit(module, batches(12))
    assert torch.overrides._len_torch_function_stack() == 0
    assert not run.optimizers[0]._optimizer_step_pre_hooks
    assert not run.optimizers[0]._optimizer_step_post_hooks
    assert "training_step" not in vars(run.strategy)
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("way", ["raw", "lightning"])
def test_each_step_is_measured_whoever_calls_it(way, every, tmp_path):
    seed()
    plain = fit(tmp_path, Raw(way, every))
    seed()
    watch, module = GradWatch(every_n_steps=1), Raw(way, every)
    watched = fit(tmp_path, module, watch)
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    assert len(watch.records) == len(module.true) == 12 // every
    for record, (norm, moved) in zip(watch.records, module.true, strict=True):
        assert record.global_grad_norm == pytest.approx(norm, rel=1e-5)
        assert record.metrics["update_ratio"].tolist() == pytest.approx(moved, rel=1e-4)


def test_one_that_is_never_seen_to_step_is_told_and_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "RAISE", False)
    monkeypatch.setattr(fits, "_MOST_BATCHES", 6)
    seed()
    plain = fit(tmp_path, Raw("unseen"))
    seed()
    watch = GradWatch(every_n_steps=1)
    with pytest.warns(GradWatchWarning, match="no optimizer was seen to step in 6 batches") as told:
        watched = fit(tmp_path, Raw("unseen"), watch)
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    assert sum(issubclass(each.category, GradWatchWarning) for each in told) == 1
    assert watch.records == ()
    assert any("no optimizer was seen to step" in each.reason for each in watch.coverage)


def test_what_is_kept_of_an_open_step_is_bounded(tmp_path, monkeypatch):
    """Beyond the bound no forward pass is watched, and what would be a part of the signal is none."""
    monkeypatch.setattr(fits, "_MOST_PASSES", 2)
    watch, module = GradWatch(every_n_steps=1), Raw("raw", every=4)
    fit(tmp_path, module, watch)
    record = watch.records[-1]
    assert torch.tensor(record.metrics["signal_norm"]).isnan().all()
    assert record.global_grad_norm == pytest.approx(module.true[-1][0], rel=1e-5)
