"""GW101 blames the functions, the weights or both, by their gains, and what it recommends mends all of it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch import Probe
from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.judge.rules.vanishing import VanishingGradient
from lightning_gradwatch.record.finding import Action
from lightning_gradwatch.record.step import LayerInfo, LayerState

ROOT = math.sqrt(2)


def found(runs, info, metrics, **given):
    records = [runs.measure(info, step, **metrics, **given) for step in (10, 11, 12)]
    return runs.feed(VanishingGradient(), records, info).only


def actions(finding):
    return {action.kind: (action.targets, dict(action.arguments)) for action in finding.remedy.actions}


def names(info):
    return tuple(site.name for site in info.sites)


def layers(info):
    return tuple(layer.name for layer in info.layers)


def test_branches_that_start_small_beside_a_trunk_that_carries_the_gradient_are_no_fading(runs):
    """As behind layer scales: the first layer gets more of it than the last, so nothing vanishes on the way."""
    info = runs.stack(depth=8, function="gelu")
    metrics, ends = runs.gains(info, 0.2, 1.0), layers(info)

    def fed(first):
        gradient = dict.fromkeys(ends, 1e-5) | {ends[0]: first, ends[-1]: 0.3}
        records = [runs.measure(info, step, **metrics, grad_rms=gradient) for step in range(10, 14)]
        return runs.feed(VanishingGradient(), records, info).findings

    assert not fed(0.9)
    assert fed(1e-5)


class TestAGoodStart:
    """A signal that was there in the first steps: the steps have weakened it, and another start wouldn't help."""

    def fed(self, runs, first, *, update=1e-3, gain=(0.2, 1.0), function="relu", loss=9.0, weight_rms=0.3):
        info = runs.stack(depth=8, function=function)
        if isinstance(update, dict):
            update = dict.fromkeys(layers(info), 1e-3) | update
        steps = {"update_ratio": update, "weight_rms": weight_rms}
        before = runs.measure(info, 0, **runs.gains(info, *first), **steps)
        records = [runs.measure(info, step, loss=loss, **runs.gains(info, *gain), **steps) for step in range(10, 16)]
        return runs.feed(VanishingGradient(), [before, *records], info).only

    def test_asks_for_a_lower_rate(self, runs):
        finding = self.fed(runs, (0.7, ROOT))
        assert (
            "At step 0 the signal at the first activation was 0.932 of that at the last: not the start" in finding.cause
        )
        assert "the learning rate is too high" in finding.cause
        assert list(actions(finding)) == ["set_learning_rate", "clip_gradients"]

    def test_by_as_much_as_the_first_steps_ask_for(self, runs):
        finding = self.fed(runs, (0.7, ROOT), update=2.0, loss=2.3)
        assert "The first steps changed the weights by 2 times their size" in finding.cause
        assert actions(finding)["set_learning_rate"][1]["factor"] < 0.1

    def test_says_little_where_neither_the_steps_nor_the_loss_are_large(self, runs):
        """As of a deep net without skip connections, whose signal is on its way to nothing from the start."""
        assert "initialize" in actions(self.fed(runs, (0.7, ROOT), loss=2.3))

    @pytest.mark.parametrize(("head", "loss", "blamed"), [(0.5, 3.0, True), (0.5, 2.2, False), (0.05, 3.0, False)])
    def test_of_a_head_alone_that_is_thrown_about_while_the_loss_is_above_its_start(self, runs, head, loss, blamed):
        last = layers(runs.stack(depth=8, function="relu"))[-1]
        finding = self.fed(runs, (0.7, ROOT), update={last: head}, loss=loss)
        assert ("set_learning_rate" in actions(finding), "initialize" in actions(finding)) == (blamed, not blamed)
        # A layer that starts at next to nothing is changed by much of itself, and by little of what it will be.
        small = self.fed(runs, (0.7, ROOT), update={last: head}, loss=loss, weight_rms=1e-3)
        assert "initialize" in actions(small)

    def test_is_none_where_the_signal_faded_at_once_or_the_function_is_to_blame(self, runs):
        assert "initialize" in actions(self.fed(runs, (0.2, 1.0)))
        finding = self.fed(runs, (0.24, 4.0), gain=(0.24, 1.0), function="sigmoid")
        assert "replace_activation" in actions(finding)


