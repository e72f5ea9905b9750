"""Activation gains, weight gains and predecessors, against torch.autograd.grad and weights multiplied by hand."""

from __future__ import annotations

import gc
import itertools
import math
import random
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch.measure.connections import _is_function
from lightning_gradwatch.measure.functions import ACTIVATIONS
from lightning_gradwatch.probe import Probe

METRICS = ("activation_gain", "weight_gain")
NAN = pytest.approx(math.nan, nan_ok=True)


class Net(nn.Module):
    """A net whose forward is a function, which tells `tap` the argument and the output of each activation call."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 1)
        for name, module in modules.items():
            self.add_module(name, module)
        self.way = forward
        self.taps = None

    def tap(self, name, z, a):
        if self.taps is not None:
            self.taps.setdefault(name, []).append((z, a))
        return a

    def forward(self, x):
        return self.way(self, x)


def norm(tensors):
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in tensors))


def in_place(model, *, on):
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = on


class Reference:
    """δ through each call alone, and dL/da, by `autograd.grad` in a run of its own that writes nothing in place."""

    def __init__(self, model, inputs, loss_of):
        self.delta, self.arriving = {}, {}
        written = any(getattr(module, "inplace", False) for module in model.modules())
        in_place(model, on=False)
        for x in inputs:
            model.taps = {}
            loss = loss_of(model(x)) / len(inputs)
            for name, calls in model.taps.items():
                for z, a in calls:
                    (upstream,) = torch.autograd.grad(loss, a, retain_graph=True)
                    (delta,) = torch.autograd.grad(a, z, upstream, retain_graph=True)
                    self.delta.setdefault(name, []).append(delta)
                    self.arriving.setdefault(name, []).append(upstream)
        model.taps = None
        in_place(model, on=written)

    def gains(self, name, start=None):
        """Return the activation gain of a site, and the weight gain of the segment that starts at another."""
        delta, arriving = norm(self.delta[name]), norm(self.arriving[name])
        weight = NAN if start is None else pytest.approx(norm(self.arriving[start]) / delta, rel=1e-6)
        return (pytest.approx(delta / arriving, rel=1e-6), weight)

    def ends(self, name, *, calls):
        """Return ‖δ‖ of the first and of the last of so many calls in each pass."""
        return norm(self.delta[name][::calls]), norm(self.delta[name][calls - 1 :: calls])


def squares(output):
    return output.square().sum()


def measure(model, *inputs, loss_of=squares, steps=1):
    """Return the gains by site, the references and the probe of the last of some steps that change no weight.

    A step has a micro-batch for each input, whose loss is divided by their number as Lightning does it.
    """
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.0))
    for _ in range(steps):
        with probe:
            for x in inputs:
                (loss_of(model(x)) / len(inputs)).backward()
    gains = zip(*(probe.record.metrics[metric] for metric in METRICS), strict=True)
    return (
        dict(zip([site.name for site in probe.info.sites], gains, strict=True)),
        Reference(model, inputs, loss_of),
        probe,
    )


def batch(size=16):
    return torch.randn(size, 8)


def predecessors(probe):
    return {site.name: site.predecessors for site in probe.info.sites}


def plain(m, x):
    x = m.tap("relu", z := m.a(x), F.relu(z))
    x = m.tap("tanh", z := m.b(x), torch.tanh(z))
    x = m.tap("sigmoid", z := m.c(x), torch.sigmoid(z))
    return m.head(x)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_plain_chain(micro_batches):
    gains, reference, probe = measure(Net(plain), *(batch() for _ in range(micro_batches)))
    assert predecessors(probe) == {":relu": (), ":tanh": (":relu",), ":sigmoid": (":tanh",)}
    assert gains == {
        ":relu": reference.gains("relu"),
        ":tanh": reference.gains("tanh", "relu"),
        ":sigmoid": reference.gains("sigmoid", "tanh"),
    }


def test_the_weight_gain_of_a_linear_layer_is_that_of_its_transposed_weight():
    model = Net(plain)
    gains, reference, _ = measure(model, batch())
    for site, layer in (("tanh", model.b), ("sigmoid", model.c)):
        delta = torch.cat(reference.delta[site])
        passed_on = delta @ layer.weight.detach()
        assert gains[f":{site}"][1] == pytest.approx(norm([passed_on]) / norm([delta]), rel=1e-6)


def residual(m, x):
    x = m.tap("first", z := m.a(x), m.act(z))
    inner = m.tap("inner", z := m.b(x), m.act(z))
    x = m.tap("second", z := m.c(inner) + x, m.act(z))
    x = m.tap("third", z := m.d(x) + x, m.act(z))
    return m.head(x)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_residual_net_along_its_trunk(inplace):
    gains, reference, probe = measure(Net(residual, act=nn.ReLU(inplace=inplace)), batch())
    assert predecessors(probe) == {
        "act": (),
        "act#2": ("act",),
        "act#3": ("act", "act#2"),
        "act#4": ("act#3",),
    }
    assert probe.info.segment_starts == (None, None, 0, 2)
    assert gains == {
        "act": reference.gains("first"),
        "act#2": reference.gains("inner"),
        "act#3": reference.gains("second", "first"),
        "act#4": reference.gains("third", "second"),
    }
    product = gains["act"][0] * gains["act#3"][1] * gains["act#3"][0] * gains["act#4"][1]
    attenuation = norm(reference.delta["first"]) / norm(reference.delta["third"])
    assert product == pytest.approx(attenuation, rel=1e-6)


def test_branches_that_meet_again():
    def forward(m, x):
        x = m.tap("gelu", z := m.a(x), F.gelu(z))
        left = m.tap("tanh", z := m.b(x), torch.tanh(z))
        left = m.tap("elu", z := m.b(left), F.elu(z))
        right = m.tap("sigmoid", z := m.c(x), torch.sigmoid(z))
        return m.head(m.tap("softplus", z := m.d(left + right), F.softplus(z)))

    gains, reference, probe = measure(Net(forward), batch())
    assert predecessors(probe) == {
        ":gelu": (),
        ":tanh": (":gelu",),
        ":elu": (":tanh",),
        ":sigmoid": (":gelu",),
        ":softplus": (":elu", ":sigmoid"),
    }
    assert gains == {
        ":gelu": reference.gains("gelu"),
        ":tanh": reference.gains("tanh"),
        ":elu": reference.gains("elu", "tanh"),
        ":sigmoid": reference.gains("sigmoid"),
        ":softplus": reference.gains("softplus", "gelu"),
    }


def test_an_output_that_the_loss_takes_too_gives_no_weight_gain():
    def forward(m, x):
        x = m.tap("relu", z := m.a(x), F.relu(z))
        return m.head(m.tap("tanh", z := m.b(x), torch.tanh(z))).sum() + x.square().sum()

    gains, reference, probe = measure(Net(forward), batch(), loss_of=lambda loss: loss)
    assert predecessors(probe)[":tanh"] == (":relu",)
    assert gains == {":relu": reference.gains("relu"), ":tanh": reference.gains("tanh")}


def test_an_argument_used_elsewhere_too_counts_through_its_activation_only():
    def forward(m, x):
        x = m.tap("relu", z := m.a(x), F.relu(z))
        a = m.tap("tanh", z := m.b(x), torch.tanh(z))
        return m.head(a) + m.head(z)

    gains, reference, _ = measure(Net(forward), batch())
    # dL/da of the ReLU comes past the tanh as well, so it's no multiple of the tanh's δ.
    assert gains == {":relu": reference.gains("relu"), ":tanh": reference.gains("tanh")}


def test_convolutions():
    class Convolutional(Net):
        def __init__(self):
            super().__init__(None, act=nn.ReLU(inplace=True))
            self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3, stride=2, bias=False)
            self.norm, self.last = nn.BatchNorm2d(5), nn.Linear(5, 2)

        def forward(self, x):
            x = self.tap("first", z := self.first(x), self.act(z))
            x = F.max_pool2d(x, 2)
            x = self.tap("second", z := self.norm(self.second(x)), self.act(z))
            return self.last(x.mean((2, 3)))

    gains, reference, _ = measure(Convolutional(), torch.randn(4, 3, 12, 12))
    assert gains == {"act": reference.gains("first"), "act#2": reference.gains("second", "first")}


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(
    "written",
    [
        lambda z: z * torch.sigmoid(z),
        lambda z: 0.5 * z * (1.0 + torch.tanh(0.7978845608 * (z + 0.044715 * torch.pow(z, 3.0)))),
        lambda z: z * 0.5 * (1.0 + torch.erf(z / math.sqrt(2.0))),
        lambda z: z * torch.tanh(F.softplus(z)),
    ],
    ids=["silu", "gelu-tanh", "gelu-erf", "mish"],
)
def test_functions_written_by_hand(written, steps):
    def forward(m, x):
        x = m.tap("relu", z := m.a(x), F.relu(z))
        x = m.tap("written", z := m.b(x), written(z))
        return m.head(m.tap("elu", z := m.c(x), F.elu(z)))

    gains, reference, probe = measure(Net(forward), batch(), steps=steps)
    relu, own, elu = predecessors(probe)
    assert predecessors(probe) == {relu: (), own: (relu,), elu: (own,)}
    assert gains == {
        relu: reference.gains("relu"),
        own: reference.gains("written", "relu"),
        elu: reference.gains("elu", "written"),
    }


@pytest.mark.parametrize("row", [row for row in ACTIVATIONS if "softmax" not in row.name], ids=lambda row: row.name)
def test_every_function(row):
    function = nn.PReLU(8) if row.name == "prelu" else getattr(F, row.name)
    extra = {"threshold": (0.1, 2.0)}.get(row.name, ())

    def forward(m, x):
        x = m.tap("tanh", z := m.a(x), torch.tanh(z))
        a = m.tap("function", z := m.b(x), m.function(z, *extra))
        return m.head(a if a.shape[-1] == 8 else torch.cat((a, a), -1))

    model = Net(forward)
    model.function = function
    gains, reference, _ = measure(model, batch())
    assert list(gains.values()) == [reference.gains("tanh"), reference.gains("function", "tanh")]


def test_an_unrolled_loop_has_an_activation_gain_and_feeds_itself():
    def forward(m, x):
        x = m.tap("relu", z := m.a(x), F.relu(z))
        h = torch.zeros(len(x), 8)
        for _ in range(4):
            h = m.tap("tanh", z := m.b(x) + m.c(h), torch.tanh(z))
        return m.head(h)

    gains, reference, probe = measure(Net(forward), batch(), batch())
    assert predecessors(probe) == {":relu": (), ":tanh": (":relu", ":tanh")}
    # All that arrives at the ReLU has come from the loop.
    assert gains == {":relu": reference.gains("relu"), ":tanh": reference.gains("tanh", "relu")}


def test_what_is_left_of_the_signal_over_an_unrolled_loop():
    """δ of the first call over that of the last, by autograd; two micro-batches add up as norms do."""

    def forward(m, x):
        h = torch.zeros(len(x), 8)
        for _ in range(5):
            h = m.tap("tanh", z := m.b(x) + m.c(h), torch.tanh(z))
        return m.head(F.relu(m.a(h)))

    _, reference, probe = measure(Net(forward), batch(), batch())
    first, last = reference.ends("tanh", calls=5)
    record = probe.record
    names = [site.name for site in probe.info.sites]
    assert names == [":tanh", ":relu"]
    assert record.loop_calls.tolist() == pytest.approx([5, math.nan], nan_ok=True)
    assert record.loop_attenuation.tolist() == pytest.approx([first / last, math.nan], nan_ok=True, rel=1e-5)


def test_no_loop_no_numbers():
    def forward(m, x):
        return m.head(torch.tanh(m.b(F.relu(m.a(x)))))

    _, _, probe = measure(Net(forward), batch())
    assert probe.record.loop_calls.shape == probe.record.loop_attenuation.shape == (0,)


def test_a_loop_over_two_sites():
    def forward(m, x):
        for _ in range(3):
            x = m.tap("relu", z := m.a(x), F.relu(z))
            x = m.tap("tanh", z := m.b(x), torch.tanh(z))
        return m.head(x)

    gains, reference, probe = measure(Net(forward), batch())
    assert predecessors(probe) == {":relu": (":tanh",), ":tanh": (":relu",)}
    # The ReLU's calls are fed by the input, or by the tanh: there is no one gain. The tanh's are alike.
    assert gains == {":relu": reference.gains("relu"), ":tanh": reference.gains("tanh", "relu")}


def test_one_module_at_several_places():
    act = nn.Tanh()

    def forward(m, x):
        x = m.tap("first", z := m.a(x), m.act(z))
        x = m.tap("second", z := m.b(x), m.act(z))
        return m.head(m.tap("third", z := m.c(x), m.act(z)))

    gains, reference, _ = measure(Net(forward, act=act), batch())
    assert gains == {
        "act": reference.gains("first"),
        "act#2": reference.gains("second", "first"),
        "act#3": reference.gains("third", "second"),
    }


def test_two_inputs_through_one_net():
    def forward(m, x):
        outputs = [plain(m, part) for part in (x, 2 * x)]
        return outputs[0] - outputs[1]

    gains, reference, _ = measure(Net(forward), batch())
    assert gains[":tanh"] == reference.gains("tanh", "relu")
    assert gains[":sigmoid"] == reference.gains("sigmoid", "tanh")


def test_a_gate():
    def forward(m, x):
        x = m.tap("relu", z := m.a(x), F.relu(z))
        gate = m.tap("sigmoid", z := m.b(x), torch.sigmoid(z))
        return m.head(m.tap("tanh", z := m.d(m.c(x) * gate), torch.tanh(z)))

    gains, reference, probe = measure(Net(forward), batch())
    assert predecessors(probe)[":tanh"] == (":relu", ":sigmoid")
    assert gains[":sigmoid"] == reference.gains("sigmoid")
    assert gains[":tanh"] == reference.gains("tanh", "relu")


def test_what_is_detached_feeds_nothing():
    def forward(m, x):
        x = m.tap("relu", z := m.a(x), F.relu(z))
        return m.head(torch.tanh(m.b(x.detach()))) + m.head(x)

    gains, reference, probe = measure(Net(forward), batch())
    assert predecessors(probe) == {":relu": (), ":tanh": ()}
    assert gains[":relu"] == reference.gains("relu")
    assert math.isnan(gains[":tanh"][1])


class Depth(nn.Module):
    """Blocks of which any may be left out, or have a shortcut from further back."""

    def __init__(self, trunk):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"one": nn.Linear(8, 8), "two": nn.Linear(8, 8)}) for _ in range(4))
        self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 1)
        self.trunk, self.kept, self.taps = trunk, (True,) * 4, None
        self.back = False

    def forward(self, x):
        stem = x = self.tap("first", z := self.first(x), F.relu(z))
        for index, (block, kept) in enumerate(zip(self.blocks, self.kept, strict=True)):
            if not kept:
                continue
            inner = self.tap(f"inner{index}", z := block["one"](x), F.elu(z))
            source = stem if self.back and index == 3 else inner
            z = block["two"](source) + 0 * inner + x
            x = self.tap(f"outer{index}", z, F.relu(z)) if self.trunk else z
        return self.head(x)

    tap = Net.tap


def test_blocks_that_are_left_out_at_random_give_no_wrong_gain():
    torch.manual_seed(0)
    model = Depth(trunk=True)
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.0))
    seen = {}
    for kept in [(1, 1, 1, 1), (1, 0, 1, 1), (0, 0, 1, 0), (0, 1, 0, 1), (1, 1, 1, 1)]:
        model.kept = kept
        x = batch()
        with probe:
            model(x).square().sum().backward()
        reference = Reference(model, [x], squares)
        columns = {site.name: place for place, site in enumerate(probe.info.sites)}
        activation, weight = (probe.record.metrics[metric] for metric in METRICS)
        # The site of a block: `:elu`, `:elu#2`, … and `:relu#2`, `:relu#3`, … behind the first.
        names = {"first": ":relu"} | {f"outer{i}": f":relu#{i + 2}" for i in range(4)}
        trunk = ["first", *(f"outer{index}" for index in range(4) if kept[index])]
        assert activation[columns[":relu"]] == reference.gains("first")[0]
        for before, name in itertools.pairwise(trunk):
            column = columns[names[name]]
            assert (activation[column], weight[column]) == reference.gains(name, before), (kept, name)
            seen.setdefault(names[name], set()).add(names[before])
        for index in range(4):
            if not kept[index]:
                assert math.isnan(weight[columns[names[f"outer{index}"]]])
        assert probe.record.layout == probe.info.layout
    # The description has them all, in the order of the columns.
    for name, before in seen.items():
        found = predecessors(probe)[name]
        assert before <= set(found)
        assert list(found) == sorted(found, key=columns.get)


def test_a_shortcut_that_comes_and_goes_between_the_same_calls_is_noticed():
    torch.manual_seed(0)
    model = Depth(trunk=True)
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.0))
    found = []
    for back in (False, True, False):
        model.back = back
        x = batch()
        with probe:
            model(x).square().sum().backward()
        reference = Reference(model, [x], squares)
        weight = dict(zip(predecessors(probe), probe.record.metrics["weight_gain"], strict=True))
        found.append(weight[":relu#2"])
        assert weight[":relu#2"] == (NAN if back else reference.gains("outer0", "first")[1])
    assert math.isnan(found[1])
    assert not math.isnan(found[2])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_right_gain_or_none(reentrant):
    def block(m, x):
        x = m.tap("tanh", z := m.b(x), torch.tanh(z))
        return m.tap("elu", z := m.c(x), F.elu(z))

    def forward(m, x):
        x = m.tap("relu", z := m.a(x), F.relu(z))
        x = block(m, x) if m.taps is not None else checkpoint(lambda x: block(m, x), x, use_reentrant=reentrant)
        return m.head(m.tap("sigmoid", z := m.d(x), torch.sigmoid(z)))

    gains, reference, probe = measure(Net(forward), batch())
    expected = {
        ":relu": reference.gains("relu"),
        ":tanh": reference.gains("tanh", "relu"),
        ":elu": reference.gains("elu", "tanh"),
        ":sigmoid": reference.gains("sigmoid", "elu"),
    }
    if reentrant:
        # The block's own graph is made in the backward pass, so nobody knows who feeds the sigmoid.
        expected |= {":tanh": (NAN, NAN), ":elu": (NAN, NAN), ":sigmoid": reference.gains("sigmoid")}
        assert set(predecessors(probe).values()) == {()}
    assert {name: gains[name] for name in expected} == expected


def test_what_feeds_a_reentrant_checkpoint_starts_no_segment():
    def forward(m, x):
        x = m.tap("relu", z := m.a(x), F.relu(z))
        side = checkpoint(lambda x: torch.tanh(m.b(x)), x, use_reentrant=True)
        return m.head(m.tap("elu", z := m.c(x), F.elu(z))) + m.head(side)

    model = Net(forward)
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.0))
    with probe:
        model(batch()).square().sum().backward()
    assert predecessors(probe)[":elu"] == (":relu",)
    place = list(predecessors(probe)).index(":elu")
    assert probe.record.metrics["activation_gain"][place] > 0
    assert math.isnan(probe.record.metrics["weight_gain"][place])


@pytest.mark.parametrize(
    ("view", "back"),
    [
        (lambda z: z, lambda a: a),
        (lambda z: z.mT, lambda a: a.mT),
        (lambda z: z.reshape(-1, 2, 8), lambda a: a.reshape(4, 3, 8)),
    ],
    ids=["itself", "transposed", "reshaped"],
)
def test_in_place_on_a_view_of_all_of_a_tensor(view, back):
    """As a linear layer's output of more than two dimensions is one."""

    def forward(m, x):
        x = m.tap("tanh", z := m.a(x), torch.tanh(z))
        x = back(m.tap("relu", z := view(m.b(x)), m.relu(z)))
        return m.head(m.tap("sigmoid", z := m.c(x), torch.sigmoid(z)))

    model = Net(forward, relu=nn.ReLU(inplace=True))
    gains, reference, probe = measure(model, torch.randn(4, 3, 8))
    assert predecessors(probe) == {":tanh": (), "relu": (":tanh",), ":sigmoid": ("relu",)}
    assert gains == {
        ":tanh": reference.gains("tanh"),
        "relu": reference.gains("relu", "tanh"),
        ":sigmoid": reference.gains("sigmoid", "relu"),
    }
    assert probe.info.coverage == ()


