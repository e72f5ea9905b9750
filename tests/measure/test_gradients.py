"""Gradients of layers: their norms, and their state as their entries decide it."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch.measure.probe import Probe
from lightning_gradwatch.record.step import LayerState


class Given(nn.Module):
    """Two layers whose gradients are given tensors."""

    def __init__(self, *gradients):
        super().__init__()
        self.lin = nn.Linear(3, 2).to(gradients[0].dtype)
        self.other = nn.Linear(2, 2)
        self.gradients = gradients

    def forward(self, x):
        loss = self.other(x).sum()
        for parameter, gradient in zip(self.lin.parameters(), self.gradients, strict=False):
            loss = loss + (parameter * gradient).sum()
        return loss


def lin_of(measure, *gradients, **options):
    result = measure(Given(*gradients), torch.ones(1, 2), loss=lambda y: y, **options)
    assert result.layers["other"].state is LayerState.OK
    return result.layers["lin"]


@pytest.mark.parametrize(
    ("dtype", "entry"),
    [(torch.float32, 1.4e-45), (torch.float32, 1e-30), (torch.float64, 1e-45), (torch.float64, 1e-200), (torch.float64, 5e-324), (torch.bfloat16, 1e-40)],
)  # fmt: skip
def test_a_single_entry_that_is_not_zero_makes_the_state_ok(measure, dtype, entry):
    weight = torch.zeros(2, 3, dtype=dtype)
    assert lin_of(measure, weight, weight[:, 0]).state is LayerState.ZERO
    weight[1, 2] = entry
    assert weight[1, 2] != 0
    layer = lin_of(measure, weight, torch.zeros(2, dtype=dtype))
    assert layer.state is LayerState.OK
    if entry >= 1e-45:
        assert layer.grad_norm == pytest.approx(weight[1, 2].item(), rel=1e-6)
        assert layer.grad_rms == pytest.approx(weight[1, 2].item() / math.sqrt(6), rel=1e-6)


def test_entries_that_are_zero_have_a_norm_of_zero_not_none(measure):
    layer = lin_of(measure, torch.zeros(2, 3), torch.zeros(2))
    assert (layer.grad_norm, layer.grad_rms, layer.state) == (0.0, 0.0, LayerState.ZERO)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_one_entry_that_is_not_finite_makes_the_state_non_finite(measure, value, place):
    gradients = [torch.ones(2, 3), torch.ones(2)]
    gradients[place].view(-1)[-1] = value
    assert lin_of(measure, *gradients).state is LayerState.NON_FINITE


def test_large_entries_are_finite(measure):
    layer = lin_of(measure, torch.full((2, 3), 3e38), torch.zeros(2))
    assert layer.state is LayerState.OK
    assert layer.grad_norm == pytest.approx(3e38 * math.sqrt(6), rel=1e-6)


def test_grad_norm_is_of_all_parameters_and_grad_rms_of_matrices_only(measure):
    layer = lin_of(measure, torch.full((2, 3), 2.0), torch.full((2,), 10.0))
    assert layer.grad_norm == pytest.approx(math.sqrt(6 * 4 + 2 * 100))
    assert layer.grad_rms == pytest.approx(2.0)


def test_a_parameter_without_a_gradient_is_left_out_and_none_is_none(measure):
    layer = lin_of(measure, torch.full((2, 3), 2.0))
    assert (layer.state, layer.grad_rms) == (LayerState.OK, pytest.approx(2.0))
    assert layer.grad_norm == pytest.approx(math.sqrt(24))
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    result = measure(model, torch.ones(1, 3), loss=lambda y: y.detach().sum().requires_grad_())
    for layer in result.layers.values():
        assert layer.state is LayerState.NONE
        assert math.isnan(layer.grad_norm)
        assert math.isnan(layer.grad_rms)


def test_a_layer_without_matrices_has_no_grad_rms(measure):
    layer = measure(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.randn(5, 3)).layers["1"]
    assert math.isnan(layer.grad_rms)
    assert layer.grad_norm > 0


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_numbers_are_those_of_numpy(measure, scale):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 200), nn.Tanh(), nn.Linear(200, 4)
    )
    kept = {}
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: kept.__setitem__(name, gradient.double().numpy().copy()))
    result = measure(model, torch.randn(5, 3, 8, 8), loss=lambda y: (y * scale).sum())
    assert len(kept) == 6
    for name, layer in result.layers.items():
        both = np.concatenate([kept[f"{name}.weight"].ravel(), kept[f"{name}.bias"]])
        assert layer.grad_norm == pytest.approx(np.linalg.norm(both), rel=1e-6)
        assert layer.grad_rms == pytest.approx(np.sqrt(np.mean(kept[f"{name}.weight"] ** 2)), rel=1e-6)
    everything = np.concatenate([gradient.ravel() for gradient in kept.values()])
    assert result.record.global_grad_norm == pytest.approx(np.linalg.norm(everything), rel=1e-6)


def test_sparse_and_complex_gradients_are_measured(measure):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(1000, 4, sparse=True)
            self.wave = nn.Parameter(torch.ones(4, 4, dtype=torch.complex64))

        def forward(self, tokens):
            return (self.embedding(tokens).to(torch.complex64) @ self.wave).abs().square().sum()

    model, kept = Odd(), {}
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: kept.__setitem__(name, p.grad.to_dense().clone())
        )
    result = measure(model, torch.tensor([3, 3, 7]), loss=lambda y: y)
    for name, layer in (("embedding.weight", "embedding"), ("wave", "wave")):
        assert result.layers[layer].grad_norm == pytest.approx(kept[name].norm().item(), rel=1e-6)
        assert result.layers[layer].state is LayerState.OK


def test_a_sparse_gradient_of_zeros_is_zero(measure):
    model = nn.Embedding(10, 2, sparse=True)
    result = measure(model, torch.tensor([1, 1]), loss=lambda y: (y * torch.tensor([[1.0], [-1.0]])).sum())
    (layer,) = result.layers.values()
    assert (layer.state, layer.grad_norm) == (LayerState.ZERO, 0.0)


def two_optimizers():
    model = nn.ModuleDict(
        {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3), "held by none": nn.Linear(3, 1)}
    )
    optimizers = [
        torch.optim.SGD([*model["a"].parameters(), model["b"].weight], lr=0.1),
        torch.optim.SGD([model["b"].bias, *model["c"].parameters()], lr=0.2),
    ]
    return model, optimizers


def test_only_the_parameters_of_optimizers_that_stepped_are_measured(result_of):
    model, optimizers = two_optimizers()
    probe = Probe(model, optimizers)
    x = torch.randn(4, 3)
    with probe:
        for layer in model.values():
            x = layer(x)
        x.sum().backward()
        optimizers[0].step()
    layers = result_of(probe).layers
    assert [layer.state for layer in layers.values()] == [
        LayerState.OK,
        LayerState.OK,
        LayerState.UNMEASURED,
        LayerState.UNMEASURED,
    ]
    assert layers["b"].grad_norm == pytest.approx(model["b"].weight.grad.norm().item(), rel=1e-6)
    assert math.isnan(layers["c"].grad_norm)
    assert probe.record.optimizers == (0,)
    assert probe.record.learning_rates[0] == 0.1
    assert math.isnan(probe.record.learning_rates[1])
    assert [entry.name for entry in probe.info.coverage] == ["held by none"]


def test_several_optimizers_are_merged_by_layer(result_of):
    model, optimizers = two_optimizers()
    probe = Probe(model, optimizers)
    x = torch.randn(4, 3)
    with probe:
        for layer in model.values():
            x = layer(x)
        x.sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    layers = result_of(probe).layers
    expected = math.hypot(model["b"].weight.grad.norm().item(), model["b"].bias.grad.norm().item())
    assert layers["b"].grad_norm == pytest.approx(expected, rel=1e-6)
    assert layers["c"].state is LayerState.OK
    assert probe.record.optimizers == (0, 1)
    assert probe.record.learning_rates == (0.1, 0.2)


def test_the_gradient_is_the_one_that_was_accumulated_over_micro_batches(result_of):
    model = nn.Sequential(nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = torch.randn(4, 5, 3)
    with Probe(model, optimizer) as probe:
        for batch in batches:
            (model(batch).square().mean() / 4).backward()
        optimizer.step()
    (layer,) = result_of(probe).layers.values()
    expected = math.hypot(model[0].weight.grad.norm().item(), model[0].bias.grad.norm().item())
    assert layer.grad_norm == pytest.approx(expected, rel=1e-6)
