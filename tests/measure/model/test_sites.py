"""Activation sites: what is one, what it is called, and how many calls it has."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

X = torch.randn(8, 4)


class Root(nn.Module):
    """A net of whatever linear layers it needs, with its forward given as a function."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        for name, module in modules.items():
            self.add_module(name, module)
        self.way = forward

    def forward(self, x):
        return self.way(self, x)


SPELLINGS = {
    "module": (lambda m, x: m.act(m.a(x)), {"act": nn.ReLU()}, "act"),
    "in-place module": (lambda m, x: m.act(m.a(x)), {"act": nn.ReLU(inplace=True)}, "act"),
    "functional": (lambda m, x: F.relu(m.a(x)), {}, ":relu"),
    "torch": (lambda m, x: torch.relu(m.a(x)), {}, ":relu"),
    "method": (lambda m, x: m.a(x).relu(), {}, ":relu"),
    "in-place method": (lambda m, x: m.a(x).relu_(), {}, ":relu"),
    "keyword": (lambda m, x: F.relu(input=m.a(x), inplace=True), {}, ":relu"),
    "forward called by hand": (lambda m, x: m.act.forward(m.a(x)), {"act": nn.ReLU()}, ":relu"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_module_a_function_and_a_method_are_sites_alike(measure, spelling):
    forward, modules, name = SPELLINGS[spelling]
    result = measure(Root(lambda m, x: m.b(forward(m, x)), **modules), X)
    assert list(result.sites) == [name]
    assert (result.site.function, result.site.role, result.site.units) == ("relu", "hidden", 4)


def test_a_sequential_names_its_activations_by_their_modules(measure):
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 4), nn.GELU()), nn.Linear(4, 1))
    assert list(measure(Root(lambda m, x: m.net(x), net=net), X).sites) == ["net.1", "net.2.1"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.one(x))
        return self.relu(self.two(x))


def test_one_shared_module_at_two_places_is_two_sites(measure):
    sites = measure(Root(lambda m, x: m.a(m.block(x)), block=Block()), X, steps=2).sites
    assert list(sites) == ["block.relu@block.one", "block.relu@block.two"]


def test_functions_are_named_by_the_module_that_calls_them(measure):
    class Functional(Block):
        def forward(self, x):
            return F.relu(self.two(torch.tanh(F.relu(self.one(x)))))

    sites = measure(
        Root(lambda m, x: F.gelu(m.a(m.blocks[1](m.blocks[0](x)))), blocks=nn.ModuleList([Functional(), Functional()])),
        X,
    ).sites
    assert list(sites) == [
        "blocks.0:relu", "blocks.0:tanh", "blocks.0:relu#2", "blocks.1:relu", "blocks.1:tanh", "blocks.1:relu#2", ":gelu",
    ]  # fmt: skip


def test_one_instance_twice_in_a_sequential_is_two_sites(measure):
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 1))
    sites = measure(model, X, steps=2).sites
    assert list(sites) == ["1@0", "1@2"]


def recurrent(m, x):
    hidden = torch.zeros(len(x), 4)
    for _ in range(5):
        hidden = torch.tanh(m.a(x) + m.b(hidden))
    return m.c(hidden)


def test_an_unrolled_loop_is_one_site_whose_calls_add_up(measure):
    result = measure(Root(recurrent), X, observations=40, batch_elements=8)
    assert list(result.sites) == [":tanh"]
    assert result.site.fill == 1.0
    assert measure(Root(recurrent), X, observations=41).site.fill == 40 / 41
    assert measure(Root(recurrent), X, batch_elements=16).site.fill == 0.5


def test_a_loop_over_layers_has_a_site_a_layer(measure):
    def forward(m, x):
        for layer in m.layers:
            x = F.relu(layer(x))
        return m.a(x)

    layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    result = measure(Root(forward, layers=layers), X, steps=2, observations=8)
    assert list(result.sites) == [":relu", ":relu#2", ":relu#3"]
    assert {site.fill for site in result.sites.values()} == {1.0}


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class NewGELU(nn.Module):
    def forward(self, input):  # noqa: A002
        return 0.5 * input * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (input + 0.044715 * torch.pow(input, 3.0))))


class Two(nn.Module):
    def forward(self, x):
        return torch.tanh(x) + F.relu(x.flip(-1))  # of another tensor: a sum of two of one is a function by hand


