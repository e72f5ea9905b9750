"""Situations of activations: functional, in place, shared, fused, recomputed, transformed, and out of sight."""

from __future__ import annotations

import warnings

import torch
from integration.nets import CLASSES, FEATURES, Classifier, Recomputed
from integration.situation import Situation
from integration.situations.loop import SITES, adam
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch import LayerState

HIDDEN = 8


class Sequence(nn.Module):
    """Turns a sample's features into three positions, and back into classes after an inner net."""

    def __init__(self, inner):
        super().__init__()
        self.spread = nn.Linear(FEATURES, 3 * HIDDEN)
        self.inner = inner
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        return self.head(self.inner(self.spread(x).view(-1, 3, HIDDEN)).mean(1))


class Inner(nn.Module):
    """A layer of its own, with a function between."""

    def __init__(self, function):
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)
        self.function = function

    def forward(self, x):
        return self.function(self.linear(x))


def hidden(function):
    """Make classifiers with a function between their layers."""

    def make():
        inner = Inner(function)
        return Classifier(nn.Sequential(nn.Linear(FEATURES, HIDDEN), inner, nn.Linear(HIDDEN, CLASSES)), adam)

    return make


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


class Looped(nn.Module):
    """One module, called twice, and one list of layers with one shared module between them."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.layers = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(2))
        self.last = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = x + self.act(layer(x))
        return self.last(self.act(x))


class Convolutions(nn.Module):
    """Two and three dimensions, channels last, pooling, transposed, up to a softmax over places."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.one = nn.Conv1d(1, 4, 3, padding=1)
        self.two = nn.Conv2d(1, 4, 3, padding=1)
        self.back = nn.ConvTranspose2d(4, 4, 2)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        line = F.elu(self.one(x.unsqueeze(1))).mean(-1)
        image = x.view(-1, 1, 2, 3).to(memory_format=torch.channels_last)
        image = F.relu_(self.norm(self.two(image)))
        image = F.hardswish(self.back(F.avg_pool2d(image, 1)))
        places = image.flatten(2).softmax(-1)
        return self.head(line + (image.flatten(2) * places).sum(-1))


class Functions(nn.Module):
    """Everything in torch's table that draws no line between functions and modules."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(11))
        self.first, self.last = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.prelu = nn.PReLU()

    def forward(self, x):
        h = self.first(x)
        functions = (
            F.relu6,
            F.selu,
            F.celu,
            F.softsign,
            F.mish,
            F.hardsigmoid,
            F.tanhshrink,
            F.logsigmoid,
            self.prelu,
            lambda z: F.rrelu(z, training=True),
            lambda z: F.glu(torch.cat([z, z], -1)),
        )
        for layer, function in zip(self.layers, functions, strict=True):
            h = h + function(layer(h))
        return self.last(h)


class Drops(nn.Module):
    """Stochastic depth: leaves a block out, by a draw from the global generator."""

    def __init__(self):
        super().__init__()
        self.first, self.block = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.last = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        h = F.relu(self.first(x))
        if torch.rand(()) < 0.5:
            h = h + torch.tanh(F.dropout(self.block(h), 0.3, self.training))
        return self.last(F.alpha_dropout(h, 0.1, self.training))


def double(parameter):
    parameter.grad.mul_(2.0)


class UsersHooks(Classifier):
    """Hooks of the user's own on modules, tensors and parameters."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES)))
        self.calls = []
        self.net[1].register_forward_hook(lambda module, args, out: self.calls.append("forward") or out * 1.5)
        self.net[0].register_full_backward_hook(lambda module, into, out: self.calls.append("backward"))
        self.net[0].weight.register_hook(lambda grad: grad * 0.5)
        self.net[2].weight.register_post_accumulate_grad_hook(double)

    def forward(self, x):
        h = self.net[:2](x)
        h.register_hook(lambda grad: grad * 3.0)
        return self.net[2](h)


