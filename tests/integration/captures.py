"""The reference for numbers: the same quantities, taken by other means."""

from __future__ import annotations

import math

import pytest
import pytorch_lightning as pl
import torch

from lightning_gradwatch import LayerState

NAN = float("nan")


def dense(tensor):
    tensor = tensor.detach()
    tensor = tensor.to_dense() if tensor.layout is torch.sparse_coo else tensor
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def norm(tensors):
    present = [tensor for tensor in tensors if tensor is not None]
    return math.sqrt(sum([float(dense(tensor).double().square().sum()) for tensor in present])) if present else None


def by_layer(module, optimizer, what):
    """Return a number a layer (None for one without a gradient), for those whose trainable parameters the optimizer holds."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    own = {}
    for name, parameter in module.named_parameters():
        if id(parameter) in held and parameter.requires_grad and parameter.numel():
            layer, _, own_name = name.replace("_orig_mod.", "").rpartition(".")
            own.setdefault(layer or own_name, []).append(parameter)
    return {name: what(parameters) for name, parameters in own.items()}


def matrices(own):
    return [parameter for parameter in own if parameter.dim() > 1]


def rms(own, kept):
    gradients = [gradient for gradient in gradients_of(matrices(own), kept) if gradient is not None]
    return norm(gradients) / math.sqrt(sum([gradient.numel() for gradient in gradients])) if gradients else None


def divided(value, scale):
    return None if value is None else value / scale


def gradients_of(own, kept):
    """Return gradients as the backward pass left them, which a module that clips by hand has kept."""
    return [parameter.grad for parameter in own] if kept is None else [kept[id(parameter)] for parameter in own]


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
                {
                    "before": {},
                    "norms": {},
                    "rms": {},
                    "clipped": {},
                    "moved": {},
                    "losses": [],
                    "stepped": False,
                    "seen": set(),
                }
            )

    def on_before_backward(self, trainer, module, loss):
        if not self.steps[-1]["seen"]:  # not a later closure of a line search
            self.steps[-1]["losses"].append(float(loss.detach()))

    def on_before_optimizer_step(self, trainer, module, optimizer):
        step = self.steps[-1]
        if id(optimizer) in step["seen"]:
            return  # a later closure of a line search, or a second step of the batch
        step["seen"].add(id(optimizer))
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        fused = scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        if fused:  # and the user may have unscaled by hand
            fused = scaler._per_optimizer_states[id(optimizer)]["stage"].name == "READY"
        scale = scaler.get_scale() if fused else 1.0
        kept = getattr(module, "unclipped", None)
        step["norms"] |= by_layer(module, optimizer, lambda own: divided(norm(gradients_of(own, kept)), scale))
        step["rms"] |= by_layer(module, optimizer, lambda own: divided(rms(own, kept), scale))
        before = {id(p): dense(p).clone().double() for group in optimizer.param_groups for p in group["params"]}
        step["lr"] = optimizer.param_groups[0]["lr"]

        def moved(own):
            there = norm([before[id(p)] for p in matrices(own)])
            return norm([dense(p) - before[id(p)] for p in matrices(own)]) / there if there else None

        def stepped(optimizer, *_):
            if getattr(optimizer, "found_inf", 0) > 0:
                return  # one that unscales by itself leaves the step out by itself
            step["clipped"] |= by_layer(module, optimizer, lambda own: norm([parameter.grad for parameter in own]))
            step["moved"] |= by_layer(module, optimizer, moved)

        self.handles.append(optimizer.register_step_post_hook(stepped))
        step["stepped"] = True


def columns(watch, record, metric):
    names = next(info for info in watch.infos if info.layout == record.layout).names(metric)
    return dict(zip(names, record.metrics[metric].tolist(), strict=False))


def agree(read, reference, *, tolerance):
    """Whether all that the reference has was read, and nothing else."""
    expected = {name: value for name, value in reference.items() if value is not None}
    rest = {name: value for name, value in read.items() if name not in expected}
    assert all(math.isnan(value) for value in rest.values()), rest
    # Of inf and NaN among one layer's gradients either may come out.
    assert {name for name in expected if not math.isfinite(read[name])} == {
        name for name, value in expected.items() if not math.isfinite(value)
    }
    finite = {name: value for name, value in expected.items() if math.isfinite(value)}
    assert {name: read[name] for name in finite} == pytest.approx(finite, rel=tolerance)


def compare(watch, captures, *, scale=1.0, tolerance=1e-6, states=None):
    """Compare each record with what was captured at its step; `states` names the layers that aren't always OK."""
    states = states or {}
    taken = [step for step in captures.steps if step["stepped"]]
    assert len(watch.records) == len(taken) > 0
    for record, step in zip(watch.records, taken, strict=True):
        for metric, reference in (("grad_norm", "norms"), ("grad_rms", "rms")):
            agree(columns(watch, record, metric), step[reference], tolerance=tolerance)
        agree(columns(watch, record, "update_ratio"), step["moved"], tolerance=1e-4)
        norms = [value for value in step["norms"].values() if value is not None]
        total = math.hypot(*norms) if norms else NAN
        assert record.global_grad_norm == pytest.approx(total, rel=tolerance, nan_ok=True) or not math.isfinite(total)
        for layer, state in zip(watch.info.layers, record.layer_state, strict=False):
            assert state in states.get(layer.name, (LayerState.OK,)), layer.name
        if not math.isnan(record.loss):
            assert record.loss == pytest.approx(sum(step["losses"]) / scale, rel=1e-6, nan_ok=True)
