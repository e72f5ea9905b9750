"""The signal's factor a layer at initialisation, against mean-field theory: what He, Glorot, Schoenholz and Yang derived."""

import math

import numpy as np
import pytest
from theory.published import agrees, gain_a_layer, he, percent, stack, xavier
from torch import nn

pytestmark = pytest.mark.judges

TANH = (np.tanh, lambda z: 1 - np.tanh(z) ** 2)
SIGMOID = (lambda z: 1 / (1 + np.exp(-z)), lambda z: 0.25 / np.cosh(z / 2) ** 2)


def mean_field(function, slope, weight_variance, bias_variance=0.0):
    """Return the variance of z deep in a wide net, and the factor a layer of the signal there.

    Weights have variance V / n, biases B. The fixed point of q = V E[f(√q x)²] + B, and there the square root of
    χ1 = V E[f'(√q x)²]; x is standard normal (Poole et al. 2016; Schoenholz et al. 2017, eq. 3 and 6).
    """
    x, weights = np.polynomial.hermite_e.hermegauss(101)
    weights = weights / weights.sum()
    q = 1.0
    for _ in range(2000):
        q = weight_variance * (weights @ function(math.sqrt(q) * x) ** 2) + bias_variance
    return q, math.sqrt(weight_variance * (weights @ slope(math.sqrt(q) * x) ** 2))


def linear():
    return nn.LeakyReLU(1.0)


@pytest.mark.parametrize(
    ("what", "activation", "initialize", "input_std", "gain"),
    [
        ("linear, torch's weights", linear, None, 1.0, 0.5774),
        ("tanh near 0, torch's weights", nn.Tanh, None, 1e-3, 0.5774),
        ("tanh near 0, N(0, 0.01²)", nn.Tanh, lambda layer: nn.init.normal_(layer.weight, std=0.01), 1.0, 0.16),
        ("relu, torch's weights", nn.ReLU, None, 1.0, 0.4082),
        ("relu, xavier", nn.ReLU, xavier, 1.0, 0.7071),
        ("relu, he", nn.ReLU, he, 1.0, 1.0),
        (
            "relu, 1.5 x he",
            nn.ReLU,
            lambda layer: nn.init.normal_(layer.weight, std=1.5 * math.sqrt(2 / 256)),
            1.0,
            1.5,
        ),
        ("sigmoid, torch's weights", nn.Sigmoid, None, 1.0, 0.1414),
        ("sigmoid, xavier", nn.Sigmoid, xavier, 1.0, 0.2360),
    ],
)
def test_a_layer_passes_back_what_its_weights_and_its_slope_make_of_the_signal(
    what, activation, initialize, input_std, gain
):
    reading = gain_a_layer(lambda: stack(activation, initialize), input_std=input_std)
    agrees(f"{what}, gain a layer", reading, gain, percent(2))


def test_the_published_gains_are_those_that_the_theory_gives():
    """Torch fills a Linear's weights from U(-1/√n, 1/√n): n · Var W = 1/3; Xavier is 1, He 2, and ReLU halves."""
    agrees("theory: linear, torch's weights", math.sqrt(1 / 3), 0.5774, percent(0.02))
    agrees("theory: relu, torch's weights", math.sqrt(1 / 3 / 2), 0.4082, percent(0.02))
    agrees("theory: sigmoid, torch's weights", mean_field(*SIGMOID, 1 / 3)[1], 0.1414, percent(0.05))
    agrees("theory: sigmoid, xavier", mean_field(*SIGMOID, 1)[1], 0.2360, percent(0.05))


def test_a_narrow_he_net_keeps_its_signal_to_five_percent():
    agrees("relu, he, width 64, gain a layer", gain_a_layer(lambda: stack(nn.ReLU, he, width=64)), 1.0, percent(5))


@pytest.mark.parametrize(
    ("weight_variance", "gain"),
    [(1, 0.8712), (1.3, 0.9382), (1.5, 0.9688), (1.7, 0.9933), (1.76, 1.0), (2, 1.0236), (2.5, 1.0647), (3, 1.0995), (4, 1.1586)],
)  # fmt: skip
def test_tanh_nets_go_from_order_to_chaos_where_mean_field_theory_says(weight_variance, gain):
    """Schoenholz et al. 2017: with a bias variance of 0.05, vanishing below a weight variance of 1.76 / n, exploding above."""
    bias_variance = 0.05
    variance, theory = mean_field(*TANH, weight_variance, bias_variance)
    assert theory == pytest.approx(gain, rel=2e-4)

    def initialize(layer):
        nn.init.normal_(layer.weight, std=math.sqrt(weight_variance / layer.in_features))
        nn.init.normal_(layer.bias, std=math.sqrt(bias_variance))

    reading = gain_a_layer(
        lambda: stack(nn.Tanh, initialize, width=300, depth=24, bias=True),
        input_std=math.sqrt((variance - bias_variance) / weight_variance),  # so that z starts at its fixed point
    )
    agrees(f"tanh, weight variance {weight_variance:g} / n, √χ1", reading, gain, percent(2))
    if weight_variance == 1:
        agrees("tanh, weight variance 1 / n, depth scale ξ", -1 / math.log(reading**2), 3.63, percent(5))


def batch_norm_gain(batch):
    """Return the factor a layer of BatchNorm and ReLU at initialisation, for a wide net (Yang et al. 2019).

    A batch's normalised z lies evenly on the sphere of radius √B orthogonal to (1, …, 1). From that the operator that
    takes the covariance of δ over the batch one layer back has, on this subspace, the eigenvalue λ given here;
    E[1 / ‖h‖²] of the Gaussian h under the norm is where B - 3 comes from. λ → π / (π - 1).
    """
    c = -1 / (batch - 1)
    both = (math.pi - math.acos(c)) / (2 * math.pi)  # P(z_i > 0, z_j > 0)
    product = (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / (2 * math.pi)  # E[relu(z_i) relu(z_j)]
    pairs = (batch - 1) * (both + product)
    passed = batch / 2 - 1 - (batch / 2 - 1 - pairs) / batch
    return math.sqrt(passed * 2 * batch / ((batch - 1) * (batch - 3) * (1 - 2 * product)))


@pytest.mark.parametrize(("batch", "gain"), [(32, 1.2337), (128, 1.2164), (512, 1.2125)])
def test_batch_norm_makes_the_signal_of_a_relu_net_grow_towards_its_input(batch, gain):
    assert batch_norm_gain(batch) == pytest.approx(gain, rel=1e-4)
    reading = gain_a_layer(lambda: stack(nn.ReLU, he, norm=nn.BatchNorm1d), batch=batch)
    agrees(f"relu + BatchNorm, batch {batch}, gain a layer", reading, gain, percent(1.5))


def test_batch_norms_gain_tends_to_its_published_limit():
    agrees(
        "theory: relu + BatchNorm, large batch",
        batch_norm_gain(10**6),
        math.sqrt(math.pi / (math.pi - 1)),
        percent(0.01),
    )
