"""GW301 says when the planned steps can't take off the loss, by a bound that SGD reaches and no optimizer exceeds."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import Probe
from lightning_gradwatch.judge.evidence.loss_decrease import loss_share
from lightning_gradwatch.judge.rules.oversized import OversizedUpdate
from lightning_gradwatch.judge.rules.stalled import StalledUpdate
from lightning_gradwatch.record.finding import Action, Severity
from lightning_gradwatch.record.step import OptimizerInfo
from lightning_gradwatch.record.wording import number


def measured_and_real(make_optimizer, *, bias):
    """One step on a whole data set: the bound, and by how much the loss really falls."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 32, bias=bias), nn.Tanh(), nn.Linear(32, 1, bias=bias)).double()
    x, y = torch.randn(64, 10).double(), 5 + torch.randn(64, 1).double()
    optimizer = make_optimizer(net.parameters())
    probe = Probe(net, optimizer)
    for _ in range(3):  # so that Adam's averages are under way
        with probe:
            optimizer.zero_grad()
            loss = F.mse_loss(net(x), y)
            loss.backward()
            optimizer.step()
    record = dataclasses.replace(probe.record, loss=loss.item())
    info = dataclasses.replace(probe.info, optimizers=(OptimizerInfo(type(optimizer).__name__, {}),))
    return loss_share(record, info), 1 - F.mse_loss(net(x), y).item() / loss.item()


def test_the_bound_is_exact_for_sgd_without_vectors():
    bound, real = measured_and_real(lambda parameters: torch.optim.SGD(parameters, lr=1e-7), bias=False)
    assert bound == pytest.approx(real, rel=1e-3)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=1e-6),
        lambda parameters: torch.optim.SGD(parameters, lr=1e-6, momentum=0.9),
        lambda parameters: torch.optim.Adam(parameters, lr=1e-6),
        lambda parameters: torch.optim.RMSprop(parameters, lr=1e-6),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, weight_decay=1.0),
    ],
    ids=["SGD", "momentum", "Adam", "RMSprop", "AdamW"],
)
def test_no_optimizer_takes_off_more_than_the_bound_and_it_is_not_far_off(make_optimizer):
    bound, real = measured_and_real(make_optimizer, bias=True)
    assert 0 < real <= bound * 1.001
    assert bound < 5 * real


STEPS = range(30, 36)


def judged(runs, *, steps=STEPS, info=None, rule=None, losses=None, norms=None, clip=float("nan"), **given):
    """By default 7 layers of 64 entries, each with a gradient of norm 0.08 that moves it by 8e-4: 1.9e-4 of the loss in all."""
    info = info or runs.stack(planned_steps=300)
    metrics = {"grad_rms": 0.01, "grad_norm": 0.08, "weight_rms": 1.0, "update_ratio": 1e-4, **given}
    records = [
        dataclasses.replace(
            runs.measure(
                info,
                step,
                loss=(losses or {}).get(step, 2.3),
                norm=(norms or {}).get(step, 0.2) * (1 + 1e-3 * (step % 2)),
                **metrics,
            ),
            clip_factor=clip,
        )
        for step in steps
    ]
    return runs.feed(rule or StalledUpdate(), records, info)


SHARE = 7 * 0.08 * 8e-4 / 2.3


def test_a_run_whose_steps_cannot_take_off_the_loss_is_told_in_the_third_measured_step(runs):
    fed = judged(runs)
    assert [len(told) for told in fed.told] == [0, 0, 1, 0, 0, 0]
    assert fed.confirming == [True, True, False, False, False, False]
    finding = fed.only
    assert finding.code == "GW301"
    assert finding.value == pytest.approx(300 * SHARE)
    assert (finding.threshold, finding.severity, finding.first_step) == (0.2, Severity.WARNING, 30)
    assert "300 planned steps" in finding.message
    assert finding.layers == tuple(layer.name for layer in runs.stack().layers)
    assert finding.remedy.actions == (Action("set_learning_rate", (), (("factor", 300.0),)),)


def test_the_rate_is_raised_no_further_than_to_steps_of_a_usual_size(runs):
    """However far off the loss is: past that, GW302 calls them oversized."""
    for optimizer, usual in (("SGD", 0.03), ("Adam", 0.01)):
        for update in (1e-4, 1.2e-5, 4e-4):
            info = runs.stack(planned_steps=300, optimizers=(optimizer,))
            finding = judged(runs, info=info, update_ratio=update, losses=dict.fromkeys(STEPS, 90.0)).only
            (action,) = finding.remedy.actions
            reached = dict(action.arguments)["factor"] * update
            assert reached == pytest.approx(usual, rel=0.35)
            assert reached < OversizedUpdate().ratio
            assert f"which makes the largest update ratio about {number(reached)}." in finding.remedy.text


@pytest.mark.parametrize(("update", "fires"), [(4.9e-4, True), (5.1e-4, False)])
def test_steps_of_a_usual_size_are_not_to_blame(runs, update, fires):
    assert bool(judged(runs, update_ratio=update, losses=dict.fromkeys(STEPS, 90.0)).findings) is fires
    # Of weights that start at next to nothing, they are small beside what they will be.
    small = judged(runs, update_ratio=5.1e-2, weight_rms=24**-0.5 / 1e3, losses=dict.fromkeys(STEPS, 90.0))
    assert small.findings


