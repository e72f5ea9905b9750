"""Faults that are put into a training at a known step: the layer, the bracket and the numbers are those of a loop by hand."""

from __future__ import annotations

import math
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from integration.nets import Classifier, batches, seed, trainer
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import GradWatch, GradWatchWarning, Probe, evaluate, read_run
from lightning_gradwatch.measure import faults
from lightning_gradwatch.rules import DEFAULT_RULES, Evaluator

pytestmark = [pytest.mark.judges, pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")]

RATE, BATCHES, LAST = 0.05, 8, 60
LAYERS = ("net.0", "net.2", "net.4", "net.6")


def net():
    seed(3)
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    )


def harm(kind, model, optimizer, x):
    """Do in a step what is to be found, and return its inputs."""
    if kind == "weights":
        with torch.no_grad():
            model[4].weight.mul_(100)
    elif kind == "inf":
        x = x.clone()
        x[0, 0] = math.inf
    elif kind == "huge":
        x = x * 1e5
    elif kind == "rate":
        for group in optimizer.param_groups:
            group["lr"] = 400 * RATE
    return x


class Harmed(Classifier):
    """A classifier to which something is done at one step."""

    def __init__(self, kind, at):
        super().__init__(net(), lambda parameters: torch.optim.SGD(parameters, lr=RATE))
        self.kind, self.at = kind, at
        self.order = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        if self.trainer.global_step == self.at:
            x = harm(self.kind, self.net, self.trainer.optimizers[0], x)
        self.order.append(batch_idx)
        return F.cross_entropy(self.net(x), y)


