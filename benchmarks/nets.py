"""The nets whose steps are timed: a deep narrow one, a convolutional one, a transformer."""

from __future__ import annotations

import torch
from torch import nn


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        same = channels == out and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x):
        hidden = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(hidden)) + self.skip(x))


def mlp():
    """Return a 50-layer MLP of width 64 and a batch of 64."""
    layers = [layer for _ in range(49) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(64, 10)), torch.randn(64, 64)


def small():
    """Return a 20-layer MLP of width 64 and a batch of 8: it takes 32 steps to fill a window."""
    layers = [layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.GELU())]
    return nn.Sequential(*layers, nn.Linear(64, 1)), torch.randn(8, 64)


def cnn():
    """Return a residual CNN of 2.8 M parameters and a batch of 64 images of 32x32."""
    blocks = [
        ResidualBlock(64, 64),
        ResidualBlock(64, 128, 2),
        ResidualBlock(128, 128),
        ResidualBlock(128, 256, 2),
        ResidualBlock(256, 256),
    ]
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)), torch.randn(
        64, 3, 32, 32
    )


def transformer():
    """Return a transformer of 6 layers, d = 256, and a batch of 16 sequences of 128."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.1, activation="gelu", batch_first=True)
    encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    return nn.Sequential(encoder, nn.Linear(256, 10)), torch.randn(16, 128, 256)


NETS = {"mlp": mlp, "small": small, "cnn": cnn, "transformer": transformer}
