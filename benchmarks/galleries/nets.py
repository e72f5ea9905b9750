"""Builds a case's net from its spec.

Each activation function is a module of its own beside the layer before it, in a `Block` that can take a norm or a skip
connection later: so a program can carry out what a finding recommends.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.galleries.spec import Conv, Dense, Gan, Recurrent, Towers, Transformer, Unrolled, Variational

if TYPE_CHECKING:
    from benchmarks.galleries.data import Examples
    from benchmarks.galleries.spec import Net, Start

_EMBEDDED = 16
_HEADS = 4


class Block(nn.Module):
    """An activation function of a norm of a layer, beside a skip connection where it has one."""

    def __init__(self, layer: nn.Module, norm: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.norm = norm
        self.activation = activation
        self.dropout: nn.Module = nn.Identity()
        self.adapter: nn.Module | None = None
        self.pool: nn.Module = nn.Identity()
        self.skip: float | nn.Parameter = 0.0
        self.detached = False

    @property
    def width(self) -> int:
        """Units, or channels."""
        return self.layer.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        if self.adapter is not None:
            z = z + self.adapter(x)
        out = self.dropout(self.activation(self.norm(z)))
        if isinstance(self.skip, nn.Parameter) or self.skip:
            out = x + self.skip * out if out.shape == x.shape else out
        out = self.pool(out)
        return out.detach() if self.detached else out


class Stack(nn.Module):
    """Blocks, an output layer, and what may follow it."""

    def __init__(
        self, inputs: nn.Module, blocks: list[Block], head: nn.Linear, output: nn.Module, *, listed: int = 0
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.listed = blocks[:listed]
        self.blocks = nn.ModuleList(blocks[listed:])
        self.head = head
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        for block in (*self.listed, *self.blocks):
            x = block(x)
        if x.dim() == 4:
            x = x.mean((2, 3))
        return self.output(self.head(x))


class Loop(nn.Module):
    """A recurrent cell, called once a position."""

    def __init__(self, inputs: nn.Module, features: int, spec: Unrolled, outputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.enter = nn.Linear(features, spec.width)
        self.layer = nn.Linear(spec.width, spec.width)
        self.norm: nn.Module = nn.Identity()
        self.activation = getattr(nn, spec.activation)()
        self.head = nn.Linear(spec.width, outputs)
        self.skip = spec.skip
        if spec.start is not None:
            start(self.layer, spec.start)

    @property
    def width(self) -> int:
        """Units."""
        return self.layer.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        hidden = x.new_zeros(len(x), self.width)
        for position in range(x.shape[1]):
            out = self.activation(self.norm(self.enter(x[:, position]) + self.layer(hidden)))
            hidden = hidden + self.skip * out if self.skip else out
        return self.head(hidden)


class Sequence(nn.Module):
    """One of torch's recurrent modules."""

    def __init__(self, inputs: nn.Module, features: int, spec: Recurrent, outputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.cell = getattr(nn, spec.cell)(features, spec.width, batch_first=True)
        self.head = nn.Linear(spec.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cell(self.inputs(x))
        return self.head(states[:, -1])


class Attention(nn.Module):
    """A transformer encoder with learned positions."""

    def __init__(self, inputs: nn.Module, sequence: tuple[int, int], spec: Transformer, outputs: int) -> None:
        super().__init__()
        positions, features = sequence
        self.inputs = inputs
        self.enter = nn.Linear(features, spec.width)
        self.positions = nn.Parameter(0.02 * torch.randn(positions, spec.width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                spec.width,
                _HEADS,
                2 * spec.width,
                dropout=spec.dropout,
                activation=spec.activation,
                batch_first=True,
                norm_first=spec.norm_first,
            )
            for _ in range(spec.depth)
        )
        self.norm = nn.LayerNorm(spec.width) if spec.norm_first else nn.Identity()
        self.head = nn.Linear(spec.width, outputs)
        if spec.zero_head:
            _zero(self.head)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(self.inputs(x)) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


class Sum(nn.Module):
    """Two nets, each for one half of the features."""

    def __init__(self, first: Stack, second: Stack, *, detached: bool) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.detached = detached

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        second = self.second(right)
        return self.first(left) + (second.detach() if self.detached else second)


class Variation(nn.Module):
    """Draws from what an encoder says, and keeps how far that is from the prior, in nats an example."""

    def __init__(self, encoder: Stack, decoder: Stack, weight: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.weight = weight
        self.term: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        mean, logarithm = self.encoder(x).chunk(2, 1)
        if not self.training:
            return self.decoder(mean)
        self.term = self.weight * 0.5 * (mean.square() + logarithm.exp() - 1 - logarithm).sum(1).mean()
        return self.decoder(mean + (0.5 * logarithm).exp() * torch.randn_like(mean))


class Cut(nn.Module):
    """Inputs in the shape that a net wants."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)


def build(net: Net, examples: Examples, *, outputs: int) -> nn.Module:
    """Build a net for some examples; the generator and the discriminator of a GAN are built one by one."""
    assert not isinstance(net, Gan)
    if isinstance(net, Variational):
        features = examples.inputs.shape[1]
        encoder = stack(net.encoder, nn.Identity(), features, 2 * net.latent)
        return Variation(encoder, stack(net.decoder, nn.Identity(), net.latent, outputs), net.weight)
    if isinstance(net, (Dense, Towers)):
        return _of_features(net, examples, outputs)
    sequence = examples.task.sequence
    assert sequence is not None, "a sequence net needs a task that says how to cut its inputs"
    front = nn.Embedding(examples.tokens, _EMBEDDED) if examples.tokens else Cut(*sequence)
    if isinstance(net, Unrolled):
        return Loop(front, sequence[1], net, outputs)
    if isinstance(net, Recurrent):
        return Sequence(front, sequence[1], net, outputs)
    return Attention(front, sequence, net, outputs)


def _of_features(net: Dense | Towers, examples: Examples, outputs: int) -> nn.Module:
    features = examples.inputs.shape[1]
    if isinstance(net, Towers):
        first, second = (stack(net.tower, nn.Identity(), features // 2, outputs) for _ in range(2))
        return Sum(first, second, detached=net.detached)
    if examples.tokens:
        front = nn.Sequential(nn.Embedding(examples.tokens, _EMBEDDED), nn.Flatten())
        return stack(net, front, features * _EMBEDDED, outputs)
    if isinstance(net, Conv):
        side = round(features**0.5)
        return stack(net, Cut(1, side, side), 1, outputs)
    return stack(net, nn.Identity(), features, outputs)


def stack(spec: Dense, inputs: nn.Module, features: int, outputs: int) -> Stack:
    """Build blocks and an output layer."""
    blocks = []
    for place, width in enumerate(spec.widths):
        conv = isinstance(spec, Conv)
        layer = nn.Conv2d(features, width, 3, padding=1) if conv else nn.Linear(features, width)
        block = Block(layer, norm(spec.norm, layer), getattr(nn, spec.activation)())
        block.skip = nn.Parameter(torch.zeros(())) if spec.zero_branch else spec.skip
        block.detached = spec.detached == place + 1
        if spec.dropout:
            block.dropout = nn.Dropout(spec.dropout)
        if isinstance(spec, Conv) and place in spec.pooled:
            block.pool = nn.MaxPool2d(2)
        if place < spec.frozen:
            layer.requires_grad_(requires_grad=False)
            if spec.lora:
                block.adapter = _adapter(features, width, spec.lora)
        blocks.append(block)
        features = width
    head = nn.Linear(features, outputs)
    if spec.start is not None:
        for block in blocks:
            start(block.layer, spec.start)
        start(head, replace(spec.start, bias=0.0))
    if spec.zero_head:
        _zero(head)
    return Stack(inputs, blocks, head, _output(spec.output), listed=spec.listed)


def norm(kind: str, layer: nn.Module) -> nn.Module:
    """Return a norm for what a layer puts out."""
    width = layer.weight.shape[0]
    if kind == "BatchNorm":
        return nn.BatchNorm2d(width) if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d(width)
    if kind == "LayerNorm":
        return nn.GroupNorm(1, width) if isinstance(layer, nn.Conv2d) else nn.LayerNorm(width)
    if kind == "SingleNorm":
        return nn.GroupNorm(width, width)
    return nn.Identity()


def start(layer: nn.Module, how: Start) -> None:
    """Fill a layer's weights and biases."""
    with torch.no_grad():
        getattr(nn.init, how.method)(layer.weight, **how.arguments)
        layer.weight.mul_(how.gain)
        layer.bias.fill_(how.bias)


def _adapter(inputs: int, outputs: int, rank: int) -> nn.Module:
    adapter = nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False))
    nn.init.zeros_(adapter[1].weight)
    return adapter


def _output(name: str) -> nn.Module:
    if not name:
        return nn.Identity()
    return getattr(nn, name)(dim=1) if name in {"Softmax", "LogSoftmax"} else getattr(nn, name)()


def _zero(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
