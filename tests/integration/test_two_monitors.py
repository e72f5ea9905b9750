"""Two monitors in one Trainer, and others' functions over ours: both measure right, and nothing of them is left."""

from __future__ import annotations

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from integration.nets import Classifier, Everything, batches, relu_net, seed, trainer
from integration.situation import differences, end_of, fit
from integration.table import SITUATIONS
from integration.traces import TracesEachBatch, traces
from torch import nn

from lightning_gradwatch import GradWatch
from lightning_gradwatch.measure.patches import beneath

pytestmark = pytest.mark.judges

SOME = [
    "plain",
    "accumulation",
    "manual",
    "gan",
    "lbfgs-line-search",
    "fp16-scaler-clipping",
    "checkpointing-reentrant",
    "frozen-encoder",
    "attention",
    "gradient-penalty",
]


class Other(GradWatch):
    """Another monitor: other rules, another interval."""


def same_numbers(one, other, *, or_absent=False):
    assert [record.step for record in one.records] == [record.step for record in other.records]
    assert (one.info.layer_names, one.info.site_names) == (other.info.layer_names, other.info.site_names)
    assert one.coverage == other.coverage
    for record, twin in zip(one.records, other.records, strict=True):
        assert torch.tensor(record.loss).equal(torch.tensor(twin.loss)) or record.loss != record.loss
        for metric, values in record.metrics.items():
            others = twin.metrics[metric]
            right = np.equal(values, others) | (np.isnan(others) & (np.isnan(values) | or_absent))
            assert right.all(), (record.step, metric)


@pytest.mark.parametrize("name", SOME)
def test_each_measures_what_it_measures_alone(name, tmp_path):
    situation = SITUATIONS[name]
    settings = {"every_n_steps": 1, **situation.watch}
    plain = fit(situation, tmp_path / "plain")
    alone = GradWatch(**settings)
    fit(situation, tmp_path / "alone", alone)
    both = [GradWatch(**settings), Other(**settings)]
    watched = fit(situation, tmp_path / "both", *both)
    for each in both:
        same_numbers(alone, each)
    assert list(differences(plain.end, watched.end)) == []
    assert plain.traces == watched.traces
    assert plain.between == watched.between


def fits(folder, *callbacks, module=None, raises=None, **settings):
    """Return all that a fit leaves."""
    seed()
    module = module or Classifier(Everything())
    looks = TracesEachBatch()
    run = trainer(folder, looks, *callbacks, **({"max_steps": 5} | settings))
    if raises is None:
        run.fit(module, batches(5, shuffle=True))
    else:
        with pytest.raises(raises):
            run.fit(module, batches(5, shuffle=True))
    return end_of(run, module), traces(run, module), looks.seen


@pytest.mark.parametrize("intervals", [(1, 1), (1, 3), (3, 1), (2, 3)])
def test_they_may_measure_different_steps(intervals, tmp_path):
    plain = fits(tmp_path)
    watches = [GradWatch(every_n_steps=intervals[0]), Other(every_n_steps=intervals[1])]
    watched = fits(tmp_path, *watches)
    assert list(differences(plain[0], watched[0])) == []
    assert plain[1:] == watched[1:]
    for watch, interval in zip(watches, intervals, strict=True):
        alone = GradWatch(every_n_steps=interval)
        fits(tmp_path, alone)
        same_numbers(alone, watch)


class Fails(pl.Callback):
    """Ends a fit in the middle of a measured batch."""

    def __init__(self, where):
        def fail(*args, **kwargs):
            raise ZeroDivisionError

        setattr(self, where, fail)


