"""What the rules know about activation functions by name: how they are spelled, how steep they get, how to start them."""

from __future__ import annotations

import math
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
    """Whether it is bounded on both sides."""
    flat_middle: bool = False
    """Whether the derivative is 0 at 0, so that what is small is passed on in neither direction."""
    saturates: bool = True
    """Whether it has a flat outer side on which it is bounded."""

    @property
    def linear(self) -> bool:
        """Whether it starts out as good as linear, so that Xavier's weights keep the signal level, not He's."""
        return self.two_sided or self.module == "SELU"

    @property
    def method(self) -> str:
        """The function of ``torch.nn.init`` that it asks for."""
        return "xavier_normal_" if self.linear else "kaiming_normal_"

    @property
    def asked_gain(self) -> float:
        """What the weights behind it pass back of the signal if they start as it asks for: the norm's factor."""
        return 1.0 if self.linear else math.sqrt(2.0)

    @property
    def usual_gain(self) -> float:
        """What it passes back itself then, before it saturates: its steepest derivative where that is below 1."""
        return min(self.steepest, 1.0) / self.asked_gain


_FUNCTIONS = {
    function.module.lower(): function
    for function in (
        Function("ReLU", flat_zero=True, saturates=False),
        Function("ReLU6", flat_zero=True),
        Function("Threshold", flat_zero=True, saturates=False),
        Function("Hardswish", 1.5, flat_zero=True, saturates=False),
        Function("Hardtanh", flat_zero=True, two_sided=True),
        Function("Hardsigmoid", 1 / 6, flat_zero=True, two_sided=True),
        Function("Hardshrink", flat_zero=True, flat_middle=True, saturates=False),
        Function("Softshrink", flat_zero=True, flat_middle=True, saturates=False),
        Function("LeakyReLU", saturates=False),
        Function("PReLU", saturates=False),
        Function("RReLU", saturates=False),
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
        Function("Tanhshrink", flat_middle=True, saturates=False),
        Function("GLU"),
        Function("Softmax"),
        Function("Softmin"),
        Function("LogSoftmax"),
        Function("isru", two_sided=True),  # x / sqrt(1 + x²); this and what follows are no classes of torch's
        Function("atan", two_sided=True),
        Function("sin", saturates=False),
        Function("cos", saturates=False),
        Function("asinh", saturates=False),
    )
}


@lru_cache(maxsize=256)
def look_up(name: str) -> Function:
    """Find a function whatever its spelling; one that isn't known keeps its name and is taken to shrink nothing.

    >>> look_up("leaky_relu").module, look_up("swoosh").module
    ('LeakyReLU', 'swoosh')
    """
    return _FUNCTIONS.get(name.lower().replace("_", ""), Function(name))
