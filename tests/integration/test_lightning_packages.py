"""One callback for `pytorch_lightning` and for `lightning`, whichever is installed."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import lightning.pytorch as unified
import pytest
import pytorch_lightning as standalone
from integration.nets import QUIET, batches, relu_net, trainer
from torch import optim
from torch.nn import functional as F

from lightning_gradwatch import GradWatch, read_run


def module_of(package):
    class Net(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = relu_net()

        def training_step(self, batch, batch_idx):
            x, y = batch
            return F.cross_entropy(self.net(x), y)

        def configure_optimizers(self):
            return optim.SGD(self.parameters(), lr=0.1)

    return Net()


class Louder(GradWatch):
    """A user's subclass with a hook of its own."""

    def on_fit_start(self, trainer, pl_module):
        self.started = True


@pytest.mark.parametrize("package", [standalone, unified], ids=["pytorch_lightning", "lightning"])
@pytest.mark.parametrize("bare", [True, False], ids=["bare", "list"])
@pytest.mark.parametrize("cls", [GradWatch, Louder])
def test_both_packages_trainers_take_the_callback(package, bare, cls, tmp_path):
    watch = cls()
    run = package.Trainer(
        callbacks=watch if bare else [watch], default_root_dir=tmp_path, **{**QUIET, "max_epochs": None}, max_steps=4
    )
    run.fit(module_of(package), batches())
    assert [record.step for record in watch.records] == [0, 1, 2]
    assert isinstance(watch, package.Callback)
    assert len(read_run(tmp_path / "gradwatch" / "version_0").records) == 3
    assert cls is GradWatch or watch.started


@pytest.mark.parametrize("package", [standalone, unified], ids=["pytorch_lightning", "lightning"])
def test_a_second_instance_is_refused_by_lightning(package, tmp_path):
    """Two of them would measure twice and share one key in a checkpoint."""
    with pytest.raises(RuntimeError, match="GradWatch"):
        trainer(tmp_path, GradWatch(), GradWatch(), of=package)


ALONE = """
    import sys, warnings

    class Blocks:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {blocked!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

    sys.meta_path.insert(0, Blocks())
    from lightning_gradwatch import GradWatch
    {script}
"""
FIT = """
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    import {package} as pl

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
        def training_step(self, batch, batch_idx):
            return self.net(batch[0]).square().mean()
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    watch = GradWatch(every_n_steps=1)
    trainer = pl.Trainer(callbacks=watch, max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, default_root_dir=sys.argv[1])
    trainer.fit(Net(), DataLoader(TensorDataset(torch.randn(12, 4)), 4))
    assert [record.step for record in watch.records] == [0, 1, 2]
    assert not any(name.split(".")[0] in {blocked!r} for name in sys.modules)
    print("done")
"""


def run_alone(blocked, script, folder):
    program = textwrap.dedent(ALONE).format(blocked=blocked, script=textwrap.dedent(script))
    return subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("package", "blocked"),
    [
        ("pytorch_lightning", ("lightning",)),
        pytest.param("lightning.pytorch", ("pytorch_lightning",), marks=pytest.mark.slow),
    ],
)
def test_one_of_the_packages_is_enough(package, blocked, tmp_path):
    done = run_alone(blocked, FIT.format(package=package, blocked=blocked), str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_without_either_package_the_error_says_what_to_install(tmp_path):
    done = run_alone(("lightning", "pytorch_lightning"), "", str(tmp_path))
    assert done.returncode == 1
    assert "GradWatch needs PyTorch Lightning: pip install pytorch-lightning" in done.stderr
