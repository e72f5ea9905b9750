"""What the rules know about activation functions by name: how they are spelled, how steep they get, how to start them."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple


class Function(NamedTuple):
    """An activation function as a message and a remedy need it."""

    module: str
    """Class in ``torch.nn``."""
    steepest: float = 1.0
    """Largest |f'| to two digits where it is below 1, else 1 or more: such a function needn't shrink the signal."""
    flat_zero: bool = False
    """Whether the derivative is exactly 0 over an interval."""
    two_sided: bool = False
    """Whether it is bounded on both sides, so that the initialisation is Xavier's."""


_FUNCTIONS = {
    function.module.lower(): function
    for function in (
        Function("ReLU", flat_zero=True),
        Function("ReLU6", flat_zero=True),
        Function("Threshold", flat_zero=True),
        Function("Hardswish", 1.5, flat_zero=True),
        Function("Hardtanh", flat_zero=True, two_sided=True),
        Function("Hardsigmoid", 1 / 6, flat_zero=True, two_sided=True),
        Function("Hardshrink", flat_zero=True),
        Function("Softshrink", flat_zero=True),
        Function("LeakyReLU"),
        Function("PReLU"),
        Function("RReLU"),
        Function("ELU"),
        Function("CELU"),
        Function("SELU", 1.76),
        Function("GELU", 1.13),
        Function("SiLU", 1.1),
        Function("Mish", 1.09),
        Function("Softplus"),
        Function("LogSigmoid"),
        Function("Sigmoid", 0.25, two_sided=True),
        Function("Tanh", two_sided=True),
        Function("Softsign", two_sided=True),
        Function("Tanhshrink"),
        Function("GLU"),
        Function("Softmax"),
        Function("LogSoftmax"),
    )
}


@lru_cache(maxsize=256)
def look_up(name: str) -> Function:
    """Find a function whatever its spelling; one that isn't known keeps its name and is taken to shrink nothing.

    >>> look_up("leaky_relu").module, look_up("swoosh").module
    ('LeakyReLU', 'swoosh')
    """
    return _FUNCTIONS.get(name.lower().replace("_", ""), Function(name))
