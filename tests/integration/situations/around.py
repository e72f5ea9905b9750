"""Situations around the steps: validation, other callbacks, loggers, loaders, averaged and pruned weights."""

from __future__ import annotations

import torch
from integration.nets import Classifier, Everything, batches, relu_net
from integration.situation import Situation
from integration.situations.loop import EVERYTHING, SITES, adam
from pytorch_lightning import callbacks
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import CombinedLoader
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset


class Validates(Classifier):
    """Has a validation loop, and logs what it says."""

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def val_dataloader(self):
        return batches(2)


class Pairs(Classifier):
    """Takes a batch of two loaders, one of which starts again."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch["labelled"], batch_idx) + self(batch["other"][0]).square().mean()


class Stream(IterableDataset):
    """A data set without a length."""

    def __iter__(self):
        return iter(batches(3).dataset)


class CopiesItself(Classifier):
    """Meta-learning: takes a step on a copy of itself, and its own step from there."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        weights = dict(self.net.named_parameters())
        loss = F.cross_entropy(torch.func.functional_call(self.net, weights, (x,)), y)
        slopes = torch.autograd.grad(loss, tuple(weights.values()), create_graph=True)
        moved = {name: weight - 0.1 * slope for (name, weight), slope in zip(weights.items(), slopes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(self.net, moved, (x,)), y)


def averaging(kind, **settings):
    return lambda: [getattr(callbacks, kind)(**settings)]


def validates():
    return Validates(Everything(), adam)


def pruning():
    """Mask a quarter of all weights after the first epoch, and again after the second."""
    twice = {"amount": 0.25, "apply_pruning": lambda epoch: epoch < 2}
    return [callbacks.ModelPruning("l1_unstructured", parameter_names=["weight"], **twice)]


SITUATIONS = {
    "validation-inside-an-epoch": Situation(
        make=validates,
        data=lambda: batches(4, shuffle=True),
        settings={"num_sanity_val_steps": 1, "val_check_interval": 0.5, "max_epochs": 2},
        steps=8,
        sites=EVERYTHING,
    ),
    "validation-while-accumulating": Situation(
        make=validates,
        data=lambda: batches(4, shuffle=True),
        settings={"num_sanity_val_steps": -1, "val_check_interval": 1, "accumulate_grad_batches": 2, "max_steps": 5},
        sites=EVERYTHING,
    ),
    "averaged-at-the-end": Situation(
        make=lambda: Classifier(Everything()),
        settings={
            "callbacks": averaging("StochasticWeightAveraging", swa_lrs=0.01, swa_epoch_start=1),
            "max_epochs": 3,
        },
        steps=10,  # one more, in the epoch that only renews the statistics of BatchNorm
        sites=EVERYTHING,
    ),
    "moving-average": Situation(
        make=validates, settings={"callbacks": averaging("EMAWeightAveraging", decay=0.9)}, sites=EVERYTHING
    ),
    "average-of-weights": Situation(
        make=validates, settings={"callbacks": averaging("WeightAveraging")}, sites=EVERYTHING
    ),
    "saves-and-stops": Situation(
        make=validates,
        settings={
            "callbacks": lambda: [
                callbacks.ModelCheckpoint(every_n_train_steps=1, save_top_k=-1),
                callbacks.EarlyStopping("val_loss", patience=0, min_delta=100.0),
                callbacks.Timer("00:00:10:00"),
            ],
            "enable_checkpointing": True,
            "max_epochs": 5,
        },
        steps=6,
        sites=EVERYTHING,
    ),
    "tensorboard": Situation(
        make=lambda: Classifier(relu_net()),
        settings={"logger": lambda: TensorBoardLogger("."), "callbacks": averaging("LearningRateMonitor")},
        sites=SITES,
    ),
    "two-loggers": Situation(
        make=lambda: Classifier(relu_net()),
        settings={"logger": lambda: [TensorBoardLogger("."), CSVLogger(".")]},
        sites=SITES,
    ),
    "profiled": Situation(make=lambda: Classifier(relu_net()), settings={"profiler": "simple"}, sites=SITES),
    "fast-dev-run": Situation(
        make=validates, settings={"fast_dev_run": 3, "max_epochs": None}, steps=3, sites=EVERYTHING
    ),
    "overfits-batches": Situation(
        make=lambda: Classifier(relu_net()), settings={"overfit_batches": 2, "max_epochs": 2}, steps=4, sites=SITES
    ),
    "two-loaders": Situation(
        make=lambda: Pairs(relu_net()),
        data=lambda: CombinedLoader({"labelled": batches(3), "other": batches(2)}, "max_size_cycle"),
        sites=SITES,
    ),
    "stream": Situation(make=lambda: Classifier(relu_net()), data=lambda: DataLoader(Stream(), 8), sites=SITES),
    "pruned": Situation(
        make=lambda: Classifier(relu_net()), settings={"callbacks": pruning, "max_epochs": 2}, steps=6, sites=SITES
    ),
    "meta-learning": Situation(make=lambda: CopiesItself(relu_net()), sites=("net.1", "net.3@net.2", "net.3@net.0")),
}
