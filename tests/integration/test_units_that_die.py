"""Units that die in mid-fit, at several batch sizes and the default schedule, against what forward hooks see."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from integration.nets import CountsPatches, seed, trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import DeadUnits, GradWatch, GradWatchWarning, evaluate, read_run
from lightning_gradwatch.record.step import LayerState
from lightning_gradwatch.tell.reporter import Reporter, reporting

pytestmark = [pytest.mark.judges, pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")]
FEATURES = 8


def chain(width=16):
    return nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


def convolutions():
    return nn.Sequential(
        nn.Unflatten(1, (2, 4)),
        nn.Conv1d(2, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv1d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 1),
    )


class Dies(pl.LightningModule):
    """Units of one layer are killed before a step, by a bias far on the dead side; what is inactive then is noted."""

    def __init__(self, make=chain, *, layer=2, units=15, at=100):
        super().__init__()
        seed()
        self.net = make()
        self.layer, self.units, self.at = layer, units, at
        self.silent = []

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == self.at:
            with torch.no_grad():
                self.net[self.layer].bias[: self.units].fill_(-100.0)

    def training_step(self, batch, batch_idx):
        h = batch[0]
        for place, part in enumerate(self.net):
            h = part(h)
            if place == self.layer + 1:
                with torch.no_grad():
                    self.silent.append((h.transpose(0, 1).flatten(1) == 0).all(1).numpy())
        return nn.functional.mse_loss(h, batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def data(batch, *, rows=2048):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, FEATURES, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch, shuffle=True)


def fit(folder, module, watch, batch, *callbacks, **settings):
    seed()
    run = trainer(folder, *([watch] if watch else []), *callbacks, **settings)
    run.fit(module, data(batch))
    return run


def dead_fractions(watch, site):
    column = watch.info.site_names.index(site)
    return {record.step: float(record.values("dead_fraction", column + 1)[column]) for record in watch.records}


@pytest.mark.parametrize("batch", [4, 8, 16, 32, 64, 128, 1024])
@pytest.mark.parametrize("units", [8, 15])
def test_their_share_is_right_200_steps_later(batch, units, tmp_path):
    module, watch, counts = Dies(units=units), GradWatch(), CountsPatches()
    fit(tmp_path, module, watch, batch, counts, max_steps=301)
    found = dead_fractions(watch, "net.3")
    watched = np.array(counts.watched)
    assert found[99] < 0.2
    # What was watched since: as many of the newest steps as make a window, at least.
    since = watched[watched >= 100]
    for step in (249, 299):
        seen = since[since <= step]
        assert len(seen) * batch >= 256
        truth = np.mean([module.silent[each] for each in seen], axis=0) == 1
        assert truth.mean() >= units / 16
        assert abs(found[step] - truth.mean()) <= 0.1
    for step in (149, 199):  # meanwhile it's right already, or it isn't there
        assert np.isnan(found[step]) or abs(found[step] - truth.mean()) <= 0.1
    due = [step for step in range(100, 301) if (step + 1) % 50 == 0]
    confirming = {record.step for record in watch.records} - set(due)
    assert len(set(since.tolist()) - set(due) - confirming) <= 64


@pytest.mark.parametrize("batch", [4, 16, 64])
def test_channels_are_units_over_all_positions(batch, tmp_path):
    module, watch = Dies(convolutions, layer=3, units=8), GradWatch()
    fit(tmp_path, module, watch, batch, max_steps=300)
    found = dead_fractions(watch, "net.4")
    assert found[99] < 0.2
    assert abs(found[299] - np.mean(module.silent[-64:], axis=0)[:16].round().mean()) <= 0.1


def test_training_is_the_same_to_the_last_bit(tmp_path):
    """Also in the steps that are watched because units died."""
    without, watched = Dies(), Dies()
    fit(tmp_path / "without", without, None, 8, max_steps=220)
    counts = CountsPatches()
    fit(tmp_path / "with", watched, GradWatch(), 8, counts, max_steps=220)
    assert len([step for step in counts.watched if 150 <= step < 199]) > 20
    for one, other in zip(without.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)


def test_steps_that_are_watched_make_no_event_and_no_record(tmp_path):
    watch, counts = GradWatch(), CountsPatches()
    fit(tmp_path, Dies(), watch, 8, counts, max_steps=200)
    stored = read_run(tmp_path / "gradwatch" / "version_0")
    assert len(counts.watched) > len(watch.records) + 20
    assert [record.step for record in stored.records] == [record.step for record in watch.records]
    assert evaluate(stored) == watch.findings


@pytest.mark.parametrize(("batch", "steps"), [(4, 2000), (16, 1000)])
def test_a_fit_without_deaths_is_watched_in_hardly_a_further_step(batch, steps, tmp_path):
    watch, counts = GradWatch(), CountsPatches()
    fit(tmp_path, Dies(units=0), watch, batch, counts, max_steps=steps)
    further = [step for step in counts.watched if step > 64 and (step + 1) % 50]
    assert len(further) <= 0.01 * steps
    column = watch.info.site_names.index("net.3")
    assert (
        np.isnan([record.metrics["dead_fraction"][column] for record in watch.records if record.step > 64]).mean() < 0.1
    )


@pytest.mark.parametrize("batch", [1, 2])
def test_batches_too_small_for_a_window_are_not_judged_and_say_so(batch, tmp_path):
    watch = GradWatch()
    fit(tmp_path, Dies(), watch, batch, max_steps=200)
    assert np.isnan(list(dead_fractions(watch, "net.3").values())).all()
    assert watch.outcome.unjudged["GW201"].startswith("not yet: the fullest window of a hidden activation is ")


def test_a_window_that_has_no_say_any_more_leaves_the_rule_unjudged(tmp_path):
    """It was full before units died; with batches of one, 64 further steps don't fill another."""
    watch = GradWatch(every_n_steps=5, rules=[DeadUnits(least_observations=200)])
    fit(tmp_path, Dies(units=8, at=800), watch, 1, max_steps=1000)
    found = dead_fractions(watch, "net.3")
    assert found[799] < 0.2
    assert np.isnan(found[999])
    reason = watch.outcome.unjudged["GW201"]
    assert reason.startswith("can't judge: units of net.3 fell silent, and what was seen since fills ")
    assert reason.endswith(" of a window (1 of 2 hidden activations)")


