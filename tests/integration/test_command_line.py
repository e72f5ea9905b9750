"""Lightning's own command line, which makes the callback and its rules from arguments and files."""

from __future__ import annotations

import importlib

import lightning.pytorch as lightning
import pytest
import torch
from integration.nets import Classifier, batches
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import DEFAULT_RULES, GradWatch, VanishingGradient
from lightning_gradwatch.judge.catalog import RULES


def steps(watch):
    return [record.step for record in watch.records]


class OtherClassifier(lightning.LightningModule):
    """The like of `Classifier`, of the other package."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(params=["pytorch_lightning", "lightning.pytorch"])
def command_line(monkeypatch, request):
    pytest.importorskip("jsonargparse")
    package = importlib.import_module(f"{request.param}.cli")  # only there with jsonargparse
    module = Classifier if request.param == "pytorch_lightning" else OtherClassifier

    def make(*arguments):
        monkeypatch.setattr("sys.argv", ["fit.py", *arguments])
        monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own use of it
        return package.LightningCLI(module, run=False, save_config_callback=None, seed_everything_default=0)

    return make


def test_lightnings_command_line_takes_the_callback_with_its_arguments(command_line, tmp_path):
    made = command_line(
        "--trainer.max_steps=3",
        "--trainer.accelerator=cpu",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_checkpointing=false",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.callbacks+=lightning_gradwatch.GradWatch",
        "--trainer.callbacks.every_n_steps=2",
        '--trainer.callbacks.ignore=["GW202"]',
        "--trainer.callbacks.fail_on=error",
    )
    made.trainer.fit(made.model, batches())
    watch = next(each for each in made.trainer.callbacks if isinstance(each, GradWatch))
    assert steps(watch) == [0, 1]
    assert "GW202" not in watch.info.rules


def test_lightnings_command_line_reads_the_callback_and_its_rules_from_a_file(command_line, tmp_path):
    settings = tmp_path / "fit.yaml"
    settings.write_text(
        f"""
trainer:
  accelerator: cpu
  max_steps: 2
  logger: false
  enable_progress_bar: false
  enable_checkpointing: false
  default_root_dir: {tmp_path}
  callbacks:
    - class_path: lightning_gradwatch.GradWatch
      init_args:
        every_n_steps: 1
        rules:
          - class_path: lightning_gradwatch.VanishingGradient
            init_args:
              ratio: 0.01
"""
    )
    made = command_line(f"--config={settings}")
    made.trainer.fit(made.model, batches())
    watch = next(each for each in made.trainer.callbacks if isinstance(each, GradWatch))
    assert watch.info.rules["GW101"]["ratio"] == 0.01


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning"])
@pytest.mark.parametrize("convert", ["none", "all"])
def test_hydra_builds_the_callback_with_its_rules(package, convert, tmp_path):
    pytest.importorskip("hydra")
    from hydra.utils import instantiate  # noqa: PLC0415 - only there with hydra-core
    from omegaconf import OmegaConf  # noqa: PLC0415 - as above

    rules = [{"_target_": f"lightning_gradwatch.{rule.__name__}"} for rule in RULES if rule is not VanishingGradient]
    rules.append({"_target_": "lightning_gradwatch.VanishingGradient", "ratio": 0.01, "min_grad_rms": None})
    watch = {"_target_": "lightning_gradwatch.GradWatch", "_convert_": convert, "every_n_steps": 1, "rules": rules}
    made = instantiate(
        OmegaConf.create(
            {
                "_target_": f"{package}.Trainer",
                "accelerator": "cpu",
                "max_steps": 2,
                "logger": False,
                "enable_progress_bar": False,
                "enable_checkpointing": False,
                "default_root_dir": str(tmp_path),
                "callbacks": [watch],
            }
        )
    )
    watch = next(each for each in made.callbacks if isinstance(each, GradWatch))
    assert set(watch._rules) == {
        VanishingGradient(ratio=0.01),
        *(rule for rule in DEFAULT_RULES if rule.code != "GW101"),
    }
    assert all(type(rule) in RULES for rule in watch._rules)


def test_a_mistake_in_hydras_rules_is_told_as_elsewhere():
    pytest.importorskip("hydra")
    from omegaconf import OmegaConf  # noqa: PLC0415 - only there with hydra-core

    with pytest.raises(TypeError, match=r"rules\[0\] must be a rule, such as VanishingGradient\(ratio=1e-2\); it is"):
        GradWatch(rules=OmegaConf.create([{"ratio": 0.01}]))
    assert "GW101" not in {rule.code for rule in GradWatch(ignore=OmegaConf.create(["GW1"]))._rules}