class TestBlame:
    def test_sigmoid_by_its_bound(self, runs):
        info = runs.stack(depth=10)
        finding = found(runs, info, runs.gains(info, 0.235, 0.996))
        assert finding.cause == (
            "The derivative of Sigmoid is at most 1/4: an activation passes back 0.235 of the signal on average. The weights between two activations pass back 0.996: they aren't to blame."
        )
        assert actions(finding) == {
            "replace_activation": (names(info), {"with": "ReLU"}),
            "initialize": (layers(info), {"method": "kaiming_normal_", "bias": 0.0}),
        }

    @pytest.mark.parametrize(
        ("weight", "default"), [(0.577, True), (0.54, False), (0.3, False)], ids=["default", "near it", "smaller"]
    )
    def test_small_weights_against_what_the_function_asks_for(self, runs, weight, default):
        info = runs.stack(depth=11, function="tanh")
        finding = found(runs, info, runs.gains(info, 0.95, weight))
        assert finding.cause.startswith(
            f"The weights are too small for Tanh: between two activations they pass back {weight:g} of the signal on average, where "
            "xavier_normal_ gives 1."
        )
        assert ("PyTorch's default" in finding.cause) is default
        assert finding.cause.endswith("An activation itself passes back 0.95: the function isn't to blame.")
        assert actions(finding) == {"initialize": (layers(info), {"method": "xavier_normal_", "bias": 0.0})}

    def test_small_weights_under_relu_ask_for_more(self, runs):
        info = runs.stack(depth=9, function="relu")
        finding = found(runs, info, runs.gains(info, 1 / ROOT, 0.577))
        assert "where kaiming_normal_ gives 1.41. PyTorch's default" in finding.cause
        assert actions(finding)["initialize"][1]["method"] == "kaiming_normal_"

    def test_both_by_their_shares(self, runs):
        info = runs.stack()
        finding = found(runs, info, runs.gains(info, 0.25, 0.25**0.5))
        assert "is at most 1/4" in finding.cause
        assert "too small for Sigmoid" in finding.cause
        assert finding.cause.endswith("Of the fading, 67 % is the functions' and 33 % the weights'.")
        assert set(actions(finding)) == {"replace_activation", "initialize"}

    def test_large_weights_that_saturate(self, runs):
        info = runs.stack(function="tanh")
        finding = found(runs, info, runs.gains(info, 0.02, 4.0), saturated_fraction=0.9)
        assert finding.cause == (
            "The weights are too large for Tanh: between two activations they pass back 4 of the signal on average, where "
            "xavier_normal_ gives 1, and drive the units to where the function is flat: an activation passes back 0.02."
        )
        assert actions(finding)["initialize"] == (layers(info), {"method": "xavier_normal_", "bias": 0.0})
        assert "replace_activation" not in actions(finding)

    @pytest.mark.parametrize("first", [0.0, 0.9])
    def test_saturation_that_isnt_the_weights(self, runs, first):
        info = runs.stack(function="elu")
        saturated = {"net.1": first} | dict.fromkeys(names(info)[1:], 0.8)
        finding = found(runs, info, runs.gains(info, 0.1, ROOT), saturated_fraction=saturated)
        assert finding.cause.startswith("80 % of the units of the median ELU activation are saturated, where the")
        assert "pass back 1.41: they aren't to blame" in finding.cause
        assert ("normalize_inputs" in actions(finding)) is bool(first)
        assert actions(finding)["initialize"][1] == {"method": "kaiming_normal_", "bias": 0.0}

    def test_dead_units_short_of_a_layer(self, runs):
        info = runs.stack(function="relu")
        finding = found(runs, info, runs.gains(info, 0.1, ROOT), dead_fraction=0.97)
        assert finding.cause.startswith("97 % of the units of the median ReLU activation are dead: an activation")
        assert actions(finding)["replace_activation"] == (names(info), {"with": "LeakyReLU"})

    def test_a_function_that_is_flat_in_the_middle(self, runs):
        info = runs.stack(function="tanhshrink")
        finding = found(runs, info, runs.gains(info, 0.01, 1.3))
        assert finding.cause.startswith(
            "Tanhshrink is nearly flat where its inputs lie: an activation passes back 0.01"
        )
        assert actions(finding)["replace_activation"] == (names(info), {"with": "ReLU"})

    def test_one_function_of_two(self, runs):
        info = runs.stack(depth=8, function="relu")
        sites = tuple(
            dataclasses.replace(site, function="sigmoid") if place % 2 else site
            for place, site in enumerate(info.sites)
        )
        info = dataclasses.replace(info, sites=sites)
        metrics = runs.gains(info, [1 / ROOT, 0.1] * 4, [1.0, ROOT] * 4)
        finding = found(runs, info, metrics)
        blamed = tuple(site.name for site in sites if site.function == "sigmoid")
        assert actions(finding)["replace_activation"] == (blamed, {"with": "ReLU"})
        assert "ReLU," not in finding.cause

    def test_a_dead_layer(self, runs):
        info = runs.stack(function="relu")
        metrics = runs.gains(info, 1 / ROOT, ROOT)
        metrics["signal_norm"][:3] = 0
        metrics["activation_gain"][2] = 0
        finding = found(runs, info, metrics, dead_fraction={"net.5": 1.0} | dict.fromkeys(names(info)[3:], 0.2))
        assert finding.cause.startswith("Dead layer: each unit of ReLU at net.1, net.3, net.5 ")
        finding = found(runs, info, metrics, dead_fraction=[0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
        assert finding.cause.startswith("Dead layer: each unit of ReLU at net.5 ")
        assert actions(finding)["replace_activation"] == (("net.5",), {"with": "LeakyReLU"})

    def test_underflow_by_what_leads_up_to_it(self, runs):
        info = runs.stack(depth=8)
        metrics = runs.gains(info, 1e-10, 1.0)
        for values in metrics.values():
            values[:3] = np.nan
        metrics["signal_norm"][:3] = 0
        finding = found(runs, info, metrics)
        assert "is at most 1/4" in finding.cause or "nearly flat" in finding.cause
        assert "shrinks to 1e-40 at net.7, and before it is below the smallest number of 32-true" in finding.cause
        assert actions(finding)["replace_activation"][0] == names(info)


class TestWithoutGains:
    """Runs of an older release, and compiled nets."""

    @pytest.mark.parametrize(
        ("function", "saturated", "kind", "replaced"),
        [
            ("sigmoid", 0.0, "is at most 1/4: an activation can pass back no more than 0.25 of the signal", "ReLU"),
            ("tanh", 0.8, "80 % of the units of the median Tanh activation are saturated", None),
            ("tanh", 0.0, "most likely the weights are too small: xavier_normal_", None),
            ("relu", np.nan, "most likely the weights are too small: kaiming_normal_", None),
            ("softshrink", 0.0, "Softshrink is nearly flat where its inputs lie.", "ReLU"),
        ],
    )
    def test_the_function_is_a_guess(self, runs, function, saturated, kind, replaced):
        info = runs.stack(function=function)
        finding = found(runs, info, {"signal_norm": runs.fading(info, 1e-4)}, saturated_fraction=saturated)
        assert kind in finding.cause
        assert finding.headline.startswith("The gradient shrinks by a factor of 0.158 per layer: ")
        assert actions(finding).get("replace_activation", (0, {}))[1].get("with") == replaced


class TestDepth:
    @pytest.mark.parametrize("depth", [11, 12])
    def test_from_twelve_sites_on_skip_connections_are_needed(self, runs, depth):
        info = runs.stack(depth=depth)
        finding = found(runs, info, runs.gains(info, 0.2, 1.0))
        assert (actions(finding).get("add_skip_connections") == (names(info), {})) is (depth == 12)

    @pytest.mark.parametrize("gain", [0.236, 0.5, 0.7])
    def test_says_how_deep_the_net_could_be(self, runs, gain):
        """So many sites, and no fewer, have an attenuation below the threshold."""
        info = runs.stack(depth=30)
        message = found(runs, info, runs.gains(info, gain, 1.0)).message
        assert message.startswith(f"The gradient shrinks by a factor of {gain:g} per layer: ")
        sites = int(message.partition("At this factor ")[2].partition(" hidden")[0])
        assert gain ** (sites - 1) < 3e-3 <= gain ** (sites - 2)

    def test_layers_with_a_start_of_their_own_keep_it(self, runs):
        info = runs.stack()
        own = LayerInfo("lstm", "LSTM", ((32, 8), (32, 8)), 512, weight=True)
        info = dataclasses.replace(info, layers=(*info.layers, own))
        finding = found(runs, info, runs.gains(info, 0.2, 1.0))
        assert actions(finding)["initialize"][0] == layers(info)[:-1]


@pytest.mark.parametrize("function", ["sigmoid", "tanh", "relu", "elu", "softshrink"])
@pytest.mark.parametrize("weight", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("gain", [0.01, 0.15])
def test_a_remedy_never_contradicts_itself(runs, function, weight, gain):
    info = runs.stack(depth=14, function=function)
    finding = found(runs, info, runs.gains(info, gain, weight), saturated_fraction=0.4)
    kinds = [action.kind for action in finding.remedy.actions]
    assert len(set(kinds)) == len(kinds)
    given = actions(finding)
    bounded = function == "tanh" and "replace_activation" not in given
    assert given["initialize"][1]["method"] == ("xavier_normal_" if bounded else "kaiming_normal_")
    assert given["add_skip_connections"] == (names(info), {})
    if function == "sigmoid":  # no start makes up for its bound
        assert given["replace_activation"][0] == names(info)


def test_the_plain_threshold_leaves_an_exact_zero_to_gw104(runs):
    info = runs.stack(depth=8)
    rule = VanishingGradient(min_grad_rms=1e-7)
    zero = runs.measure(info, 0, grad_rms=0.0, states=dict.fromkeys(layers(info), LayerState.ZERO))
    fed = runs.feed(rule, [zero], info)
    assert not fed.findings
    assert not fed.evaluator.unjudged
    assert runs.feed(rule, [runs.measure(info, 0, grad_rms=1e-8)], info).only.layers == layers(info)[:3]


def test_the_plain_threshold_recommends_what_the_signal_asks_for(runs):
    info = runs.stack(depth=8)
    record = runs.measure(info, 0, grad_rms=1e-8, **runs.gains(info, 0.2, 1.0))
    finding = runs.feed(VanishingGradient(min_grad_rms=1e-7), [record], info).only
    assert finding.remedy.actions[0] == Action("replace_activation", names(info), (("with", "ReLU"),))


@pytest.mark.parametrize(
    ("function", "scale", "said", "kinds"),
    [
        (nn.Sigmoid, 1.0, "The derivative of Sigmoid", ["replace_activation", "initialize"]),
        (nn.Tanh, 3**-0.5, "The weights are too small for Tanh", ["initialize"]),
    ],
)
def test_real_nets(function, scale, said, kinds):
    depth, width = 11, 64
    net = nn.Sequential(*[layer for _ in range(depth) for layer in (nn.Linear(width, width), function())])
    for layer in net[::2]:
        nn.init.normal_(layer.weight, std=scale * width**-0.5)
        nn.init.zeros_(layer.bias)
    net.append(nn.Linear(width, 10))
    evaluator = Evaluator((VanishingGradient(ratio=0.05, warm_up_steps=0),))
    probe = Probe(net, torch.optim.SGD(net.parameters(), 0.0))
    for step in range(3):
        with probe:
            net.zero_grad()
            nn.functional.cross_entropy(net(torch.randn(64, width)), torch.randint(10, (64,))).backward()
        evaluator.feed(dataclasses.replace(probe.record, step=step), probe.info)
    (finding,) = evaluator.findings
    assert finding.cause.startswith(said)
    assert [action.kind for action in finding.remedy.actions] == kinds