def test_what_gw104_says_of_a_dead_layer_is_what_gw201_reads(tmp_path):
    """All units die: the gradient is gone at once, and the window takes some steps more."""
    told = []
    watch = GradWatch()
    with reporting(Reporter(warn=lambda finding, category, led_to: told.append(finding))):
        fit(tmp_path, Dies(units=16), watch, 16, max_steps=300)
    (first,) = [finding for finding in told if finding.code == "GW104"]
    at = {record.step: record for record in watch.records}
    silent = next(step for step in sorted(at) if at[step].layer_state[0] == LayerState.ZERO)
    assert np.isnan(at[silent].metrics["dead_fraction"][1])
    assert at[first.last_step].metrics["dead_fraction"][1] == 1  # not before: a batch may leave all units inactive
    assert first.first_step == silent
    last = {finding.code: finding for finding in watch.findings}
    assert dead_fractions(watch, "net.3")[299] == 1
    assert last["GW201"].value == 1
    assert "is inactive in every observation, so its derivative is exactly 0" in last["GW104"].cause


@pytest.mark.parametrize("cut", [150, 170, 199])
def test_a_fit_goes_on_from_a_checkpoint_in_the_middle_of_it(cut, tmp_path):
    def parts(*ends):
        watches, counts, saved = [], CountsPatches(), None
        net = None
        for place, end in enumerate(ends):
            watches.append(GradWatch())
            seed()
            module = Dies(at=100)
            run = trainer(tmp_path / f"{len(ends)}-{place}", watches[-1], counts, max_epochs=end)
            # An epoch is one batch, so that a checkpoint cuts none in two.
            x = torch.randn(8, FEATURES, generator=torch.Generator().manual_seed(2))
            loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 8)
            run.fit(module, loader, ckpt_path=saved, weights_only=True if saved else None)
            saved = tmp_path / f"{len(ends)}-{place}.ckpt"
            run.save_checkpoint(saved)
            net = module
        found = {}
        for watch in watches:
            found |= dead_fractions(watch, "net.3")
        return found, counts.watched, net

    whole, halves = parts(300), parts(cut, 300)
    assert halves[1] == whole[1]
    np.testing.assert_equal(halves[0], whole[0])
    assert whole[0][299] >= 15 / 16


def test_no_warning_is_given_of_a_fit_in_which_nothing_dies(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradWatchWarning)
        fit(tmp_path, Dies(units=0), GradWatch(ignore=("GW3", "GW4", "GW1")), 8, max_steps=300)
