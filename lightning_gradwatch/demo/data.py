"""What the demo's nets learn: data that needs no download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

if TYPE_CHECKING:
    from collections.abc import Callable

_DIGITS_TEST = 360
_CHAIN_EXAMPLES = 512


@dataclass(frozen=True)
class Data:
    """Examples to learn from and to be judged by."""

    train: TensorDataset
    test: TensorDataset
    loss: Callable[[Tensor, Tensor], Tensor]


def digits(*, size: int = 8) -> Data:
    """Return scikit-learn's 1,797 handwritten digits, scaled to mean 0 and variance 1, as [N, 1, size, size].

    Raises:
        ModuleNotFoundError: scikit-learn isn't installed.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415 - an extra; the three neurons do without

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1)
    images = (images - images.mean()) / images.std()
    if size != images.shape[-1]:
        images = functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    labels = torch.tensor(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:-_DIGITS_TEST], order[-_DIGITS_TEST:]
    return Data(
        TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test]), functional.cross_entropy
    )


def one_input() -> Data:
    """Return what a chain of single neurons can learn: a threshold on one number, as [N, 1]."""
    inputs = torch.linspace(0.2, 2.0, _CHAIN_EXAMPLES).unsqueeze(1)
    targets = (inputs > 1.0).float()
    data = TensorDataset(inputs, targets)
    return Data(data, data, functional.mse_loss)
