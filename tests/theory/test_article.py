"""Why gradients vanish, claim by claim, on chains of single neurons: each reading against a product worked out by hand.

The gradient of an early weight is a product of local derivatives, two a layer: of the activation function, ∂a/∂z, and of
the weighted sum, ∂z/∂a, which is the weight. One factor of 0 stops it (case 1), many small ones slow it down (case 2).
"""

import math
import random

import numpy as np
import pytest
import torch
from theory.neurons import ELU, LEAKY_RELU, RELU, SIGMOID, TANH, by_hand, chain, measure_chain
from theory.published import BY_HAND, EXACT, agrees, by_name, measure, percent
from torch import nn

from lightning_gradwatch import LayerState

pytestmark = pytest.mark.judges


def states(probe):
    return [LayerState(state) for state in probe.record.layer_state]


def test_the_gradient_of_three_neurons_is_the_product_of_their_local_derivatives():
    x, (w1, w2, w3), target = 0.7, (0.5, -1.3, 2.1), 0.2
    probe = measure_chain(chain(SIGMOID, (w1, w2, w3)), x=x, target=target)
    a1 = 1 / (1 + math.exp(-w1 * x))
    a2 = 1 / (1 + math.exp(-w2 * a1))
    a3 = 1 / (1 + math.exp(-w3 * a2))
    delta3 = (a3 - target) * a3 * (1 - a3)  # ∂L/∂a³ · ∂a³/∂z³
    delta2 = delta3 * w3 * a2 * (1 - a2)  # · ∂z³/∂a² · ∂a²/∂z²
    delta1 = delta2 * w2 * a1 * (1 - a1)  # · ∂z²/∂a¹ · ∂a¹/∂z¹
    signal = by_name(probe, "signal_norm")
    agrees("three neurons, ∂L/∂z¹", signal["0.act"], abs(delta1), BY_HAND)
    agrees("three neurons, ∂L/∂z²", signal["1.act"], abs(delta2), BY_HAND)
    agrees("three neurons, ∂L/∂z³", signal["2.act"], abs(delta3), BY_HAND)
    slope, weight = by_name(probe, "activation_gain"), by_name(probe, "weight_gain")
    agrees("three neurons, ∂a¹/∂z¹", slope["0.act"], a1 * (1 - a1), BY_HAND)
    agrees("three neurons, ∂z²/∂a¹", weight["1.act"], abs(w2), BY_HAND)
    agrees("three neurons, ∂a²/∂z²", slope["1.act"], a2 * (1 - a2), BY_HAND)
    agrees("three neurons, ∂z³/∂a²", weight["2.act"], abs(w3), BY_HAND)
    agrees("three neurons, ∂a³/∂z³", slope["2.act"], a3 * (1 - a3), BY_HAND)
    gradient = by_name(probe, "grad_norm")
    agrees("three neurons, ∂L/∂w¹ (the whole product)", gradient["0"], abs(delta1 * x), BY_HAND)
    agrees("three neurons, ∂L/∂w²", gradient["1"], abs(delta2 * a1), BY_HAND)
    agrees("three neurons, ∂L/∂w³", gradient["2"], abs(delta3 * a2), BY_HAND)
    ratio = by_name(probe, "update_ratio")
    agrees("three neurons, update ratio of w¹ at a rate of 0.1", ratio["0"], 0.1 * abs(delta1 * x / w1), BY_HAND)
    agrees("three neurons, update ratio of w²", ratio["1"], 0.1 * abs(delta2 * a1 / w2), BY_HAND)
    agrees("three neurons, update ratio of w³", ratio["2"], 0.1 * abs(delta3 * a2 / w3), BY_HAND)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("function", [SIGMOID, TANH, RELU, LEAKY_RELU, ELU], ids=lambda function: function.name)
def test_any_chain_has_the_signal_and_the_gradients_worked_out_by_hand(function, skip):
    chance = random.Random(function.name)
    for neurons in (1, 2, 7, 30):
        weights = [chance.uniform(-2, 2) for _ in range(neurons)]
        biases = [chance.uniform(-0.5, 1) for _ in range(neurons)]
        point = {"x": chance.uniform(-1, 1), "target": 0.3}
        probe = measure_chain(chain(function, weights, biases, skip=skip), **point)
        expected = by_hand(function, weights, biases, **point, skip=skip)
        metrics = probe.record.metrics
        # 1 - tanh² of a large z keeps few digits, in torch as in Python.
        np.testing.assert_allclose(metrics["signal_norm"], np.abs(expected.delta), rtol=1e-8, atol=0)
        np.testing.assert_allclose(metrics["grad_norm"], np.abs(expected.gradient), rtol=1e-8, atol=0)
        slopes = [
            function.slope(z) if upstream else np.nan for z, upstream in zip(expected.z, expected.upstream, strict=True)
        ]
        np.testing.assert_allclose(metrics["activation_gain"], slopes, rtol=1e-8, atol=0)
        if not skip:
            passed = [np.nan, *(abs(w) if d else np.nan for w, d in zip(weights[1:], expected.delta[1:], strict=True))]
            np.testing.assert_allclose(metrics["weight_gain"], passed, rtol=1e-8, atol=0)
        assert states(probe) == [LayerState.OK if gradient else LayerState.ZERO for gradient in expected.gradient]


