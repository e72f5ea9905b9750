"""What a Trainer does besides fitting, and fitting more than once: searches, resumption, other loops."""

from __future__ import annotations

import copy

import pytest
import pytorch_lightning as pl
import torch
from integration.nets import Classifier, Everything, batches, relu_net, seed, trainer
from integration.situation import differences, end_of
from integration.traces import traces
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.tuner import Tuner
from sent import sent
from torch.nn import functional as F

from lightning_gradwatch import GradWatch, read_run


def steps(watch_or_run):
    return [record.step for record in watch_or_run.records]


# -- searches


class Searched(Classifier):
    """Has what the searches change: a learning rate and a batch size."""

    def __init__(self):
        super().__init__(relu_net())
        self.lr, self.batch_size = 0.1, 4

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def train_dataloader(self):
        return batches(64 // self.batch_size, self.batch_size, shuffle=True)


def search_learning_rate(run, module):
    Tuner(run).lr_find(module, num_training=20, min_lr=1e-4, max_lr=1.0)
    return module.lr


def search_batch_size(run, module):
    Tuner(run).scale_batch_size(module, max_trials=2, init_val=4, steps_per_trial=2)
    return module.batch_size


@pytest.mark.filterwarnings("ignore:.*_dataloader. does not have many workers")
@pytest.mark.parametrize("search", [search_learning_rate, pytest.param(search_batch_size, marks=pytest.mark.slow)])
def test_a_search_finds_the_same_and_leaves_no_record(search, tmp_path):
    found = []
    for name, watch in (("without", []), ("with", [GradWatch(every_n_steps=1)])):
        seed()
        module = Searched()
        run = trainer(tmp_path / name, *watch, max_steps=4, logger=TensorBoardLogger(tmp_path / name))
        found.append((search(run, module), traces(run, module)["modes"], sorted(vars(run.strategy))))
        assert [each.records for each in watch] == [()] * len(watch)
        run.fit(module)
        found[-1] += ([parameter.tolist() for parameter in module.parameters()],)
    assert found[0] == found[1]
    assert steps(watch[0]) == [0, 1, 2, 3]
    assert steps(read_run(run.log_dir)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "finder",
    [
        pytest.param(lambda: LearningRateFinder(num_training_steps=20, min_lr=1e-4), id="learning-rate"),
        pytest.param(
            lambda: BatchSizeFinder(max_trials=2, init_val=4, steps_per_trial=2),
            id="batch-size",
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.parametrize("first", [True, False], ids=["watch-first", "watch-last"])
def test_a_search_by_a_callback_inside_a_fit_leaves_only_the_fits_records(finder, first, tmp_path):
    ends = []
    for name, watch in (("without", []), ("with", [GradWatch(every_n_steps=1)])):
        seed()
        module = Searched()
        callbacks = [*watch, finder()] if first else [finder(), *watch]
        trainer(tmp_path / name, *callbacks, max_steps=4).fit(module)
        ends.append([parameter.tolist() for parameter in module.parameters()])
    assert ends[0] == ends[1]
    assert steps(watch[0]) == [0, 1, 2, 3]


# -- other loops


class AllLoops(Classifier):
    def validation_step(self, batch, batch_idx):
        self.log("val", F.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self(batch[0])


@pytest.mark.parametrize("loop", ["validate", "test", "predict"])
def test_other_loops_measure_nothing_and_write_nothing(loop, tmp_path):
    module = AllLoops(Everything())
    found = []
    for watch in ([], [GradWatch(every_n_steps=1)]):
        run = trainer(tmp_path, *watch)
        found.append(
            (getattr(run, loop)(module, batches(2), verbose=False) if loop != "predict" else None, traces(run, module))
        )
    assert found[0] == found[1]
    assert watch[0].records == ()
    assert watch[0].info is None
    assert list(tmp_path.iterdir()) == []


def test_validation_between_two_fits_keeps_what_the_first_measured(tmp_path):
    watch = GradWatch(every_n_steps=1)
    module = AllLoops(relu_net())
    run = trainer(tmp_path, watch, max_steps=3)
    run.fit(module, batches(), batches(1))
    run.test(module, batches(1), verbose=False)
    assert steps(watch) == [0, 1, 2]


def test_a_dry_run_measures_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    watch = GradWatch(every_n_steps=1)
    trainer(tmp_path, watch, fast_dev_run=2, logger=TensorBoardLogger(tmp_path)).fit(Classifier(), batches())
    assert steps(watch) == [0, 1]
    assert list(tmp_path.iterdir()) == []


# -- more than one fit


def test_a_trainer_that_fits_further_goes_on_counting(tmp_path):
    watch = GradWatch(every_n_steps=1)
    module = Classifier()
    run = trainer(tmp_path, watch, max_epochs=1)
    run.fit(module, batches(3))
    run.fit_loop.max_epochs = 2
    run.fit(module, batches(3))
    assert steps(watch) == [3, 4, 5]
    assert steps(read_run(tmp_path / "gradwatch" / "version_0")) == [0, 1, 2]
    assert steps(read_run(tmp_path / "gradwatch" / "version_1")) == [3, 4, 5]


class Raises(pl.Callback):
    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == 2:
            raise ZeroDivisionError


def fits_twice(folder, *watch):
    module = AllLoops(Everything())
    run = trainer(folder, *watch, max_epochs=1)
    run.fit(module, batches(3, shuffle=True), batches(1))
    run.fit_loop.max_epochs = 3
    run.fit(module, batches(3, shuffle=True), batches(1))
    return run, module


def fits_after_an_exception(folder, *watch):
    module = Classifier(Everything())
    with pytest.raises(ZeroDivisionError):
        trainer(folder, Raises(), *watch, max_steps=4).fit(module, batches(3, shuffle=True))
    run = trainer(folder, *watch, max_steps=5)
    run.fit(module, batches(3, shuffle=True))
    return run, module


def resumes(folder, *watch):
    saved = folder / "half.ckpt"
    first = trainer(folder, *watch, max_epochs=1)
    first.fit(Classifier(Everything()), batches(3, shuffle=True))
    first.save_checkpoint(saved)
    module = Classifier(Everything())
    run = trainer(folder, *watch, max_epochs=3)
    run.fit(module, batches(3, shuffle=True), ckpt_path=saved, weights_only=True)
    return run, module


@pytest.mark.parametrize("way", [fits_twice, fits_after_an_exception, resumes])
def test_fits_behind_another_are_bit_identical_and_leave_nothing(way, tmp_path):
    ends = []
    for name, watch in (("without", []), ("with", [GradWatch(every_n_steps=1)])):
        seed()
        run, module = way(tmp_path / name, *watch)
        ends.append((end_of(run, module), traces(run, module)))
    assert list(differences(ends[0][0], ends[1][0])) == []
    assert ends[0][1] == ends[1][1]
    assert len(watch[0].records) >= 5


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("same", [True, False], ids=["same-folder", "new-folder"])
def test_a_resumed_run_goes_on_in_the_same_folder_and_in_a_new_one(same, tmp_path):
    """What two processes wrote into one folder is read as one run; steps that were done twice count as last done."""
    saves = ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=4, save_top_k=-1)
    logger = TensorBoardLogger(tmp_path, version=0)
    run = trainer(tmp_path, GradWatch(every_n_steps=1), saves, max_steps=6, logger=logger, enable_checkpointing=True)
    run.fit(Classifier(), batches(4))
    first = read_run(run.log_dir)
    assert steps(first) == [0, 1, 2, 3, 4, 5]
    logger = TensorBoardLogger(tmp_path, version=0 if same else 1)
    again = trainer(tmp_path, GradWatch(every_n_steps=1), max_steps=8, logger=logger)
    again.fit(Classifier(), batches(4), ckpt_path=tmp_path / "saved" / "step=4.ckpt", weights_only=True)
    resumed = read_run(again.log_dir)
    assert steps(resumed) == ([0, 1, 2, 3, 4, 5, 6, 7] if same else [4, 5, 6, 7])
    whole = trainer(tmp_path, watch := GradWatch(every_n_steps=1), max_steps=8)
    seed()
    whole.fit(Classifier(), batches(4))
    assert resumed.info.layers == first.info.layers == watch.info.layers


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_resumed_numbers_are_those_of_a_run_that_never_stopped(tmp_path):
    def fit(folder, **settings):
        seed()
        watch = GradWatch(every_n_steps=1)
        saves = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=4, save_top_k=-1)
        resume = {"ckpt_path": settings.pop("resume"), "weights_only": True} if "resume" in settings else {}
        trainer(folder, watch, saves, enable_checkpointing=True, **settings).fit(Classifier(), batches(4), **resume)
        return watch

    whole = fit(tmp_path / "whole", max_epochs=2)
    half = fit(tmp_path / "half", max_epochs=2, resume=tmp_path / "whole" / "step=4.ckpt")
    assert steps(half) == [4, 5, 6, 7]
    for one, other in zip(half.records, whole.records[4:], strict=True):
        for metric, values in one.metrics.items():
            assert values.tobytes() == other.metrics[metric].tobytes(), metric


@pytest.mark.parametrize("copied", [copy.deepcopy, sent])
def test_a_trainers_module_can_be_copied_in_mid_fit(copied, tmp_path):
    """With the monitor in the Trainer, whose module is being measured; as averages of weights and distillation do."""
    copies = []

    class StackedCopies(pl.Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):  # within a measured step
            copies.append(copied(module.net))

        def on_train_batch_end(self, trainer, module, *args):
            copies.append(copied(module.net))

    watch = GradWatch(every_n_steps=1)
    trainer(tmp_path, watch, StackedCopies(), max_steps=3).fit(Classifier(Everything()), batches())
    assert len(copies) == 6
    assert all(vars(each).keys() == vars(Everything()).keys() for each in copies)
    assert steps(watch) == [0, 1, 2]
