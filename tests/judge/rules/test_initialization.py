"""GW401 says at the first step that the weights can't carry the signal, where that is the weights' doing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import Probe
from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.judge.evidence.initial_weights import read_start
from lightning_gradwatch.judge.rules.initialization import Initialization
from lightning_gradwatch.record.finding import InitializationWarning, Severity
from lightning_gradwatch.record.step import LayerInfo


def judged(runs, attenuation, *, variance=None, steps=(0, 1, 2), info=None, rule=None, **given):
    """Feed a run whose weights have that variance times their fan-in; None: it isn't known."""
    info = info or runs.stack(depth=12, function="relu")
    if variance is not None:
        given["weight_rms"] = np.sqrt(variance / 8)
    signal = runs.fading(info, attenuation) if np.isscalar(attenuation) else attenuation
    records = [runs.measure(info, step, signal_norm=signal, **given) for step in steps]
    return runs.feed(rule or Initialization(), records, info)


def wide(runs, depth=12, function="relu", units=64, **settings):
    """A stack whose width leaves little to chance."""
    info = runs.stack(depth=depth, function=function, **settings)
    return dataclasses.replace(info, sites=tuple(dataclasses.replace(site, units=units) for site in info.sites))


class TestOnce:
    def test_is_told_at_the_first_step_and_never_again(self, runs):
        fed = judged(runs, 1e-6, variance=1 / 3, info=wide(runs))
        assert [len(told) for told in fed.told] == [1, 0, 0]
        finding = fed.only
        assert (finding.first_step, finding.last_step) == (0, 0)
        assert fed.evaluator.warning_for(finding) is InitializationWarning
        assert fed.evaluator.unjudged == {}

    def test_a_run_that_is_resumed_cant_be_judged(self, runs):
        fed = judged(runs, 1e-6, variance=1 / 3, info=wide(runs), steps=(7, 8, 9))
        assert not fed.findings
        assert fed.evaluator.unjudged["GW401"].startswith("can't judge: the first measured step is step 7")

    def test_waits_for_a_signal_behind_what_starts_at_zero(self, runs):
        """A head that starts at 0 passes nothing back at step 0."""
        info = wide(runs)
        records = [
            runs.measure(info, step, signal_norm=runs.fading(info, 1e-6) if step else 0.0, weight_rms=0.2)
            for step in (0, 1, 2)
        ]
        assert runs.feed(Initialization(), records, info).only.first_step == 1

    def test_but_not_for_long(self, runs):
        fed = judged(runs, 0.0 * np.ones(12), steps=(0, 8, 16, 32))
        assert (
            fed.evaluator.unjudged["GW401"] == "can't judge: no signal at the hidden activations in the first 10 steps"
        )

    @pytest.mark.parametrize(
        ("depth", "signal", "why"),
        [
            (2, [0.1, 0.3], "a signal over depth needs 3 hidden activations, the run has 2 hidden activations"),
            (0, [], "a signal over depth needs 3 hidden activations, the run has no hidden activation"),
            (4, [np.nan, np.nan, 0.1, 0.3], "the signal was measured at 2 hidden activations only"),
            (4, [0.0] * 4, "no signal at the hidden activations in the first 10 steps"),
        ],
    )
    def test_says_what_is_lacking(self, runs, depth, signal, why):
        """Not that there is no signal where there is one, at too few sites."""
        info = runs.stack(depth=depth)
        records = [runs.measure(info, step, signal_norm=signal) for step in (0, 1, 2, 4, 8, 16, 32)]
        assert runs.feed(Initialization(), records, info).evaluator.unjudged == {"GW401": f"can't judge: {why}"}


class TestThresholds:
    @pytest.mark.parametrize(
        ("optimizer", "attenuation", "variance", "severity"),
        [
            ("SGD", 1.1e-3, 1 / 3, None),
            ("SGD", 0.9e-3, 1 / 3, Severity.WARNING),
            ("SGD", 0.9e-5, 1 / 3, Severity.ERROR),
            ("Adam", 1.1e-6, 1 / 3, None),
            ("Adam", 0.9e-6, 1 / 3, Severity.WARNING),
            ("Sophia", 0.9e-5, 1 / 3, None),
            ("SGD", 0.9e2, 4.0, None),
            ("SGD", 1.1e2, 4.0, Severity.WARNING),
            ("SGD", 1.1e4, 4.0, Severity.ERROR),
            ("Adam", 0.9e3, 4.0, None),
            ("Adam", 1.1e3, 4.0, Severity.WARNING),
        ],
    )
    def test_depend_on_the_optimizer(self, runs, optimizer, attenuation, variance, severity):
        found = judged(runs, attenuation, variance=variance, info=wide(runs, optimizers=(optimizer,))).findings
        assert [finding.severity for finding in found] == ([] if severity is None else [severity])

    def test_are_fields(self, runs):
        rule = Initialization(ratio=0.1, growth=2.0)
        assert judged(runs, 0.9e-1, variance=0.1, info=wide(runs, depth=5), rule=rule).findings
        assert judged(runs, 8.0, variance=20.0, info=wide(runs, depth=5), rule=rule).findings

    @pytest.mark.parametrize(
        ("gain", "variance", "fires"), [(0.8, 0.9, False), (0.7, 0.9, True), (1.25, 4.0, False), (1.4, 4.0, True)]
    )
    def test_a_gentle_slope_is_left_alone(self, runs, gain, variance, fires):
        """BatchNorm nets grow by up to 1.25 a layer at the start, tanh nets lose as much."""
        assert bool(judged(runs, gain**39, variance=variance, info=wide(runs, depth=40)).findings) is fires