@pytest.mark.parametrize("view", [lambda z: z[:, :4], lambda z: z[2]])
def test_in_place_on_a_part_of_a_tensor_hides_who_feeds_whom(view):
    def forward(m, x):
        z = m.b(torch.tanh(m.a(x))) * 1.0
        torch.relu_(view(z))
        return m.head(torch.sigmoid(m.c(z)))

    gains, _, probe = measure(Net(forward), batch())
    assert predecessors(probe)[":sigmoid"] == ()
    assert math.isnan(gains[":sigmoid"][1])


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Squashed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.sigmoid(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * y * (1 - y)


def test_a_users_own_function_is_followed_unless_it_hides_an_activation():
    def forward(m, x, own):
        x = m.tap("relu", z := m.a(x), F.relu(z))
        return m.head(m.tap("tanh", z := m.c(own.apply(m.b(x))), torch.tanh(z)))

    gains, reference, probe = measure(Net(lambda m, x: forward(m, x, Doubled)), batch())
    assert predecessors(probe) == {":relu": (), ":tanh": (":relu",)}
    assert gains[":tanh"] == reference.gains("tanh", "relu")
    gains, _, probe = measure(Net(lambda m, x: forward(m, x, Squashed)), batch())
    assert predecessors(probe)[":tanh"] == ()
    assert math.isnan(gains[":tanh"][1])


def test_activations_out_of_sight_are_not_the_weights_gain():
    def forward(m, x):
        x = m.tap("relu", z := m.a(x), F.relu(z))
        x, _ = m.rnn(x)
        x = m.tap("tanh", z := m.b(x), torch.tanh(z))
        return m.head(m.tap("elu", z := m.c(x), F.elu(z)))

    for rnn in (nn.LSTM(8, 8), nn.GRU(8, 8), nn.RNN(8, 8)):
        gains, reference, probe = measure(Net(forward, rnn=rnn), batch())
        assert predecessors(probe) == {":relu": (), ":tanh": (":relu",), ":elu": (":tanh",)}
        assert gains == {
            ":relu": reference.gains("relu"),
            ":tanh": reference.gains("tanh"),
            ":elu": reference.gains("elu", "tanh"),
        }


@pytest.mark.parametrize("row", ACTIVATIONS, ids=lambda row: row.name)
def test_the_node_of_every_function_is_known_as_such(row):
    z = torch.randn(4, 8, requires_grad=True) * 1.0
    extra = {"threshold": (0.1, 2.0), "softmax": (-1,), "log_softmax": (-1,), "prelu": (torch.ones(1),)}
    node = getattr(F, row.name)(z, *extra.get(row.name, ())).grad_fn
    # Softsign is made of arithmetic; tanhshrink subtracts a tanh.
    names = {type(each).__name__ for each in (node, *(edge for edge, _ in node.next_functions))}
    assert any(map(_is_function, names)) or row.name == "softsign"
    assert not any(map(_is_function, ("AddmmBackward0", "ConvolutionBackward0", "NativeLayerNormBackward0")))


def test_a_gradient_penalty_adds_to_no_gain_that_it_does_not_belong_to():
    def forward(m, x):
        x = m.tap("tanh", z := m.a(x), torch.tanh(z))
        return m.head(m.tap("softplus", z := m.b(x), F.softplus(z)))

    model = Net(forward)
    x = batch().requires_grad_()

    def penalized(output):
        (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        return output.square().sum() + 10 * slope.square().sum()

    gains, reference, _ = measure(model, x, loss_of=penalized)
    assert gains[":tanh"] == reference.gains("tanh")
    assert gains[":softplus"][0] == reference.gains("softplus")[0]
    # The penalty reaches the tanh past the softplus too.
    assert math.isnan(gains[":softplus"][1])


def test_two_backward_passes_leave_what_they_share_without_gains():
    def forward(m, x):
        shared = torch.tanh(m.a(x))
        return m.head(F.relu(m.b(shared))), m.head(F.gelu(m.c(F.elu(m.d(shared)))))

    model = Net(forward)
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.0))
    with probe:
        one, two = model(batch())
        one.sum().backward(retain_graph=True)
        two.sum().backward()
    found = {
        name: tuple(probe.record.metrics[metric][place] for metric in METRICS)
        for place, name in enumerate(predecessors(probe))
    }
    assert found[":tanh"] == (NAN, NAN)
    assert found[":relu"][0] > 0
    # The second loss isn't known when the first one's graph is looked at.
    assert all(math.isnan(weight) for _, weight in found.values())


