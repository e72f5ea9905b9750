"""A plain loop that scales its loss and clips its gradients: what is measured is the unscaled and the unclipped."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from lightning_gradwatch.measure.probe import Probe

X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))


def norm(parameters):
    return math.hypot(*(each.grad.norm().item() for each in parameters if each.grad is not None))


def run(step, *, probed=True, optimizer=torch.optim.SGD, net=None):
    """Return the net after a step, the record of it, and what `step` says."""
    net = net or model()
    optimizers = [optimizer(net.parameters(), lr=0.1)]
    if not probed:
        return net, None, step(net, *optimizers)
    with Probe(net, optimizers) as probe:
        said = step(net, *optimizers)
    return net, probe.record, said


def plain(net, optimizer):
    net(X).square().mean().backward()
    optimizer.step()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def scaled(net, optimizer, *, between=lambda net, scaler, optimizer: None, loss=1.0, backwards=1):
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    for _ in range(backwards):
        scaler.scale(loss * net(X).square().mean()).backward()
    between(net, scaler, optimizer)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("backwards", [1, 2])
def test_the_scale_of_a_scaler_is_taken_out(backwards):
    def accumulated(net, optimizer):
        for _ in range(backwards):
            net(X).square().mean().backward()
        optimizer.step()

    net, expected, _ = run(accumulated)
    other, record, _ = run(lambda *args: scaled(*args, backwards=backwards))
    assert same(net, other)
    assert record.gradient_scale == 65536
    assert record.loss == pytest.approx(expected.loss, rel=1e-6)
    for metric in ("signal_norm", "activation_gain", "weight_gain", "grad_norm", "update_ratio"):
        assert record.metrics[metric] == pytest.approx(expected.metrics[metric], rel=1e-5, nan_ok=True)
    assert record.global_grad_norm == pytest.approx(expected.global_grad_norm)
    assert math.isnan(record.clip_factor)


def test_a_step_that_a_scaler_leaves_out_is_skipped():
    net, record, _ = run(lambda *args: scaled(*args, loss=1e38))
    assert record.skipped
    assert record.optimizers == ()
    assert not math.isfinite(record.global_grad_norm)
    assert same(net, model())


def test_unscaled_and_then_clipped():
    def clip(net, scaler, optimizer):
        scaler.unscale_(optimizer)
        clip_grad_norm_(net.parameters(), 0.01)

    _, expected, _ = run(plain)
    _, record, _ = run(lambda *args: scaled(*args, between=clip))
    assert record.global_grad_norm == pytest.approx(expected.global_grad_norm)
    assert record.clip_factor == pytest.approx(0.01 / expected.global_grad_norm, rel=1e-3)
    assert record.loss == pytest.approx(expected.loss)


def by_hand(net):
    for parameter in net.parameters():
        parameter.grad.clamp_(-1e-3, 1e-3)


def by_data(net):
    for parameter in net.parameters():
        parameter.grad.data.clip_(-1e-3, 1e-3)


CLIPS = {
    "norm": lambda net: clip_grad_norm_(net.parameters(), 0.01),
    "norm, one by one": lambda net: clip_grad_norm_(net.parameters(), 0.01, foreach=False),
    "norm, at once": lambda net: clip_grad_norm_(net.parameters(), 0.01, foreach=True),
    "norm of the last layer": lambda net: clip_grad_norm_(net[4].parameters(), 0.01),
    "value": lambda net: clip_grad_value_(net.parameters(), 1e-3),
    "value, at once": lambda net: clip_grad_value_(net.parameters(), 1e-3, foreach=True),
    "by hand": by_hand,
    "by data": by_data,
}


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_gradients_are_measured_before_and_after_they_are_clipped(clip):
    def step(net, optimizer):
        net(X).square().mean().backward()
        before = norm(net.parameters())
        clip(net)
        after = norm(net.parameters())
        optimizer.step()
        return before, after

    _, expected, _ = run(plain)
    net, record, (before, after) = run(step)
    assert same(net, run(step, probed=False)[0])
    assert before > after
    assert record.global_grad_norm == pytest.approx(before)
    assert record.clip_factor == pytest.approx(after / before, rel=1e-5)
    assert record.metrics["grad_norm"] == pytest.approx(expected.metrics["grad_norm"])
    moved = [(a - b).norm().item() for a, b in zip(net.parameters(), model().parameters(), strict=True)]
    assert math.hypot(*moved) == pytest.approx(0.1 * after, rel=1e-4)
    assert record.loss == pytest.approx(expected.loss)


def test_what_is_averaged_by_hand_isnt_clipped():
    def step(net, optimizer):
        for _ in range(2):
            net(X).square().mean().backward()
        for parameter in net.parameters():
            parameter.grad.mul_(0.5)
        optimizer.step()

    _, expected, _ = run(plain)
    _, record, _ = run(step)
    assert record.global_grad_norm == pytest.approx(expected.global_grad_norm)
    assert math.isnan(record.clip_factor)


def test_gradients_that_came_after_a_clip_count():
    """As where each micro-batch is clipped by itself."""

    def step(net, optimizer):
        for _ in range(3):
            net(X).square().mean().backward()
            clip_grad_norm_(net.parameters(), 0.01)
        optimizer.step()

    def at_last(net, optimizer):
        for turn in range(3):
            net(X).square().mean().backward()
            if turn < 2:
                clip_grad_norm_(net.parameters(), 0.01)
        return norm(net.parameters())

    _, expected, _ = run(plain)
    _, record, _ = run(step)
    assert record.global_grad_norm == pytest.approx(run(at_last, probed=False)[2], rel=1e-5)
    assert record.loss == pytest.approx(3 * expected.loss)


def test_of_two_optimizers_that_whose_gradients_are_clipped_is_measured_before():
    net = model()
    first, second = net[:2], net[2:]
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (first, second)]
    with Probe(net, optimizers) as probe:
        net(X).square().mean().backward()
        before = norm(net.parameters())
        clip_grad_norm_(first.parameters(), 1e-3)
        for optimizer in optimizers:
            optimizer.step()
    assert probe.record.global_grad_norm == pytest.approx(before)
    assert probe.record.optimizers == (0, 1)


def test_a_clamp_in_the_forward_pass_is_no_clipping():
    def step(net, optimizer):
        x = X.clone().clamp_(-1, 1)
        net(x).square().mean().backward()
        x.clamp_(-0.5, 0.5)
        optimizer.step()

    _, record, _ = run(step)
    assert math.isnan(record.clip_factor)
    assert record.optimizers == (0,)


def test_closures_work_as_before():
    def step(net, optimizer):
        def closure():
            optimizer.zero_grad()
            loss = net(X).square().mean()
            loss.backward()
            clip_grad_norm_(net.parameters(), 0.01)
            return loss

        optimizer.step(closure)

    net, record, _ = run(step)
    assert same(net, run(step, probed=False)[0])
    assert record.optimizers == (0,)
    assert record.global_grad_norm == pytest.approx(run(plain)[1].global_grad_norm)
    assert record.clip_factor < 1
