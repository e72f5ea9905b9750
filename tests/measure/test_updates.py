"""The update ratio: rms(after - before) / rms(before), measured, whatever the optimizer."""

import math

import numpy as np
import pytest
import torch
from measure.by_hand import rms
from torch import nn

from lightning_gradwatch.measure.model.layers import Layers
from lightning_gradwatch.measure.probe import Probe
from lightning_gradwatch.measure.transfer.host import HostTransfer
from lightning_gradwatch.measure.updates import Limits, Snapshots

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "fused Adam": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
    "AdamW of one at a time": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=False),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}


def weights_of(model):
    return {name: parameter.detach().double().numpy().copy() for name, parameter in model.named_parameters()}


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 1))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_ratio_is_what_the_weights_did(name, result_of):
    model = make_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    probe = Probe(model, optimizer)
    for _ in range(3):
        before = weights_of(model)
        optimizer.zero_grad()
        with probe:
            model(torch.randn(9, 6)).square().mean().backward()
            optimizer.step()
        after = weights_of(model)
        layers = result_of(probe).layers
        for layer in ("0", "2", "4"):
            old, new = before[f"{layer}.weight"], after[f"{layer}.weight"]
            assert layers[layer].weight_rms == pytest.approx(rms(old), rel=1e-6)
            assert layers[layer].update_ratio == pytest.approx(rms(new - old) / rms(old), rel=1e-5)
            assert layers[layer].update_ratio > 0
        assert math.isnan(layers["3"].update_ratio)  # a norm has no matrix
        assert math.isnan(layers["3"].weight_rms)


def test_an_optimizer_that_calls_a_closure_is_measured_over_its_whole_step(result_of):
    model = make_model()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    x, calls = torch.randn(9, 6), []

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        calls.append(math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters())))
        return loss

    before = weights_of(model)
    with Probe(model, optimizer) as probe:
        optimizer.step(closure)
    after = weights_of(model)
    result = result_of(probe)
    assert len(calls) > 1
    for layer in ("0", "2", "4"):
        old, new = before[f"{layer}.weight"], after[f"{layer}.weight"]
        assert result.layers[layer].update_ratio == pytest.approx(rms(new - old) / rms(old), rel=1e-5)
    # Gradients, activations and the loss are those where the step began: of the closure's first call.
    assert result.record.global_grad_norm == pytest.approx(calls[0], rel=1e-5)
    assert list(result.sites) == ["1"]
    assert result.record.window_fill[0] == 9 / 256
    assert result.record.loss > 0


def test_bfloat16_weights_are_compared_without_more_rounding(result_of):
    model = nn.Linear(64, 8, bias=False).to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = weights_of(model)["weight"]
    with Probe(model, optimizer) as probe:
        (model.weight * 0.01).sum().backward()
        optimizer.step()
    after = weights_of(model)["weight"]
    (layer,) = result_of(probe).layers.values()
    assert layer.update_ratio == pytest.approx(rms(after - before) / rms(before), rel=1e-6)
    assert layer.weight_rms == pytest.approx(rms(before), rel=1e-6)


def test_weights_of_zero_have_no_ratio(measure):
    model = nn.Sequential(nn.Linear(3, 2))
    nn.init.zeros_(model[0].weight)
    (layer,) = measure(model, torch.ones(4, 3), loss=lambda y: y.sum()).layers.values()
    assert layer.weight_rms == 0.0
    assert math.isnan(layer.update_ratio)