def test_an_activation_module_of_the_users_own_names_its_site(measure):
    result = measure(Root(lambda m, x: m.c(m.g(m.b(m.s(m.a(x))))), s=Swish(), g=NewGELU()), X, steps=2)
    assert {name: site.function for name, site in result.sites.items()} == {"s": "silu", "g": "gelu"}


def test_two_functions_in_one_module_of_the_users_have_two_names(measure):
    sites = measure(Root(lambda m, x: m.c(m.two(m.a(x))), two=Two()), X).sites
    assert {name: site.function for name, site in sites.items()} == {"two:tanh": "tanh", "two:relu": "relu"}


def helper(x):
    return F.relu(x)


def test_a_helper_called_at_two_places_keeps_the_layers_apart(measure):
    sites = measure(Root(lambda m, x: m.c(helper(m.b(helper(m.a(x)))))), X, steps=2).sites
    assert list(sites) == [":relu", ":relu#2"]


def test_lambdas_and_comprehensions_are_places_like_any_other(measure):
    def forward(m, x):
        act = lambda z: torch.tanh(z)  # noqa: E731, PLW0108
        return m.c(sum([F.relu(layer(x)) for layer in (m.a, m.b)]) + act(m.a(x)))

    sites = measure(Root(forward), X, steps=2).sites
    assert list(sites) == [":relu", ":relu#2", ":tanh"]


def test_two_calls_on_one_line_are_two_sites(measure):
    def forward(m, x):
        z = m.a(x)
        return m.b(F.relu(z) + F.relu(z.flip(-1)))

    assert list(measure(Root(forward), X, steps=2).sites) == [":relu", ":relu#2"]


def test_a_stock_transformer_layer_shows_its_activation_and_says_what_is_hidden(measure):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    result = measure(nn.Sequential(layer, nn.Linear(8, 1)), torch.randn(4, 5, 8), steps=2)
    assert list(result.sites) == ["0:relu"]
    assert (result.site.units, result.site.role) == (16, "hidden")
    reasons = {entry.name: entry.reason for entry in result.info.coverage}
    assert "softmax isn't seen" in reasons["0.self_attn"]


def test_softmax_is_a_site_without_unit_fractions(measure):
    result = measure(Root(lambda m, x: m.b(torch.softmax(m.a(x), -1))), X)
    assert list(result.sites) == [":softmax"]
    assert result.site.units == 0
    assert math.isnan(result.site.dead)
    assert math.isnan(result.site.inactive_share)
    assert result.site.signal > 0


