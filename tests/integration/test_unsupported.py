"""Strategies that can't be measured: said once, nothing is measured, and training goes on as without the monitor.

DeepSpeed, FSDP's first version and XLA don't run on a CPU. Stand-ins do: strategies of those names that train on one
process, as which kind a strategy is is told by the name of its class.
"""

from __future__ import annotations

import warnings

import lightning.pytorch as lp
import pytest
import pytorch_lightning as pl
import torch
from integration.nets import Classifier, batches, relu_net, seed, trainer
from lightning.pytorch.strategies import SingleDeviceStrategy as OtherSingleDeviceStrategy
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch.nn import functional as F

from lightning_gradwatch import GradWatch, GradWatchWarning

SHARDED = "ModelParallelStrategy (FSDP2) if the model needs sharding, and with DDP otherwise"
ANYWHERE = 'DDP on another device (accelerator="cpu" for a few steps, say)'
LATE = "XLA runs a step when its results are asked for, long after it was written down"
REASONS = {
    "DeepSpeedStrategy": ("DeepSpeed keeps gradients and weights in flat buffers of its own", SHARDED),
    "FSDPStrategy": ("FSDP keeps parameters as flat parts without their shapes", SHARDED),
    "XLAStrategy": (LATE, ANYWHERE),
    "XLAFSDPStrategy": (LATE, ANYWHERE),
}


class Other(lp.LightningModule):
    """Of the other package."""

    def __init__(self):
        super().__init__()
        self.net = relu_net()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def stand_in(name, base=SingleDeviceStrategy):
    return type(name, (base,), {"strategy_name": name})("cpu")


def fit(folder, strategy, *callbacks, of=pl):
    seed()
    module = Classifier() if of is pl else Other()
    run = trainer(folder, *callbacks, of=of, strategy=strategy, max_steps=4)
    run.fit(module, batches())
    return module.state_dict()


@pytest.mark.parametrize("name", REASONS)
def test_what_cannot_be_measured_is_said_once_and_trains_on(name, tmp_path):
    watch = GradWatch(every_n_steps=1)
    without = fit(tmp_path, stand_in(name))
    with pytest.warns(GradWatchWarning) as heard:
        watched = fit(tmp_path, stand_in(name), watch)
    (told,) = [str(entry.message) for entry in heard if issubclass(entry.category, GradWatchWarning)]
    why, instead = REASONS[name]
    expected = f"nothing is measured: {why} (strategy {name}). To have it measured, train with {instead}"
    assert told == f"GradWatch: {expected}. Training goes on."
    assert [entry.reason for entry in watch.coverage] == [expected]
    assert (watch.records, watch.findings, watch.info) == ((), (), None)
    assert all(torch.equal(without[key], watched[key]) for key in without)
    assert not list(tmp_path.rglob("events*"))


def test_a_strategy_made_of_one_is_one(tmp_path):
    derived = type("Ours", (type(stand_in("DeepSpeedStrategy")),), {})("cpu")
    with pytest.warns(GradWatchWarning, match="DeepSpeed keeps .* [(]strategy Ours[)]"):
        fit(tmp_path, derived, GradWatch())


def test_those_of_the_other_package_are_told_too(tmp_path):
    with pytest.warns(GradWatchWarning, match="FSDP keeps"):
        fit(tmp_path, stand_in("FSDPStrategy", OtherSingleDeviceStrategy), GradWatch(), of=lp)


def test_processes_that_torch_does_not_join_are_not_measured(tmp_path):
    class Elsewhere(SingleDeviceStrategy):
        """Says that it trains on four processes, which no process group of torch connects."""

        def __init__(self):
            super().__init__("cpu")
            self.world_size = 4

    watch = GradWatch()
    with pytest.warns(GradWatchWarning, match="the 4 processes of Elsewhere aren't those of a process group"):
        fit(tmp_path, Elsewhere(), watch)
    assert watch.records == ()


def test_a_fit_that_can_be_measured_is_again(tmp_path):
    watch = GradWatch(every_n_steps=1)
    with pytest.warns(GradWatchWarning, match="nothing is measured"):
        fit(tmp_path, stand_in("DeepSpeedStrategy"), watch)
    fit(tmp_path, "auto", watch)
    assert len(watch.records) == 4
    assert watch.coverage == ()


def test_the_users_filter_may_make_an_error_of_it(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradWatchWarning)
        with pytest.raises(GradWatchWarning, match="nothing is measured"):
            fit(tmp_path, stand_in("DeepSpeedStrategy"), GradWatch())
