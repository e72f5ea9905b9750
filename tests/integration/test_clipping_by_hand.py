"""Where a module clips in a hook of its own, the gradient is measured before and after all the same."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from integration.nets import Classifier, batches, seed, trainer
from torch.nn.utils import clip_grad_norm_

from lightning_gradwatch import GradWatch

LIMIT = 1e-3


class Keeps(Classifier):
    """Keeps the norm before it clips, step by step."""

    def clip(self):
        self.__dict__.setdefault("norms", []).append(float(clip_grad_norm_(self.parameters(), LIMIT)))


class AfterBackward(Keeps):
    def on_after_backward(self):
        if self.trainer.fit_loop._should_accumulate():
            return
        self.clip()


class BeforeStep(Keeps):
    def on_before_optimizer_step(self, optimizer):
        self.clip()


class InItsHook(Keeps):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip()


class OnlyLooks(Classifier):
    def on_after_backward(self):
        pass

    def on_before_optimizer_step(self, optimizer):
        pass


def trained(folder, kind, *callbacks, accumulated=1):
    seed()
    module = kind()
    trainer(folder, *callbacks, max_steps=4, accumulate_grad_batches=accumulated).fit(module, batches())
    return module


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("kind", [AfterBackward, BeforeStep, InItsHook])
def test_the_norm_before_and_what_is_left(kind, accumulated, tmp_path):
    watch = GradWatch(every_n_steps=1)
    module = trained(tmp_path, kind, watch, accumulated=accumulated)
    assert [record.global_grad_norm for record in watch.records] == pytest.approx(module.norms, rel=1e-5)
    factors = [LIMIT / norm for norm in module.norms]
    assert [record.clip_factor for record in watch.records] == pytest.approx(factors, rel=1e-3)
    alone = trained(tmp_path, kind, accumulated=accumulated)
    pairs = zip(copy.deepcopy(module).parameters(), alone.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_hook_that_clips_nothing_leaves_all(tmp_path):
    watch = GradWatch(every_n_steps=1)
    trained(tmp_path, OnlyLooks, watch)
    assert [record.clip_factor for record in watch.records] == [1.0] * 4
    watch = GradWatch(every_n_steps=1)
    trained(tmp_path, Classifier, watch)
    assert all(math.isnan(record.clip_factor) for record in watch.records)
