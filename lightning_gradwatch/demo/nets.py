"""The demo's nets. Their weight layers and activation sites stand in pairs, layer 1 with site 1, so that a row shows both."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

Initialize: TypeAlias = Callable[[Tensor], Tensor]
"""Fills a weight in place."""

_VGG16 = (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0)
"""Channels of the 13 convolutions in units of the first's; 0 is a max-pooling."""
_CLASSES = 10
_WIDTH = 64
"""Numbers of an example, and units of a hidden layer."""


class Skip(nn.Module):
    """A layer with a skip connection: x + scale · f(W x + b)."""

    def __init__(self, width: int, activation: nn.Module, *, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.activation = activation
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Add what the layer makes of x to x, which has shape [N, width]."""
        out: Tensor = x + self.scale * self.activation(self.linear(x))
        return out


def fully_connected(
    activation: Callable[[], nn.Module],
    *,
    hidden: int,
    initialize: Initialize | None,
    bias: float = 0.0,
    skip_scale: float | None = None,
) -> nn.Sequential:
    """Build `hidden` layers of one width and an output layer.

    Args:
        activation: Makes the activation function of a layer.
        hidden: Number of layers with an activation function.
        initialize: Fills the weights; None: PyTorch's default for weights and biases.
        bias: What the hidden layers' biases start from; not with PyTorch's default.
        skip_scale: Weight of each layer beside its skip connection; None: no skip connections.
    """
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(_WIDTH, _WIDTH), activation()]
    for _ in range(hidden - 1):
        if skip_scale is None:
            layers += [nn.Linear(_WIDTH, _WIDTH), activation()]
        else:
            layers.append(Skip(_WIDTH, activation(), scale=skip_scale))
    net = nn.Sequential(*layers, nn.Linear(_WIDTH, _CLASSES))
    if initialize is not None:
        start(net, initialize, bias=bias)
        nn.init.zeros_(net[-1].bias)  # type: ignore[arg-type]  # a Linear's own
    return net


def vgg16(*, normalized: bool, initialize: Initialize | None = None, channels: int = 16) -> nn.Module:
    """Build VGG-16 (Simonyan and Zisserman 2015, configuration D) for 32x32 images of one channel.

    The paper has 64 channels in the first convolution and 4,096 units in the dense layers; both are scaled alike.
    """
    layers: list[nn.Module] = []
    before = 1
    for factor in _VGG16:
        if factor == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(before, factor * channels, 3, padding=1))
        if normalized:
            layers.append(nn.BatchNorm2d(factor * channels))
        layers.append(nn.ReLU())
        before = factor * channels
    layers.append(nn.Flatten())
    dense = 64 * channels
    for inputs in (before, dense):
        layers.append(nn.Linear(inputs, dense))
        if normalized:
            layers.append(nn.BatchNorm1d(dense))
        layers += [nn.ReLU(), nn.Dropout(0.5)]
    net = nn.Sequential(*layers, nn.Linear(dense, _CLASSES))
    if initialize is not None:
        start(net, initialize)
    return net


def three_neurons(
    activation: Callable[[], nn.Module], *, weight: float, biases: tuple[float, float, float]
) -> nn.Module:
    """Build the article's chain of three neurons: one input, one weight and one bias each, a sigmoid at its end."""
    layers: list[nn.Module] = []
    for place, bias in enumerate(biases):
        neuron = nn.Linear(1, 1)
        nn.init.constant_(neuron.weight, weight)
        nn.init.constant_(neuron.bias, bias)
        layers += [neuron, nn.Sigmoid() if place == len(biases) - 1 else activation()]
    return nn.Sequential(*layers)


def start(net: nn.Module, initialize: Initialize, *, bias: float = 0.0) -> None:
    """Fill the weights of all linear and convolutional layers, and set their biases."""
    for layer in net.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            initialize(layer.weight)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)


def he(weight: Tensor) -> Tensor:
    """Fill for ReLU (He et al. 2015)."""
    return nn.init.kaiming_normal_(weight, nonlinearity="relu")


def xavier(weight: Tensor) -> Tensor:
    """Fill for functions that are linear around 0 (Glorot and Bengio 2010)."""
    return nn.init.xavier_normal_(weight)


def four_times_xavier(weight: Tensor) -> Tensor:
    """Fill so that tanh is driven onto its flat sides and the gradient grows."""
    return nn.init.xavier_normal_(weight, gain=4.0)


def small_normal(weight: Tensor) -> Tensor:
    """Fill from N(0, 0.01²), as was usual before Xavier."""
    return nn.init.normal_(weight, std=0.01)
