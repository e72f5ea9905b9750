"""How many inputs a unit adds up, in layers that hold their weight in another form, against the plain layer."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, weight_norm

from lightning_gradwatch.measure.probe import Probe
from lightning_gradwatch.record.run_info import RunInfo


class Conv1D(nn.Module):
    """As transformers has it for GPT-2: the matrix is [inputs, outputs]."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT


def own(net, name="weight"):
    parametrize.register_parametrization(net, name, Symmetric())
    return net


def described(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Probe(net, optimizer) as probe:
        optimizer.step()
    return probe.info.layers


LAYERS = {
    "Conv1D": (lambda: Conv1D(12, 5), 5, "Conv1D"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(5, 12)), 5, "Linear"),
    "weight norm of a convolution": (lambda: parametrizations.weight_norm(nn.Conv2d(5, 12, 3)), 45, "Conv2d"),
    "weight norm of a transposed one": (
        lambda: parametrizations.weight_norm(nn.ConvTranspose2d(5, 12, 3)),
        math.nan,
        "ConvTranspose2d",
    ),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(5, 12)), 5, "Linear"),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(5, 5)), 5, "Linear"),
    "one's own": (lambda: own(nn.Linear(5, 5)), 5, "Linear"),
    "a single input": (lambda: nn.Linear(1, 12), 1, "Linear"),
    "a single input, normalised": (lambda: parametrizations.weight_norm(nn.Linear(1, 12)), 1, "Linear"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(("make", "fan_in", "kind"), LAYERS.values(), ids=LAYERS)
def test_fan_in(make, fan_in, kind):
    layer = make()
    net = nn.Sequential(layer)
    (known,) = [each for each in described(net) if each.shapes and any(len(shape) > 1 for shape in each.shapes)]
    assert known.fan_in == pytest.approx(fan_in, nan_ok=True)
    assert known.kind == kind
    assert known.weight


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_fan_in_of_weight_norm_in_its_old_form():
    net = nn.Sequential(weight_norm(nn.Linear(5, 12)))
    assert [layer.fan_in for layer in described(net)] == [5]


class Own(nn.Module):
    """A layer of one's own, whose matrix `way` takes one way round or the other."""

    def __init__(self, shape, way):
        super().__init__()
        self.weight, self.way = nn.Parameter(torch.randn(shape)), way

    def forward(self, x):
        return self.way(x, self.weight)


def named(name, layer):
    layer.__class__ = type(name, (type(layer),), {})
    return layer


WAYS = {
    "x @ W": lambda x, w: x @ w,
    "x.matmul(W)": lambda x, w: x.matmul(w),
    "mm": torch.mm,
    "addmm": lambda x, w: torch.addmm(torch.zeros(12), x, w),
    "linear(x, W.t())": lambda x, w: F.linear(x, w.t()),
    "(W.T @ x.T).T": lambda x, w: (w.T @ x.T).T,
    "einsum": lambda x, w: torch.einsum("bi,io->bo", x, w),
    "einsum, the matrix first": lambda x, w: torch.einsum("io, ...i -> ...o", w, x),
    "baddbmm": lambda x, w: torch.baddbmm(torch.zeros(12), x[None], w[None])[0],
    "tensordot": lambda x, w: torch.tensordot(x, w, 1),
    "tensordot, the matrix first": lambda x, w: torch.tensordot(w, x, dims=([0], [-1])).T,
    "inner": lambda x, w: torch.inner(x, w.t()),
    "multi_dot": lambda x, w: torch.linalg.multi_dot([x, w]),
    "linalg.matmul": torch.linalg.matmul,
    "product by product": lambda x, w: (x[:, :, None] * w).sum(1),
    "product by product, over the last axis": lambda x, w: torch.sum(x.unsqueeze(1) * w.mT, dim=-1),
    "bmm, for each sample": lambda x, w: torch.bmm(x[:, None], w.expand(7, *w.shape)).squeeze(1),
    "bmm, repeated": lambda x, w: torch.bmm(x[:, None], w[None].repeat(7, 1, 1))[:, 0],
    "a function of the matrix": lambda x, w: x @ (w / w.norm(dim=0)),
}


def described_of(layer, inputs=5):
    net = nn.Sequential(layer, nn.ReLU(), nn.LazyLinear(1))
    x = torch.randn(7, inputs)
    net(x)
    with Probe(net, optimizer := torch.optim.SGD(net.parameters(), lr=0.1)) as probe:
        net(x).sum().backward()
        optimizer.step()
    return probe.info.layers[0], probe._sites.ordered[0].features


@pytest.mark.parametrize("kind", ["Dense", "Linear", "Conv1D"])
@pytest.mark.parametrize("name", WAYS)
def test_a_layer_of_ones_own_adds_up_what_its_product_does(name, kind):
    layer, outputs = described_of(named(kind, Own((5, 12), WAYS[name])))
    assert (layer.kind, layer.fan_in, outputs) == (kind, 5, 12)
    layer, outputs = described_of(named(kind, Own((12, 5), lambda x, w: WAYS[name](x, w.mT))))
    assert (layer.fan_in, outputs) == (5, 12)


def test_several_matrices_of_one_layer_are_the_same_way_round():
    class LowRank(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Parameter(torch.randn(5, 2)), nn.Parameter(torch.randn(2, 12))

        def forward(self, x):
            return x @ self.down @ self.up

    layer, _ = described_of(LowRank())
    assert layer.fan_in == pytest.approx((10 + 24) / (10 / 5 + 24 / 2))


@pytest.mark.parametrize(
    "name", [name for name in WAYS if name not in ("(W.T @ x.T).T", "tensordot, the matrix first")]
)
def test_the_units_after_it_are_its_outputs(name):
    net = nn.Sequential(Own((5, 12), WAYS[name]), nn.ReLU(), nn.Linear(12, 1))
    with Probe(net, optimizer := torch.optim.SGD(net.parameters(), lr=0.1)) as probe:
        net(torch.randn(7, 5)).sum().backward()
        optimizer.step()
    assert [site.units for site in probe.info.sites] == [12]


def test_each_matrix_of_a_layer_has_its_own_way_round():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.bias, self.up = (nn.Parameter(torch.randn(size)) for size in ((5, 12), (12,), (12, 5)))

        def forward(self, x):
            return torch.addmm(self.bias, x, self.gate).sigmoid() * F.linear(x, self.up)

    layer, outputs = described_of(Gated())
    assert (layer.fan_in, layer.inputs, outputs) == (5, (5, 0, 5), 12)


def test_parameters_of_the_net_itself_are_layers_of_their_own():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias, self.weight = nn.Parameter(torch.zeros(12)), nn.Parameter(torch.randn(5, 12))
            self.kernel, self.up = nn.Parameter(torch.randn(8, 12, 1)), nn.Parameter(torch.randn(8, 3, 2))

        def forward(self, x):
            x = torch.addmm(self.bias, x, self.weight).relu()[:, :, None]
            return F.conv_transpose1d(F.conv1d(x, self.kernel).relu(), self.up)

    net = Net()
    with Probe(net, optimizer := torch.optim.SGD(net.parameters(), lr=0.1)) as probe:
        net(torch.randn(7, 5)).sum().backward()
        optimizer.step()
    found = {layer.name: layer.fan_in for layer in probe.info.layers}
    assert found == {
        "bias": pytest.approx(math.nan, nan_ok=True),
        "weight": 5,
        "kernel": 12,
        "up": pytest.approx(math.nan, nan_ok=True),
    }
    assert RunInfo.from_dict(probe.info.to_dict()) == probe.info


def test_what_is_no_product_of_matrices_leaves_it_as_the_kind_has_it():
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU())
    bilinear, table = nn.Bilinear(6, 6, 4), nn.Embedding(9, 6)
    parameters = [*net.parameters(), *bilinear.parameters(), *table.parameters()]
    model = nn.ModuleList([net, bilinear, table])
    with Probe(model, optimizer := torch.optim.SGD(parameters, lr=0.1)) as probe:
        bilinear(net(torch.randn(7, 5)), table(torch.arange(7))).relu().sum().backward()
        optimizer.step()
    assert {layer.kind: layer.fan_in for layer in probe.info.layers if layer.weight} == {"Linear": 5, "Bilinear": 36}


def test_an_empty_batch_and_what_torch_refuses_are_no_faults_of_ours():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 12))

        def forward(self, x):
            for dims in (3, ([0], [0, 1]), ([7], [0])):
                with contextlib.suppress(RuntimeError, IndexError):
                    torch.tensordot(x, self.weight, dims)
            return ((x[:0, :, None] * self.weight).sum(0) + self.weight).relu()

    net = Net()
    with Probe(net, optimizer := torch.optim.SGD(net.parameters(), lr=0.1)) as probe:
        net(torch.randn(7, 5)).sum().backward()
        optimizer.step()
    assert probe.info.layers[0].fan_in == 12  # as a bare parameter's; nothing of it showed


