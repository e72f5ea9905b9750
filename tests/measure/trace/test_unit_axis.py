"""The unit axis, as the producing operation decides it: units known to be dead, and a recount in numpy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Producer(nn.Module):
    """Shifts every third unit of what `make` returns below the kink of a ReLU and the next above; keeps z to recount."""

    def __init__(self, make, axis, modules):
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.make, self.axis = make, axis

    def forward(self, x):
        z = self.make(self.parts, x)
        shift = torch.tensor([-100.0, 100.0, 0.5])[torch.arange(z.shape[self.axis]) % 3]
        z = z + shift.view([-1 if axis == self.axis else 1 for axis in range(z.dim())])
        self.z = z.detach().clone()
        return F.relu(z)


def call(parts, x):
    for part in parts:
        x = part(x)
    return x


def residual(p, x):
    x = p[0](x)
    return x + p[1](x)


def convnext(p, x):
    x = p[0](x).permute(0, 2, 3, 1)
    return p[2](F.gelu(p[1](x)))


def attention(p, x):
    q, k = (part(x).view(2, 7, 2, 3).transpose(1, 2) for part in p)
    return q @ k.transpose(-2, -1)


IMAGE, SEQUENCE, TOKENS = (2, 3, 8, 9), (2, 7, 6), (2, 3, 10)
# Name: shape of the input, unit axis of z, modules, how z is made of them.
CASES = {
    "conv1d": (TOKENS, 1, [nn.Conv1d(3, 5, 3)], call),
    "conv2d": (IMAGE, 1, [nn.Conv2d(3, 5, 3)], call),
    "conv3d": ((2, 3, 5, 5, 6), 1, [nn.Conv3d(3, 4, 3)], call),
    "conv1d without a batch": ((3, 10), 0, [nn.Conv1d(3, 5, 3)], call),
    "conv2d without a batch": ((3, 8, 9), 0, [nn.Conv2d(3, 5, 3)], call),
    "conv3d without a batch": ((3, 5, 5, 6), 0, [nn.Conv3d(3, 4, 3)], call),
    "transposed conv1d": (TOKENS, 1, [nn.ConvTranspose1d(3, 5, 3)], call),
    "transposed conv2d": (IMAGE, 1, [nn.ConvTranspose2d(3, 5, 3)], call),
    "transposed conv3d without a batch": ((3, 4, 4, 4), 0, [nn.ConvTranspose3d(3, 5, 3)], call),
    "batch norm of a convolution": (IMAGE, 1, [nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)], call),
    "batch norm of a sequence": (TOKENS, 1, [nn.BatchNorm1d(3)], call),
    "batch norm of features": ((9, 5), 1, [nn.Linear(5, 4), nn.BatchNorm1d(4)], call),
    "group norm": (IMAGE, 1, [nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6)], call),
    "instance norm": (IMAGE, 1, [nn.InstanceNorm2d(3, affine=True)], call),
    "layer norm": (SEQUENCE, 2, [nn.Linear(6, 5), nn.LayerNorm(5)], call),
    "rms norm": (SEQUENCE, 2, [nn.RMSNorm(6)], call),
    "linear": ((9, 6), 1, [nn.Linear(6, 5)], call),
    "linear without a batch": ((6,), 0, [nn.Linear(6, 5)], call),
    "linear on three axes": (SEQUENCE, 2, [nn.Linear(6, 5)], call),
    "linear on four axes": ((2, 3, 4, 6), 3, [nn.Linear(6, 5)], call),
    "matmul with a parameter": (SEQUENCE, 2, [nn.Linear(5, 6)], lambda p, x: x @ p[0].weight),
    "einsum with a parameter": ((2, 3, 4, 6), 3, [nn.Linear(6, 5)], lambda p, x: torch.einsum("abci,oi->abco", x, p[0].weight)),
    "residual of convolutions": (IMAGE, 1, [nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3, padding=1)], residual),
    "residual of a transformer": (SEQUENCE, 2, [nn.Linear(6, 6), nn.Linear(6, 6)], residual),
    "the input plus a convolution": (IMAGE, 1, [nn.Conv2d(3, 3, 3, padding=1)], lambda p, x: x + p[0](x)),
    "as many channels as rows, permuted": ((2, 8, 8, 9), 3, [nn.Conv2d(8, 8, 3, padding=1)], lambda p, x: p[0](x).permute(0, 2, 3, 1)),
    "all sizes equal, permuted": ((4, 4, 4, 4), 2, [nn.Conv2d(4, 4, 3, padding=1)], lambda p, x: p[0](x).permute(3, 0, 1, 2)),
    "ConvNeXt inside": (IMAGE, 3, [nn.Conv2d(3, 5, 3), nn.Linear(5, 7), nn.Linear(7, 5)], convnext),
    "ConvNeXt after": (IMAGE, 1, [nn.Conv2d(3, 5, 3), nn.Linear(5, 7), nn.Linear(7, 5)], lambda p, x: convnext(p, x).permute(0, 3, 1, 2)),
    "linear, transposed to channels": (SEQUENCE, 1, [nn.Linear(6, 5)], lambda p, x: p[0](x).transpose(1, 2)),
    "linear, transposed by mT": (SEQUENCE, 1, [nn.Linear(6, 5)], lambda p, x: p[0](x).mT),
    "linear, moved": (SEQUENCE, 0, [nn.Linear(6, 5)], lambda p, x: p[0](x).movedim(-1, 0)),
    "max pooling": (IMAGE, 1, [nn.Conv2d(3, 5, 3), nn.MaxPool2d(2)], call),
    "adaptive pooling": (IMAGE, 1, [nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(2)], call),
    "mean over positions": (IMAGE, 1, [nn.Conv2d(3, 5, 3)], lambda p, x: p[0](x).mean((2, 3))),
    "mean over time": (SEQUENCE, 1, [nn.Linear(6, 5)], lambda p, x: p[0](x).mean(1)),
    "concatenated channels": (IMAGE, 1, [nn.Conv2d(3, 5, 3), nn.Conv2d(3, 4, 3)], lambda p, x: torch.cat([part(x) for part in p], 1)),
    "upsampled": (IMAGE, 1, [nn.Conv2d(3, 5, 3), nn.Upsample(scale_factor=2)], call),
    "padded and sliced": (IMAGE, 1, [nn.Conv2d(3, 5, 3)], lambda p, x: F.pad(p[0](x), (1, 1))[:, :, 1:]),
    "dropped out": (TOKENS, 1, [nn.Conv1d(3, 5, 3), nn.Dropout(0.2)], call),
    "flattened": (IMAGE, 1, [nn.Conv2d(3, 2, 6), nn.Flatten()], call),
    "positions flattened": (IMAGE, 1, [nn.Conv2d(3, 5, 3)], lambda p, x: p[0](x).flatten(2)),
    "patches": (IMAGE, 2, [nn.Conv2d(3, 5, 2, 2)], lambda p, x: p[0](x).flatten(2).transpose(1, 2)),
    "time folded into the batch": (SEQUENCE, 1, [nn.Linear(6, 5)], lambda p, x: p[0](x).reshape(14, 5)),
    "time unfolded from the batch": ((14, 6), 2, [nn.Linear(6, 5)], lambda p, x: p[0](x).view(2, 7, 5)),
    "a time axis added": ((9, 6), 2, [nn.Linear(6, 5)], lambda p, x: p[0](x)[:, None]),
    "an axis squeezed": ((9, 1, 6), 1, [nn.Linear(6, 5)], lambda p, x: p[0](x).squeeze(1)),
    "one chunk": (SEQUENCE, 2, [nn.Linear(6, 10)], lambda p, x: p[0](x).chunk(2, -1)[1]),
    "attention scores": (SEQUENCE, 3, [nn.Linear(6, 6), nn.Linear(6, 6)], attention),
    "embedded": ("tokens", 2, [nn.Embedding(9, 6)], call),
    "recurrent": (SEQUENCE, 2, [nn.LSTM(6, 5, batch_first=True)], lambda p, x: p[0](x)[0]),
    "cast": (TOKENS, 1, [nn.Conv1d(3, 5, 3)], lambda p, x: p[0](x).double().float()),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_units_are_counted_along_the_axis_of_the_producing_operation(name, measure):
    shape, axis, modules, make = CASES[name]
    x = torch.arange(9).expand(2, 9) if shape == "tokens" else torch.randn(shape)
    model = Producer(make, axis, modules)
    result = measure(model, x)
    site = result.sites[":relu"]
    z = model.z.numpy()
    others = tuple(other for other in range(z.ndim) if other != axis)
    dead = (z <= 0).all(axis=others)
    assert site.units == z.shape[axis]
    assert site.dead == np.mean(dead)
    assert site.inactive_share == np.mean(z <= 0)
    assert dead[::3].all()
    assert not dead.all()


@pytest.mark.parametrize(
    ("batch", "expected"), [((2, 3, 8, 9), 2), ((3, 8, 9), 1)]
)  # an unbatched image is one batch element
def test_batch_elements_are_those_of_the_batch_axis(measure, batch, expected):
    result = measure(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3)), torch.randn(batch), batch_elements=10
    )
    assert result.site.fill == expected / 10


def test_an_empty_batch_gives_no_observation(measure):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    result = measure(model, torch.zeros(0, 3), loss=lambda y: y.sum())
    assert result.site.fill == 0.0
    assert math.isnan(result.site.dead)
    assert math.isnan(result.site.inactive_share)


class Writes(nn.Module):
    """Writes into the output, or the argument, of its activation."""

    def __init__(self, where):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)
        self.where = where

    def forward(self, x):
        z = self.first(x)
        a = nn.functional.gelu(z) if self.where == "output" else nn.functional.relu(z)
        if self.where != "nowhere":
            (a if self.where == "output" else z).mul_(3.0)
        return self.second(a)


@pytest.mark.parametrize(("where", "function"), [("output", nn.functional.gelu), ("argument", nn.functional.relu)])
def test_what_is_written_into_an_activations_tensors_afterwards_makes_no_difference(where, function, measure):
    x = torch.randn(16, 8)
    model = Writes(where)
    result = measure(model, x, optimizer=torch.optim.SGD(model.parameters(), lr=0.0), steps=2)
    z = model.first(x).detach()
    flat = z <= 0 if where == "argument" else z < -2.0507762548328534
    assert result.site.inactive_share == flat.float().mean().item()
    assert result.site.rms == pytest.approx(function(z).square().mean().sqrt().item(), rel=1e-6)
