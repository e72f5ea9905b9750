"""Which steps are measured, and that their numbers stand where Lightning's loggers put the loss."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from integration.nets import Classifier, CountsPatches, Gan, batches, relu_net, seed, trainer, vanishing_net
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_gradwatch import GradWatch, VanishingGradientWarning
from lightning_gradwatch.fit.schedule import Schedule


def steps(watch):
    return [record.step for record in watch.records]


def test_measured_are_powers_of_two_and_then_every_n_th(tmp_path):
    watch = GradWatch(every_n_steps=20)
    trainer(tmp_path, watch, max_steps=65).fit(Classifier(), batches())
    assert steps(watch) == [0, 1, 2, 4, 8, 16, 19, 39, 59]


def test_the_default_is_the_trainers_log_every_n_steps(tmp_path):
    watch = GradWatch()
    trainer(tmp_path, watch, max_steps=16, log_every_n_steps=5).fit(Classifier(), batches())
    assert steps(watch) == [0, 1, 2, 4, 9, 14]
    assert watch.info.every_n_steps == 5


def test_a_trainer_that_never_logs_leaves_the_default_of_fifty(tmp_path):
    watch = GradWatch()
    trainer(tmp_path, watch, max_steps=3, log_every_n_steps=0).fit(Classifier(), batches())
    assert watch.info.every_n_steps == 50


def test_a_second_epoch_goes_on_counting(tmp_path):
    watch = GradWatch(every_n_steps=4)
    trainer(tmp_path, watch, max_epochs=3).fit(Classifier(), batches(3))
    assert steps(watch) == [0, 1, 2, 3, 7]


@pytest.mark.judges
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda: Classifier(relu_net()), {}),
        (lambda: Classifier(relu_net()), {"accumulate_grad_batches": 3}),
        (Gan, {}),
    ],
    ids=["plain", "accumulation", "two-optimizers"],
)
def test_records_stand_at_the_steps_at_which_the_loss_is_logged(make, settings, tmp_path):
    """Read from the logger's own event file."""
    watch = GradWatch()
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    run = trainer(tmp_path, watch, logger=logger, log_every_n_steps=3, max_epochs=4, **settings)
    run.fit(make(), batches(7))
    events = EventAccumulator(run.log_dir, size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    logged = [event.step for event in events.Scalars("loss")]
    assert len(logged) >= 3
    own = [event.step for event in events.Scalars("gradwatch/log10_grad_norm")]
    assert own == steps(watch)
    assert [step for step in own if (step + 1) % 3 == 0] == logged


def test_windows_fill_before_the_first_steps_that_are_due(tmp_path):
    """A full window of 256 takes 128 batches of 2: watched are the first 64 in between."""
    counts = CountsPatches()
    watch = GradWatch(every_n_steps=1000)
    trainer(tmp_path, watch, counts, max_steps=100).fit(Classifier(), batches(8, 2))
    due = [0, 1, 2, 4, 8, 16, 32, 64]
    assert steps(watch) == due
    others = [step for step in range(100) if step not in due][:64]
    assert counts.watched == sorted(due + others)
    assert watch.records[-1].window_fill.tolist() == [2 * 65 / 256] * 2


def test_watching_ends_with_the_last_full_window(tmp_path):
    counts = CountsPatches()
    watch = GradWatch(every_n_steps=1000)
    trainer(tmp_path, watch, counts, max_steps=40).fit(Classifier(), batches(4, 32))
    assert counts.watched == [0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 32]
    assert watch.records[-1].window_fill.tolist() == [1.0, 1.0]


def test_a_net_without_activations_is_watched_at_due_steps_only(tmp_path):
    counts = CountsPatches()
    trainer(tmp_path, GradWatch(every_n_steps=1000), counts, max_steps=10).fit(Classifier(nn.Linear(6, 3)), batches())
    assert counts.watched == [0, 1, 2, 4, 8]


def test_a_rules_first_hit_is_confirmed_by_the_next_steps(tmp_path):
    seed()
    watch = GradWatch(every_n_steps=15, ignore=("GW3",))
    net = Classifier(vanishing_net(), lambda parameters: torch.optim.SGD(parameters, lr=1e-6))
    with pytest.warns(VanishingGradientWarning):
        trainer(tmp_path, watch, max_steps=40).fit(net, batches())
    assert steps(watch) == [0, 1, 2, 4, 8, 14, 15, 16, 29]


def test_extra_steps_are_bounded():
    schedule = Schedule(100)
    confirmed = [step for step in range(100, 300) if schedule.due(step, confirming=True)]
    assert confirmed == [*range(100, 116), 199, *range(200, 216), 299]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(0, []), (1, []), (2, [74]), (3, [65, 82]), (7, [56, 63, 70, 77, 84, 91]), (64, list(range(50, 99)))],
)
def test_steps_that_windows_want_are_spread_up_to_the_next_one_that_is_due(wanted, expected):
    """The one that is due is the last of them."""
    schedule = Schedule(50)
    assert schedule.due(49, confirming=False)
    seen = []
    for step in range(50, 99):
        if schedule.looks(step, wanted - len(seen)):
            seen.append(step)
    assert seen == expected


