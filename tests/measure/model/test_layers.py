"""Layers: their names, their order, and which of them carry weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from lightning_gradwatch.measure.model.call_site import qualified_name
from lightning_gradwatch.measure.probe import Probe
from lightning_gradwatch.record.step import LayerState

X = torch.randn(4, 3)


class Chain(nn.Module):
    """Modules called one after another, in an order that isn't that of their registration."""

    def __init__(self, order, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.order = order

    def forward(self, x):
        for name in self.order:
            x = getattr(self, name)(x)
        return x


class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.direct = nn.Parameter(torch.ones(3))
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.borrowed = nn.Linear(3, 3)
        self.never = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        for block in reversed(self.blocks):
            x = F.relu(block(x))
        x = F.linear(x, self.borrowed.weight)
        return self.head(self.norm(x * self.direct))


def test_layers_stand_in_the_order_of_their_first_use_and_unused_ones_last(measure):
    result = measure(HeadFirst(), X)
    assert list(result.layers) == [
        "blocks.2", "blocks.1", "blocks.0", "borrowed", "direct", "norm", "head", "never",
    ]  # fmt: skip
    assert [layer.used for layer in result.layers.values()] == [True] * 7 + [False]
    assert result.layers["never"].state is LayerState.NONE
    assert result.layers["borrowed"].state is LayerState.OK


@pytest.mark.parametrize("model", [HeadFirst(), nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 2)))])
def test_names_are_those_of_the_state_dict_without_the_parameter(measure, model):
    owned = [name for name, _ in model.named_parameters()]
    assert set(owned) <= set(model.state_dict())
    assert set(measure(model, X).layers) == {name.rpartition(".")[0] or name for name in owned}


def test_a_layer_says_what_it_is(measure):
    layers = measure(HeadFirst(), X).layers
    assert (layers["head"].kind, layers["head"].shapes, layers["head"].weight) == ("Linear", ((2, 3), (2,)), True)
    assert (layers["direct"].kind, layers["direct"].shapes, layers["direct"].weight) == ("Parameter", ((3,),), False)


def test_embeddings_norms_and_prelu_are_layers_but_no_weight_layers(measure):
    model = Chain(
        ["embedding", "layer_norm", "lin", "prelu", "group", "rms", "out"],
        out=nn.Linear(4, 2), embedding=nn.Embedding(9, 4), layer_norm=nn.LayerNorm((5, 4)), lin=nn.Linear(4, 4),
        prelu=nn.PReLU(), group=nn.GroupNorm(1, 5), rms=nn.RMSNorm(4),
    )  # fmt: skip
    layers = measure(model, torch.randint(0, 9, (3, 5))).layers
    assert [name for name, layer in layers.items() if layer.weight] == ["lin", "out"]
    assert list(layers) == model.order


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 3)
        self.body = nn.Linear(3, 3)
        self.alias = self.body
        self.decoder = nn.Linear(3, 6, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens):
        return self.decoder(self.alias(self.body(self.embedding(tokens))))


def test_a_tied_weight_and_an_alias_are_one_layer_under_the_first_name(measure):
    model = Tied()
    result = measure(model, torch.arange(6))
    assert list(result.layers) == ["embedding", "body"]
    gradients = [model.embedding.weight.shape.numel(), 12]
    assert [layer.parameters for layer in result.info.layers] == gradients


