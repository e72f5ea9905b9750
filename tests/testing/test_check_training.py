"""`check_training` says whether a module learns, and changes nothing of what it checks."""

from __future__ import annotations

import copy
import logging
import random
import warnings

import lightning.pytorch as lp
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from integration.nets import FEATURES, Classifier, batches, relu_net, vanishing_net
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import (
    GradWatchError,
    SaturatedUnits,
    Severity,
    TrainingReport,
    VanishingGradient,
    check_training,
    evaluate,
    read_run,
)

pytestmark = pytest.mark.judges


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder; whatever a check leaves there is seen."""
    monkeypatch.chdir(tmp_path)


def deep(activation, depth=4, width=8):
    layers = [nn.Linear(FEATURES, width), activation()]
    for _ in range(depth):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def test_healthy_module_is_ok_and_both_questions_are_answered():
    report = check_training(Classifier(deep(nn.Tanh)), batches(8, 64))
    assert report.ok
    assert report.findings == ()
    assert [record.step for record in report.records] == list(range(32))
    assert "Do gradients reach the first layer? Yes: net.0 gets a gradient of rms" in str(report)
    assert "Does a layer die? No: no unit is dead." in str(report)
    assert str(report).endswith("passed: 0 findings from 19 rules judged")


def test_ill_module_is_not_ok_and_the_report_says_why():
    report = check_training(Classifier(vanishing_net()), batches(8, 4))
    assert not report.ok
    assert [finding.code for finding in report.findings] == ["GW101", "GW301"]
    text = str(report)
    assert "Do gradients reach the first layer? Hardly, see GW101: net.0" in text
    assert "do       Replace Sigmoid" in text
    assert "not judged: GW201: not yet: the fullest window" in text
    assert "Does a layer die? Can't say: no activation's window of observations is full" in text
    assert text.endswith("failed: 2 findings from 17 rules judged")


def test_dead_layer_is_seen():
    net = deep(nn.ReLU)
    with torch.no_grad():
        net[2].bias.fill_(-100)
    report = check_training(Classifier(net), batches(8, 64))
    assert {"GW104", "GW201"} <= {finding.code for finding in report.findings}
    assert "Does a layer die? Yes, see GW201: 100 % of the units of net.3 are dead." in str(report)
    assert "No: net.0 is the first, and its gradient is exactly zero." in " ".join(str(report).split())


def test_module_without_activation_functions():
    report = check_training(Classifier(nn.Sequential(nn.Linear(FEATURES, 3))), batches())
    assert "Does a layer die? Can't say: no activation function was seen." in str(report)
    assert set(report.unjudged) == {"GW101", "GW201", "GW202", "GW401", "GW601"}


@pytest.mark.parametrize("package", [pl, lp])
def test_modules_of_both_packages_and_their_own_loader(package):
    class Module(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = relu_net()

        def training_step(self, batch, _):
            self.log("loss", 0.0)
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def train_dataloader(self):
            return batches()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    assert len(check_training(Module(), max_steps=3).records) == 3


def test_data_module_is_taken():
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return batches()

    assert len(check_training(Classifier(), Data(), max_steps=2).records) == 2


@pytest.mark.parametrize(("fail_on", "raises"), [(None, False), ("error", True), ("warning", True)])
def test_fail_on_raises_the_report(fail_on, raises):
    model = Classifier(vanishing_net())
    if not raises:
        check_training(model, batches(), fail_on=fail_on)
        return
    with pytest.raises(GradWatchError, match="Do gradients reach the first layer") as error:
        check_training(model, batches(), fail_on=fail_on)
    assert [finding.code for finding in error.value.findings] == ["GW101", "GW301"]


def test_level_decides_what_is_ok():
    def at(severity):
        return TrainingReport(findings=found, records=(), info=None, judged=1, fail_on=severity)

    found = check_training(Classifier(vanishing_net()), batches(), max_steps=16).findings
    assert not at(Severity.ERROR).ok
    found = tuple(finding for finding in found if finding.severity < Severity.WARNING)
    assert at(Severity.WARNING).ok


def test_nothing_judged_never_passes():
    model = Classifier(relu_net())
    rest = ("GW102", "GW103", "GW104", "GW105", "GW106", "GW3", "GW5", "GW6")
    few = batches(8, 4)  # 32 steps of 4: half of a window
    report = check_training(model, few, ignore=rest)
    assert not report.ok
    assert str(report).endswith("can't judge: no rule had what it needs")
    with pytest.raises(GradWatchError, match="can't judge"):
        check_training(model, few, ignore=rest, fail_on="error")
    assert not check_training(model, batches(0 + 1, 4), max_steps=1, trainer_options={"limit_train_batches": 0}).ok


def test_rules_and_ignore_are_the_callbacks():
    strict = VanishingGradient(min_grad_rms=1e3)
    assert not check_training(Classifier(relu_net()), batches(), rules=[strict], max_steps=4).ok
    report = check_training(Classifier(vanishing_net()), batches(), ignore=("GW101", "GW301"))
    assert report.ok
    with pytest.raises(ValueError, match="leaves it out"):
        check_training(Classifier(), batches(), rules=[SaturatedUnits()], ignore=("GW2",))


class Restless(Classifier):
    """Has all that a check must put back."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)))
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.net[3].bias.requires_grad_(requires_grad=False)
        self.net[0].weight.grad = torch.ones(8, FEATURES)
        self.net[2].eval()

    def training_step(self, batch, batch_idx):
        self.seen = self.seen + random.random() + np.random.rand()  # noqa: NPY002 - the global generators
        return super().training_step(batch, batch_idx)

    def on_train_end(self):
        self.net[3].bias.requires_grad_(requires_grad=True)
        self.net[2].train()


