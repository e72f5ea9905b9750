"""Activation gains, weight gains and predecessors, against torch.autograd.grad and weights multiplied by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from measure.by_hand import Net, batch, measure, norm, plain, predecessors
from torch import nn

from lightning_gradwatch.record.activations import ROWS


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
        "act@a": (),
        "act@b": ("act@a",),
        "act@c": ("act@a", "act@b"),
        "act@d": ("act@c",),
    }
    assert probe.info.segment_starts == (None, None, 0, 2)
    assert gains == {
        "act@a": reference.gains("first"),
        "act@b": reference.gains("inner"),
        "act@c": reference.gains("second", "first"),
        "act@d": reference.gains("third", "second"),
    }
    product = gains["act@a"][0] * gains["act@c"][1] * gains["act@c"][0] * gains["act@d"][1]
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
    assert gains == {"act@first": reference.gains("first"), "act@norm": reference.gains("second", "first")}


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


@pytest.mark.parametrize(
    "row", [row for row in ROWS if hasattr(F, row.name) and "softm" not in row.name], ids=lambda row: row.name
)
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
