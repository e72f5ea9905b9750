"""An activation function of the user's own, from `register_activation` to the finding, live and from a stored run."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from integration.nets import Classifier, batches, seed, trainer
from integration.test_activation_rows import Net, check_findings, check_gain, check_units, measured
from registering import table_kept
from torch import nn

from lightning_gradwatch import GradWatch, VanishingGradientWarning, evaluate, read_run, register_activation
from lightning_gradwatch.record.activations import look_up

INF = math.inf


@pytest.fixture(autouse=True)
def table():
    with table_kept():
        yield


def halved(z):
    """Takes three quarters of each signal, and is flat on both sides."""
    return torch.tanh(z) / 4


def off_and_flat(z):
    """Off below 0, as a ReLU, and flat above, as a tanh."""
    return torch.tanh(torch.relu(z))


def deadband(z):
    """0 in an interval that isn't symmetric about 0."""
    return torch.where(z < -0.5, z + 0.5, torch.where(z > 1.0, z - 1.0, torch.zeros_like(z)))


def leaky(z):
    return torch.where(z > 0, z, z / 10)


class Halved(nn.Module):
    def forward(self, z):
        return halved(z)


OWN = {
    "halved": (halved, {"saturated": [(-INF, -2), (2, INF)], "steepest": 0.25, "passes": 0.24, "initialization": "xavier_normal_"}),
    "off_and_flat": (off_and_flat, {"inactive": [(-INF, 0)], "saturated": [(2, INF)], "initialization": "xavier_normal_"}),
    "deadband": (deadband, {"inactive": [(-0.5, 1)], "replaced_by": ["SiLU", "ELU"]}),
    "leaky": (leaky, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_is_measured_as_autograd_and_numpy_have_it(name):
    function, said = OWN[name]
    register_activation(function, **said)
    model = Net(function)
    if name == "deadband":
        with torch.no_grad():
            model.first.weight[2].mul_(1e-3)
            model.first.bias[2] = 0.5
    probe, _, x = measured(model)
    (site,) = probe.info.sites
    assert (site.function, site.role) == (name, "hidden")
    check_units(function, look_up(name), probe, model, sides=("right",) if name == "off_and_flat" else ("left", "right"))  # fmt: skip
    check_gain(probe, model, x)
    assert probe.info.coverage == ()


@pytest.mark.parametrize("name", OWN)
def test_has_a_finding_with_cause_and_remedy_where_it_can_have_one(name):
    function, said = OWN[name]
    register_activation(function, **said)
    check_findings(function, look_up(name))


def fading():
    seed()
    layers = [part for _ in range(7) for part in (nn.Linear(16, 16), Halved())]
    return Classifier(nn.Sequential(nn.Linear(6, 16), Halved(), *layers, nn.Linear(16, 3)))


JUDGE = """
import json, sys
from lightning_gradwatch import evaluate, read_run
run = read_run(sys.argv[1])
stored = [[finding.code, finding.cause] for finding in run.findings]
again = [[finding.code, finding.cause] for finding in evaluate(run)]
print(json.dumps([stored, again, [site.function for site in run.info.sites]]))
"""


@pytest.mark.judges
@pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")
def test_a_fit_names_it_and_its_stored_run_is_read_where_nobody_registered_it(tmp_path):
    """Registered when the callback is there already; a run stores what was said of it, and is judged by that."""
    watch = GradWatch(every_n_steps=1)
    run = trainer(tmp_path, watch, max_steps=24)
    register_activation(Halved, halved, name="halved", **OWN["halved"][1])
    with pytest.warns(VanishingGradientWarning, match="halved"):
        run.fit(fading(), batches(16, 32))
    (finding,) = [each for each in watch.findings if each.code == "GW101"]
    assert finding.cause.startswith("The derivative of halved is at most 1/4")
    assert finding.remedy.text.startswith("Replace halved at ")
    stored = tmp_path / "gradwatch" / "version_0"
    assert read_run(stored).findings == evaluate(read_run(stored)) == watch.findings
    done = subprocess.run([sys.executable, "-c", JUDGE, str(stored)], capture_output=True, text=True, check=True, timeout=120)  # fmt: skip
    live, again, functions = json.loads(done.stdout)
    assert live == [[each.code, each.cause] for each in watch.findings]
    assert set(functions) == {"halved"}
    assert again == live
