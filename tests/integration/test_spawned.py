"""Fits that Lightning runs in processes it starts itself: what they see is told in the one that started them."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager

import pytest
import torch
from integration import ranked
from integration.nets import Classifier, batches, seed, trainer
from integration.whole_batch import compare, reference, window

from lightning_gradwatch import GradWatch, check_training, evaluate, read_run

forked = pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")
"""Forked processes have the suite's filters, which make errors of warnings."""


@contextmanager
def ended_in(seconds, run):
    """Kill the processes that a Trainer started, should they hang."""
    timer = threading.Timer(seconds, lambda: run.strategy.launcher.kill(signal.SIGKILL))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def fit(folder, watch, strategy, **settings):
    seed()
    run = trainer(folder, watch, devices=2, strategy=strategy, **{"max_steps": 24, **settings})
    with ended_in(120, run):
        run.fit(ranked.make("vanishing", "ddp", "sgd"), batches(60, 2))


@forked
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_the_callback_tells_what_the_processes_saw(strategy, tmp_path):
    watch = GradWatch(every_n_steps=1)
    fit(tmp_path, watch, strategy)
    run = read_run(tmp_path / "gradwatch" / "version_0")
    assert [finding.code for finding in watch.findings][:1] == ["GW101"]
    assert watch.findings == run.findings == evaluate(run)
    assert [record.step for record in watch.records] == list(range(24))
    assert watch.info == run.info
    assert watch.info.world_size == 2
    assert watch.coverage == ()


class Loads(Classifier):
    """Knows which part of the data is its rank's: Lightning's own sampler would shuffle."""

    def train_dataloader(self):
        return ranked.loader(self.global_rank, 8, 8)


@forked
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_the_record_is_that_of_the_whole_batch_and_the_weights_are_those_without_it(strategy, tmp_path):
    weights = []
    for watch in ([], [GradWatch(every_n_steps=1, rules=[window(16)])]):
        seed()
        module = ranked.make("deep", "ddp", "sgd", Loads)
        run = trainer(tmp_path, *watch, devices=2, strategy=strategy, max_steps=4, use_distributed_sampler=False)
        with ended_in(120, run):
            run.fit(module)
        weights.append(module.state_dict())
    compare(ranked.seen(watch[0]), reference("deep", steps=4, rows=16))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@forked
@pytest.mark.slow
def test_so_it_does_of_a_fit_that_an_error_ended(tmp_path):
    watch = GradWatch(every_n_steps=1, fail_on="error")
    with pytest.raises(Exception, match="GradWatchError: GradWatch stops this run"):
        fit(tmp_path, watch, "ddp_fork")
    assert [finding.code for finding in watch.findings][:1] == ["GW101"]
    assert len(watch.records) < 24


@pytest.mark.slow
def test_a_check_sees_them_too():
    options = {"devices": 2, "strategy": "ddp_fork"}
    report = check_training(ranked.make("vanishing", "ddp", "sgd"), batches(60, 2), trainer_options=options)
    assert not report.ok
    assert report.judged > 0
    assert [finding.code for finding in report.findings][:1] == ["GW101"]
    healthy = check_training(ranked.make("relu", "ddp", "sgd"), batches(60, 2), trainer_options=options)
    assert healthy.ok
