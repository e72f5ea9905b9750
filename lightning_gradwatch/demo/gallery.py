"""Who is failing and who is fixed: each net of the demo with the data and the optimizer that show it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lightning_gradwatch.demo.data import Data, digits, one_input
from lightning_gradwatch.demo.nets import (
    four_times_xavier,
    fully_connected,
    he,
    small_normal,
    three_neurons,
    vgg16,
    xavier,
)
from lightning_gradwatch.judge.rules.vanishing import VanishingGradient

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning_gradwatch.judge.rule import Rule


@dataclass(frozen=True, kw_only=True)
class DemoRun:
    """One net to train."""

    run: str
    """Name of its run in TensorBoard."""
    title: str
    build: Callable[[], nn.Module]
    learning_rate: float = 0.1
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    steps: int = 300
    data: Callable[[], Data] = digits
    rules: Sequence[Rule] = ()


@dataclass(frozen=True, kw_only=True)
class DemoPair:
    """The failing forms of a net, and the fixed one."""

    failing: Sequence[DemoRun]
    fixed: DemoRun


_CHAIN: dict[str, Any] = {"data": one_input, "learning_rate": 1.0, "steps": 400}
# Two hidden sites are too few for a ratio from site to site, so case 2 and its fixed form get a plain threshold.
_CHAIN_RULES = (VanishingGradient(min_grad_rms=1e-5),)

GALLERY: dict[str, DemoPair] = {
    "sigmoid": DemoPair(
        failing=[
            DemoRun(
                run="sigmoid",
                title="50 layers of 64 sigmoid units, Xavier's weights",
                build=partial(fully_connected, nn.Sigmoid, hidden=50, initialize=xavier),
            )
        ],
        fixed=DemoRun(
            run="fixed",
            title="50 layers of 64 ReLU units, He's weights, skip connections",
            # Each layer adds 1/50 of itself: added whole, 50 of them would make the signal explode.
            build=partial(fully_connected, nn.ReLU, hidden=50, initialize=he, skip_scale=1 / 50),
        ),
    ),
    "three-neurons": DemoPair(
        failing=[
            DemoRun(
                run="three-neurons-case-1",
                title="the second neuron is a ReLU whose input is never positive: its derivative is 0",
                build=partial(three_neurons, nn.ReLU, weight=1.0, biases=(0.0, -5.0, 0.0)),
                **_CHAIN,
            ),
            DemoRun(
                run="three-neurons-case-2",
                title="three sigmoids far out on their flat side: their derivatives are almost 0",
                build=partial(three_neurons, nn.Sigmoid, weight=0.5, biases=(-5.0, -5.0, -4.0)),
                rules=_CHAIN_RULES,
                **_CHAIN,
            ),
        ],
        fixed=DemoRun(
            run="three-neurons-fixed",
            title="LeakyReLU, and biases of 0",
            build=partial(three_neurons, nn.LeakyReLU, weight=1.0, biases=(0.0, 0.0, 0.0)),
            rules=_CHAIN_RULES,
            **_CHAIN,
        ),
    ),
    "vgg16": DemoPair(
        failing=[
            DemoRun(
                run="vgg16",
                title="VGG-16 at an eighth of its width, PyTorch's default weights, no normalisation",
                build=partial(vgg16, normalized=False, channels=8),
                data=partial(digits, size=32),
                learning_rate=0.05,
                steps=150,
            )
        ],
        fixed=DemoRun(
            run="vgg16-fixed",
            title="the same with BatchNorm and He's weights",
            build=partial(vgg16, normalized=True, initialize=he, channels=8),
            data=partial(digits, size=32),
            learning_rate=0.05,
            steps=150,
        ),
    ),
    "fcnn": DemoPair(
        failing=[
            DemoRun(
                run="fcnn",
                title="10 layers of 64 sigmoid units, PyTorch's default weights",
                build=partial(fully_connected, nn.Sigmoid, hidden=10, initialize=None),
            )
        ],
        fixed=DemoRun(
            run="fcnn-fixed",
            title="10 layers of 64 ReLU units, He's weights",
            build=partial(fully_connected, nn.ReLU, hidden=10, initialize=he),
            learning_rate=0.05,
        ),
    ),
    "relu": DemoPair(
        failing=[
            DemoRun(
                run="relu",
                title="4 layers of 64 ReLU units, He's weights, Adam with a learning rate of 0.3",
                build=partial(fully_connected, nn.ReLU, hidden=4, initialize=he),
                optimizer=torch.optim.Adam,
                learning_rate=0.3,
            )
        ],
        fixed=DemoRun(
            run="relu-fixed",
            title="the same with a learning rate of 0.001",
            build=partial(fully_connected, nn.ReLU, hidden=4, initialize=he),
            optimizer=torch.optim.Adam,
            learning_rate=1e-3,
        ),
    ),
    "leaky-relu": DemoPair(
        failing=[
            DemoRun(
                run="leaky-relu-relu",
                title="2 layers of 64 ReLU units, He's weights, biases of -3",
                build=partial(fully_connected, nn.ReLU, hidden=2, initialize=he, bias=-3.0),
                steps=500,
            )
        ],
        fixed=DemoRun(
            run="leaky-relu",
            title="the same with LeakyReLU of slope 0.2, and the same biases",
            build=partial(fully_connected, partial(nn.LeakyReLU, 0.2), hidden=2, initialize=he, bias=-3.0),
            steps=500,
        ),
    ),
    "elu": DemoPair(
        failing=[
            DemoRun(
                run="elu",
                title="6 layers of 64 ELU units, He's weights, biases of -4",
                build=partial(fully_connected, nn.ELU, hidden=6, initialize=he, bias=-4.0),
                learning_rate=0.05,
            )
        ],
        fixed=DemoRun(
            run="elu-fixed",
            title="the same with biases of 0",
            build=partial(fully_connected, nn.ELU, hidden=6, initialize=he),
            learning_rate=0.05,
        ),
    ),
    "bad-init": DemoPair(
        failing=[
            DemoRun(
                run="bad-init",
                title="10 layers of 64 tanh units, weights from N(0, 0.01^2)",
                build=partial(fully_connected, nn.Tanh, hidden=10, initialize=small_normal),
            )
        ],
        fixed=DemoRun(
            run="bad-init-fixed",
            title="the same with Xavier's weights",
            build=partial(fully_connected, nn.Tanh, hidden=10, initialize=xavier),
        ),
    ),
    "exploding": DemoPair(
        failing=[
            DemoRun(
                run="exploding",
                title="30 layers of 64 tanh units, four times Xavier's weights",
                # Plain SGD would take one step that is as large as the gradient: what is left then is a wreck, and chance
                # decides of which kind. Adam's steps have one size, so that the explosion lasts, in every arithmetic.
                build=partial(fully_connected, nn.Tanh, hidden=30, initialize=four_times_xavier),
                optimizer=torch.optim.Adam,
                learning_rate=1e-3,
            )
        ],
        fixed=DemoRun(
            run="exploding-fixed",
            title="the same with Xavier's weights",
            build=partial(fully_connected, nn.Tanh, hidden=30, initialize=xavier),
            optimizer=torch.optim.Adam,
            learning_rate=1e-3,
        ),
    ),
    "skip": DemoPair(
        failing=[
            DemoRun(
                run="skip-without",
                title="30 layers of 64 ReLU units, PyTorch's default weights",
                build=partial(fully_connected, nn.ReLU, hidden=30, initialize=None),
            )
        ],
        fixed=DemoRun(
            run="skip",
            title="the same with skip connections",
            build=partial(fully_connected, nn.ReLU, hidden=30, initialize=None, skip_scale=0.1),
        ),
    ),
}
