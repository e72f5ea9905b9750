"""What the cases learn: scikit-learn's small data sets, made-up ones, and the Zen of Python as a text. No download."""

from __future__ import annotations

import codecs
import contextlib
import io
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import sklearn.datasets
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.galleries.spec import Data

Kind = Literal["classification", "regression", "adversarial"]

_CONTEXT = 8


@dataclass(frozen=True)
class Task:
    """A data set, and what counts as having learned it."""

    load: Callable[[], tuple[Tensor, Tensor]]
    """Inputs in the units they come in, [N, F] or tokens [N, T]; targets, [N] classes or [N, K] numbers."""
    kind: Kind
    learned: float
    """Classification: the training accuracy must close this share of the gap between the largest class's share and 1.
    Regression: share of the targets' variance that must be explained. Adversarial: see `outcome.score`."""
    loss: str
    sequence: tuple[int, int] | None = None
    """Positions and features that the inputs of a sequence net are cut into."""


@dataclass(frozen=True)
class Examples:
    """What is handed to the net."""

    inputs: Tensor
    targets: Tensor
    task: Task
    tokens: int
    """Size of the vocabulary; 0 where the inputs are numbers."""
    outputs: int
    """Classes, or numbers to predict."""


def examples(data: Data) -> Examples:
    """Load and scale what a case learns."""
    task = TASKS[data.task]
    inputs, targets = _load(data.task)
    tokens = 0
    if inputs.is_floating_point():
        if data.inputs != "raw":
            inputs = _standardised(inputs, guarded=data.inputs != "unguarded")
        inputs = data.scale * inputs
    else:
        tokens = int(inputs.max()) + 1
    if data.shuffled:
        targets = targets[torch.randperm(len(targets), generator=_generator())]
    if task.kind == "classification":
        return Examples(inputs, targets, task, tokens, int(targets.max()) + 1)
    if data.targets != "raw" and task.kind == "regression":
        targets = _standardised(targets, guarded=True)
    return Examples(inputs, targets, task, tokens, targets.shape[1])


def _standardised(values: Tensor, *, guarded: bool) -> Tensor:
    deviation = values.std(0)
    if guarded:
        deviation = torch.where(deviation == 0, 1.0, deviation)
    return (values - values.mean(0)) / deviation


@lru_cache
def _load(task: str) -> tuple[Tensor, Tensor]:
    return TASKS[task].load()


def _bundled(name: str) -> Callable[[], tuple[Tensor, Tensor]]:
    def load() -> tuple[Tensor, Tensor]:
        inputs, targets = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
        return torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets)

    return load


def _diabetes() -> tuple[Tensor, Tensor]:
    inputs, targets = _bundled("diabetes")()
    return inputs, targets.float().unsqueeze(1)


def _digits_themselves() -> tuple[Tensor, Tensor]:
    inputs, _ = _bundled("digits")()
    return inputs, inputs


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _spirals() -> tuple[Tensor, Tensor]:
    """Two arms of one and a half turns."""
    radius = torch.linspace(0.15, 1.0, 300)
    angle = 3 * math.pi * radius
    arm = torch.stack((radius * angle.cos(), radius * angle.sin()), 1)
    noise = 0.02 * torch.randn(600, 2, generator=_generator())
    return torch.cat((arm, -arm)) + noise, torch.arange(600) // 300


def _xor() -> tuple[Tensor, Tensor]:
    inputs = 2 * torch.rand(600, 2, generator=_generator()) - 1
    return inputs, (inputs[:, 0] * inputs[:, 1] > 0).long()


def _sines() -> tuple[Tensor, Tensor]:
    """Numbers in the thousands, as a price would be."""
    inputs = 2 * torch.rand(600, 3, generator=_generator()) - 1
    values = torch.sin(3 * inputs[:, 0]) + inputs[:, 1] * inputs[:, 2]
    return inputs, 5000 + 1000 * values.unsqueeze(1)


def _halves() -> tuple[Tensor, Tensor]:
    """A sum of what the two halves of the features say."""
    inputs = 2 * torch.rand(600, 4, generator=_generator()) - 1
    bends = torch.sin(4 * inputs[:, 0]) * inputs[:, 1] + torch.sin(4 * inputs[:, 2]) * inputs[:, 3]
    return inputs, bends.unsqueeze(1)


def _zen() -> tuple[Tensor, Tensor]:
    """Eight characters, and the one that follows."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this  # noqa: PLC0415 - it prints

    text = codecs.decode(this.s, "rot13").lower()
    place = {character: number for number, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([place[character] for character in text])
    return codes[:-1].unfold(0, _CONTEXT, 1), codes[_CONTEXT:]


def _ring() -> tuple[Tensor, Tensor]:
    """Points on a circle; the inputs are all there is."""
    angle = 2 * math.pi * torch.rand(1024, generator=_generator())
    points = torch.stack((angle.cos(), angle.sin()), 1)
    points += 0.05 * torch.randn(1024, 2, generator=_generator())
    return points, points


def _classes(name: str) -> Task:
    return Task(_bundled(name), "classification", 0.8, "cross_entropy")


TASKS: dict[str, Task] = {
    "digits": Task(_bundled("digits"), "classification", 0.8, "cross_entropy", sequence=(8, 8)),
    "iris": _classes("iris"),
    "wine": _classes("wine"),
    "cancer": _classes("breast_cancer"),
    "spirals": Task(_spirals, "classification", 0.8, "cross_entropy"),
    "xor": Task(_xor, "classification", 0.8, "cross_entropy"),
    "zen": Task(_zen, "classification", 0.5, "cross_entropy", sequence=(_CONTEXT, 16)),
    # A straight line explains half of it.
    "diabetes": Task(_diabetes, "regression", 0.4, "mse"),
    "sines": Task(_sines, "regression", 0.8, "mse"),
    "halves": Task(_halves, "regression", 0.8, "mse"),
    "digits-themselves": Task(_digits_themselves, "regression", 0.6, "mse"),
    "ring": Task(_ring, "adversarial", 0.8, ""),
}
