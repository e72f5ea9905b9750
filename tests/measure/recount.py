"""Counting again in plain numpy: each function's regions in float64, and tensors that lie near their bounds."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch.measure.trace.identify import identify
from lightning_gradwatch.measure.units.activations import composite

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# Name: call of z, inactive and saturated of a float64 array (None: can't be, not applicable).
CASES = {
    "relu": (lambda z: identify(F.relu, (z,), {}), lambda z: z <= 0, None),
    "leaky_relu": (lambda z: identify(F.leaky_relu, (z,), {}), None, None),
    "hardswish": (lambda z: identify(F.hardswish, (z,), {}), lambda z: z <= -3, None),
    "hardshrink": (lambda z: identify(torch.hardshrink, (z, 0.3), {}), lambda z: abs(z) <= 0.3, None),
    "threshold": (lambda z: identify(F.threshold, (z, 0.1, 1.0), {}), lambda z: z <= 0.1, None),
    "relu6": (lambda z: identify(F.relu6, (z,), {}), lambda z: (z <= 0) | (z >= 6), lambda z: z >= 6),
    "hardtanh": (lambda z: identify(F.hardtanh, (z,), {}), lambda z: abs(z) >= 1, lambda z: abs(z) >= 1),
    "uneven": (
        lambda z: identify(F.hardtanh, (z, -0.1, 0.7), {}),
        lambda z: (z <= -0.1) | (z >= 0.7),
        lambda z: (z <= -0.1) | (z >= 0.7),
    ),
    "capped": (lambda z: identify(F.hardtanh, (z, 0.0, 4.0), {}), lambda z: (z <= 0) | (z >= 4), lambda z: z >= 4),
    "one point": (lambda z: identify(F.hardtanh, (z, 0.5, 0.5), {}), lambda z: z == z, lambda z: z == z),  # noqa: PLR0124 - true but for NaN
    "sigmoid": (lambda z: identify(torch.sigmoid, (z,), {}), None, lambda z: abs(z) > 4),
    "gelu": (lambda z: identify(F.gelu, (z,), {}), None, lambda z: z < -2.0507762548328534),
    "elu": (lambda z: identify(F.elu, (z,), {}), None, lambda z: z < -2 * math.log(math.cosh(2))),
    "logsigmoid": (lambda z: identify(F.logsigmoid, (z,), {}), None, lambda z: z > 2 * math.log(math.sinh(2))),
    "softsign": (lambda z: identify(F.softsign, (z,), {}), None, lambda z: abs(z) > math.cosh(2) - 1),
    "mish": (lambda z: composite("mish", "tanh", z), None, lambda z: z < 0.03285473375720755),
    "huge": (lambda z: identify(F.hardtanh, (z, -1e300, 1e300), {}), lambda z: abs(z) >= 1e300, lambda z: abs(z) >= 1e300),
    "tiny": (lambda z: identify(F.threshold, (z, 1e-300, 0.0), {}), lambda z: z <= 1e-300, None),
}  # fmt: skip
BOUNDS = [0, 0.03285473375720755, 0.1, 0.3, 0.5, 0.7, 1, 2.0507762548328534, 2.5767347452283365, 2.650005494715729, 2.7621956910836314, 3, 4, 6]  # fmt: skip


def near_the_bounds(shape, dtype, seed=0):
    """Return random numbers, a third of them as close to a bound as the dtype gets, and a few that aren't finite."""
    generator = np.random.default_rng(seed)
    z = torch.from_numpy(generator.normal(size=shape) * 4).to(dtype)
    bounds = torch.from_numpy(generator.choice([*BOUNDS, *(-bound for bound in BOUNDS)], size=shape)).to(dtype)
    up = torch.nextafter(bounds, torch.tensor(math.inf, dtype=dtype))
    down = torch.nextafter(bounds, torch.tensor(-math.inf, dtype=dtype))
    finfo = torch.finfo(dtype)
    odd = torch.tensor([math.nan, math.inf, -math.inf, finfo.max, finfo.min, -0.0, finfo.smallest_normal], dtype=dtype)
    choice = torch.from_numpy(generator.integers(0, 20, size=shape))
    for value, picked in ((bounds, choice < 2), (up, choice // 2 == 1), (down, choice // 2 == 2)):
        z = torch.where(picked, value, z)
    return torch.where(choice == 19, odd[torch.from_numpy(generator.integers(0, len(odd), size=shape))], z)


def recount(rule, z, axis):
    marks = rule(z.detach().to(torch.float64).numpy())
    return np.moveaxis(marks, axis, 0).reshape(z.shape[axis], math.prod(z.shape) // max(1, z.shape[axis])).sum(1)


class NoReadBack(TorchDispatchMode):
    """Fails where a number is fetched from a tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}, func
        return func(*args, **(kwargs or {}))
