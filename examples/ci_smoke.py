"""A training smoke run for a pipeline: a few dozen measured steps, kept for `gradwatch check` to judge.

Run it with `python examples/ci_smoke.py --folder smoke-run`, then `gradwatch check 'smoke-run/gradwatch/version_*'`.
`--net sigmoid` trains a net that can't learn, to see the check fail.
"""

import argparse

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import check_training


class Classifier(pl.LightningModule):
    """Stands for your own module."""

    def __init__(self, activation: type[nn.Module], hidden: int = 10) -> None:
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


def digits() -> DataLoader:
    """Load scikit-learn's digits."""
    found = load_digits()
    inputs = torch.tensor(found.data, dtype=torch.float32)
    inputs = (inputs - inputs.mean()) / inputs.std()
    return DataLoader(TensorDataset(inputs, torch.tensor(found.target)), batch_size=64, shuffle=True, drop_last=True)


def main() -> None:
    """Train, keep the run, print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="smoke-run", help="where the run is kept (default: %(default)s)")
    parser.add_argument("--net", choices=("relu", "sigmoid"), default="relu", help="default: %(default)s")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = Classifier(nn.ReLU if arguments.net == "relu" else nn.Sigmoid)
    print(check_training(model, digits(), folder=arguments.folder))


if __name__ == "__main__":
    main()