def test_a_layer_used_later_is_listed_behind_the_others_until_then():
    model = Chain(["a"], late=nn.Linear(3, 3), never=nn.Linear(3, 3), a=nn.Linear(3, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, optimizer)
    seen = []
    for order in (["a"], ["late", "a"]):
        model.order = order
        with probe:
            model(X).sum().backward()
            optimizer.step()
        seen.append([(layer.name, layer.used) for layer in probe.info.layers])
    assert seen[0] == [("a", True), ("late", False), ("never", False)]
    assert seen[1] == [("late", True), ("a", True), ("never", False)]


class WeightNormed(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.out = nn.Linear(3, 2)
        self.lin = way(nn.Linear(3, 3))

    def forward(self, x):
        return self.out(self.lin(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_weight_norm_of_the_old_kind_stays_the_modules_own(measure):
    layers = measure(WeightNormed(weight_norm), X).layers
    assert list(layers) == ["lin", "out"]
    assert layers["lin"].weight
    assert set(layers["lin"].shapes) == {(3,), (3, 1), (3, 3)}


def test_a_parametrized_weight_is_named_as_in_the_state_dict(measure):
    layers = measure(WeightNormed(parametrizations.weight_norm), X).layers
    assert sorted(layers) == ["lin", "lin.parametrizations.weight", "out"]
    assert list(layers)[-1] == "out"
    assert layers["lin.parametrizations.weight"].weight
    assert not layers["lin"].weight


@pytest.mark.parametrize(
    ("name", "stripped"),
    [
        ("_orig_mod.net.0.weight", "net.0.weight"),
        ("net._orig_mod.0.weight", "net.0.weight"),
        ("_orig_mod._orig_mod.weight", "weight"),
        ("net._fsdp_wrapped_module._checkpoint_wrapped_module.0.bias", "net.0.bias"),
        ("my_orig_mod.weight", "my_orig_mod.weight"),
        ("module.weight", "module.weight"),
    ],
)
def test_prefixes_of_wrappers_are_stripped_and_the_users_own_are_not(name, stripped):
    assert qualified_name(name) == stripped


class OrigMod(nn.Module):
    """Names its content as torch.compile does."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module

    def forward(self, x):
        return self._orig_mod(x)


@pytest.mark.parametrize("wrap", [nn.DataParallel, OrigMod, lambda model: nn.DataParallel(OrigMod(model))])
def test_a_wrapped_model_has_the_layers_and_sites_of_the_plain_one(measure, wrap):
    plain = nn.Sequential(OrigMod(nn.Linear(3, 3)), nn.ReLU(), Chain(["a", "r"], a=nn.Linear(3, 2), r=nn.ReLU()))
    expected = measure(copy.deepcopy(plain), X)
    result = measure(wrap(plain), X)
    assert list(result.layers) == list(expected.layers) == ["0", "2.a"]
    assert list(result.sites) == list(expected.sites) == ["1", "2.r"]


def test_what_is_frozen_from_the_start_is_no_layer(measure):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    result = measure(model, X)
    assert list(result.layers) == ["2"]
    assert list(result.sites) == []


def test_a_layer_without_its_bias_owns_what_can_be_trained(measure):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].bias.requires_grad_(False)
    assert measure(model, X).layers["0"].shapes == ((3, 3),)


def test_what_is_frozen_later_keeps_its_place_and_says_so(result_of):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, optimizer)
    states = []
    for frozen in (False, True, False):
        model[0].requires_grad_(not frozen)
        optimizer.zero_grad()
        with probe:
            model(X).square().sum().backward()
            optimizer.step()
        layers = result_of(probe).layers
        assert list(layers) == ["0", "2"]
        states.append(layers["0"].state)
        assert (layers["0"].grad_norm > 0) is not frozen
    assert states == [LayerState.OK, LayerState.FROZEN, LayerState.OK]


def test_what_is_unfrozen_later_takes_its_place_on_the_path(result_of):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, optimizer)
    for unfreeze in (False, True):
        model[0].requires_grad_(unfreeze)
        optimizer.zero_grad()
        with probe:
            model(X).square().sum().backward()
            optimizer.step()
    layers = result_of(probe).layers
    assert list(layers) == ["0", "2"]
    assert (layers["0"].state, layers["0"].used) == (LayerState.OK, True)
    assert list(result_of(probe).sites) == ["1"]


@pytest.mark.slow
def test_a_compiled_model_has_its_layers_and_says_that_its_activations_are_not_seen(measure):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    result = measure(torch.compile(model, backend="aot_eager"), X)
    assert list(result.layers) == ["0", "2"]
    assert not any(layer.used is False for layer in result.layers.values())
    assert not result.sites
    assert [layer.state for layer in result.layers.values()] == [LayerState.OK] * 2
    assert any("compiled" in entry.reason for entry in result.info.coverage)