def looked(schedule, steps, wanted):
    """The steps that are watched where windows always want so many more."""
    return [step for step in steps if not schedule.due(step, confirming=False) and schedule.looks(step, wanted)]


def test_steps_that_windows_want_are_at_most_192_and_later_one_of_200():
    schedule = Schedule(50)
    spent = looked(schedule, range(400_000), 64)
    assert 1990 < len(spent) <= 2000
    assert spent[191] < 300
    assert all(number <= max(192, step // 200) for number, step in enumerate(spent, start=1))
    first = 64  # until the windows are full for the first time
    assert first + len([step for step in spent if step < 25_600]) <= 0.01 * 25_600
    resumed = Schedule(50)
    resumed.load_state_dict(schedule.state_dict())
    assert looked(resumed, range(400_000, 400_200), 64) == looked(schedule, range(400_000, 400_200), 64) != []


def test_a_state_of_a_release_that_wanted_no_further_steps_is_read():
    schedule = Schedule(50)
    schedule.load_state_dict({"confirmed": 3, "watched": 64})
    assert schedule.state_dict() == {"confirmed": 3, "watched": 64, "looked": 0, "last": 0, "vain": 0}


@pytest.mark.parametrize("wanted", [0, 1, 2, 3, 7, 15, 31, 64])
def test_no_step_that_is_due_or_watched_goes_by_without_a_look(wanted):
    schedule = Schedule(50)
    step = 0
    seen = []
    while step < 600:
        if schedule.due(step, confirming=False) or schedule.looks(step, wanted):
            seen.append(step)
        step = schedule.next_look(step, wanted)
    asked = Schedule(50)
    each = [step for step in range(600) if asked.due(step, confirming=False) or asked.looks(step, wanted)]
    assert seen == each


@pytest.mark.parametrize("every", [1, 2, 3, 7, 50, 64, 100])
def test_the_gap_ends_at_the_next_step_that_is_due(every):
    schedule = Schedule(every)
    due = [step for step in range(400) if schedule.due(step, confirming=False)]
    for step in range(200):
        assert step + schedule.gap(step) == next(later for later in due if later > step)


@pytest.mark.parametrize(
    ("settings", "looked"),
    [
        ({}, [0, 1, 2, 4, 8, 16, 19, 39, 59]),
        # A step of three batches: between two that are due, the time that three steps at the least take goes by.
        ({"accumulate_grad_batches": 3, "limit_train_batches": 60, "max_epochs": 1}, None),
    ],
    ids=["plain", "accumulation"],
)
def test_batches_between_due_steps_go_by_without_a_look(settings, looked, tmp_path, monkeypatch):
    seen = []
    begin = GradWatch._begin_batch

    def spy(self, run, *rest):
        seen.append(run.fit_loop.total_batch_idx)
        begin(self, run, *rest)

    monkeypatch.setattr(GradWatch, "_begin_batch", spy)
    watch = GradWatch(every_n_steps=20)
    net = Classifier(nn.Linear(6, 3))  # without a window to fill
    trainer(tmp_path, watch, **({"max_steps": 60} | settings)).fit(net, batches(60))
    due = [0, 1, 2, 4, 8, 16, 19, 39, 59]
    assert steps(watch) == [step for step in due if looked or step < 20]
    if looked:
        assert seen == looked
    else:
        measured = [batch for step in steps(watch) for batch in range(3 * step, 3 * step + 3)]
        assert set(measured) <= set(seen)
        assert len(seen) < 45


class ByTurns(pl.LightningModule):
    """Two optimizers of which each batch steps one; the second's turn is every `of`-th, or never."""

    def __init__(self, of):
        super().__init__()
        self.automatic_optimization = False
        self.parts = nn.ModuleList(nn.Linear(6, 4) for _ in range(2))
        self.of = of

    def training_step(self, batch, batch_idx):
        index = int(self.of > 0 and batch_idx % self.of == self.of - 1)
        optimizer = self.optimizers()[index]
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self.parts[index](batch[0]), batch[1]))
        optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in self.parts]


@pytest.mark.judges
@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (2, [0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 19, 20, 39, 40, 59, 60]),
        (4, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 39, 40, 59, 60]),
        (0, [*range(13), 16, 17, 18, 19, 20, 39, 59]),
    ],
    ids=["every other batch", "every fourth", "never"],
)
def test_optimizers_that_take_turns_by_batch_are_all_met(of, expected, tmp_path):
    """At each 20th step both, the second by the next step; one that never comes is waited for ever less."""
    watch = GradWatch(every_n_steps=20, ignore=("GW",))
    trainer(tmp_path, watch, max_steps=64).fit(ByTurns(of), batches(64))
    assert steps(watch) == expected