def by_hand(kind, at):
    """Return of each step, by plain torch, what the layers' numbers are: no monitor, no Lightning."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    steps = []
    data = list(batches(BATCHES))
    for step in range(LAST):
        x, y = data[step % BATCHES]
        if step == at:
            x = harm(kind, model, optimizer, x)
        optimizer.zero_grad()
        hidden, outputs = x, []
        for module in model:
            hidden = module(hidden)
            outputs.append(hidden.detach().double())
        F.cross_entropy(hidden, y).backward()
        numbers = {}
        for place in (0, 2, 4, 6):
            name = f"net.{place}"
            numbers["weight_rms", name] = model[place].weight.detach().double().square().mean().sqrt().item()
            gradients = [each.grad.double().flatten() for each in model[place].parameters()]
            numbers["grad_norm", name] = torch.cat(gradients).norm().item()
            if place < 6:
                numbers["forward_rms", name] = outputs[place + 1].square().mean().sqrt().item()
        before = [model[place].weight.detach().double().clone() for place in (0, 2, 4, 6)]
        optimizer.step()
        for place, old in zip((0, 2, 4, 6), before, strict=True):
            moved = (model[place].weight.detach().double() - old).norm() / old.norm()
            numbers["update_ratio", f"net.{place}"] = moved.item()
        numbers["rate"] = optimizer.param_groups[0]["lr"]
        steps.append(numbers)
    return steps


def fit(kind, at, folder, *, every):
    model = Harmed(kind, at)
    watch = GradWatch(every_n_steps=every)
    trainer(folder, watch, max_steps=LAST).fit(model, batches(BATCHES))
    return SimpleNamespace(model=model, watch=watch, told=[each for each in watch.findings if each.first_bad])


FIRST = {
    "weights": ("net.4", "weight_rms"),
    "inf": ("net.0", "forward_rms"),
    "huge": ("net.0", "forward_rms"),
    "rate": ("net.0", "update_ratio"),
}


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("kind", FIRST)
def test_layer_steps_batches_and_numbers_are_those_by_hand(kind, every, tmp_path):
    at = 29  # measured where each 10th step is
    fitted = fit(kind, at, tmp_path, every=every)
    steps = by_hand(kind, at)
    assert fitted.told
    for finding in fitted.told:
        begun = finding.first_bad
        good = 28 if every == 1 else 19
        assert (begun.layer, begun.metric) == FIRST[kind]
        assert (begun.last_good_step, begun.step) == (good, at)
        assert (begun.last_good_batch, begun.batch) == (good % BATCHES, at % BATCHES)
        assert begun.exact is (every == 1)
        assert (begun.learning_rate, begun.learning_rate_before) == (steps[at]["rate"], RATE)
        key = begun.metric, begun.layer
        assert begun.before == pytest.approx(steps[good][key], rel=1e-5)
        if kind == "inf":
            assert begun.after is None
        else:
            assert begun.after == pytest.approx(steps[at][key], rel=1e-5)
        assert begun.sentence in finding.message
        assert finding.message.count("left its own range first") == 1


@pytest.mark.parametrize("kind", ["weights", "inf", "huge"])
def test_a_fault_between_measured_steps_lies_in_the_bracket(kind, tmp_path):
    """Between measured steps nothing is read: what is exact is that it lies between these two."""
    fitted = fit(kind, 37, tmp_path, every=10)
    for finding in fitted.told:
        assert (finding.first_bad.last_good_step, finding.first_bad.step) == (29, 39)
        assert "between step 29 (batch 5, good) and step 39 (batch 7, bad)" in finding.message
    if kind != "huge":  # that one batch may be over by then
        assert fitted.told
    if kind == "weights":
        assert {finding.first_bad.layer for finding in fitted.told} == {"net.4"}


def test_from_the_first_sign_on_64_steps_are_measured_one_by_one(tmp_path):
    watch = GradWatch(every_n_steps=50)
    trainer(tmp_path, watch, max_steps=200).fit(Harmed("weights", 99), batches(BATCHES))
    measured = [record.step for record in watch.records]
    assert [step for step in measured if 50 <= step < 99] == []
    assert [step for step in measured if step > 99] == [*range(100, 164), 199]


def test_a_healthy_run_has_no_step_measured_beside_those_that_are_due(tmp_path):
    watch = GradWatch(every_n_steps=10)
    trainer(tmp_path, watch, max_steps=60).fit(Harmed("nothing", 0), batches(BATCHES))
    assert [record.step for record in watch.records] == [0, 1, 2, 4, 8, 9, 19, 29, 39, 49, 59]
    assert not any(finding.first_bad for finding in watch.findings)


@pytest.mark.parametrize("kind", FIRST)
def test_training_is_bit_identical_while_steps_are_measured_one_by_one(kind, tmp_path):
    plain, watched = Harmed(kind, 19), Harmed(kind, 19)
    trainer(tmp_path / "plain", max_steps=LAST).fit(plain, batches(BATCHES))
    watch = GradWatch(every_n_steps=10)
    trainer(tmp_path / "watched", watch, max_steps=LAST).fit(watched, batches(BATCHES))
    assert [record.step for record in watch.records if record.step > 19] == [*range(20, LAST)]
    for one, other in zip(plain.net.parameters(), watched.net.parameters(), strict=True):
        assert torch.equal(one.view(torch.int32), other.view(torch.int32))  # NaN as well
    assert plain.order == watched.order


@pytest.mark.parametrize("kind", FIRST)
def test_a_stored_run_says_the_same_as_the_live_one(kind, tmp_path):
    fitted = fit(kind, 29, tmp_path, every=10)
    run = read_run(fitted.watch.outcome.path or tmp_path / "gradwatch" / "version_0")
    assert run.findings == fitted.watch.findings
    assert evaluate(run) == fitted.watch.findings
    assert not run.problems


def test_a_resumed_run_goes_on_with_what_it_had_seen(tmp_path):
    """The ring and the steps that are still to be measured travel in a checkpoint."""
    whole = GradWatch(every_n_steps=10)
    trainer(tmp_path / "whole", whole, max_steps=LAST).fit(Harmed("weights", 29), batches(BATCHES))
    model, first = Harmed("weights", 29), GradWatch(every_n_steps=10)
    one = trainer(tmp_path / "first", first, max_steps=32)
    one.fit(model, batches(BATCHES))
    one.save_checkpoint(tmp_path / "at.ckpt")
    again = GradWatch(every_n_steps=10)
    trainer(tmp_path / "again", again, max_steps=LAST).fit(
        Harmed("weights", -1), batches(BATCHES), ckpt_path=tmp_path / "at.ckpt", weights_only=False
    )
    assert [record.step for record in again.records] == [*range(32, LAST)]
    assert [each.first_bad for each in again.findings] == [each.first_bad for each in whole.findings]
    assert any(each.first_bad for each in again.findings)


def test_the_batch_of_several_micro_batches_is_the_last_of_the_step(tmp_path):
    class Late(Harmed):
        def training_step(self, batch, batch_idx):
            x, y = batch
            if self.trainer.global_step == 12 and batch_idx % 2:  # the last micro-batch of step 12
                x = x * math.inf
            return F.cross_entropy(self.net(x), y)

    watch = GradWatch(every_n_steps=1)
    trainer(tmp_path, watch, max_steps=20, accumulate_grad_batches=2).fit(Late("nothing", 0), batches(BATCHES))
    (begun,) = {each.first_bad for each in watch.findings if each.first_bad}
    assert (begun.last_good_step, begun.step) == (11, 12)
    assert (begun.last_good_batch, begun.batch) == (watch.records[11].batch_idx, watch.records[12].batch_idx)
    assert begun.batch % 2 == 1


@pytest.mark.parametrize("every", [1, 10])
def test_a_plain_loop_asks_which_steps_to_measure_and_is_told_the_same(every):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    evaluator, probe = Evaluator(DEFAULT_RULES), Probe(model, optimizer)
    measured, follow = [], []
    data = list(batches(BATCHES))
    for step in range(130):
        x, y = data[step % BATCHES]
        if step == 59:
            x = harm("weights", model, optimizer, x)
        wanted = step % every == every - 1 or evaluator.wants(step)
        probe.step = step
        follow += [step] if evaluator.follows(step) else []
        with probe if wanted else nullcontext():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        if wanted:
            measured.append(step)
            evaluator.feed(probe.record, probe.info)
    assert follow == [*range(60, 124)]
    assert set(follow) <= set(measured)
    (begun,) = {each.first_bad for each in evaluator.findings if each.first_bad}
    assert (begun.layer, begun.metric, begun.step) == ("4", "weight_rms", 59)


def test_a_fault_in_looking_for_it_leaves_training_alone(tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(faults, "RAISE", False)
    monkeypatch.setattr("lightning_gradwatch.judge.evidence.first_bad_step.find_departure", broken)
    plain, watched = Harmed("weights", 19), Harmed("weights", 19)
    trainer(tmp_path / "plain", max_steps=40).fit(plain, batches(BATCHES))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer(tmp_path / "watched", GradWatch(every_n_steps=1), max_steps=40).fit(watched, batches(BATCHES))
    assert (
        sum("a fault of ours" in str(each.message) for each in said if issubclass(each.category, GradWatchWarning)) == 1
    )
    for one, other in zip(plain.net.parameters(), watched.net.parameters(), strict=True):
        assert torch.equal(one, other)