@pytest.mark.parametrize(("first", "planned"), [(30, 300), (48, 1000)])
def test_a_tenth_of_the_run_must_have_shown_that_the_gradient_does_not_grow(runs, first, planned):
    info = runs.stack(planned_steps=planned)
    losses = dict.fromkeys(range(100), 90.0)
    fed = judged(runs, info=info, steps=range(first - 5, first + 5), losses=losses)
    assert fed.only.first_step == first


def test_a_gradient_that_grows_is_that_of_a_net_which_is_waking_up(runs):
    for growth, fires in ((1.04, False), (1.0, True), (0.99, True)):
        steps = (0, 1, 2, 4, 8, 16, *STEPS)
        norms = {step: 0.1 * growth**place for place, step in enumerate(steps)}
        assert bool(judged(runs, steps=steps, norms=norms).findings) is fires


def test_what_was_told_does_not_heal_by_a_gradient_that_grows(runs):
    """What slows a run down may grow and get nowhere all the same."""
    steps = (*STEPS, *range(50, 80))
    norms = {step: 0.2 if step < 50 else 0.4 for step in steps}
    fed = judged(runs, steps=steps, norms=norms, losses={step: 2.3 * 0.997 ** max(step - 50, 0) for step in steps})
    assert (fed.only.severity, fed.only.healed_step) == (Severity.WARNING, None)
    assert sum(len(told) for told in fed.told) == 1


def test_what_was_told_heals_when_the_loss_has_come_down_to_half(runs):
    steps = (*STEPS, *range(50, 60))
    fed = judged(runs, steps=steps, losses={step: 1.0 for step in steps if step >= 50})
    assert fed.only.healed_step is not None


@pytest.mark.parametrize(("low", "fires"), [(0.99, True), (1.01, False)])
def test_by_the_threshold(runs, low, fires):
    assert bool(judged(runs, losses=dict.fromkeys(STEPS, 7 * 0.08 * 8e-4 * 300 / (0.2 * low))).findings) is fires
    assert bool(judged(runs, rule=StalledUpdate(reach=300 * SHARE / low)).findings) is fires


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_scale_of_the_loss_makes_no_difference(runs, scale):
    fed = judged(
        runs,
        grad_rms=0.01 * scale,
        grad_norm=0.08 * scale,
        losses=dict.fromkeys(STEPS, 2.3 * scale),
        norms=dict.fromkeys(STEPS, 0.2 * scale),
    )
    assert fed.only.value == pytest.approx(300 * SHARE)


def test_an_error_from_a_tenth_of_the_threshold_on(runs):
    assert judged(runs, losses=dict.fromkeys(STEPS, 7 * 0.08 * 8e-4 * 300 / 0.0199)).only.severity is Severity.ERROR
    assert judged(runs, losses=dict.fromkeys(STEPS, 7 * 0.08 * 8e-4 * 300 / 0.0201)).only.severity is Severity.WARNING


def test_a_loss_of_unscaled_targets_is_told_as_such(runs):
    for given in ({}, {"update_ratio": 1e-2}, {"steps": range(10, 16)}):  # that shows at once, whatever the steps
        fed = judged(runs, losses=dict.fromkeys(range(50), 29_000.0), **given)
    assert fed.only.remedy.actions == (Action("normalize_targets"),)


@pytest.mark.parametrize(
    ("case", "info"),
    [
        ("a trial of a few steps", {"planned_steps": 199}),
        ("no end in sight", {"planned_steps": None}),
        ("long enough", {"planned_steps": 10_000}),
        ("several losses", {"planned_steps": 300, "optimizers": ("Adam", "Adam")}),
    ],
)
def test_what_is_planned_decides(runs, case, info):
    assert not judged(runs, info=runs.stack(**info)).findings, case


def test_silent_where_the_gradient_or_the_loss_has_come_down(runs):
    """As at an optimum, where the loss that is left can't be taken off."""
    steps = (0, 1, 2, 4, 8, 16, *STEPS)
    assert judged(runs, steps=steps).findings
    assert not judged(runs, steps=steps, norms=dict.fromkeys(STEPS, 0.09)).findings
    assert not judged(runs, steps=steps, losses=dict.fromkeys(STEPS, 1.1)).findings
    assert not judged(runs, losses=dict.fromkeys(STEPS, -2.0)).findings


@pytest.mark.parametrize(("factor", "fires"), [(1.0, True), (0.51, True), (0.49, False)])
def test_where_clipping_makes_the_steps_small_the_learning_rate_is_not_to_blame(runs, factor, fires):
    assert bool(judged(runs, clip=factor).findings) is fires


def test_a_gradient_that_is_clipped_by_hand_says_nothing_of_the_loss(runs):
    """Such as by `clip_gradients` in manual optimization: its norm is the limit, time and again."""
    for error, fires in ((1e-7, False), (1e-4, True)):
        held = {step: 0.05 * (1 + error * (step - 30)) / (1 + 1e-3 * (step % 2)) for step in STEPS}
        assert bool(judged(runs, norms=held).findings) is fires


def test_not_judged_where_most_of_the_gradient_is_outside_of_matrices(runs):
    low = {"net.0": float("nan")}
    assert not judged(runs, update_ratio=dict.fromkeys((), 0.001) | low, grad_norm={"net.0": 10.0}).findings
