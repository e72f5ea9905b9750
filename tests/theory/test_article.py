"""The article's claims, measured: case 1 (exactly zero) told from case 2 (near zero), and the factor of 1/4 a layer."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch.probe import Probe
from lightning_gradwatch.record import LayerState

WIDTH = 64


def sigmoid_net(depth, init=None):
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(depth)]
    for layer in layers:
        if init is not None:
            init(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*(module for layer in layers for module in (layer, nn.Sigmoid())), nn.Linear(WIDTH, 10))


def measure(model, x, loss):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Probe(model, optimizer) as probe:
        loss(model(x)).backward()
        optimizer.step()
    return probe


@pytest.mark.parametrize("depth", [24, 40, 48, 50, 51, 52, 60])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_sigmoid_net_is_said_to_be_at_zero_only_where_every_entry_is(depth, seed):
    torch.manual_seed(seed)
    model = sigmoid_net(depth)
    targets = torch.randint(0, 10, (32,))
    probe = measure(model, torch.randn(32, WIDTH), lambda y: nn.functional.cross_entropy(y, targets))
    modules = dict(model.named_modules())
    zeros = 0
    for column, layer in enumerate(probe.info.layers):
        module = modules[layer.name]
        entries = np.concatenate([p.grad.double().numpy().ravel() for p in (module.weight, module.bias)])
        norm, state = probe.record.metrics["grad_norm"][column], probe.record.layer_state[column]
        # One by one, and in float64: squares of 1e-43 are there.
        assert (state == LayerState.ZERO) == all(entry == 0.0 for entry in entries.tolist())
        assert (norm > 0) == bool(np.any(entries != 0.0))
        assert norm == pytest.approx(
            math.sqrt(math.fsum(entry * entry for entry in entries.tolist())), rel=1e-6, abs=0.0
        )
        assert state in (LayerState.OK, LayerState.ZERO)
        zeros += state == LayerState.ZERO
    assert zeros == 0 if depth <= 48 else zeros < depth
    assert zeros > 0 if depth == 60 else True


def test_the_first_layer_of_50_has_a_gradient_near_1e_43_that_is_not_zero():
    """Where a float32 norm reads 0.0 (the article's case 1), case 2 is true."""
    torch.manual_seed(0)
    model = sigmoid_net(48)
    targets = torch.randint(0, 10, (32,))
    probe = measure(model, torch.randn(32, WIDTH), lambda y: nn.functional.cross_entropy(y, targets))
    first = probe.record.metrics["grad_norm"][0]
    assert 1e-45 < first < 1e-38
    assert model[0].weight.grad.norm() == 0.0
    assert probe.record.layer_state[0] == LayerState.OK


class Chain(nn.Module):
    """Three neurons, one after another."""

    def __init__(self, act, weights):
        super().__init__()
        self.w1, self.w2, self.w3 = (nn.Parameter(torch.tensor([[weight]], dtype=torch.float64)) for weight in weights)
        self.act = act

    def forward(self, x):
        a1 = self.act(x @ self.w1)
        a2 = self.act(a1 @ self.w2)
        return self.act(a2 @ self.w3)


def test_the_gradient_of_three_neurons_is_the_product_of_their_local_derivatives():
    x, w, target = 0.7, (0.5, -1.3, 2.1), 0.2
    probe = measure(
        Chain(torch.sigmoid, w), torch.tensor([[x]], dtype=torch.float64), lambda y: 0.5 * (y - target).square().sum()
    )

    def sigmoid(z):
        return 1 / (1 + math.exp(-z))

    a1 = sigmoid(w[0] * x)
    a2 = sigmoid(w[1] * a1)
    a3 = sigmoid(w[2] * a2)
    delta3 = (a3 - target) * a3 * (1 - a3)
    delta2 = delta3 * w[2] * a2 * (1 - a2)
    delta1 = delta2 * w[1] * a1 * (1 - a1)
    metrics = probe.record.metrics
    assert [layer.name for layer in probe.info.layers] == ["w1", "w2", "w3"]
    np.testing.assert_allclose(metrics["signal_norm"], np.abs([delta1, delta2, delta3]), rtol=1e-12)
    np.testing.assert_allclose(metrics["grad_norm"], np.abs([delta1 * x, delta2 * a1, delta3 * a2]), rtol=1e-12)
    np.testing.assert_allclose(metrics["update_ratio"], 0.1 * metrics["grad_norm"] / np.abs(w), rtol=1e-9)


def test_case_1_one_derivative_of_exactly_zero_stops_the_weights_before_it():
    """A dead ReLU in the middle: dL/dw1 is a product with a factor of 0, and w1 doesn't move."""
    model = Chain(torch.relu, (1.0, -1.0, 1.0))
    probe = measure(model, torch.ones(1, 1, dtype=torch.float64), lambda y: (y - 1).square().sum())
    assert [LayerState(state) for state in probe.record.layer_state] == [LayerState.ZERO] * 3
    assert probe.record.metrics["update_ratio"].tolist() == [0.0, 0.0, 0.0]
    assert model.w1.item() == 1.0


def test_case_2_derivatives_near_zero_slow_the_weights_down_but_are_not_zero():
    model = Chain(torch.sigmoid, (10.0, 20.0, 20.0))
    probe = measure(model, torch.ones(1, 1, dtype=torch.float64), lambda y: (y - 0.5).square().sum())
    assert [LayerState(state) for state in probe.record.layer_state] == [LayerState.OK] * 3
    assert 0 < probe.record.metrics["grad_norm"][0] < 1e-15


def gains_of(act, init, *, width, depth, seeds, bias=False):
    """Return the signal's factor a layer: the geometric mean over seeds, the ends left out (the protocol of section 3)."""
    slopes = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        layers = [nn.Linear(width, width, bias=bias) for _ in range(depth)]
        for layer in layers:
            if init is not None:
                init(layer.weight)
        model = nn.Sequential(*(module for layer in layers for module in (layer, act())))
        upstream = torch.randn(16, width)
        probe = measure(model, torch.randn(16, width), lambda y, upstream=upstream: (y * upstream).sum())
        logs = np.log(probe.record.metrics["signal_norm"])[3:-2]
        slopes.append(-np.polyfit(np.arange(len(logs)), logs, 1)[0])
    return math.exp(float(np.mean(slopes)))


def test_a_sigmoid_layer_with_xavier_weights_lets_less_than_a_quarter_through():
    gain = gains_of(nn.Sigmoid, nn.init.xavier_normal_, width=256, depth=12, seeds=3)
    assert gain == pytest.approx(0.2360, rel=0.02)
    assert gain <= 0.25


def test_a_sigmoid_layer_with_torchs_own_weights_lets_a_seventh_through():
    assert gains_of(nn.Sigmoid, None, width=256, depth=12, seeds=3) == pytest.approx(0.1414, rel=0.02)


def he(weight):
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


@pytest.mark.parametrize(
    ("init", "gain"), [(he, 1.0), (nn.init.xavier_normal_, math.sqrt(0.5)), (None, 1 / math.sqrt(6))]
)
def test_a_relu_layer_keeps_what_its_weights_make_up_for(init, gain):
    assert gains_of(nn.ReLU, init, width=256, depth=12, seeds=3) == pytest.approx(gain, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "init", "gain"),
    [
        (nn.Sigmoid, nn.init.xavier_normal_, 0.2360),
        (nn.Sigmoid, None, 0.1414),
        (nn.ReLU, he, 1.0),
        (nn.ReLU, nn.init.xavier_normal_, 0.7071),
        (nn.ReLU, None, 0.4082),
    ],
)
def test_gains_are_those_of_the_theory_to_two_percent(act, init, gain):
    assert gains_of(act, init, width=384, depth=20, seeds=6) == pytest.approx(gain, rel=0.02)


def test_the_signal_of_50_xavier_sigmoid_layers_never_grows_and_falls_below_a_quarter_to_the_power_of_layers():
    torch.manual_seed(0)
    probe = measure(sigmoid_net(50, nn.init.xavier_normal_), torch.randn(64, WIDTH), lambda y: y.square().sum())
    signal = probe.record.metrics["signal_norm"]
    ratios = signal[:-1] / signal[1:]
    assert (ratios < 0.3).all()
    assert signal[0] / signal[-1] == pytest.approx(0.236**49, rel=3)
    assert all(site.role == "hidden" for site in probe.info.sites)