class TestCase1:
    """A derivative of exactly 0: the weights before it, and here it too, stand still."""

    weights = (1.0, -1.0, 1.0)
    x = torch.linspace(-0.7, 0.3, 1024, dtype=torch.float64)[:, None]

    def step(self, function):
        model = chain(function, self.weights)
        return model, measure(model, self.x, lambda y: (y - 1).square().mean())

    def test_a_weight_whose_gradient_is_exactly_zero_does_not_move(self):
        model, probe = self.step(RELU)
        assert states(probe) == [LayerState.ZERO] * 3
        agrees("case 1, update ratio of w¹", by_name(probe, "update_ratio")["0"], 0.0, EXACT)
        agrees("case 1, ‖∂L/∂w¹‖", by_name(probe, "grad_norm")["0"], 0.0, EXACT)
        agrees("case 1, ‖∂L/∂z¹‖", by_name(probe, "signal_norm")["0.act"], 0.0, EXACT)
        assert model[0].weight.item() == 1.0

    def test_the_unit_that_stopped_it_is_dead_and_no_other_before_it(self):
        _, probe = self.step(RELU)
        dead, inactive = by_name(probe, "dead_fraction"), by_name(probe, "inactive_share")
        agrees("case 1, share of inputs with z¹ <= 0", inactive["0.act"], (self.x <= 0).double().mean().item(), EXACT)
        agrees("case 1, dead fraction there", dead["0.act"], 0.0, EXACT)
        agrees("case 1, share of inputs with z² <= 0", inactive["1.act"], 1.0, EXACT)
        agrees("case 1, dead fraction there", dead["1.act"], 1.0, EXACT)

    @pytest.mark.parametrize("function", [LEAKY_RELU, ELU], ids=lambda function: function.name)
    def test_leaky_relu_and_elu_mend_it(self, function):
        model, probe = self.step(function)
        assert states(probe) == [LayerState.OK] * 3
        for metric in ("dead_fraction", "inactive_share"):
            agrees(f"case 1 with {function.name}, {metric}", by_name(probe, metric)["1.act"], 0.0, EXACT)
        assert by_name(probe, "update_ratio")["0"] > 1e-6
        assert model[0].weight.item() != 1.0

    @pytest.mark.parametrize(("function", "slope"), [(LEAKY_RELU, 0.01), (ELU, math.exp(-0.5))])
    def test_and_let_through_what_their_slope_below_zero_says(self, function, slope):
        probe = measure_chain(chain(function, (1.0, -1.0, 1.0), (0.0, 0.0, 2.0)), x=0.5, target=0.0)
        signal = by_name(probe, "signal_norm")
        agrees(f"{function.name} at z = -0.5, ∂a/∂z", signal["1.act"] / signal["2.act"], slope, BY_HAND)
        agrees(f"{function.name} at z = -0.5, the signal before it", signal["0.act"] / signal["2.act"], slope, BY_HAND)


class TestCase2:
    """Derivatives near 0: weights that move, and much too slowly."""

    def test_the_update_ratio_is_that_of_the_delta_rule(self):
        weights, point = (2.0, 6.0, 6.0), {"x": 1.0, "target": 0.5}
        probe = measure_chain(chain(SIGMOID, weights), **point, learning_rate=0.1)
        expected = by_hand(SIGMOID, weights, **point)
        ratio = 0.1 * abs(expected.gradient[0]) / weights[0]
        assert 1e-8 < ratio < 1e-4
        assert states(probe) == [LayerState.OK] * 3
        agrees(
            "case 2, update ratio of w¹ = η · ∂L/∂w¹ / w¹", by_name(probe, "update_ratio")["0"], ratio, percent(1e-4)
        )

    def test_thirty_steps_of_it_get_nowhere(self):
        model, point = chain(SIGMOID, (10.0, 20.0, 20.0)), {"x": 1.0, "target": 0.5}
        losses = [measure_chain(model, **point).record.loss for _ in range(30)]
        agrees("case 2, loss after 30 steps over that at the start", losses[-1] / losses[0], 1.0, percent(1e-4))

    def test_a_step_below_the_weights_own_precision_is_measured_as_the_zero_it_is(self):
        """The gradient is there and the weight stands still all the same: no case 1, and the state tells them apart."""
        probe = measure_chain(chain(SIGMOID, (10.0, 20.0, 20.0)), x=1.0, target=0.5)
        assert states(probe) == [LayerState.OK] * 3
        assert 0 < by_name(probe, "grad_norm")["0"] < 1e-15
        assert by_name(probe, "update_ratio")["0"] == 0.0


def test_fifty_sigmoids_let_a_quarter_each_through_at_best():
    """At z = 0 everywhere the bound is met: powers of two, so to the last bit."""
    probe = measure_chain(chain(SIGMOID, [1.0] * 50, [0.0] + [-0.5] * 49), x=0.0, target=0.0)
    signal = probe.record.metrics["signal_norm"]
    agrees("K = 50, z = 0: ∂L/∂z¹ over ∂L/∂z⁵⁰ = 1/4^49", signal[0] / signal[-1], 0.25**49, EXACT)