def test_a_gradient_is_as_it_was_before_a_hook_of_the_user_wrote_into_it():
    def forward(m, x):
        x = m.tap("tanh", z := m.a(x), torch.tanh(z))
        z = m.b(x)
        if m.taps is None:
            z.register_hook(lambda gradient: gradient.mul_(3.0))
        x = m.tap("relu", z, F.relu(z))
        return m.head(m.tap("elu", z := m.c(x), F.elu(z)))

    gains, reference, _ = measure(Net(forward), batch())
    assert gains[":tanh"] == reference.gains("tanh")
    assert gains[":elu"] == reference.gains("elu", "relu")
    # Between the two the hook is at work.
    activation, weight = gains[":relu"]
    assert (activation, weight / 3) == reference.gains("relu", "tanh")


def test_no_gain_where_nothing_arrives():
    def forward(m, x):
        x = torch.tanh(m.a(x))
        return m.head(F.relu(m.b(x) - 100.0))

    gains, _, _ = measure(Net(forward), batch())
    # Every unit of the ReLU is dead: what arrives passes on nothing, and of nothing there is no share.
    assert gains[":relu"][0] == 0.0
    assert math.isnan(gains[":relu"][1])
    assert math.isnan(gains[":tanh"][0])


def test_gains_of_denormal_signals():
    gains, reference, _ = measure(Net(plain).double(), batch().double(), loss_of=lambda y: y.sum())
    tiny, _, probe = measure(Net(plain), batch(), loss_of=lambda y: y.sum() * 1e-36)
    assert 0 < probe.record.metrics["signal_norm"][-1] < 1e-34
    assert 0.1 < tiny[":sigmoid"][0] <= 0.25 + 1e-3
    assert gains[":sigmoid"] == reference.gains("sigmoid", "tanh")


