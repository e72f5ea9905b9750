"""A training smoke test: a few hundred steps in CI that fail when a net can't learn, and say why.

Run it with `pytest examples/test_smoke.py`: the net with ReLU passes, the one with fifteen sigmoid layers fails.
"""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch


class Classifier(pl.LightningModule):
    def __init__(self, activation: type[nn.Module], hidden: int = 15) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(hidden):
            linear = nn.Linear(64, 64)
            nn.init.kaiming_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [linear, activation()]
        self.net = nn.Sequential(*layers, nn.Linear(64, 10))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        inputs, labels = batch
        return nn.functional.cross_entropy(self.net(inputs), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.fixture
def batches() -> DataLoader:
    """Scikit-learn's digits."""
    digits = load_digits()
    inputs = torch.tensor(digits.data, dtype=torch.float32)
    inputs = (inputs - inputs.mean()) / inputs.std()
    return DataLoader(TensorDataset(inputs, torch.tensor(digits.target)), batch_size=64, shuffle=True, drop_last=True)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])
@pytest.mark.filterwarnings("ignore")  # the failure says it all
def test_gradient_reaches_every_layer(activation: type[nn.Module], batches: DataLoader, tmp_path: Path) -> None:
    """No rule objects to the first 60 steps."""
    torch.manual_seed(0)
    trainer = pl.Trainer(
        max_steps=60,
        callbacks=[GradWatch(fail_on="warning")],  # a finding raises GradWatchError, which fails the test
        default_root_dir=tmp_path,
        logger=False,
        accelerator="cpu",
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(activation), batches)