def test_what_no_gradient_reaches_is_no_site(measure):
    def forward(m, x):
        with torch.no_grad():
            target = torch.tanh(m.a(x))
        return m.b(F.relu(m.a(x))) + target + torch.sigmoid(x) + torch.tanh(m.c(x).detach())

    assert list(measure(Root(forward), X).sites) == [":relu"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_parts_count_once_and_have_their_signal(measure, reentrant):
    def plain(m, x):
        return m.b(F.relu(m.a(x)))

    def checkpointed(m, x):
        return checkpoint(lambda x: plain(m, x), x.clone().requires_grad_(), use_reentrant=reentrant)

    model = Root(lambda m, x: m.c(torch.tanh(plain(m, x))))
    other = copy.deepcopy(model)
    other.way = lambda m, x: m.c(torch.tanh(checkpointed(m, x)))
    expected, result = measure(model, X, observations=16), measure(other, X, observations=16)
    assert result.roles == {":relu": "hidden", ":tanh": "hidden"}
    assert list(result.layers) == ["a", "b", "c"]
    for name in (":relu", ":tanh"):
        ours, theirs = result.sites[name], expected.sites[name]
        assert (ours.fill, ours.inactive_share, ours.rms) == (0.5, theirs.inactive_share, theirs.rms)
    assert result.sites[":tanh"].signal == expected.sites[":tanh"].signal
    signal = result.sites[":relu"].signal  # absent where the graph is made in the backward pass; never wrong
    assert math.isnan(signal) if reentrant else signal == expected.sites[":relu"].signal


@pytest.mark.parametrize("block", [Block(), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_module_has_the_sites_of_a_plain_one(measure, block, reentrant):
    plain = measure(Root(lambda m, x: m.c(m.block(x)), block=block), X)
    result = measure(
        Root(lambda m, x: m.c(checkpoint(m.block, x.clone().requires_grad_(), use_reentrant=reentrant)), block=block), X
    )
    assert result.roles == plain.roles
    assert len(result.sites) == 2
    assert {site.fill for site in result.sites.values()} == {1.0}


def test_a_block_called_at_two_lines_is_one_place_whoever_wrote_its_forward(measure):
    def forward(m, x):
        x = m.block(x)
        return m.c(m.block(x))

    for block, names in (
        (Block(), ["block.relu@block.one", "block.relu@block.two"]),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh()), ["block.1", "block.3"]),
        (nn.TransformerEncoderLayer(4, 1, 4, dropout=0.0), ["block:relu"]),
    ):
        result = measure(Root(forward, block=block), X, observations=32)
        assert list(result.sites) == names
        assert {site.fill for site in result.sites.values()} == {0.5}


def test_a_site_called_later_that_nothing_orders_comes_last(measure):
    model = Root(lambda m, x: m.c(m.act(m.a(x)) if m.act.training else torch.tanh(m.b(x))), act=nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = measure(model, X, optimizer=optimizer)
    assert list(result.sites) == ["act"]
    model.act.eval()
    with result.probe as probe:
        model(X).sum().backward()
        optimizer.step()
    assert [site.name for site in probe.info.sites] == ["act", ":tanh"]
    assert math.isnan(probe.record.metrics["signal_norm"][0])
    assert probe.record.layout != result.record.layout


class Conv(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.lin, self.act = nn.Linear(4, 4), act

    def forward(self, x):
        return self.act(self.lin(x))


def chained(m, x):
    for each in m.convs:
        x = each(x)
    return m.a(x)


def test_an_activation_module_that_layers_share_is_named_after_the_layer_that_feeds_it(measure):
    """Registered at the top, as graph nets do, or in the first of them."""
    act = nn.ReLU()
    convs = nn.ModuleList(Conv(act) for _ in range(3))
    names = [f"act@convs.{place}.lin" for place in range(3)]
    assert list(measure(Root(chained, act=act, convs=convs), X, steps=2).sites) == names
    assert list(measure(Root(chained, convs=convs), X).sites) == [f"convs.0.{name}" for name in names]


def test_a_number_follows_only_where_the_layer_is_the_same(measure):
    def forward(m, x):
        x = m.act(m.b(x))
        return m.a(m.act(x) + m.act(m.c(x)))

    assert list(measure(Root(forward, act=nn.Tanh()), X).sites) == ["act@b", "act@b#2", "act@c"]
    # One layer feeds it, twice: it's shared by none.
    twice = Root(lambda m, x: m.a(m.act(m.act(m.b(x)))), act=nn.Tanh())
    assert list(measure(twice, X).sites) == ["act", "act#2"]


def test_an_activation_module_of_one_layer_has_its_own_name_however_often_it_is_registered(measure):
    act = nn.ReLU()
    model = Root(lambda m, x: m.a(m.net(x)), act=act, net=nn.Sequential(nn.Linear(4, 4), act))
    assert list(measure(model, X).sites) == ["act"]


def test_where_nothing_that_is_trained_feeds_a_shared_module_it_keeps_its_name(measure):
    x = X.clone().requires_grad_()
    assert list(measure(Root(lambda m, x: m.a(m.act(m.b(m.act(x)))), act=nn.Tanh()), x).sites) == ["act", "act@b"]


def test_two_functions_of_one_shared_module_are_told_apart_by_both(measure):
    sites = measure(Root(lambda m, x: m.c(m.two(m.b(m.two(m.a(x))))), two=Two()), X).sites
    assert sorted(sites) == ["two:relu@a", "two:relu@b", "two:tanh@a", "two:tanh@b"]


def test_a_site_once_named_keeps_its_name(measure):
    """A layer that is left out of the first step shares the module from the second on."""
    act = nn.ReLU()
    model = Root(chained, act=act, convs=nn.ModuleList(Conv(act) for _ in range(2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    late, model.convs = model.convs, model.convs[:1]
    result = measure(model, X, optimizer=optimizer)
    assert list(result.sites) == ["act"]
    model.convs = late
    with result.probe as probe:
        model(X).sum().backward()
    assert {site.name for site in probe.info.sites} == {"act", "act@convs.1.lin"}