def test_random_graphs_of_sites():
    """Predecessors by construction, norms by autograd; where a weight gain is given, all of it has come from there."""
    measured = 0
    for _ in range(25):
        count = random.randrange(2, 7)
        feeds = [
            {early for early in range(late) if early == late - 1 or random.random() < 0.25} for late in range(count)
        ]
        exits = {count - 1} | {site for site in range(count) if random.random() < 0.1}
        layers = nn.ModuleList(nn.ModuleList(nn.Linear(8, 8) for _ in range(count + 1)) for _ in range(count))

        def forward(m, x, feeds=feeds, exits=exits):
            outputs = []
            for site, feeding in enumerate(feeds):
                z = sum((m.layers[site][early](outputs[early]) for early in feeding), m.layers[site][-1](x))
                outputs.append(m.tap(site, z, m.acts[site](z)))
            return m.head(sum(outputs[site] for site in exits))

        model = Net(forward, layers=layers, acts=nn.ModuleList(nn.Tanh() for _ in range(count)))
        gains, reference, probe = measure(model, batch())
        names = [f"acts.{site}" for site in range(count)]
        assert predecessors(probe) == {
            name: tuple(names[early] for early in sorted(feeds[site])) for site, name in enumerate(names)
        }
        starts = probe.info.segment_starts
        for site, name in enumerate(names):
            activation, weight = gains[name]
            start = starts[site]
            assert activation == reference.gains(site)[0]
            if not math.isnan(weight):
                measured += 1
                assert weight == reference.gains(site, start)[1]
            fed = [late for late in range(count) if site - 1 in feeds[late]]
            if feeds[site] == {site - 1} and fed == [site] and site - 1 not in exits:
                assert start == site - 1
                assert not math.isnan(weight)
    assert measured > 20