class TestWhoseDoing:
    def test_weights_of_the_right_size_arent_blamed(self, runs):
        info = wide(runs)
        assert not judged(runs, 1e-9, variance=2.0, info=info).findings
        assert not judged(runs, 1e9, variance=2.0, info=info).findings
        assert not judged(runs, 1e-9, variance=1.0, info=wide(runs, function="tanh")).findings
        assert judged(runs, 1e-9, variance=1.0, info=info).findings

    def test_nor_are_weights_that_stray_to_the_other_side(self, runs):
        assert not judged(runs, 1e-9, variance=9.0, info=wide(runs)).findings
        assert not judged(runs, 1e9, variance=0.1, info=wide(runs)).findings

    def test_a_function_that_takes_the_signal_is_told_by_another_rule(self, runs):
        """Sigmoid passes 0.24 a layer with Xavier's weights, 0.14 with PyTorch's: most of it is the function's."""
        sigmoid = wide(runs, function="sigmoid")
        assert not judged(runs, 0.14**11, variance=1 / 3, info=sigmoid).findings
        assert judged(runs, 0.02**11, variance=0.006, info=sigmoid).findings

    def test_chance_may_do_as_much_in_a_narrow_net(self, runs):
        """Hanin (2018): 30 layers of width 4 spread by a factor of e^3 and lie e^9 below, whatever the start."""
        attenuation = np.exp(-1.25 * 7.5 - 6.1)
        assert not judged(runs, attenuation, variance=1.5, info=wide(runs, depth=30, units=4)).findings
        assert judged(runs, 0.6**29, variance=0.7, info=wide(runs, depth=30)).findings

    @pytest.mark.parametrize(
        "signal", [[1e-6, *[1.0] * 11], [*[1e-6] * 6, *[1.0] * 6], [1e-6, 1.0] * 6, [*[0.0] * 3, *[1.0] * 9]]
    )
    def test_branches_that_start_small_arent_a_fading_signal(self, runs, signal):
        """Layer scale, zero-initialised branches, fix-up: the ends differ, and nothing fades in between."""
        assert not judged(runs, np.array(signal), variance=1 / 3, info=wide(runs)).findings


class TestSentences:
    def test_too_small(self, runs):
        finding = judged(
            runs,
            0.41**11,
            variance=1 / 3,
            info=wide(runs),
            outputs=np.geomspace(0.5, 0.02, 12),
            weight_gain=0.58,
            activation_gain=0.71,
        ).only
        assert "too small for ReLU" in finding.cause
        assert "0.333 (PyTorch's default) where 2 would keep the signal level" in finding.cause
        assert "the weights pass back 0.58 of the signal a layer and the functions 0.71" in finding.cause
        assert "shrinks by a factor of 0.41 per layer: " in finding.message
        assert "the rms of the outputs goes from 0.5 to 0.02" in finding.message
        by_kind = {action.kind: action for action in finding.remedy.actions}
        assert dict(by_kind["initialize"].arguments)["method"] == "kaiming_normal_"
        assert "add_skip_connections" in by_kind

    def test_too_large_for_tanh(self, runs):
        finding = judged(runs, 1e5, variance=16.0, info=wide(runs, depth=6, function="tanh")).only
        assert "too large for Tanh" in finding.cause
        (initialize,) = finding.remedy.actions
        assert dict(initialize.arguments)["method"] == "xavier_normal_"

    def test_without_weights_that_were_measured(self, runs):
        assert "Most likely the weights start too small" in judged(runs, 1e-9, info=wide(runs)).only.cause


# -- against real nets