def test_a_step_that_moves_nothing_has_a_ratio_of_zero(measure):
    model = nn.Sequential(nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    (layer,) = measure(model, torch.ones(4, 3), optimizer=optimizer).layers.values()
    assert layer.update_ratio == 0.0


@pytest.mark.parametrize("size", [1e-30, 1e20])
def test_weights_and_steps_of_any_size_have_their_ratio(result_of, size):
    model = nn.Linear(30, 20, bias=False)
    with torch.no_grad():
        model.weight.mul_(size)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = weights_of(model)["weight"]
    with Probe(model, optimizer) as probe:
        (model.weight * (torch.randn(20, 30) * size)).sum().backward()
        optimizer.step()
    after = weights_of(model)["weight"]
    (layer,) = result_of(probe).layers.values()
    assert layer.update_ratio == pytest.approx(rms(after - before) / rms(before), rel=1e-5)


def test_a_step_that_did_not_happen_has_no_ratio(result_of):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Probe(model, optimizer) as probe:
        model(torch.randn(9, 6)).sum().backward()
    for layer in result_of(probe).layers.values():
        assert math.isnan(layer.update_ratio)


def test_two_optimizers_of_one_layer_give_the_ratio_of_all_its_matrices(result_of):
    model = nn.Bilinear(3, 4, 2, bias=False)
    model.extra = nn.Parameter(torch.randn(5, 5) * 10)
    optimizers = [torch.optim.SGD([model.weight], lr=0.1), torch.optim.SGD([model.extra], lr=0.01)]
    holder = nn.ModuleDict({"layer": model})
    before = np.concatenate([array.ravel() for array in weights_of(model).values()])
    with Probe(holder, optimizers) as probe:
        (model(torch.randn(6, 3), torch.randn(6, 4)).sum() + model.extra.sum()).backward()
        for optimizer in optimizers:
            optimizer.step()
    after = np.concatenate([array.ravel() for array in weights_of(model).values()])
    (layer,) = result_of(probe).layers.values()
    assert layer.weight_rms == pytest.approx(rms(before), rel=1e-6)
    assert layer.update_ratio == pytest.approx(rms(after - before) / rms(before), rel=1e-5)


def snapshot_of(model, optimizer, limits):
    layers, pack = Layers(model), HostTransfer()
    layers.list_unused()
    return Snapshots(limits).take(0, layers.trained_by(optimizer), pack), pack


@pytest.mark.parametrize("entries", [1, 7, 100, 5000, 10_000])
def test_above_the_limit_a_part_of_the_entries_stands_for_all(entries):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 50), nn.Linear(50, 50))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    snapshot, pack = snapshot_of(model, optimizer, Limits(copied_bytes=100, entries=entries))
    assert snapshot.estimated
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)  # each entry moves by a quarter of itself, so any same part gives 0.25
    snapshot.measure(pack)
    (moves,) = snapshot.read(pack.send().wait())
    assert [layer.name for layer in moves.layers] == ["0", "1"]
    assert (moves.entries <= entries).all() or entries >= 5000
    assert moves.moved / moves.norms == pytest.approx(0.25, rel=1e-5)


def test_the_estimate_is_near_the_truth_and_the_limit_is_exact():
    torch.manual_seed(0)
    model = nn.Linear(1000, 400, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for limits in (Limits(copied_bytes=1_600_000, entries=10_000), Limits(copied_bytes=1_599_999, entries=10_000)):
        snapshot, pack = snapshot_of(model, optimizer, limits)
        (moves,) = snapshot.read(pack.send().wait())
        found.append((snapshot.estimated, moves.norms[0] / math.sqrt(moves.entries[0])))
    assert [estimated for estimated, _ in found] == [False, True]
    assert found[1][1] == pytest.approx(found[0][1], rel=0.05)
    assert found[1][1] != found[0][1]


def test_the_part_is_spread_over_rows_and_columns():
    model = nn.Linear(100, 100, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        model.weight.copy_(torch.arange(10_000.0).view(100, 100))
    snapshot, _ = snapshot_of(model, optimizer, Limits(copied_bytes=1, entries=1000))
    (taken,) = snapshot._groups[0]._before
    assert len(set((taken % 100).tolist())) > 90
    assert len(set((taken // 100).tolist())) == 100


def test_no_random_number_generator_moves():
    model = nn.Linear(100, 100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    import random  # noqa: PLC0415 - whose state is looked at

    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002 - the user's
    snapshot, pack = snapshot_of(model, optimizer, Limits(copied_bytes=1, entries=10))
    snapshot.measure(pack)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002 - as above


def test_an_estimate_is_said_in_the_coverage(monkeypatch, measure):
    monkeypatch.setattr("lightning_gradwatch.measure.probe.Limits", lambda: Limits(copied_bytes=1, entries=10))
    result = measure(nn.Sequential(nn.Linear(30, 30)), torch.randn(4, 30))
    assert [entry.name for entry in result.info.coverage] == ["update_ratio"]
    assert result.layers["0"].update_ratio > 0
