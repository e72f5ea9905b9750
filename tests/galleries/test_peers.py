"""What the peers are given, against numpy, and their rules at their thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from benchmarks.galleries.cases import CASES
from benchmarks.galleries.peer_rules import judge_as_peers
from benchmarks.galleries.peers import LAYER_READINGS, SITE_READINGS, PeerWatch, Readings, layer_weights, sites
from benchmarks.galleries.training import prepare, quiet, train

STEPS = 40
CALM_LAYER = {
    "kernel_norm": 1.0,
    "mean_gradient": 1e-3,
    "zero_gradients": 0.0,
    "non_finite": 0.0,
    "predicted_update": 1e-3,
    "measured_update": 1e-3,
}
CALM_SITE = {"not_positive": 0.5, "far": 0.0, "mean_output": 0.5, "near_zero": 0.0, "bimodality": 0.3} | {
    "sagemaker_flat": 0.0,
    "silent_units": 0.0,
    "idle_units": 0.0,
}


class Reference(pl.Callback):
    """Keeps what the first step looked like, for numpy."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.first = trainer.global_step == 0
        self.handles = []
        if self.first:
            self.before = [weight.detach().double().numpy().copy() for weight in layer_weights(pl_module)]
            self.outputs = []
            self.handles = [site.register_forward_hook(self.keep) for site in sites(pl_module)]

    def keep(self, module, arguments, outputs):
        self.outputs.append((arguments[0].detach().double().numpy().copy(), outputs.detach().double().numpy().copy()))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.first:
            self.gradients = [weight.grad.double().numpy().copy() for weight in layer_weights(pl_module)]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for handle in self.handles:
            handle.remove()
        if self.first:
            self.after = [weight.detach().double().numpy().copy() for weight in layer_weights(pl_module)]


@pytest.fixture(scope="module")
def seen():
    case = CASES["small-data/wine"]
    prepared = prepare(case, seed=0)
    peers, reference = PeerWatch(STEPS * 400), Reference()
    with quiet():
        train(prepared, [peers, reference], logger=False)
    return case, peers.readings, reference


def test_layers_are_read_as_numpy_reads_them(seen):
    case, readings, reference = seen
    got = {name: rows[0] for name, rows in readings.layers.items()}
    pairs = list(zip(reference.before, reference.after, reference.gradients, strict=True))
    assert len(pairs) == len(case.net.widths) + 1
    assert got["kernel_norm"] == pytest.approx([np.linalg.norm(gradient) for _, _, gradient in pairs])
    assert got["mean_gradient"] == pytest.approx([abs(gradient).mean() for _, _, gradient in pairs])
    assert got["predicted_update"] == pytest.approx(
        [case.training.rate * abs(gradient).mean() / abs(before).mean() for before, _, gradient in pairs], rel=1e-5
    )
    assert got["measured_update"] == pytest.approx(
        [abs(after - before).mean() / abs(before).mean() for before, after, _ in pairs], rel=1e-4
    )
    assert not got["non_finite"].any()
    assert not got["zero_gradients"].any()


def test_activations_are_read_as_numpy_reads_them(seen):
    _, readings, reference = seen
    got = {name: rows[0] for name, rows in readings.sites.items()}
    assert got["mean_output"] == pytest.approx([abs(a).mean() for _, a in reference.outputs], rel=1e-5)
    assert got["not_positive"] == pytest.approx([(a <= 0).mean() for _, a in reference.outputs])
    assert got["far"] == pytest.approx([(abs(z) >= 5).mean() for z, _ in reference.outputs])
    edges = np.linspace(-1, 1, 11)
    for place, (_, a) in enumerate(reference.outputs):
        bins = np.digitize(a.ravel(), edges[1:-1])
        by_hand = sum(abs(a.ravel()[bins == number].sum()) for number in range(10)) / a.size
        assert got["bimodality"][place] == pytest.approx(by_hand, rel=1e-3)


def test_readings_come_back_from_their_file(seen, tmp_path):
    _, readings, _ = seen
    readings.save(tmp_path / "peers.npz")
    again = Readings.load(tmp_path / "peers.npz")
    for part in ("layers", "sites", "runs"):
        for name, values in getattr(readings, part).items():
            assert np.array_equal(getattr(again, part)[name], values, equal_nan=True)


def test_a_net_without_activation_modules_is_read():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert sites(net) == []
    assert len(layer_weights(net)) == 2


def calm(layers=4, readings=6):
    return Readings(
        layers={name: np.full((readings, layers), CALM_LAYER[name]) for name in LAYER_READINGS},
        sites={name: np.full((readings, layers - 1), CALM_SITE[name]) for name in SITE_READINGS},
        runs={"step": np.arange(readings) * 10, "score": np.full(readings, 0.2)},
    )