def test_reading_the_data_of_a_parameter_is_no_use_of_its_layer():
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1))
    net.spare = nn.Linear(6, 6)
    with Probe(net, optimizer := torch.optim.SGD(net.parameters(), lr=0.1)) as probe:
        net[2](net[1](net[0](torch.randn(7, 5)))).sum().backward()
        assert net.spare.weight.data.norm() > 0
        optimizer.step()
    assert {layer.name: layer.used for layer in probe.info.layers} == {"0": True, "2": True, "spare": False}


def test_one_for_each_parameter_is_stored():
    layer, _ = described_of(Own((5, 12), WAYS["x @ W"]))
    stored = RunInfo(layers=(layer,)).to_dict()
    stored["layers"][0]["inputs"] = [5, 5]
    with pytest.raises(ValueError, match="not one for each of 1 shapes"):
        RunInfo.from_dict(stored)


def test_a_convolution_that_is_called_conv1d_is_one():
    net = nn.Sequential(nn.Unflatten(1, (5, 6)), named("Conv1D", nn.Conv1d(5, 12, 3)), nn.Flatten(), nn.Linear(48, 1))
    with Probe(net, optimizer := torch.optim.SGD(net.parameters(), lr=0.1)) as probe:
        net(torch.randn(7, 30)).sum().backward()
        optimizer.step()
    assert (probe.info.layers[0].kind, probe.info.layers[0].fan_in) == ("Conv1D", 15)


def test_which_way_round_it_is_is_stored():
    layer, _ = described_of(Own((5, 12), WAYS["x @ W"]))
    info = RunInfo(layers=(layer,), sites=(), optimizers=(), coverage=())
    assert RunInfo.from_dict(info.to_dict()).layers[0].fan_in == 5


def test_a_parametrized_embedding_is_no_weight_layer():
    net = nn.Sequential(parametrizations.weight_norm(nn.Embedding(7, 4)))
    assert [(layer.kind, layer.weight) for layer in described(net)] == [("Embedding", False)]


def test_units_of_a_conv1d_are_its_outputs():
    net = nn.Sequential(Conv1D(12, 5), nn.ReLU(), Conv1D(3, 12))
    probe = Probe(net, torch.optim.SGD(net.parameters(), lr=0.1))
    with probe:
        net(torch.randn(4, 5)).sum().backward()
        probe._optimizers[0].step()
    assert [site.features for site in probe._sites.ordered] == [12]
