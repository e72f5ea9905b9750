"""Situations of activations: functional, in place, shared, fused, recomputed, transformed, and out of sight."""

from __future__ import annotations

import torch
from integration.nets import CLASSES, FEATURES, Classifier, Recomputed
from integration.situation import Situation
from integration.situations.loop import SITES, adam
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch import LayerState

HIDDEN = 8


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


class Positions(nn.Module):
    """In place on what a linear layer makes of positions, which is a view."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(3, HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        return self.last(self.act(self.first(x.view(-1, 2, 3)))).mean(1)


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
    "functional-call": Situation(make=hidden(functional_call), sites=("net.1:gelu",)),
    "saved-on-cpu": Situation(make=hidden(saved_on_cpu), sites=("net.1:tanh",)),
    "in-place-on-positions": Situation(make=lambda: Classifier(Positions(), adam), sites=("net.act",)),
    "in-place-on-a-view": Situation(
        make=hidden(on_a_view), sites=("net.1:relu",), uncovered={"net.1:relu": "its signal"}
    ),
    "looped": Situation(
        make=lambda: Classifier(Looped()), sites=("net.act@net.layers.0", "net.act@net.layers.1", "net.act@net.first")
    ),
    "convolutions": Situation(
        make=lambda: Classifier(Convolutions(), adam), sites=("net:elu", "net:relu", "net:hardswish", "net:softmax")
    ),
    "functions": Situation(
        make=lambda: Classifier(Functions(), adam),
        sites=tuple(
            f"net{name}"
            for name in [
                ":relu6",
                ":selu",
                ":celu",
                ":softsign",
                ":mish",
                ":hardsigmoid",
                ":tanhshrink",
                ":logsigmoid",
                ".prelu",
                ":rrelu",
                ":glu",
            ]
        ),
    ),
    "dropped-blocks": Situation(
        make=lambda: Classifier(Drops()),
        sites=("net:relu", "net:tanh"),
        states={"net.block": (LayerState.OK, LayerState.UNUSED)},
        zeros=("update_ratio",),
    ),
    "hooks-of-the-users-own": Situation(make=UsersHooks, sites=("net.1",)),
    "a-module-not-called": Situation(
        make=lambda: Classifier(NotCalled()), sites=("net:relu",), uncovered={"net.act": "not called"}
    ),
    "a-metric-on-the-logits": Situation(
        make=MeasuresItself, sites=(*SITES, ":sigmoid"), uncovered={":sigmoid": "no backward pass"}
    ),
}