@pytest.mark.parametrize(
    "where",
    [
        "on_train_batch_start",
        "on_before_backward",
        "on_after_backward",
        "on_before_optimizer_step",
        "on_train_batch_end",
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_exception_leaves_nothing_of_either(where, place, tmp_path):
    left = []
    for watches in ([], [GradWatch(every_n_steps=1), Other(every_n_steps=1)]):
        callbacks = [*watches]
        callbacks.insert(min(place, len(callbacks)), Fails(where))
        left.append(fits(tmp_path, *callbacks, raises=ZeroDivisionError)[1])
    assert left[0] == left[1]


class Replaces(pl.Callback):
    """Replaces the strategy's training step in one hook and puts back what it found in another, as profilers do."""

    def __init__(self, placed, removed):
        self.found, self.calls = None, 0
        setattr(self, placed, self._place)
        setattr(self, removed, self._remove)

    def _place(self, run, *_):
        self.run = run
        if self.found is None:
            found = self.found = run.strategy.training_step

            def step(*args, **kwargs):
                self.calls += 1
                return found(*args, **kwargs)

            run.strategy.training_step = step

    def _remove(self, run, *_):
        if self.found is not None:
            run.strategy.training_step, self.found = self.found, None


HOOKS = [
    ("on_train_batch_start", "on_train_batch_end"),
    ("on_train_batch_start", "on_before_backward"),
    ("on_before_optimizer_step", "on_train_batch_end"),
    ("on_before_optimizer_step", "on_train_batch_start"),
    ("on_train_batch_end", "on_train_batch_start"),
    ("on_train_start", "on_train_epoch_end"),
]


@pytest.mark.parametrize("hooks", HOOKS, ids="-".join)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_others_put_over_ours_changes_no_number(hooks, place, tmp_path):
    """Before, between and behind two monitors: it is called as often as without them, and they measure as without it."""
    alone = GradWatch(every_n_steps=1)
    fits(tmp_path, alone)
    by_itself = Replaces(*hooks)
    plain = fits(tmp_path, by_itself)
    watches, theirs = [GradWatch(every_n_steps=1), Other(every_n_steps=1)], Replaces(*hooks)
    callbacks = [*watches]
    callbacks.insert(place, theirs)
    watched = fits(tmp_path, *callbacks)
    assert list(differences(plain[0], watched[0])) == []
    assert theirs.calls == by_itself.calls
    # Who puts something back behind us in the hook in which we place ours takes that away: then a step's sites aren't seen.
    displaced = place > 0 and hooks[1] == "on_train_batch_start"
    for watch in watches:
        same_numbers(alone, watch, or_absent=displaced)
    found = vars(theirs.run.strategy).get("training_step")
    assert beneath(found) is found


@pytest.mark.parametrize("outer", [True, False], ids=["over-ours", "under-ours"])
def test_a_frozen_stock_encoder_keeps_its_fast_path_under_two_monitors(outer, tmp_path):
    """Each has to step aside: torch's fused path asks for no function mode at all."""

    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2).requires_grad_(False)
            self.head = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x):
            self.encoder.eval()
            with torch.no_grad():
                encoded = self.encoder(x.unsqueeze(1).expand(-1, 4, -1))
            return self.head(encoded.mean(1))

    def net():
        torch.manual_seed(5)
        return Classifier(Frozen())

    plain = fits(tmp_path, module=net())
    alone = GradWatch(every_n_steps=1)
    fits(tmp_path, alone, module=net())
    watches = [GradWatch(every_n_steps=1), Other(every_n_steps=1)]
    watched = fits(tmp_path, *(watches if outer else reversed(watches)), module=net())
    assert list(differences(plain[0], watched[0])) == []
    assert plain[1:] == watched[1:]
    for each in watches:
        same_numbers(alone, each)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_compiled_optimizer_step_is_measured_from_outside_by_both(tmp_path):
    def compiled(parameters):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        optimizer.step = torch.compile(optimizer.step, backend="eager")
        return optimizer

    def net():
        torch.manual_seed(5)
        return Classifier(relu_net(), compiled)

    plain = fits(tmp_path, module=net())
    alone = GradWatch(every_n_steps=1)
    fits(tmp_path, alone, module=net())
    watches = [GradWatch(every_n_steps=1), Other(every_n_steps=1)]
    watched = fits(tmp_path, *watches, module=net())
    assert list(differences(plain[0], watched[0])) == []
    assert plain[1:] == watched[1:]
    for each in watches:
        same_numbers(alone, each)
