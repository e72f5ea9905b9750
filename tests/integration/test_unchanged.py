"""Contract 1, what the situations leave open: the default schedule, the user's own hooks; and that the comparison can fail."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from integration.nets import Classifier, batches, trainer
from integration.situation import differences, fit
from integration.table import SITUATIONS

from lightning_gradwatch import GradWatch


def test_training_is_bit_identical_with_the_default_schedule(tmp_path):
    row = SITUATIONS["accumulation"]
    without = fit(row, tmp_path / "without")
    assert list(differences(without.end, fit(row, tmp_path / "with", GradWatch()).end)) == []


def test_this_comparison_sees_one_draw_from_a_generator(tmp_path):
    class Draws(GradWatch):
        def on_train_batch_start(self, *args):
            super().on_train_batch_start(*args)
            torch.rand(1)

    row = SITUATIONS["plain"]
    without = fit(row, tmp_path / "without")
    assert "/torch" in list(differences(without.end, fit(row, tmp_path / "with", Draws()).end))


def test_this_comparison_sees_the_last_bit_of_a_weight(tmp_path):
    class Nudges(GradWatch):
        def on_train_end(self, trainer, module):
            super().on_train_end(trainer, module)
            with torch.no_grad():
                weight = module.net.last.weight
                weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))

    row = SITUATIONS["plain"]
    without = fit(row, tmp_path / "without")
    assert list(differences(without.end, fit(row, tmp_path / "with", Nudges()).end)) == ["/weights/net.last.weight"]


def test_the_users_own_hooks_on_the_optimizer_run_beside_ours(tmp_path):
    """One that was registered after ours comes after it in the optimizer's loop over its hooks."""
    calls = []

    class Registers(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            if trainer.global_step == 1:
                optimizer.register_step_post_hook(lambda *_: calls.append(trainer.global_step))

    watch = GradWatch(every_n_steps=1)
    trainer(tmp_path, watch, Registers(), max_steps=5).fit(Classifier(), batches())
    assert len(calls) == 4
    assert len(watch.records) == 5
