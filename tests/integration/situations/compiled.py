"""Situations of compiled code: modules, the whole training step, an optimizer's step."""

from __future__ import annotations

import torch
from integration.nets import CLASSES, FEATURES, Classifier, relu_net
from integration.situation import Situation
from integration.situations.loop import SITES, Manual, adam, scaled
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch import LayerState

MODULE = 'compiled: its activations aren\'t seen; pass compiled="eager" to run measured steps eagerly'
STEP = 'the training step is compiled: no activation is seen; pass compiled="eager" to run measured steps eagerly'
NON_FINITE = (LayerState.OK, LayerState.NON_FINITE)


def compiled(what, **settings):
    return torch.compile(what, backend="aot_eager", **settings)


class Silent(Classifier):
    """Logs nothing: Lightning's own `log` can't be compiled."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)


class ManualSilent(Manual):
    def training_step(self, batch, batch_idx):
        x, y = batch
        self.manual_backward(F.cross_entropy(self(x), y))
        self.step(self.optimizers(), batch_idx)


class ClosesByHandSilent(ManualSilent):
    """Hands its compiled step a closure."""

    def training_step(self, batch, batch_idx):
        x, y = batch

        def closure():
            self.optimizers().zero_grad()
            loss = F.cross_entropy(self(x), y)
            self.manual_backward(loss)
            return loss

        self.optimizers().step(closure)


class Block(nn.Module):
    """A module of the user's: one of torch's own that is compiled by its method isn't compiled at all."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.second = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)

    def forward(self, x):
        return torch.sigmoid(self.second(self.act(self.first(x))))


def around(block):
    """Make a net whose middle is compiled and whose ends aren't."""
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), block, nn.Linear(8, CLASSES))


def by_its_method():
    block = Block()
    block.compile(backend="aot_eager")
    return block


def with_compiled_step(make_optimizer):
    def make(parameters):
        optimizer = make_optimizer(parameters)
        optimizer.step = compiled(optimizer.step)
        return optimizer

    return make


class Checkpointed(nn.Module):
    """Goes backward within its backward pass, before any other gradient is there."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(FEATURES, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        h = torch.relu(self.first(x))
        h = checkpoint(lambda z: torch.relu(self.second(z)), h, use_reentrant=True)
        return checkpoint(self.last, h, use_reentrant=True)


class LooksAround(torch.optim.SGD):
    """Takes its step from where the gradient leads, as sharpness-aware minimisation does: two passes a step."""

    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        self.move(0.01)
        with torch.enable_grad():
            closure()
        self.move(-0.11)
        return loss

    @torch.no_grad()
    def move(self, factor):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(parameter.grad, alpha=factor)


class CompiledUpdate(torch.optim.SGD):
    """Compiles what it does with the gradients, and not the closure that makes them."""

    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        self.update()
        return loss

    @torch.compile(backend="aot_eager", fullgraph=True)
    @torch.no_grad()
    def update(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(parameter.grad, alpha=-0.1)


def silent(make_optimizer=adam):
    return lambda: Silent(relu_net(), make_optimizer)


AROUND = {"sites": ("net.1",), "uncovered": {"net.2": MODULE}}
UNSEEN = {"uncovered": {"": STEP}}

compiled_step = with_compiled_step(adam)
writes_into_gradients = with_compiled_step(
    lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, foreach=True)
)
looks_around = with_compiled_step(lambda parameters: LooksAround(parameters, lr=0.1))

SITUATIONS = {
    "compiled-whole": Situation(make=lambda: compiled(Silent(relu_net(), adam)), compiles=True, **UNSEEN),
    "compiled-submodule": Situation(make=lambda: Silent(around(compiled(Block())), adam), compiles=True, **AROUND),
    "compiled-full-graph": Situation(
        make=lambda: Silent(around(compiled(Block(), fullgraph=True)), adam), compiles=True, **AROUND
    ),
    "compiled-by-its-method": Situation(make=lambda: Silent(around(by_its_method()), adam), compiles=True, **AROUND),
    "compiled-update": Situation(
        make=silent(lambda parameters: CompiledUpdate(parameters, lr=0.1)), compiles=True, sites=SITES
    ),
    "compiled-step": Situation(make=silent(compiled_step), compiles=True, **UNSEEN),
    "compiled-step-clipped": Situation(
        make=silent(compiled_step),
        settings={"gradient_clip_val": 0.05, "accumulate_grad_batches": 2},
        compiles=True,
        **UNSEEN,
    ),
    "compiled-step-nesterov": Situation(make=silent(writes_into_gradients), compiles=True, **UNSEEN),
    "compiled-step-twice": Situation(make=silent(looks_around), compiles=True, **UNSEEN),
    "compiled-step-checkpointed": Situation(
        make=lambda: Silent(Checkpointed(), compiled_step), compiles=True, **UNSEEN
    ),
    "compiled-step-scaler": Situation(
        make=silent(compiled_step),
        settings={"plugins": scaled(2.0**27), "max_steps": 16},
        steps=16,
        sites=SITES,
        states=dict.fromkeys(("net.0", "net.2", "net.4"), NON_FINITE),
        compiles=True,
    ),
    "compiled-step-manual": Situation(make=lambda: ManualSilent(relu_net(), compiled_step), compiles=True, sites=SITES),
    "compiled-step-closes-by-hand": Situation(
        make=lambda: ClosesByHandSilent(relu_net(), compiled_step),
        compiles=True,
        uncovered=dict.fromkeys(("net.1", "net.3"), "not called in a measured step"),
    ),
}
