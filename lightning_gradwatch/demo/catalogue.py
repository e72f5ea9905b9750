"""The demo's nets by name, each with the one sentence of what to see. No torch: the command line's help prints it."""

from __future__ import annotations

DEFAULT_NET = "sigmoid"

WHAT_TO_SEE: dict[str, str] = {
    "sigmoid": "50 sigmoid layers: each passes back less than 1/4 of the signal, so nothing is left of it at layer 1.",
    "three-neurons": "A chain of three neurons: one derivative of 0 stops all weights before it, three small ones slow them.",
    "vgg16": "VGG-16 without normalisation: PyTorch's default weights shrink the signal at each of its 16 layers.",
    "fcnn": "A fully connected net of ten sigmoid layers, PyTorch's default weights: the early layers hardly move.",
    "relu": "ReLU units die of one learning rate that is too high: no input wakes them any more.",
    "leaky-relu": "Under the same strongly negative biases ReLU is born dead, while LeakyReLU passes the gradient on and learns.",
    "elu": "ELU can't die, but it saturates: far on the left its derivative is almost 0, and the units are stuck there.",
    "bad-init": "Tanh with weights from N(0, 0.01^2): the function is harmless, the start is too small for eleven layers.",
    "exploding": "Tanh with four times Xavier's weights: the gradient grows 100,000 times on its way to layer 1, and nothing is learned.",
    "skip": "30 ReLU layers with PyTorch's default weights: skip connections alone carry the signal back to layer 1.",
}
