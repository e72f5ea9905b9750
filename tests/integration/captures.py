"""The reference for numbers: the same quantities, taken by other means."""

from __future__ import annotations

import math

import pytest
import pytorch_lightning as pl

from lightning_gradwatch import LayerState


def norm(tensors):
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors if tensor is not None))


def by_layer(module, optimizer, what):
    """Return a number a layer, for those whose parameters the optimizer holds."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    found = {}
    for name, child in module.named_modules():
        own = [parameter for parameter in child.parameters(recurse=False) if id(parameter) in held]
        if own:
            found[name] = what(own)
    return found


class Captures(pl.Callback):
    """Takes the same quantities by other means: in Lightning's hooks, with whole copies of the weights."""

    def __init__(self):
        self.steps = []
        self.handles = []

    def on_train_batch_end(self, trainer, module, *args):
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def on_train_batch_start(self, trainer, module, *args):
        if not self.steps or self.steps[-1]["stepped"]:
            self.steps.append(
                {"before": {}, "norms": {}, "rms": {}, "clipped": {}, "moved": {}, "losses": [], "stepped": False}
            )

    def on_before_backward(self, trainer, module, loss):
        self.steps[-1]["losses"].append(float(loss.detach()))

    def on_before_optimizer_step(self, trainer, module, optimizer):
        step = self.steps[-1]
        matrices = lambda own: [parameter for parameter in own if parameter.dim() > 1]  # noqa: E731 - used thrice below
        step["norms"] |= by_layer(module, optimizer, lambda own: norm(parameter.grad for parameter in own))
        step["rms"] |= by_layer(
            module,
            optimizer,
            lambda own: norm(p.grad for p in matrices(own)) / math.sqrt(sum(p.numel() for p in matrices(own))),
        )
        before = {id(p): p.detach().clone() for group in optimizer.param_groups for p in group["params"]}
        step["lr"] = optimizer.param_groups[0]["lr"]

        def stepped(*_):
            step["clipped"] |= by_layer(module, optimizer, lambda own: norm(parameter.grad for parameter in own))
            step["moved"] |= by_layer(
                module,
                optimizer,
                lambda own: norm(p - before[id(p)] for p in matrices(own)) / norm(before[id(p)] for p in matrices(own)),
            )

        self.handles.append(optimizer.register_step_post_hook(stepped))
        step["stepped"] = True


def columns(watch, record, metric):
    names = watch.info.names(metric)
    return dict(zip(names, record.metrics[metric].tolist(), strict=True))


def compare(watch, captures, *, scale=1.0, tolerance=1e-6):
    assert len(watch.records) == sum(step["stepped"] for step in captures.steps) > 0
    for record, step in zip(watch.records, captures.steps, strict=False):
        assert columns(watch, record, "grad_norm") == pytest.approx(step["norms"], rel=tolerance)
        assert columns(watch, record, "grad_rms") == pytest.approx(step["rms"], rel=tolerance)
        if step["moved"]:
            assert columns(watch, record, "update_ratio") == pytest.approx(step["moved"], rel=1e-4)
        assert record.global_grad_norm == pytest.approx(math.hypot(*step["norms"].values()), rel=tolerance)
        assert set(record.layer_state) == {LayerState.OK}
        if not math.isnan(record.loss):
            assert record.loss == pytest.approx(sum(step["losses"]) / scale, rel=1e-6)
