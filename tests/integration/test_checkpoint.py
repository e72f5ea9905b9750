"""What a checkpoint carries, and what copies and second fits don't."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from integration.nets import Classifier, batches, relu_net, seed, trainer, vanishing_net
from sent import sent
from torch import nn

from lightning_gradwatch import GradWatch, GradWatchWarning, read_run
from lightning_gradwatch.tell.reporter import Reporter, reporting


def slow(parameters):
    return torch.optim.SGD(parameters, lr=1e-6)


def fit(folder, watch, net, *, steps, resume=None, checkpoint=None):
    seed()
    # An epoch is one batch, so that a checkpoint cuts none in two: Lightning would begin it again with other data.
    run = trainer(folder, watch, max_epochs=steps)
    run.fit(Classifier(net, slow), batches(1, 16), ckpt_path=resume, weights_only=True if resume else None)
    if checkpoint is not None:
        run.save_checkpoint(checkpoint)
    return run


@pytest.mark.judges
def test_windows_survive_a_resume(tmp_path):
    """Twice half a training is the whole: the same fill, and the same fractions, at the same steps."""

    def net():
        seed(3)
        return relu_net()

    ignored = ("GW301",)  # the slow rate is what keeps both halves alike
    whole = GradWatch(every_n_steps=10, ignore=ignored)
    fit(tmp_path / "whole", whole, net(), steps=80)
    halves = [GradWatch(every_n_steps=10, ignore=ignored) for _ in range(2)]
    saved = tmp_path / "half.ckpt"
    fit(tmp_path / "first", halves[0], net(), steps=40, checkpoint=saved)
    fit(tmp_path / "second", halves[1], net(), steps=80, resume=saved)
    joined = [*halves[0].records, *halves[1].records]
    assert [record.step for record in joined] == [record.step for record in whole.records]
    for one, other in zip(joined, whole.records, strict=True):
        for metric in ("dead_fraction", "saturated_fraction", "signal_norm", "grad_norm"):
            assert np.array_equal(one.metrics[metric], other.metrics[metric], equal_nan=True), (one.step, metric)
        assert one.window_fill.tolist() == other.window_fill.tolist()
    assert halves[1].records[0].window_fill.min() > 0.5
    assert joined[-1].window_fill.tolist() == [1.0, 1.0]


@pytest.mark.judges
@pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")
@pytest.mark.parametrize("half", [15, 16, 17, 30])
def test_patience_survives_a_resume(half, tmp_path):
    """Step 14 hits, 15 and 16 confirm: cut between them, the finding is the same."""

    def net():
        seed(3)
        return vanishing_net()

    whole = GradWatch(every_n_steps=15)
    fit(tmp_path / "whole", whole, net(), steps=45)
    saved = tmp_path / "half.ckpt"
    halves = [GradWatch(every_n_steps=15), GradWatch(every_n_steps=15)]
    fit(tmp_path / "first", halves[0], net(), steps=half, checkpoint=saved)
    fit(tmp_path / "second", halves[1], net(), steps=45, resume=saved)
    assert [finding.code for finding in whole.findings] == ["GW101", "GW301"]
    steps = [record.step for watch in halves for record in watch.records]
    assert steps == [record.step for record in whole.records]
    assert halves[1].findings == whole.findings


@pytest.mark.judges
@pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")
def test_a_finding_told_before_the_checkpoint_is_not_told_again_after_it(tmp_path):
    saved = tmp_path / "half.ckpt"
    first, second = GradWatch(every_n_steps=15), GradWatch(every_n_steps=15)
    fit(tmp_path / "first", first, vanishing_net(), steps=30, checkpoint=saved)
    assert first.findings
    told = []
    with reporting(Reporter(warn=lambda finding, category, led_to: told.append(finding))):
        fit(tmp_path / "second", second, vanishing_net(), steps=60, resume=saved)
    assert second.findings
    assert told == []


def test_the_state_loads_with_weights_only(tmp_path):
    saved = tmp_path / "half.ckpt"
    fit(tmp_path, GradWatch(), relu_net(), steps=10, checkpoint=saved)
    state = torch.load(saved, weights_only=True)["callbacks"]["GradWatch"]
    assert set(state) == {"version", "windows", "rules", "schedule"}
    assert set(state["windows"]) == {"net.1", "net.3"}


def test_a_state_is_passed_on_by_a_callback_that_never_fitted():
    state = {"windows": {}, "rules": {"version": 1, "rules": {}}, "schedule": {"confirmed": 0, "watched": 0}}
    watch = GradWatch()
    assert watch.state_dict() == {}
    watch.load_state_dict(state)
    assert watch.state_dict() == state


@pytest.mark.judges
def test_a_second_fit_of_the_same_instance_starts_afresh(tmp_path):
    watch = GradWatch(every_n_steps=15, ignore=("GW301",))
    for fitted in range(2):
        run = trainer(tmp_path, watch, max_steps=31)
        with pytest.warns(GradWatchWarning, match="GW101"):
            run.fit(Classifier(vanishing_net(), slow), batches())
        assert [record.step for record in watch.records] == [0, 1, 2, 4, 8, 14, 15, 16, 29]
        assert len(read_run(tmp_path / "gradwatch" / f"version_{fitted}").records) == 9
    # Another model than before: nothing is carried over.
    trainer(tmp_path, watch, max_steps=3).fit(Classifier(nn.Linear(6, 3)), batches())
    assert watch.findings == ()
    assert [layer.name for layer in watch.info.layers] == ["net"]


class CopiesInside(pl.Callback):
    """Copies the monitor in the middle of a measured step."""

    def __init__(self, watch):
        self.watch = watch
        self.copies = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.copies.append(copy.deepcopy(self.watch))
        self.copies.append(sent(self.watch))


def reaches_a_tensor(thing, seen=None):
    """Whether a tensor can be reached from an object by its attributes and items."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return False
    seen.add(id(thing))
    if isinstance(thing, (torch.Tensor, nn.Module)):
        return True
    inner = [*getattr(thing, "__dict__", {}).values()]
    if isinstance(thing, dict):
        inner += thing.values()
    elif isinstance(thing, (list, tuple, set)):
        inner += thing
    return any(reaches_a_tensor(entry, seen) for entry in inner)


@pytest.mark.judges
@pytest.mark.parametrize("copied", [sent, copy.deepcopy])
def test_a_copy_has_the_settings_and_no_model(copied, tmp_path):
    watch = GradWatch(every_n_steps=7, ignore=("GW2",), fail_on="error")
    before = copied(watch)
    inside = CopiesInside(watch)
    trainer(tmp_path, watch, inside, max_steps=8).fit(Classifier(), batches())
    after = copied(watch)
    assert len(inside.copies) == 16
    for each in (before, *inside.copies, after):
        assert not reaches_a_tensor(each)
        assert (each.findings, each.records, each.info, each.coverage) == ((), (), None, ())
    assert reaches_a_tensor(watch)
    trainer(tmp_path, after, max_steps=8).fit(Classifier(), batches())
    assert [record.step for record in after.records] == [0, 1, 2, 4, 6]
    assert "GW201" not in after.info.rules
    assert "GW101" in after.info.rules
