"""Contract 2: a monitor never breaks training; its own faults warn once, and only `fail_on` and the user's filter stop a run."""

from __future__ import annotations

import errno
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from integration.nets import MODULE_HOOKS, Classifier, batches, relu_net, seed, trainer, vanishing_net
from sent import sent
from torch.overrides import _len_torch_function_stack

from lightning_gradwatch import (
    GradWatch,
    GradWatchError,
    GradWatchWarning,
    Severity,
    VanishingGradientWarning,
    read_run,
)
from lightning_gradwatch.measure import faults

pytestmark = pytest.mark.judges

STEPS = 12


def bug(*args, **kwargs):
    raise RuntimeError("injected")


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


FAULTS = {
    "counting": ("lightning_gradwatch.measure.units.counting.Counter.count", bug, "activations"),
    "locating": ("lightning_gradwatch.measure.trace.activation_calls.locate", bug, "activations"),
    "identifying": ("lightning_gradwatch.measure.trace.tracer.identify", bug, "activations"),
    "after an activation": ("lightning_gradwatch.measure.trace.activation_calls.Activations.after", bug, "activations"),
    "end of a pass": ("lightning_gradwatch.measure.model.sites.Sites.settle", bug, "activations"),
    "signal": ("lightning_gradwatch.measure.units.site_stats.SiteStatistics.add_signal", bug, "signal"),
    "walking the graph": ("lightning_gradwatch.measure.trace.connections.Connections.end_pass", bug, "signal"),
    "gradients": ("lightning_gradwatch.measure.gradients.l2_norms", bug, "gradients"),
    "snapshot": ("lightning_gradwatch.measure.updates._copy", bug, "updates"),
    "comparing weights": ("lightning_gradwatch.measure.updates.WeightSnapshot.measure", bug, "updates"),
    "rules": ("lightning_gradwatch.judge.evaluator.Evaluator.feed", bug, "rules"),
    "full disk": ("lightning_gradwatch.record.events.file.EventFile.write", full_disk, "writing"),
    "writing": ("lightning_gradwatch.fit.writing.writer.step_event", bug, "writing"),
    "end of the file": ("lightning_gradwatch.fit.writing.writer.Sinks.finish", bug, "writing"),
    "schedule": ("lightning_gradwatch.fit.schedule.Schedule.due", bug, "schedule"),
    "loss": ("lightning_gradwatch.measure.step.StepMeter.add_loss", bug, "schedule"),
    "packing": ("lightning_gradwatch.measure.transfer.host.HostTransfer.send", bug, "schedule"),
    "assembling": ("lightning_gradwatch.measure.assemble.assemble", bug, "schedule"),
    "describing": ("lightning_gradwatch.fit.callback.describe", bug, "schedule"),
}


@pytest.fixture
def _faults_are_caught(monkeypatch):
    monkeypatch.setattr(faults, "RAISE", False)


