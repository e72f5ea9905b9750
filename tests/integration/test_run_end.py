"""How a fit ended is stored behind its last step, and a run that ended too early is asked what it came to all the same."""

from __future__ import annotations

import contextlib
import warnings

import lightning.pytorch as pl
import pytest
import torch
from integration.nets import trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_gradwatch import (
    GradWatch,
    GradWatchError,
    NoProgress,
    NoProgressWarning,
    check_training,
    evaluate,
    read_run,
)
from lightning_gradwatch.cli.command import main
from lightning_gradwatch.judge.catalog import DEFAULT_RULES
from lightning_gradwatch.judge.evaluator import replay
from lightning_gradwatch.record.run_end import RunEnd

pytestmark = pytest.mark.judges

_BATCHES = 32


def data(*, shuffled=True):
    """Of four classes, the largest of four features; or labels that belong to other inputs."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64 * _BATCHES, 6, generator=draw)
    labels = x[:, :4].argmax(1)
    return TensorDataset(x, labels[torch.randperm(len(labels), generator=draw)] if shuffled else labels)


class Module(pl.LightningModule):
    """Ends its fit at a step, in one of several ways."""

    def __init__(self, ends_at=None, how=None, rate=0.02):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
        self.ends_at, self.how, self.rate = ends_at, how, rate

    def training_step(self, batch, _):
        if self.global_step == self.ends_at:
            if self.how is None:
                self.trainer.should_stop = True
            else:
                raise self.how
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def fit(root, module, *callbacks, epochs=40, loader=None, ckpt_path=None, **watching):
    watch = GradWatch(every_n_steps=20, **watching)
    run = trainer(root, watch, *callbacks, of=pl, max_epochs=epochs)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with contextlib.suppress(
            ValueError, KeyboardInterrupt, SystemExit
        ):  # Lightning makes the second of these the third
            run.fit(module, DataLoader(data(), batch_size=64) if loader is None else loader, ckpt_path=ckpt_path)
    return watch, run, [each for each in told if issubclass(each.category, NoProgressWarning)]


def roots(findings):
    return [(each.code, each.consequence_of) for each in findings if each.severity > 0]


@pytest.mark.parametrize(
    ("how", "expected", "words"),
    [
        (None, RunEnd(how="stopped", steps=301, planned_steps=1280), "The run was stopped after 301 of 1,280"),
        (
            KeyboardInterrupt(),
            RunEnd(how="interrupted", steps=300, planned_steps=1280, error="KeyboardInterrupt"),
            "The run was interrupted after 300 of 1,280",
        ),
        (
            ValueError("no"),
            RunEnd(how="failed", steps=300, planned_steps=1280, error="ValueError"),
            "The run failed (ValueError) after 300 of 1,280",
        ),
    ],
    ids=["stopped", "interrupted", "failed"],
)
def test_a_run_that_ends_before_half_of_its_steps_is_asked_for_progress_when_it_does(
    tmp_path, capsys, how, expected, words
):
    watch, _, told = fit(tmp_path, Module(300, how))
    assert roots(watch.findings) == [("GW601", "")]
    (finding,) = watch.findings
    assert words in finding.message
    assert len(told) == 1
    run = read_run(tmp_path / "gradwatch" / "version_0")
    assert run.end == expected
    assert evaluate(run) == watch.findings == run.findings
    assert run.problems == ()
    assert main(["check", str(run.path)]) == 1
    assert "GW601" in capsys.readouterr().out


def test_early_stopping_is_such_an_end(tmp_path):
    stopping = EarlyStopping("loss", patience=4, min_delta=0.05, check_on_train_epoch_end=True)
    watch, run, told = fit(tmp_path, Module(), stopping, epochs=200)
    assert 100 <= run.global_step < 1000
    assert roots(watch.findings) == [("GW601", "")]
    assert len(told) == 1


@pytest.mark.parametrize("how", [None, KeyboardInterrupt(), ValueError("no")], ids=["stopped", "interrupted", "failed"])
def test_one_that_has_learned_by_then_is_silent(tmp_path, how):
    loader = DataLoader(data(shuffled=False), batch_size=64)
    watch, _, told = fit(tmp_path, Module(300, how, rate=0.2), loader=loader)
    assert (roots(watch.findings), told) == ([], [])
    assert "GW601" not in replay_of(tmp_path).unjudged


def replay_of(root):
    run = read_run(root / "gradwatch" / "version_0")
    return replay(run.records, run.infos, DEFAULT_RULES, run.end)


def test_a_run_without_a_plan_is_asked_when_its_data_end(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            for batch in DataLoader(data(), batch_size=64):
                yield from zip(*batch, strict=True)

    watch, run, told = fit(tmp_path, Module(), epochs=8, loader=DataLoader(Stream(), batch_size=64))
    assert watch.info.planned_steps is None
    assert run.global_step == 256
    assert roots(watch.findings) == [("GW601", "")]
    assert len(told) == 1
    assert read_run(tmp_path / "gradwatch" / "version_0").end == RunEnd(how="completed", steps=256)


def test_one_that_ends_after_few_steps_says_that_nothing_is_asked_of_it(tmp_path):
    watch, _, told = fit(tmp_path, Module(90))
    assert (watch.findings, told) == ((), [])
    assert replay_of(tmp_path).unjudged["GW601"] == (
        "can't judge: the run ended after 91 steps; from 100 on, progress is asked for"
    )


def test_a_check_of_few_steps_can_be_told_to_ask_all_the_same(tmp_path):
    loader = DataLoader(data(), batch_size=64)
    report = check_training(Module(), loader, max_steps=64, rules=[NoProgress(fewest_steps=60)], folder=tmp_path)
    assert roots(report.findings) == [("GW601", "")]
    assert evaluate(read_run(report.path)) == report.findings
    report = check_training(Module(), loader, max_steps=64)
    assert report.findings == ()
    assert "a run of 64 steps is a trial" in report.unjudged["GW601"]


def test_a_check_whose_module_ends_it_is_asked(tmp_path):
    report = check_training(Module(220), DataLoader(data(), batch_size=64), max_steps=2000, folder=tmp_path)
    assert roots(report.findings) == [("GW601", "")]
    assert evaluate(read_run(report.path)) == report.findings


def test_it_ends_a_run_that_is_to_fail_by_findings(tmp_path):
    with pytest.raises(GradWatchError, match="The run was stopped after 301 of 1,280"):
        fit(tmp_path, Module(300), fail_on="warning")
    assert roots(read_run(tmp_path / "gradwatch" / "version_0").findings) == [("GW601", "")]


def test_a_checkpoint_of_the_end_is_one_to_go_on_from(tmp_path):
    """What was said of the end belongs to that fit: one that goes on has not ended there."""
    _, run, told = fit(tmp_path, Module(300))
    assert len(told) == 1
    run.save_checkpoint(tmp_path / "end.ckpt")
    more, _, told = fit(tmp_path / "more", Module(400), ckpt_path=tmp_path / "end.ckpt")
    assert [each.message[:46] for each in more.findings] == ["The run was stopped after 401 of 1,280 planned"]
    assert len(told) == 1


def test_a_limit_that_counts_several_steps_a_batch_is_reached_all_the_same(tmp_path):
    class Two(Module):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, _):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(self.net[place].parameters(), lr=self.rate) for place in (0, 2)]

    check_training(Two(), DataLoader(data(), batch_size=64), max_steps=24, folder=tmp_path)
    assert read_run(tmp_path / "gradwatch" / "version_0").end == RunEnd(how="completed", steps=12, planned_steps=24)
