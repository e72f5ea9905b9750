"""Contract 1: a monitor never changes training. Bit for bit, with everything measured at every step."""

from __future__ import annotations

import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from integration.nets import (
    Classifier,
    Everything,
    FrozenEncoder,
    Gan,
    Penalized,
    Recomputed,
    batches,
    relu_net,
    seed,
    trainer,
    vanishing_net,
)
from pytorch_lightning.plugins import MixedPrecision

from lightning_gradwatch import GradWatch


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def adamw_fused(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, fused=True)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)


def scaled():
    return [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))]


def scaled_until_inf():
    # So large a scale that the first steps overflow and are skipped.
    return [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**40))]


SITUATIONS = {
    "plain": (lambda: Classifier(Everything()), {}),
    "adam": (lambda: Classifier(Everything(), adam), {}),
    "adamw-fused": (lambda: Classifier(Everything(), adamw_fused), {}),
    "momentum": (lambda: Classifier(Everything(), momentum), {}),
    "accumulation-and-clipping": (
        lambda: Classifier(Everything(), adam),
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05},
    ),
    "last-window-partial": (lambda: Classifier(Everything()), {"accumulate_grad_batches": 3}),
    "clipping-by-value": (
        lambda: Classifier(Everything()),
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    ),
    "bf16-mixed": (lambda: Classifier(Everything(), adam), {"precision": "bf16-mixed"}),
    "bf16-true": (lambda: Classifier(Everything()), {"precision": "bf16-true"}),
    "64-true": (lambda: Classifier(Everything()), {"precision": "64-true"}),
    "fp16-scaler": (lambda: Classifier(Everything()), {"plugins": scaled}),
    "fp16-scaler-skips": (lambda: Classifier(Everything()), {"plugins": scaled_until_inf}),
    "lbfgs": (lambda: Classifier(relu_net(), lbfgs), {}),
    "gan": (Gan, {}),
    "checkpointing": (lambda: Classifier(Recomputed(reentrant=False)), {}),
    "checkpointing-reentrant": (lambda: Classifier(Recomputed(reentrant=True)), {}),
    "gradient-penalty": (lambda: Penalized(relu_net()), {}),
    "vanishing": (lambda: Classifier(vanishing_net()), {}),
    "frozen-encoder": (FrozenEncoder, {}),
}


def train(make, settings, folder, *callbacks):
    """Return all that a training can end in: weights, buffers, optimizer state, gradients, random generators."""
    seed()
    settings = {key: value() if callable(value) else value for key, value in settings.items()}
    module = make()
    run = trainer(folder, *callbacks, log_every_n_steps=1, **settings)
    run.fit(module, batches(7, shuffle=True))
    assert run.fit_loop.epoch_loop._batches_that_stepped == (15 if isinstance(module, Gan) else 30)
    return {
        "weights": module.state_dict(),
        "gradients": [parameter.grad for parameter in module.parameters()],
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - as in nets.seed
        "python": random.getstate(),
        "logged": {name: value for name, value in run.logged_metrics.items() if not name.startswith("gradwatch")},
    }


def as_bytes(tensor):
    """As bytes NaN equals NaN, and 0 isn't -0."""
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def differences(one, other, where=""):
    """Yield where two nested structures aren't equal bit for bit."""
    if isinstance(one, (dict, list, tuple)):
        left, right = (dict(each) if isinstance(each, dict) else dict(enumerate(each)) for each in (one, other))
        if left.keys() != right.keys():
            yield where
        for key in left.keys() & right.keys():
            yield from differences(left[key], right[key], f"{where}/{key}")
    elif isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(as_bytes(one), as_bytes(other)):
            yield where
    elif not np.array_equal(one, other):
        yield where


@pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")
@pytest.mark.parametrize("situation", SITUATIONS)
def test_training_is_bit_identical_with_the_monitor(situation, tmp_path):
    make, settings = SITUATIONS[situation]
    without = train(make, settings, tmp_path / "without")
    watch = GradWatch(every_n_steps=1)
    watched = train(make, settings, tmp_path / "with", watch)
    assert len(watch.records) == (15 if situation == "gan" else 30)
    assert list(differences(without, watched)) == []


def test_training_is_bit_identical_with_the_default_schedule(tmp_path):
    make, settings = SITUATIONS["accumulation-and-clipping"]
    without = train(make, settings, tmp_path / "without")
    watched = train(make, settings, tmp_path / "with", GradWatch())
    assert list(differences(without, watched)) == []


def test_this_comparison_sees_one_draw_from_a_generator(tmp_path):
    """The test above can fail."""
    make, settings = SITUATIONS["plain"]
    without = train(make, settings, tmp_path / "without")

    class Draws(GradWatch):
        def on_train_batch_start(self, *args):
            super().on_train_batch_start(*args)
            torch.rand(1)

    assert "/torch" in list(differences(without, train(make, settings, tmp_path / "with", Draws())))


def test_the_users_own_hooks_on_the_optimizer_run_beside_ours(tmp_path):
    """One that was registered after ours comes after it in the optimizer's loop over its hooks."""
    calls = []

    class Registers(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            if trainer.global_step == 1:
                optimizer.register_step_post_hook(lambda *_: calls.append(trainer.global_step))

    watch = GradWatch(every_n_steps=1)
    trainer(tmp_path, watch, Registers(), max_steps=5).fit(Classifier(), batches())
    assert len(calls) == 4
    assert len(watch.records) == 5
