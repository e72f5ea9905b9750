"""Every precision reads what float32 reads, to the accuracy of its format; a skipped step is skipped and not exploding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from integration.nets import Classifier, batches, relu_net, seed, trainer
from pytorch_lightning.plugins import MixedPrecision

from lightning_gradwatch import GradWatch, Severity, read_run

FORMATS = {
    "64-true": ({"precision": "64-true"}, torch.float64),
    "bf16-mixed": ({"precision": "bf16-mixed"}, torch.bfloat16),
    "bf16-true": ({"precision": "bf16-true"}, torch.bfloat16),
    "16-true": ({"precision": "16-true"}, torch.float16),
    "fp16-scaler": ({"plugins": 2.0**10}, torch.float16),
    "fp16-large-scale": ({"plugins": 2.0**14}, torch.float16),
}
CHAIN = 8
"""Roundings that a number goes through, one after another, in a net of three layers there and back."""


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def fused(parameters):
    return torch.optim.Adam(parameters, lr=0.01, fused=True)


def first_record(folder, settings, make_optimizer=adam, *, steps=1, accumulate=1):
    seed()
    watch = GradWatch(every_n_steps=1)
    settings = dict(settings)
    if "plugins" in settings:
        scaler = torch.amp.GradScaler("cpu", init_scale=settings["plugins"])
        settings["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler=scaler)]
    run = trainer(folder, watch, max_steps=steps, accumulate_grad_batches=accumulate, **settings)
    run.fit(Classifier(relu_net(32), make_optimizer), batches(8, 32))
    return watch.records[0], watch


@pytest.mark.parametrize("make_optimizer", [adam, fused])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("name", FORMATS)
def test_a_format_reads_what_float32_reads(name, accumulate, make_optimizer, tmp_path):
    settings, dtype = FORMATS[name]
    if name == "16-true" and make_optimizer is adam:
        make_optimizer = sgd  # Adam's epsilon is 0 in half precision: it divides by 0, watched or not
    record, watch = first_record(tmp_path / "narrow", settings, make_optimizer, accumulate=accumulate)
    plain, _ = first_record(tmp_path / "plain", {}, make_optimizer, accumulate=accumulate)
    accuracy = CHAIN * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    for metric in ("grad_norm", "grad_rms", "weight_rms", "signal_norm", "activation_gain", "weight_gain"):
        assert record.metrics[metric] == pytest.approx(plain.metrics[metric], rel=accuracy, nan_ok=True), metric
    assert record.forward_rms == pytest.approx(plain.forward_rms, rel=accuracy)
    assert record.loss == pytest.approx(plain.loss, rel=accuracy)
    assert record.global_grad_norm == pytest.approx(plain.global_grad_norm, rel=accuracy)
    # What a step of Adam's moves is its learning rate, which a weight that is stored in few digits rounds.
    weights = CHAIN * accuracy if name.endswith("-true") else accuracy
    assert record.metrics["update_ratio"] == pytest.approx(plain.metrics["update_ratio"], rel=max(weights, 1e-4))
    assert record.gradient_scale == settings.get("plugins", 1.0)
    assert record.metrics["inactive_share"] == pytest.approx(plain.metrics["inactive_share"], abs=0.01)
    assert not record.skipped
    assert watch.findings == ()


@pytest.mark.judges
@pytest.mark.parametrize("make_optimizer", [adam, fused])
def test_steps_that_overflow_are_skipped_and_not_exploding(make_optimizer, tmp_path):
    """A scale that is far too large at first, as `GradScaler` starts: it is halved at each skip."""
    settings = {"plugins": 2.0**30}
    _, watch = first_record(tmp_path, settings, make_optimizer, steps=24)
    skipped = [record.skipped for record in watch.records]
    assert 8 <= skipped.index(False) < 20
    for place, record in enumerate(watch.records):
        assert record.gradient_scale == 2.0 ** (30 - sum(skipped[:place]))
        assert record.skipped == (not math.isfinite(record.global_grad_norm))
        assert record.optimizers == (() if record.skipped else (0,))
        assert np.isnan(record.metrics["update_ratio"]).all() == record.skipped
    assert [finding for finding in watch.findings if finding.severity >= Severity.WARNING] == []
    stored = read_run(tmp_path / "gradwatch" / "version_0")
    assert [record.skipped for record in stored.records] == skipped
    assert stored.findings == watch.findings


def test_a_scale_that_grows_is_taken_out_of_each_step(tmp_path):
    """The signal and the gradient of one step differ from the next one's by their own change, not by the scale's."""
    readings = []
    for scale in (None, 2.0**8):
        settings = {} if scale is None else {"plugins": scale}
        seed()
        watch = GradWatch(every_n_steps=1)
        if scale is not None:
            scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
            settings["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler=scaler)]
        trainer(tmp_path / str(scale), watch, max_steps=8, **settings).fit(Classifier(relu_net(32)), batches(8, 32))
        readings.append(watch.records)
    assert [record.gradient_scale for record in readings[1]] == [2.0 ** (8 + n // 2) for n in range(8)]
    for plain, scaled in zip(*readings, strict=True):
        for metric in ("grad_norm", "signal_norm"):
            assert scaled.metrics[metric] == pytest.approx(plain.metrics[metric], rel=0.02)
