"""Lightning's own command line, which makes the callback and its rules from arguments and files."""

from __future__ import annotations

import pytest
from integration.nets import Classifier, batches

from lightning_gradwatch import GradWatch


def steps(watch):
    return [record.step for record in watch.records]


@pytest.fixture
def command_line(monkeypatch):
    pytest.importorskip("jsonargparse")
    from pytorch_lightning.cli import LightningCLI  # noqa: PLC0415 - only there with jsonargparse

    def make(*arguments):
        monkeypatch.setattr("sys.argv", ["fit.py", *arguments])
        monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own use of it
        return LightningCLI(Classifier, run=False, save_config_callback=None, seed_everything_default=0)

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