def test_no_sigmoid_lets_more_than_a_quarter_through():
    chance = random.Random(0)
    weights = [chance.uniform(-1, 1) for _ in range(50)]
    biases = [chance.gauss(0, 3) for _ in range(50)]
    signal = measure_chain(chain(SIGMOID, weights, biases), x=0.4, target=0.0).record.metrics["signal_norm"]
    assert (signal[:-1] <= 0.25 * np.abs(weights[1:]) * signal[1:] * (1 + 1e-12)).all()
    assert 0 < signal[0] < 0.25**49 * signal[-1]


def test_a_layer_of_sigmoids_beyond_4_on_either_side_is_saturated_and_lets_almost_nothing_through():
    z = np.arange(-80, 81) / 10
    signal, _, saturated = units_at(z, nn.Sigmoid())
    agrees("sigmoid, units with |z| > 4", saturated, np.mean(np.abs(z) > 4), EXACT)
    agrees("sigmoid, |z| up to 8, ‖∂L/∂z‖", signal, np.linalg.norm(0.25 / np.cosh(z / 2) ** 2), BY_HAND)
    signal, _, saturated = units_at([-4.0, 4.0], nn.Sigmoid())
    assert saturated == 0
    agrees("sigmoid at |z| = 4, share of the slope at 0", signal / (0.25 * math.sqrt(2)), 0.0706508, percent(1e-4))


def test_relu_is_flat_where_z_is_negative_and_leaky_relu_and_elu_are_not():
    z = np.arange(-60, 61) / 10
    signal, dead, _ = units_at(z, nn.ReLU())
    agrees("relu, dead fraction at z in [-6, 6]", dead, np.mean(z <= 0), EXACT)
    agrees("relu, ‖∂L/∂z‖", signal, math.sqrt(np.sum(z > 0)), BY_HAND)
    signal, dead, _ = units_at(z, nn.LeakyReLU())
    agrees("leaky_relu, dead fraction", dead, 0.0, EXACT)
    agrees("leaky_relu, ‖∂L/∂z‖", signal, np.linalg.norm(np.where(z > 0, 1, 0.01)), BY_HAND)
    signal, dead, saturated = units_at(z, nn.ELU())
    agrees("elu, dead fraction", dead, 0.0, EXACT)
    agrees("elu, units where exp(z) < sech²(2)", saturated, np.mean(np.exp(z) < 1 / np.cosh(2) ** 2), EXACT)
    agrees("elu, ‖∂L/∂z‖", signal, np.linalg.norm(np.exp(np.minimum(z, 0))), BY_HAND)


def units_at(z, activation):
    """Return signal norm, dead and saturated fraction of units that stand at z, with dL/da of 1 each in a batch of 1."""
    layer = nn.Linear(1, len(z), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor(z))
    one = torch.ones(1, 1, dtype=torch.float64)
    probe = measure(nn.Sequential(layer, activation), one, torch.sum, observations=1, batch_elements=1)
    metrics = ("signal_norm", "dead_fraction", "saturated_fraction")
    return [probe.record.metrics[metric].item() for metric in metrics]


@pytest.mark.parametrize(
    ("what", "weight"), [("weights too small", 0.5), ("weights just right", 1.0), ("weights too large", 2.0)]
)
def test_weights_alone_make_the_signal_vanish_or_explode_where_the_activation_passes_it_unchanged(what, weight):
    """Through ∂z/∂a: ReLU's slope is 1 here, so that all that is left is the product of the weights."""
    metrics = measure_chain(chain(RELU, [weight] * 50), x=1.0, target=-1.0).record.metrics
    signal = metrics["signal_norm"]
    agrees(f"{what} ({weight:g}), K = 50, ∂L/∂z¹ over ∂L/∂z⁵⁰", signal[0] / signal[-1], weight**49, EXACT)
    assert (metrics["activation_gain"] == 1.0).all()
    assert (metrics["weight_gain"][1:] == weight).all()


def test_skip_connections_carry_the_signal_past_fifty_sigmoids():
    """At z = 0 everywhere, each block's factor is 1 + 1/4 in place of 1/4."""
    plain = measure_chain(chain(SIGMOID, [1.0] * 50, [0.0] + [-0.5] * 49), x=0.0, target=1.0)
    skips = measure_chain(chain(SIGMOID, [1.0] * 50, [-0.5 * k for k in range(50)], skip=True), x=0.0, target=1.0)
    for what, probe, published in (("without skips", plain, 0.25**49), ("with skips", skips, 1.25**49)):
        signal = probe.record.metrics["signal_norm"]
        agrees(f"{what}, K = 50, z = 0: ∂L/∂z¹ over ∂L/∂z⁵⁰", signal[0] / signal[-1], published, BY_HAND)
        assert (probe.record.metrics["activation_gain"] == 0.25).all()
