"""Situations of activations out of sight: fused, scripted, transformed, inside of a function of its own."""

from __future__ import annotations

import warnings

import torch
from integration.nets import CLASSES, FEATURES, Classifier
from integration.situation import Situation
from integration.situations.activations import HIDDEN, hidden
from integration.situations.loop import adam
from torch import nn
from torch.nn import functional as F

SOFTMAX = "softmax isn't seen"
ENCODER = nn.TransformerEncoderLayer


class Sequence(nn.Module):
    """Turns a sample's features into three positions, and back into classes after an inner net."""

    def __init__(self, inner):
        super().__init__()
        self.spread = nn.Linear(FEATURES, 3 * HIDDEN)
        self.inner = inner
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        return self.head(self.inner(self.spread(x).view(-1, 3, HIDDEN)).mean(1))


def sequence(make):
    return lambda: Classifier(Sequence(make()), adam)


class Attention(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.attn = nn.MultiheadAttention(HIDDEN, 2, batch_first=True)
        self.settings = settings

    def forward(self, x):
        return x + self.attn(x, x, x, **self.settings)[0]


class ScaledDotProduct(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN)

    def forward(self, x):
        return F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1), dropout_p=0.1)


class Masked(nn.Module):
    """A stock encoder that is told which positions are padding."""

    def __init__(self, **settings):
        super().__init__()
        layer = nn.TransformerEncoderLayer(HIDDEN, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, **settings)

    def forward(self, x):
        padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        padding[::2, -1] = True
        return self.encoder(x, src_key_padding_mask=padding)


class Unrolled(nn.Module):
    """A cell written by hand, and one of torch's, over the positions."""

    def __init__(self):
        super().__init__()
        self.into, self.again = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.cell = nn.GRUCell(HIDDEN, HIDDEN)

    def forward(self, x):
        state = other = x.new_zeros(len(x), HIDDEN)
        for position in x.unbind(1):
            state = torch.tanh(self.into(position) + self.again(state))
            other = self.cell(position, other)
        return torch.stack([state, other], 1)


class First(nn.Module):
    """The output of a recurrent module, without its state."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0]


class CubeRoot(torch.autograd.Function):
    """A custom function that is an activation function, as far as anyone can tell."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0.1)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x > 0.1)


def script(what):
    """Script what torch has deprecated to script, and people still do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(what)


def doubled(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) * 2.0


scripted = script(doubled)


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.inner = script(nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Sigmoid()))
        self.last = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        # Unoptimized: what was profiled in one fit would round otherwise in the next, whoever watches.
        with torch.jit.optimized_execution(should_optimize=False):
            return self.last(self.inner(torch.tanh(self.first(x))))


def vmapped(x):
    return torch.func.vmap(F.relu)(x)


def nested(x):
    jagged = torch.nested.nested_tensor_from_jagged(x, torch.tensor([0, 3, len(x)]))
    return F.relu(jagged).values()


def strided_nested(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of their being a prototype
        return torch.cat(torch.nested.as_nested_tensor([x[:3], x[3:]]).relu().unbind())


SITUATIONS = {
    "transformer-layer": Situation(
        make=sequence(lambda: ENCODER(HIDDEN, 2, 16, batch_first=True)),
        sites=("net.inner:relu",),
        uncovered={"net.inner.self_attn": SOFTMAX},
    ),
    "transformer-layer-norm-first": Situation(
        make=sequence(lambda: ENCODER(HIDDEN, 2, 16, batch_first=True, norm_first=True, activation="gelu")),
        sites=("net.inner:gelu",),
        uncovered={"net.inner.self_attn": SOFTMAX},
    ),
    "transformer-with-padding": Situation(
        make=sequence(Masked),
        sites=("net.inner.encoder.layers.0:relu", "net.inner.encoder.layers.1:relu"),
        uncovered={f"net.inner.encoder.layers.{place}.self_attn": SOFTMAX for place in (0, 1)},
    ),
    "attention": Situation(make=sequence(Attention), uncovered={"net.inner.attn": SOFTMAX}),
    "attention-without-weights": Situation(
        make=sequence(lambda: Attention(need_weights=False)), uncovered={"net.inner.attn": SOFTMAX}
    ),
    "scaled-dot-product": Situation(
        make=sequence(ScaledDotProduct), uncovered={"net.inner:scaled_dot_product_attention": SOFTMAX}
    ),
    "lstm": Situation(
        make=sequence(lambda: First(nn.LSTM(HIDDEN, HIDDEN, batch_first=True))),
        uncovered={"net.inner.inner": "gates inside torch's fused LSTM aren't seen"},
    ),
    "gru": Situation(
        make=sequence(lambda: First(nn.GRU(HIDDEN, 4, 2, batch_first=True, bidirectional=True, dropout=0.1))),
        uncovered={"net.inner.inner": "gates inside torch's fused GRU aren't seen"},
    ),
    "unrolled": Situation(
        make=sequence(Unrolled),
        sites=("net.inner:tanh",),
        uncovered={"net.inner.cell": "gates inside torch's GRU cell aren't seen"},
    ),
    "scripted-function": Situation(make=hidden(scripted), uncovered={"": "scripted"}),
    "scripted-module": Situation(
        make=lambda: Classifier(Scripted(), adam), sites=("net:tanh",), uncovered={"net.inner": "scripted"}
    ),
    "custom-function": Situation(make=hidden(CubeRoot.apply), uncovered={"CubeRoot": "custom autograd function"}),
    "vmap": Situation(make=hidden(vmapped), uncovered={"net.1:relu": "vmap"}),
    "nested": Situation(make=hidden(nested), uncovered={"net.1:relu": "nested tensor"}),
    "nested-strided": Situation(make=hidden(strided_nested), uncovered={"net.1:relu": "nested tensor"}),
    "inside-another-function": Situation(
        make=hidden(lambda x: F.gumbel_softmax(x) + x), uncovered={":gumbel_softmax": SOFTMAX}
    ),
}
