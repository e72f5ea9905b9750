"""The search for garbage: put off in our own code alone, and left as the user has it."""

import gc

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch
from lightning_gradwatch.measure.garbage import collecting_later


@pytest.fixture(params=[True, False], ids=["on", "off"])
def collects(request):
    """Whether the user has the search switched on."""
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


def test_it_is_put_off_and_left_as_it_was(collects):
    with collecting_later():
        assert not gc.isenabled()
    assert gc.isenabled() is collects


def test_an_exception_leaves_it_as_it_was(collects):
    with pytest.raises(KeyError), collecting_later():
        raise KeyError
    assert gc.isenabled() is collects


class Asking(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        self.seen = []

    def training_step(self, batch):
        self.seen.append(gc.isenabled())
        loss = self.net(batch[0]).square().mean()
        loss.register_hook(lambda gradient: self.seen.append(gc.isenabled()))
        return loss

    def on_before_optimizer_step(self, optimizer):
        self.seen.append(gc.isenabled())

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen.append(gc.isenabled())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_nothing_of_the_users_runs_while_it_is_put_off(collects, tmp_path):
    model = Asking()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[GradWatch(every_n_steps=1)],
    )
    trainer.fit(model, DataLoader(TensorDataset(torch.ones(12, 4)), batch_size=4))
    assert model.seen == [collects] * 12
    assert gc.isenabled() is collects