def train(folder, *callbacks):
    seed()
    module = Classifier(relu_net(), lambda parameters: torch.optim.Adam(parameters, lr=0.01))
    run = trainer(folder, *callbacks, max_steps=STEPS, accumulate_grad_batches=2, gradient_clip_val=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(module, batches(shuffle=True))
    assert "training_step" not in vars(run.strategy)
    assert _len_torch_function_stack() == 0
    assert not any(len(getattr(child, kind)) for child in module.modules() for kind in MODULE_HOOKS)
    return module.state_dict(), [entry for entry in caught if issubclass(entry.category, GradWatchWarning)]


@pytest.mark.usefixtures("_faults_are_caught")
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_ours_warns_once_and_training_goes_on(name, tmp_path, monkeypatch):
    target, fault, part = FAULTS[name]
    unwatched, _ = train(tmp_path / "without")
    monkeypatch.setattr(target, fault)
    watch = GradWatch(every_n_steps=1)
    watched, told = train(tmp_path / "with", watch)
    assert all(torch.equal(unwatched[key], watched[key]) for key in unwatched)
    assert [str(entry.message).startswith(f"GradWatch switched its {part} off") for entry in told] == [True]
    assert "injected" in str(told[0].message) or "No space left" in str(told[0].message)
    assert [entry.reason for entry in watch.coverage if f"{part} switched off" in entry.reason] != []


@pytest.mark.usefixtures("_faults_are_caught")
@pytest.mark.parametrize("name", FAULTS)
def test_the_other_parts_go_on_after_a_fault(name, tmp_path, monkeypatch):
    target, fault, part = FAULTS[name]
    monkeypatch.setattr(target, fault)
    watch = GradWatch(every_n_steps=1)
    train(tmp_path, watch)
    if part == "schedule":
        assert len(watch.records) < STEPS
        return
    assert [record.step for record in watch.records] == list(range(STEPS))
    last = watch.records[-1].metrics
    measured = {metric for metric, vector in last.items() if np.isfinite(vector).any()}
    gradients, updates = {"grad_norm", "grad_rms"}, {"weight_rms", "update_ratio"}
    signal = {"signal_norm", "activation_gain", "weight_gain"}
    expected = gradients | updates | signal | {"inactive_share"}
    expected -= {
        "activations": {*signal, "inactive_share"},
        "signal": signal,
        "gradients": gradients,
    }.get(part, set())
    expected -= updates if part == "updates" else set()
    assert measured >= expected
    assert measured.isdisjoint({"activations": signal, "signal": signal, "gradients": gradients}.get(part, ()))
    if part != "writing":
        assert len(read_run(tmp_path / "gradwatch" / "version_0").records) == STEPS


@pytest.mark.usefixtures("_faults_are_caught")
def test_a_disk_that_fills_up_in_mid_run_keeps_what_was_written(tmp_path, monkeypatch):
    from lightning_gradwatch.record.events.file import EventFile  # noqa: PLC0415 - only this test goes below the callback

    write, calls = EventFile.write, []

    def fills_up(self, event):
        calls.append(event)
        if len(calls) > 6:
            full_disk()
        write(self, event)

    monkeypatch.setattr(EventFile, "write", fills_up)
    watch = GradWatch(every_n_steps=1)
    _, told = train(tmp_path, watch)
    assert len(told) == 1
    assert len(calls) == 7  # not tried again
    assert [record.step for record in watch.records] == list(range(STEPS))
    stored = read_run(tmp_path / "gradwatch" / "version_0")
    assert [record.step for record in stored.records] == [0, 1, 2, 3, 4]
    assert stored.problems == ()


@pytest.mark.usefixtures("_faults_are_caught")
def test_an_unwritable_folder_warns_once_and_training_goes_on(tmp_path):
    (tmp_path / "gradwatch").write_text("a file where the folder should be")
    watch = GradWatch(every_n_steps=1)
    _, told = train(tmp_path, watch)
    assert len(told) == 1
    assert len(watch.records) == STEPS


@pytest.mark.usefixtures("_faults_are_caught")
def test_the_next_fit_starts_with_all_parts_on(tmp_path, monkeypatch):
    watch = GradWatch(every_n_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr("lightning_gradwatch.measure.gradients.l2_norms", bug)
        train(tmp_path, watch)
        assert np.isnan(watch.records[-1].metrics["grad_norm"]).all()
    _, told = train(tmp_path, watch)
    assert told == []
    assert np.isfinite(watch.records[-1].metrics["grad_norm"]).all()


# -- what does stop a run


class CountsSteps(pl.Callback):
    def __init__(self):
        self.steps = 0

    def on_train_start(self, trainer, module):
        def stepped(*_):
            self.steps += 1

        trainer.optimizers[0].register_step_post_hook(stepped)


def fails(folder, watch, **settings):
    """Train a net whose gradient vanishes; return the Trainer and the number of steps its optimizer took."""
    seed()
    counts = CountsSteps()
    run = trainer(folder, counts, watch, max_steps=40, **settings)
    return run, counts, lambda: run.fit(Classifier(vanishing_net()), batches())


def steps_until_the_finding(folder):
    """Return how many steps a run that nothing stops has taken when the finding is there."""
    watch, steps = GradWatch(every_n_steps=5, ignore=("GW3",)), []
    run, _, fit = fails(folder, watch)

    class Looks(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if any(finding.severity >= Severity.WARNING for finding in watch.findings):
                steps.append(trainer.global_step)

    run.callbacks.append(Looks())
    with pytest.warns(VanishingGradientWarning) as caught:
        fit()
    assert sum(issubclass(entry.category, GradWatchWarning) for entry in caught) == 1
    assert run.global_step == 40
    return steps[0]


@pytest.mark.parametrize("way", ["error", "always"])
@pytest.mark.parametrize("caught_too", [True, False], ids=["faults-caught", "faults-raise"])
def test_the_users_filter_decides(way, caught_too, tmp_path, monkeypatch):
    """A filter that turns the warning into an error raises it out of `fit`; any other doesn't."""
    monkeypatch.setattr(faults, "RAISE", not caught_too)
    watch = GradWatch(every_n_steps=5, ignore=("GW3",))
    run, counts, fit = fails(tmp_path, watch)
    with warnings.catch_warnings():
        warnings.filterwarnings(way, category=VanishingGradientWarning)
        if way == "error":
            with pytest.raises(VanishingGradientWarning, match="GW101"):
                fit()
            assert counts.steps < 40
        else:
            with pytest.warns(VanishingGradientWarning):
                fit()
            assert counts.steps == 40
    assert "training_step" not in vars(run.strategy)
    assert watch.findings


@pytest.mark.parametrize("fail_on", ["warning", "error"])
def test_fail_on_raises_before_the_next_optimizer_step(fail_on, tmp_path):
    due = steps_until_the_finding(tmp_path / "unstopped")
    watch = GradWatch(every_n_steps=5, fail_on=fail_on, ignore=("GW3",))
    run, counts, fit = fails(tmp_path, watch)
    with pytest.warns(VanishingGradientWarning), pytest.raises(GradWatchError, match="GW101") as raised:
        fit()
    assert [finding.code for finding in raised.value.findings] == ["GW101"]
    assert raised.value.findings[0].severity is Severity.ERROR
    assert counts.steps == watch.records[-1].step + 1 == due
    assert "training_step" not in vars(run.strategy)
    assert _len_torch_function_stack() == 0
    assert not any(optimizer._optimizer_step_pre_hooks for optimizer in run.optimizers)
    stored = read_run(tmp_path / "gradwatch" / "version_0")
    assert stored.findings == watch.findings
    copy = sent(raised.value)
    assert str(copy) == str(raised.value)
    assert copy.findings == raised.value.findings


def test_fail_on_error_lets_a_warning_pass(tmp_path):
    from lightning_gradwatch import VanishingGradient  # noqa: PLC0415 - a threshold only this test needs

    watch = GradWatch(
        every_n_steps=5,
        fail_on="error",
        ignore=("GW104", "GW3"),
        # min_grad_rms is a warning at most; the ratio is out of reach.
        rules=[VanishingGradient(ratio=1e-30, min_grad_rms=1.0)],
    )
    _, counts, fit = fails(tmp_path, watch)
    with pytest.warns(VanishingGradientWarning):
        fit()
    assert counts.steps == 40
    assert {finding.severity for finding in watch.findings} == {Severity.WARNING}


def test_a_fit_after_fail_on_works_and_warns_again(tmp_path):
    watch = GradWatch(every_n_steps=5, fail_on="error", ignore=("GW3",))
    for _ in range(2):
        _, _, fit = fails(tmp_path, watch)
        with pytest.warns(VanishingGradientWarning), pytest.raises(GradWatchError):
            fit()
