"""A suite of a user's: what it imports, and how to run it in this process or another."""

from __future__ import annotations

import warnings

# In-process runs forget what they were the first to import, and torch can't be imported twice.
import lightning.pytorch
import pytest
import pytorch_lightning

from lightning_gradwatch.testing import watch
from lightning_gradwatch.testing.plugin import report, watched

NEEDED = (lightning.pytorch, pytorch_lightning, report, watch, watched)

NETS = '''
import lightning.pytorch as lp
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import Finding, Remedy, SaturatedUnits, Severity
from lightning_gradwatch.judge.rule import Verdict

QUIET = dict(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
             enable_model_summary=False, max_epochs=-1)


def make(package):
    class Classifier(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Classifier()


def data():
    return DataLoader(TensorDataset(torch.randn(16, 6), torch.randint(0, 3, (16,))), 4)


def fit(*callbacks, package=pl, **settings):
    trainer = package.Trainer(callbacks=list(callbacks), **{**QUIET, "max_steps": 4, **settings})
    trainer.fit(make(package), data())
    return trainer


def rule_at(severity, *, since=0):
    """A rule that always objects, as severely as it is told."""
    class Told(SaturatedUnits):
        def judge(self, record, info, memory):
            if record.step < since:
                return Verdict()
            finding = Finding("GW202", "saturated-units", severity, ("net.1",), record.step, record.step, 1.0, 0.5,
                              "the cause", Remedy("the remedy"), "what was seen")
            return Verdict(findings={"": finding})
    return Told()


ERROR, WARNING, INFO = (rule_at(severity) for severity in (Severity.ERROR, Severity.WARNING, Severity.INFO))
'''

HEAD = """
import warnings
import pytest
from nets import *
from lightning_gradwatch import *
"""


@pytest.fixture
def suite(pytester, monkeypatch):
    """Return a function that runs a test file with `nets` beside it."""
    for name in ("", "_FAIL_ON", "_IGNORE", "_EVERY_N_STEPS"):
        monkeypatch.delenv(f"PYTEST_GRADWATCH{name}", raising=False)
    pytester.makepyfile(nets=NETS)

    def run(body, *arguments, subprocess=False):
        pytester.makepyfile(test_it=HEAD + body)
        start = pytester.runpytest_subprocess if subprocess else pytester.runpytest_inprocess
        with warnings.catch_warnings():
            warnings.resetwarnings()  # our own suite makes errors of them
            return start("-p", "no:cacheprovider", "-W", "ignore::FutureWarning", *arguments)

    return run