def vmapped(x):
    return torch.func.vmap(lambda row: F.relu(row))(x)


def nested(x):
    jagged = torch.nested.nested_tensor_from_jagged(x, torch.tensor([0, 3, len(x)]))
    return F.relu(jagged).values()


def strided_nested(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of their being a prototype
        return torch.cat(torch.nested.as_nested_tensor([x[:3], x[3:]]).relu().unbind())


def functional_call(x):
    weights = {"weight": torch.eye(HIDDEN), "bias": x.mean(0)}
    return F.gelu(torch.func.functional_call(nn.Linear(HIDDEN, HIDDEN), weights, x))


def saved_on_cpu(x):
    with torch.autograd.graph.save_on_cpu():
        return torch.tanh(x)


def on_a_view(x):
    """In place on a view: the graph has no node for the function by itself."""
    F.relu_(x[:, :4])
    return x


SOFTMAX = "softmax isn't seen"
ENCODER = nn.TransformerEncoderLayer

SITUATIONS = {
    "checkpointing": Situation(
        make=lambda: Classifier(Recomputed(reentrant=False)), sites=("net:relu", "net.block.1", "net.block.4")
    ),
    "checkpointing-reentrant": Situation(
        make=lambda: Classifier(Recomputed(reentrant=True)),
        sites=("net:relu", "net.block.1", "net.block.4"),
        uncovered={"net.block.1": "reentrant", "net.block.4": "reentrant"},
    ),
    "checkpointing-a-function": Situation(
        make=hidden(lambda x: checkpoint(torch.tanh, x, use_reentrant=False)), sites=("net.1:tanh",)
    ),
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
    "functional-call": Situation(make=hidden(functional_call), sites=("net.1:gelu",)),
    "saved-on-cpu": Situation(make=hidden(saved_on_cpu), sites=("net.1:tanh",)),
    "in-place-on-a-view": Situation(
        make=hidden(on_a_view), sites=("net.1:relu",), uncovered={"net.1:relu": "its signal"}
    ),
    "inside-another-function": Situation(
        make=hidden(lambda x: F.gumbel_softmax(x) + x), uncovered={":gumbel_softmax": SOFTMAX}
    ),
    "looped": Situation(make=lambda: Classifier(Looped()), sites=("net.act", "net.act#2", "net.act#3")),
    "convolutions": Situation(
        make=lambda: Classifier(Convolutions(), adam), sites=("net:elu", "net:relu", "net:hardswish", "net:softmax")
    ),
    "functions": Situation(
        make=lambda: Classifier(Functions(), adam),
        sites=tuple(
            f"net{name}"
            for name in (
                ":relu6 :selu :celu :softsign :mish :hardsigmoid :tanhshrink :logsigmoid .prelu :rrelu :glu"
            ).split()
        ),
    ),
    "dropped-blocks": Situation(make=lambda: Classifier(Drops()), sites=("net:relu", "net:tanh"), states={"net.block": (LayerState.OK, LayerState.UNUSED)}, zeros=("update_ratio",)),
    "hooks-of-the-users-own": Situation(make=UsersHooks, sites=("net.1",)),
    "a-module-not-called": Situation(
        make=lambda: Classifier(NotCalled()), sites=("net:relu",), uncovered={"net.act": "not called"}
    ),
    "a-metric-on-the-logits": Situation(
        make=lambda: MeasuresItself(), sites=(*SITES, ":sigmoid"), uncovered={":sigmoid": "no backward pass"}
    ),
}


class NotCalled(nn.Module):
    """Registers a module and calls the function."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        return self.last(F.relu(self.first(x)))


class MeasuresItself(Classifier):
    """Computes metrics from its own logits, with and without gradients."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        with torch.no_grad():
            self.log("sure", logits.softmax(-1).amax(-1).mean())
        self.log("high", (torch.sigmoid(logits) > 0.5).float().mean())
        return F.cross_entropy(logits, y)
