"""Contract 1, what the situations leave open: nothing is left behind by a step that ends early, or by an exception."""

from __future__ import annotations

import signal

import pytest
import pytorch_lightning as pl
import torch
from integration.nets import (
    Classifier,
    FrozenEncoder,
    batches,
    relu_net,
    seed,
    trainer,
)
from integration.traces import traces
from torch.nn import functional as F

from lightning_gradwatch import GradWatch


class Boom(Exception):
    pass


class RaisesBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise Boom


class Fails(Classifier):
    """Raises in step 2, at a place of its own."""

    def __init__(self, where=None, error=Boom):
        super().__init__()
        self.where, self.error = where, error

    def due(self, where):
        return self.where == where and self.global_step == 2

    def training_step(self, batch, batch_idx):
        x, y = batch
        h = self.net[1](self.net[0](x))
        if self.due("forward"):
            raise self.error
        if self.due("backward"):
            h = RaisesBackward.apply(h)
        loss = F.cross_entropy(self.net[2:](h), y)
        return None if self.due("no loss") else loss

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.due("skips the rest") else None

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        if self.due("optimizer_step"):
            raise self.error


class Raises(pl.Callback):
    """Another callback that raises in step 2, in a hook of its own."""

    def __init__(self, where, error=Boom):
        def hook(trainer, *args):
            if trainer.global_step == (3 if where == "on_train_batch_end" else 2):
                raise error

        setattr(self, where, hook)


class FailingSGD(torch.optim.SGD):
    steps = 0

    def step(self, closure=None):
        loss = super().step(closure)
        self.steps += 1
        if self.steps == 3:
            raise Boom
        return loss


OTHERS_HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


def test_nothing_is_left_between_steps(tmp_path):
    """Looked at before the callback opens a batch and after it has closed it, at measured steps and others."""
    seen = {False: [], True: []}

    class Looks(pl.Callback):
        def __init__(self, watched):
            self.watched = watched

        def on_train_batch_start(self, trainer, module, *args):
            seen[self.watched].append(traces(trainer, module))

    for watched in (False, True):
        seed()
        module = Fails()
        watch = [GradWatch(every_n_steps=3)] if watched else []
        trainer(tmp_path, Looks(watched), *watch, max_steps=8, accumulate_grad_batches=2).fit(module, batches())
    assert len(seen[True]) == 16
    # The optimizer's own attributes appear with its first step; the monitor's patch isn't there at any time we look,
    # but where a step goes on with its next micro-batch.
    assert seen[False] == seen[True]


@pytest.mark.parametrize("situation", ["forward", "backward", "optimizer_step", *OTHERS_HOOKS])
@pytest.mark.parametrize("first", [True, False], ids=["watch-first", "watch-last"])
def test_nothing_is_left_after_an_exception(situation, first, tmp_path):
    if situation in OTHERS_HOOKS:
        module, others = Fails(), [Raises(situation)]
    else:
        module, others = Fails(situation), []
    watch = GradWatch(every_n_steps=1)
    run = trainer(tmp_path, *((watch, *others) if first else (*others, watch)), max_steps=5)
    with pytest.raises(Boom):
        run.fit(module, batches())
    left = traces(run, module)
    assert "training_step" not in left["strategy"]
    assert left["modes"] == (0, 0, True)
    assert not any(any(counts) for name, counts in left.items() if name.startswith("hooks of"))
    # What was measured before is there, and the same callback goes on in a new fit.
    assert [record.step for record in watch.records][:2] == [0, 1]
    again = Fails()
    trainer(tmp_path, watch, max_steps=4).fit(again, batches())
    assert [record.step for record in watch.records] == [0, 1, 2, 3]


def test_nothing_is_left_when_the_optimizer_raises(tmp_path):
    module = Classifier(relu_net(), lambda parameters: FailingSGD(parameters, lr=0.1))
    watch = GradWatch(every_n_steps=1)
    run = trainer(tmp_path, watch, max_steps=5)
    with pytest.raises(Boom):
        run.fit(module, batches())
    left = traces(run, module)
    assert "training_step" not in left["strategy"]
    assert left["modes"] == (0, 0, True)
    assert not any(any(counts) for name, counts in left.items() if name.startswith("hooks of"))
    assert [record.step for record in watch.records] == [0, 1]


@pytest.mark.parametrize("where", ["forward", "optimizer_step"])
def test_nothing_is_left_after_an_interrupt(where, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    module = Fails(where, KeyboardInterrupt)
    watch = GradWatch(every_n_steps=1)
    run = trainer(tmp_path, watch, max_steps=5)
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            run.fit(module, batches())
    finally:
        signal.signal(signal.SIGINT, before)
    left = traces(run, module)
    assert "training_step" not in left["strategy"]
    assert left["modes"] == (0, 0, True)
    assert not any(any(counts) for name, counts in left.items() if name.startswith("hooks of"))


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")
def test_a_step_without_a_loss_leaves_nothing_and_training_goes_on(tmp_path):
    left = []
    for callbacks in ([], [GradWatch(every_n_steps=1)]):
        seed()
        module = Fails("no loss")
        run = trainer(tmp_path, *callbacks, max_steps=6)
        run.fit(module, batches())
        left.append((traces(run, module), module.state_dict()["net.0.weight"].tolist()))
    assert left[0] == left[1]
    assert [record.step for record in callbacks[0].records] == [0, 1, 2, 3, 4, 5]
    assert callbacks[0].findings == ()


def test_an_epoch_that_is_cut_short_leaves_nothing_and_training_goes_on(tmp_path):
    """After on_train_batch_start returned -1 Lightning calls no on_train_batch_end."""
    left = []
    for callbacks in ([], [GradWatch(every_n_steps=1)]):
        seed()
        module = Fails("skips the rest")
        run = trainer(tmp_path, *callbacks, max_epochs=3)
        run.fit(module, batches())
        left.append((traces(run, module), module.state_dict()["net.0.weight"].tolist()))
    assert left[0] == left[1]
    assert [record.step for record in callbacks[0].records] == [0, 1]


@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode:UserWarning")
def test_nothing_is_left_on_a_module_with_a_fast_path(tmp_path):
    """For a forward pass it has a `forward` of ours, so that torch's fused path stays open."""

    class Raises(FrozenEncoder):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if self.global_step == 2:
                raise Boom
            return loss

    module = Raises()
    before = {name: sorted(vars(child)) for name, child in module.encoder.named_modules()}
    with pytest.raises(Boom):
        trainer(tmp_path, GradWatch(every_n_steps=1), max_steps=5).fit(module, batches())
    assert {name: sorted(vars(child)) for name, child in module.encoder.named_modules()} == before