def test_no_tensor_of_the_graph_outlives_the_pass():
    alive = []

    def forward(m, x):
        z = m.a(x)
        a = torch.tanh(z)
        unused = F.relu(m.d(a))
        b = F.relu(m.b(a) + z)
        alive[:] = [weakref.ref(tensor) for tensor in (z, a, b, unused)]
        return m.head(b)

    model = Net(forward)
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.1))
    gc.collect()
    gc.disable()
    try:
        with probe:
            loss = model(batch()).sum()
            loss.backward()
            del loss
            assert [reference() for reference in alive] == [None] * 4
        with pytest.raises(ZeroDivisionError), probe:
            model(batch()).sum() / (1 // 0)
        assert [reference() for reference in alive] == [None] * 4
    finally:
        gc.enable()


def test_an_output_with_nan_or_infinity_has_an_infinite_rms():
    def forward(m, x):
        x = torch.tanh(m.a(x))
        x = F.relu(m.b(x) + m.poison)
        return m.head(torch.sigmoid(m.c(x)))

    for value in (math.nan, math.inf):
        model = Net(forward)
        model.poison = torch.zeros(8)
        model.poison[3] = value
        _, _, probe = measure(model, batch())
        tanh, relu, sigmoid = probe.record.forward_rms
        assert 0 < tanh < 1
        assert relu == math.inf
        assert sigmoid == (math.inf if math.isnan(value) or not math.isfinite(sigmoid) else sigmoid)


def test_an_rms_beyond_float32_is_no_infinity():
    model = Net(lambda m, x: m.head(F.relu(m.a(x)) * 1e-60)).double()
    with torch.no_grad():
        model.a.weight.mul_(1e50)
    _, _, probe = measure(model, batch().double())
    assert probe.record.forward_rms[0] == torch.finfo(torch.float32).max