def state(model):
    return {
        "values": {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())},
        "gradients": {name: copy.deepcopy(each.grad) for name, each in model.named_parameters()},
        "trained": {name: each.requires_grad for name, each in model.named_parameters()},
        "modes": [part.training for part in model.modules()],
    }


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_module_is_as_it_was():
    model = Restless()
    before, held = state(model), list(model.parameters())
    check_training(model, batches(), max_steps=4)
    assert same(state(model), before)
    assert all(one is other for one, other in zip(model.parameters(), held, strict=True))
    with pytest.raises(RuntimeError, match="not attached"):
        _ = model.trainer


def test_module_is_as_it_was_after_a_failure():
    class Failing(Restless):
        def on_train_batch_end(self, *_):
            raise ZeroDivisionError

    model = Failing()
    before = state(model)
    with pytest.raises(ZeroDivisionError):
        check_training(model, batches())
    assert same(state(model), before)


def test_trained_module_is_kept_on_request():
    model = Restless()
    before = state(model)
    check_training(model, batches(), max_steps=4, restore=False)
    assert not same(state(model)["values"], before["values"])


@pytest.mark.parametrize("seed", [0, None])
def test_global_generators_are_as_they_were(seed):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    model, data = Restless(), batches(shuffle=True)
    before = states()
    check_training(model, data, max_steps=2, seed=seed)
    assert states() == before


def test_same_seed_gives_the_same_numbers():
    model = Restless()
    losses = [[r.loss for r in check_training(model, batches(shuffle=True), max_steps=4).records] for _ in range(2)]
    assert losses[0] == losses[1]


def test_silent_and_nothing_left_behind(tmp_path, capfd, caplog):
    levels = {name: logging.getLogger(name).level for name in ("pytorch_lightning", "lightning.pytorch", "lightning")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_training(Classifier(vanishing_net()), batches())
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert caplog.messages == []
    assert {name: logging.getLogger(name).level for name in levels} == levels


def test_users_own_warnings_are_heard():
    class Warns(Classifier):
        def on_train_start(self):
            warnings.warn("of the user's", RuntimeWarning, stacklevel=1)

    with pytest.warns(RuntimeWarning, match="of the user's"):
        check_training(Warns(), batches(), max_steps=1)


def test_run_is_kept_on_request(tmp_path):
    report = check_training(Classifier(vanishing_net()), batches(), folder="kept")
    assert report.path == tmp_path.relative_to(tmp_path) / "kept" / "gradwatch" / "version_0"
    assert evaluate(read_run(report.path)) == report.findings


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_steps": 0}, ValueError, r"max_steps=0\): must be at least 1"),
        ({"max_steps": 1.5}, TypeError, r"max_steps=1.5\): must be an integer"),
        ({"max_steps": True}, TypeError, r"max_steps=True\): must be an integer"),
        ({"fail_on": "info"}, ValueError, r"fail_on='info'\): must be one of None, 'warning', 'error'"),
        ({"ignore": ("GW9",)}, ValueError, "ignore: no rule's code starts with 'GW9'"),
    ],
)
def test_argument_that_cannot_be_used(arguments, error, message):
    with pytest.raises(error, match=message):
        check_training(Classifier(), batches(), **arguments)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "must be a LightningModule; for a plain torch module use Probe"),
        (Classifier, "an instance"),
        (3, "int"),
    ],
)
def test_what_is_no_lightning_module_is_refused(model, message):
    with pytest.raises(TypeError, match=message):
        check_training(model, batches())