def alarms(readings):
    judged = judge_as_peers(readings, needed=0.8)
    return {f"{name} {alarm.illness}" for name, found in judged.items() for alarm in found}


def test_a_calm_run_alarms_nobody():
    assert alarms(calm()) == set()


@pytest.mark.parametrize(
    ("metric", "place", "value", "who"),
    [
        ("mean_gradient", 1, 9.9e-8, {"DeepDiagnosis vanishing", "SageMaker vanishing", "DeepChecker vanishing"}),
        ("mean_gradient", 1, 9e-7, {"DeepChecker vanishing"}),
        ("mean_gradient", 1, 1.1e6, {"DeepChecker exploding"}),
        ("kernel_norm", 0, 9e-5, {"AUTOTRAINER vanishing", "torchmortem vanishing"}),
        ("kernel_norm", 0, 9e-3, {"torchmortem vanishing"}),
        ("kernel_norm", 0, 71.0, {"AUTOTRAINER exploding"}),
        ("kernel_norm", 0, 1001.0, {"AUTOTRAINER exploding", "torchmortem exploding"}),
        ("predicted_update", 2, 0.11, {"DeepDiagnosis update"}),
        ("measured_update", 2, 0.11, {"DeepChecker update", "torchmortem update"}),
        ("measured_update", 2, 9e-6, {"DeepChecker update", "torchmortem update"}),
        ("measured_update", 2, 9e-5, {"DeepChecker update"}),
        ("measured_update", 2, 11.0, {"DeepChecker update", "torchmortem update", "SageMaker update"}),
    ],
)
def test_a_layer_beyond_a_threshold_alarms_whom_it_should(metric, place, value, who):
    readings = calm()
    readings.layers[metric][:, place] = value
    assert alarms(readings) == who


@pytest.mark.parametrize(
    ("metric", "value", "who"),
    [
        ("not_positive", 0.7, {"DeepDiagnosis dead"}),
        ("not_positive", 0.69, set()),
        ("far", 0.51, {"DeepDiagnosis saturated"}),
        ("silent_units", 0.51, {"SageMaker dead"}),
        ("sagemaker_flat", 0.51, {"SageMaker saturated"}),
        ("idle_units", 0.51, {"DeepChecker dead"}),
        ("bimodality", 0.86, {"DeepChecker saturated"}),
        ("near_zero", 0.51, {"torchmortem dead"}),
        ("mean_output", 0.96, {"torchmortem saturated"}),
    ],
)
def test_a_site_beyond_a_threshold_alarms_whom_it_should(metric, value, who):
    readings = calm()
    readings.sites[metric][:, 0] = value
    assert alarms(readings) == who


def test_five_neighbours_that_halve_the_gradient_vanish_and_that_double_it_explode():
    for factor, illness in ((2.0, "vanishing"), (0.5, "exploding")):
        readings = calm(layers=6)
        readings.layers["mean_gradient"][:] = 1e-3 * factor ** np.arange(6)
        assert alarms(readings) == {f"DeepChecker {illness}"}
        readings.layers["mean_gradient"][:, 3:] *= 1.5 / factor
        assert alarms(readings) == set()


def test_nan_alarms_everyone_but_a_good_accuracy_silences_autotrainer():
    readings = calm()
    readings.layers["non_finite"][3, 1] = 1.0
    everyone = {
        f"{name} exploding" for name in ("AUTOTRAINER", "DeepDiagnosis", "SageMaker", "DeepChecker", "torchmortem")
    }
    assert alarms(readings) == everyone
    assert judge_as_peers(readings, needed=0.8)["SageMaker"][0].step == 30
    readings.runs["score"][:] = 0.8
    assert alarms(readings) == everyone - {"AUTOTRAINER exploding"}


def test_autotrainer_counts_gradient_entries_that_are_zero():
    readings = calm()
    readings.layers["zero_gradients"][:] = 0.7
    assert alarms(readings) == {"AUTOTRAINER dead"}
    readings.layers["zero_gradients"][:, 0] = 0.69
    assert alarms(readings) == set()


def test_reading_changes_no_weight():
    def weights(callbacks):
        prepared = prepare(CASES["small-data/xor"], seed=0)
        with quiet():
            train(prepared, callbacks, logger=False)
        return [parameter.detach().clone() for parameter in prepared.module.parameters()]

    for read, plain in zip(weights([PeerWatch(400)]), weights([]), strict=True):
        assert torch.equal(read, plain)
