"""Many small weights, which are compared side by side: each keeps its own numbers."""

import numpy as np
import pytest
import torch
from measure.by_hand import rms
from torch import nn

from lightning_gradwatch.measure.model.layers import Layers
from lightning_gradwatch.measure.model.shards import Shards
from lightning_gradwatch.measure.transfer.host import HostTransfer
from lightning_gradwatch.measure.updates import Limits, Snapshots


class Narrow(nn.Module):
    """Many weights of two shapes, some of a kind of their own, one transposed in memory, one of complex numbers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, (5, 3)[place % 2], bias=False) for place in range(14))
        self.layers.append(nn.Linear(7, 5, bias=False))
        self.layers.append(nn.Linear(100, 100, bias=False))
        self.layers[2].weight = nn.Parameter(torch.randn(5, 5).t())
        self.layers[4].to(torch.bfloat16)
        self.layers[6].to(torch.float64)
        self.layers[8].weight = nn.Parameter(torch.randn(5, 5, dtype=torch.complex64))


def wide(parameter):
    return parameter.detach().to(torch.complex128 if parameter.is_complex() else torch.float64, copy=True).numpy()


def move(model, generator, among):
    """Change weights as an optimizer would; return the rms of each before, and of its difference."""
    found = {}
    for name, parameter in model.named_parameters():
        if any(parameter is each for each in among):
            before = wide(parameter)
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=0.1)
            found[name.removesuffix(".weight")] = rms(abs(before)), rms(abs(wide(parameter) - before))
    return found


def check_moves(snapshot, values, expected):
    (moves,) = snapshot.read(values)
    assert len(moves.layers) == len(expected)  # each once
    size = np.sqrt(moves.entries)
    found = zip(moves.layers, moves.norms / size, moves.moved / size, strict=True)
    assert {layer.name: pytest.approx(pair, rel=1e-5) for layer, *pair in found} == {
        name: [*pair] for name, pair in expected.items()
    }


def test_weights_that_are_compared_side_by_side_keep_their_own_numbers():
    """In several steps, each of which reuses the memory of the one before; one of them is left in the middle."""
    torch.manual_seed(0)
    model, generator = Narrow(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    layers, snapshots = Layers(model), Snapshots(Limits())
    layers.list_unused()
    for left in (False, False, True, False):
        pack = HostTransfer()
        snapshot = snapshots.take(0, layers.trained_by(optimizer), pack)
        assert [len(stack) for stack in snapshot._groups[0]._stacks] == [4, 7]
        expected = move(model, generator, [*model.parameters()])
        if not left:
            snapshot.measure(pack)
            check_moves(snapshot, pack.send().wait(), expected)


class ByRows(Shards):
    """As many processes hold a weight as it has rows."""

    def replicas(self, tensors):
        return [len(each) for each in tensors]


def test_each_weight_is_shared_out_by_its_own_replicas():
    """Which the order in which they are compared must not mix up."""
    model = Narrow()
    layers, pack = Layers(model), HostTransfer()
    layers.list_unused()
    trained = layers.trained_by(torch.optim.SGD(model.parameters(), lr=0.1))
    snapshot = Snapshots(Limits()).take(0, trained, pack, shards=ByRows())
    (moves,) = snapshot.read(pack.send().wait())
    found = {layer.name: entries for layer, entries in zip(moves.layers, moves.entries, strict=True)}
    assert found == {f"layers.{place}": layer.weight.shape[1] for place, layer in enumerate(model.layers)}


def test_two_optimizers_within_each_other_have_copies_of_their_own():
    torch.manual_seed(0)
    model, generator = nn.Sequential(Narrow(), Narrow()), torch.Generator().manual_seed(0)
    layers, snapshots, pack = Layers(model), Snapshots(Limits()), HostTransfer()
    layers.list_unused()
    halves = [[*half.parameters()] for half in model]
    optimizers = [torch.optim.SGD(half, lr=0.1) for half in halves]
    outer = snapshots.take(0, layers.trained_by(optimizers[0]), pack)
    inner = snapshots.take(1, layers.trained_by(optimizers[1]), pack)
    expected = [move(model, generator, half) for half in halves]
    inner.measure(pack)
    outer.measure(pack)
    values = pack.send().wait()
    check_moves(outer, values, expected[0])
    check_moves(inner, values, expected[1])
