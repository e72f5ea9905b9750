"""Every spelling of an activation function that torch offers, through a real function mode."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from lightning_gradwatch.measure.trace.identify import identify
from lightning_gradwatch.measure.units.activations import ERF, Call
from lightning_gradwatch.record.activations import ROWS

T = torch.Tensor
NN = torch._C._nn


class Seen(TorchFunctionMode):
    """Collects what `identify` makes of each call."""

    def __init__(self):
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        call = identify(func, args, kwargs)
        if call is not None:
            self.calls.append(call)
        return func(*args, **(kwargs or {}))


def seen(function, z=None):
    z = torch.randn(4, 4) if z is None else z
    with Seen() as mode:
        function(z)
    (call,) = mode.calls
    return call


SPELLINGS = [
    ("relu", [nn.ReLU(), F.relu, torch.relu, T.relu, lambda z: F.relu(input=z), lambda z: torch.relu(input=z)]),
    ("relu", [nn.LeakyReLU(0.0), lambda z: F.leaky_relu(z, 0.0), nn.ELU(0.0), nn.RReLU(0.0, 0.0), nn.RReLU(-0.5, 0.5).eval()]),
    ("relu6", [nn.ReLU6(), F.relu6, NN.relu6, lambda z: F.hardtanh(z, 0.0, 6.0), lambda z: F.hardtanh(z, 0, max_val=6)]),
    ("leaky_relu", [nn.LeakyReLU(), F.leaky_relu, NN.leaky_relu, lambda z: F.leaky_relu(z, negative_slope=0.2)]),
    ("prelu", [nn.PReLU(), nn.PReLU(4), *(lambda z, f=f: f(z, torch.zeros(1)) for f in (F.prelu, torch.prelu, T.prelu))]),
    ("rrelu", [nn.RReLU(), nn.RReLU().eval(), F.rrelu, torch.rrelu, lambda z: F.rrelu(z, -0.5, 0.5, True)]),
    ("elu", [nn.ELU(), F.elu, NN.elu, lambda z: F.elu(z, 0.5), lambda z: F.elu(z, alpha=2)]),
    ("celu", [nn.CELU(), F.celu, torch.celu, lambda z: torch.celu(z, alpha=0.5)]),
    ("selu", [nn.SELU(), F.selu, torch.selu]),
    ("gelu", [nn.GELU(), nn.GELU("tanh"), F.gelu, NN.gelu, lambda z: F.gelu(z, approximate="tanh")]),
    ("silu", [nn.SiLU(), F.silu, NN.silu]),
    ("mish", [nn.Mish(), F.mish, NN.mish]),
    ("hardswish", [nn.Hardswish(), F.hardswish, NN.hardswish]),
    ("hardsigmoid", [nn.Hardsigmoid(), F.hardsigmoid, NN.hardsigmoid]),
    ("hardtanh", [nn.Hardtanh(), nn.Hardtanh(-2, 3), F.hardtanh, NN.hardtanh]),
    ("hardshrink", [nn.Hardshrink(), F.hardshrink, torch.hardshrink, T.hardshrink]),
    ("softshrink", [nn.Softshrink(), F.softshrink]),
    ("sigmoid", [nn.Sigmoid(), F.sigmoid, torch.sigmoid, T.sigmoid, torch.special.expit]),
    ("logsigmoid", [nn.LogSigmoid(), F.logsigmoid, NN.log_sigmoid]),
    ("tanh", [nn.Tanh(), F.tanh, torch.tanh, T.tanh]),
    ("softsign", [nn.Softsign(), F.softsign]),
    ("tanhshrink", [nn.Tanhshrink(), F.tanhshrink]),
    ("softplus", [nn.Softplus(), F.softplus, lambda z: F.softplus(z, beta=2.0, threshold=10.0)]),
    ("threshold", [nn.Threshold(0.1, 2.0), lambda z: F.threshold(z, 0.1, 2.0), lambda z: torch.threshold(z, 0.1, value=2)]),
    ("glu", [nn.GLU(), F.glu, NN.glu, lambda z: F.glu(z, 0), lambda z: F.glu(z, dim=-2)]),
    ("softmax", [nn.Softmax(-1), *(lambda z, f=f: f(z, 1) for f in (F.softmax, torch.softmax, T.softmax, torch.special.softmax))]),
    ("softmin", [nn.Softmin(-1), lambda z: F.softmin(z, 1)]),
    ("log_softmax", [nn.LogSoftmax(1), *(lambda z, f=f: f(z, 1) for f in (F.log_softmax, torch.log_softmax, T.log_softmax, torch.special.log_softmax))]),
]  # fmt: skip
IN_PLACE = [
    ("relu", [nn.ReLU(inplace=True), torch.relu_, F.relu_, T.relu_, lambda z: F.relu(z, True), lambda z: F.leaky_relu_(z, 0.0)]),
    ("relu6", [nn.ReLU6(inplace=True), lambda z: F.relu6(z, True), lambda z: F.hardtanh_(z, 0.0, 6.0), NN.relu6_]),
    ("leaky_relu", [nn.LeakyReLU(inplace=True), F.leaky_relu_, lambda z: F.leaky_relu(z, 0.1, True)]),
    ("rrelu", [nn.RReLU(inplace=True), F.rrelu_, torch.rrelu_]),
    ("elu", [nn.ELU(inplace=True), F.elu_]),
    ("celu", [nn.CELU(inplace=True), F.celu_, torch.celu_]),
    ("selu", [nn.SELU(inplace=True), F.selu_, torch.selu_, lambda z: F.selu(z, True)]),
    ("gelu", [NN.gelu_]),
    ("silu", [nn.SiLU(inplace=True), lambda z: F.silu(z, inplace=True), NN.silu_]),
    ("mish", [nn.Mish(inplace=True), NN.mish_]),
    ("hardswish", [nn.Hardswish(inplace=True), NN.hardswish_]),
    ("hardsigmoid", [nn.Hardsigmoid(inplace=True), NN.hardsigmoid_]),
    ("hardtanh", [nn.Hardtanh(inplace=True), F.hardtanh_, lambda z: F.hardtanh_(z, -1.0, 2.0)]),
    ("sigmoid", [torch.sigmoid_, T.sigmoid_, lambda z: torch.sigmoid(z, out=z)]),
    ("tanh", [torch.tanh_, T.tanh_]),
    ("threshold", [nn.Threshold(0.1, 2.0, inplace=True), lambda z: F.threshold_(z, 0.1, 2.0), lambda z: F.threshold(z, 0.1, 2, True)]),
]  # fmt: skip


def each(table):
    return [(name, function) for name, spelled in table for function in spelled]


@pytest.mark.parametrize(("name", "function"), each(SPELLINGS))
def test_a_spelling_is_identified_once_and_not_as_in_place(name, function):
    z = torch.randn(4, 4)
    call = seen(function, z)
    assert (call.function, call.in_place) == (name, False)
    assert call.z is z


@pytest.mark.parametrize(("name", "function"), each(IN_PLACE))
def test_an_in_place_spelling_is_identified_as_such(name, function):
    call = seen(function)
    assert (call.function, call.in_place) == (name, True)


def test_every_row_of_the_table_is_spelled_above():
    assert {row.name for row in ROWS if hasattr(F, row.name)} == {name for name, _ in SPELLINGS}


class Unhashable:
    __hash__ = None

    def __call__(self):
        """Do nothing."""


@pytest.mark.parametrize(
    "func", [torch.add, T.add, T.size, torch.erf, F.linear, T.shape.__get__, Unhashable(), None, "relu"]
)
def test_what_is_not_an_activation_function_is_not_identified(func):
    assert identify(func, (torch.randn(3),), None) is None


@pytest.mark.parametrize("args", [(), (None,), (torch.arange(3),), (torch.ones(3) > 0,)])
def test_an_input_without_a_float_tensor_is_not_identified(args):
    assert identify(torch.relu, args, {}) is None


@pytest.mark.parametrize("dim", [0, 2, -3])
def test_a_glu_that_torch_refuses_is_not_identified(dim):
    assert identify(F.glu, (torch.randn(3, 4), dim), {}) is None


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_has_no_unit_fractions(name):
    assert not seen(lambda z: getattr(F, name)(z, 1)).zones.fractions


def test_a_parameter_that_only_the_device_knows_gives_no_fractions():
    call = identify(F.leaky_relu, (torch.randn(3), torch.tensor(0.0, device="meta")), {})
    assert (call.function, call.zones.fractions) == ("leaky_relu", False)


def test_erf_is_known_as_an_inner_function():
    assert {torch.erf, T.erf, torch.special.erf} <= ERF
