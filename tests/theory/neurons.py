"""A chain of single neurons, and its gradient one scalar at a time: what every claim about vanishing gradients starts from."""

import math
from typing import NamedTuple

import torch
from theory.published import measure
from torch import nn


class Function(NamedTuple):
    """An activation function for torch, and for Python's floats with its derivative."""

    name: str
    module: type[nn.Module]
    value: object
    slope: object


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


SIGMOID = Function("sigmoid", nn.Sigmoid, sigmoid, lambda z: sigmoid(z) * (1 - sigmoid(z)))
TANH = Function("tanh", nn.Tanh, math.tanh, lambda z: 1 - math.tanh(z) ** 2)
RELU = Function("relu", nn.ReLU, lambda z: max(z, 0.0), lambda z: float(z > 0))
LEAKY_RELU = Function("leaky_relu", nn.LeakyReLU, lambda z: z if z > 0 else 0.01 * z, lambda z: 1 if z > 0 else 0.01)
ELU = Function("elu", nn.ELU, lambda z: z if z > 0 else math.expm1(z), lambda z: 1 if z > 0 else math.exp(z))


class Neuron(nn.Module):
    """f(w · a + b) of one number a, in float64; with a skip connection, a + f(w · a + b). Only w is trained."""

    def __init__(self, function, weight, bias, *, skip):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[weight]], dtype=torch.float64))
        self.bias = bias
        self.skip = skip
        self.act = function.module()

    def forward(self, a):
        out = self.act(a @ self.weight + self.bias)
        return a + out if self.skip else out


def chain(function, weights, biases=None, *, skip=False):
    biases = biases or [0.0] * len(weights)
    return nn.Sequential(*(Neuron(function, w, b, skip=skip) for w, b in zip(weights, biases, strict=True)))


class ByHand(NamedTuple):
    z: list[float]
    a: list[float]
    """Of the neurons in order, the input first."""
    upstream: list[float]
    """dL/da of each neuron's activation function."""
    delta: list[float]
    """dL/dz of each neuron."""
    gradient: list[float]
    """dL/dw of each neuron."""


def by_hand(function, weights, biases=None, *, x, target, skip=False):
    """Return the chain's numbers for the loss (y - target)² / 2, one scalar at a time."""
    z, a = [], [x]
    for weight, bias in zip(weights, biases or [0.0] * len(weights), strict=True):
        z.append(weight * a[-1] + bias)
        a.append(function.value(z[-1]) + (a[-1] if skip else 0.0))
    arriving, upstream, delta = a[-1] - target, [], []
    for weight, argument in zip(reversed(weights), reversed(z), strict=True):
        upstream.insert(0, arriving)
        delta.insert(0, arriving * function.slope(argument))
        arriving = delta[0] * weight + (arriving if skip else 0.0)
    return ByHand(z, a, upstream, delta, [d * before for d, before in zip(delta, a, strict=False)])


def measure_chain(model, *, x, target, **settings):
    """Return the probe of one step on one number, for the loss (y - target)² / 2."""
    x = torch.tensor([[x]], dtype=torch.float64)
    return measure(model, x, lambda y: 0.5 * (y - target).square().sum(), **settings)