def stack(function, depth, *, width=64):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), function())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def first_step(net, width=64, optimizer=torch.optim.SGD):
    """Measure steps until the rule has judged one, and one more; return what it says."""
    x, y = torch.randn(64, width), torch.randint(0, 10, (64,))
    step = optimizer(net.parameters(), lr=1e-3)
    evaluator, probe = Evaluator([Initialization()]), Probe(net, step)
    for _ in range(3):
        with probe:
            step.zero_grad()
            F.cross_entropy(net(x), y).backward()
            step.step()
        evaluator.feed(probe.record, probe.info)
    assert evaluator.unjudged == {}
    return evaluator.findings, probe


def start(net, fill):
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            fill(layer.weight)
            nn.init.zeros_(layer.bias)
    return net


@pytest.mark.parametrize(
    ("function", "depth", "fill", "fires"),
    [
        (nn.ReLU, 8, None, False),  # 0.41^7 is 2e-3
        (nn.ReLU, 20, None, True),
        (nn.ReLU, 20, nn.init.kaiming_normal_, False),
        (nn.ReLU, 30, nn.init.xavier_normal_, True),  # He et al. 2015: 0.71 a layer
        (nn.Tanh, 20, None, True),
        (nn.Tanh, 20, nn.init.xavier_normal_, False),
        (nn.Tanh, 10, lambda weight: nn.init.normal_(weight, std=0.01), True),
        (nn.ReLU, 8, nn.init.normal_, True),
        (nn.Tanh, 20, lambda weight: nn.init.xavier_normal_(weight, gain=4), True),
        (nn.Sigmoid, 20, nn.init.xavier_normal_, False),
        (nn.GELU, 20, nn.init.kaiming_normal_, False),
        (nn.SiLU, 12, nn.init.kaiming_normal_, False),
        (nn.SELU, 20, lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="linear"), False),
    ],
)
def test_real_nets(function, depth, fill, fires):
    net = stack(function, depth)
    found, _ = first_step(net if fill is None else start(net, fill))
    assert bool(found) is fires


class Branches(nn.Module):
    """Twelve residual branches behind a trunk; pre-norm, with a scale or a last layer that may start at zero."""

    def __init__(self, *, scale=1.0, zero=False, norm=True):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(32) if norm else nn.Identity(), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
            for _ in range(12)
        )
        self.scale = scale
        if zero:
            for block in self.blocks:
                nn.init.zeros_(block[-1].weight)
        self.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x):
        x = torch.relu(x)
        for block in self.blocks:
            x = x + self.scale * block(x)
        return self.head(x)


@pytest.mark.parametrize("given", [{}, {"scale": 1e-5}, {"zero": True}, {"norm": False}, {"zero": True, "norm": False}])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_residual_nets_are_left_alone(given, optimizer):
    assert first_step(Branches(**given), 32, optimizer)[0] == ()


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformers_are_left_alone(norm_first):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first)
    net = nn.Sequential(
        nn.Unflatten(1, (8, 32)),
        nn.TransformerEncoder(layer, 12, enable_nested_tensor=False),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    assert first_step(net, 256)[0] == ()


def test_batch_norm_nets_are_left_alone():
    layers = [layer for _ in range(40) for layer in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())]
    assert first_step(nn.Sequential(*layers, nn.Linear(64, 10)))[0] == ()


# -- the numbers it goes by


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(200, 300), nn.Conv2d(16, 64, 3), nn.Conv1d(24, 64, 5, groups=2), nn.Bilinear(30, 20, 40)],
    ids=lambda layer: type(layer).__name__,
)
def test_fan_in_and_default_rms_are_torchs(layer):
    info = LayerInfo("it", type(layer).__name__, tuple(tuple(p.shape) for p in layer.parameters()), 0, weight=True)
    if not isinstance(layer, nn.Bilinear):  # its default goes by the first input alone
        assert info.fan_in == nn.init._calculate_fan_in_and_fan_out(layer.weight)[0]
        expected = layer.weight.detach().square().mean().sqrt().item()
        run = dataclasses.replace(first_info(), layers=(info,))
        assert run.default_rms[0] == pytest.approx(expected, rel=0.03)


def first_info():
    return first_step(stack(nn.ReLU, 3))[1].info


@pytest.mark.parametrize(
    ("fill", "variance"), [(None, 1 / 3), (nn.init.xavier_normal_, 1.0), (nn.init.kaiming_normal_, 2.0)]
)
def test_variance_is_read_from_the_record(fill, variance):
    net = stack(nn.ReLU, 4, width=256)
    _, probe = first_step(net if fill is None else start(net, fill), 256)
    read = read_start(probe.record, probe.info, probe.info.sites)
    assert (read.variance, read.wanted) == (pytest.approx(variance, rel=0.05), 2.0)
    assert read.rms == pytest.approx(np.sqrt(variance / 256), rel=0.03)
