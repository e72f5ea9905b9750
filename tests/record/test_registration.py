"""What `register_activation` takes, what it refuses, and the row that it makes."""

from __future__ import annotations

import functools
import math
import warnings

import pytest
import torch
from registering import table_kept
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import register_activation
from lightning_gradwatch.record.activations import is_known, look_up
from lightning_gradwatch.record.zones import Region

INF = math.inf


@pytest.fixture(autouse=True)
def table():
    with table_kept():
        yield


def bump(z):
    return z


class Squash(nn.Module):
    def forward(self, z):
        return z


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z / 2

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    scripted = torch.jit.script(bump)


def test_a_function_is_known_by_its_name_and_by_what_is_said_of_it():
    register_activation(
        bump, steepest=0.3, passes=0.29, initialization="xavier_normal_", gates=True, nodes=["BumpBackward"]
    )
    row = look_up("bump")
    assert (row.module, row.steepest, row.passes, row.gating) == ("bump", 0.3, 0.29, "products")
    assert row.linear
    assert row.nodes == ("BumpBackward",)
    assert not row.flat_zero
    assert not row.saturates
    assert (row.when_fading[0], row.when_dead[0]) == ("ReLU", "LeakyReLU")


def test_what_may_take_its_place_is_what_was_said():
    register_activation(bump, replaced_by=["GELU", "SiLU"])
    assert look_up("bump").instead("dies") == look_up("bump").instead("fades") == ("GELU", "SiLU")


@pytest.mark.parametrize(
    ("inactive", "saturated", "regions", "flat", "two_sided"),
    [
        ([(-INF, 0)], None, (Region("<=", 0.0),), None, False),
        ([(1, 2.5)], [], (Region("<=", 2.5, lower=1.0),), (), False),
        ([], [(-INF, -2), (2, INF)], (), (Region("<=", -2.0), Region(">=", 2.0)), True),
        ([], [(3, INF)], (), (Region(">=", 3.0),), False),
        # Apart, the same, and one inside the other: no observation is in two regions.
        ([(-INF, 0)], [(4, INF)], (Region("<=", 0.0),), (Region(">=", 4.0),), False),
        ([(6, INF), (-INF, 0)], [(6, INF)], (Region("<=", 0.0), Region(">=", 6.0)), (Region(">=", 6.0),), False),
        ([(-INF, -3)], [(-INF, -2)], (Region("<=", -3.0),), (Region("<=", -3.0), Region("<=", -2.0, lower=math.nextafter(-3, 0))), False),
        ([(-INF, 0)], [(-INF, -1)], (Region("<=", -1.0), Region("<=", 0.0, lower=math.nextafter(-1, 0))), (Region("<=", -1.0),), False),
    ],
)  # fmt: skip
def test_intervals_become_regions_that_are_the_same_or_apart(inactive, saturated, regions, flat, two_sided):
    register_activation(bump, inactive=inactive, saturated=saturated)
    zones = look_up("bump").usual
    assert (zones.inactive, zones.saturated, zones.two_sided) == (regions, flat, two_sided)


@pytest.mark.parametrize(
    "function", [bump, Squash, Halved, Halved.apply, torch.sinc, torch.Tensor.sinc, torch.ops.aten.sinc, lambda z: z]
)
def test_each_kind_of_callable_whose_calls_are_seen_is_taken(function):
    register_activation(function, name="taken")
    assert look_up("taken").functions == (function,)


@pytest.mark.parametrize(
    ("functions", "arguments", "error", "says"),
    [
        ((), {}, ValueError, "give the function"),
        (("relu",), {}, TypeError, "must be a Python function, an nn.Module class"),
        ((Squash(),), {}, TypeError, "give the class, Squash, not an instance"),
        ((functools.partial(bump),), {"name": "own"}, TypeError, "calls of a partial can't be watched"),
        ((scripted,), {"name": "own"}, TypeError, "calls of a ScriptFunction can't be watched"),
        ((Squash().forward,), {}, TypeError, "calls of a method can't be watched"),
        ((math.tanh,), {"name": "own"}, TypeError, "can't be watched"),
        ((bump,), {"name": 3}, TypeError, "name=3 must be a str"),
        ((lambda z: z,), {}, ValueError, "name='<lambda>' must be an identifier"),
        ((bump,), {"name": "two words"}, ValueError, "must be an identifier"),
        ((bump,), {"name": "relu"}, ValueError, "'relu' is torch's own ReLU"),
        ((bump,), {"name": "Leaky_ReLU"}, ValueError, "torch's own LeakyReLU"),
        ((bump,), {"name": "erf"}, ValueError, "is that of another"),
        ((F.silu,), {"name": "swish"}, ValueError, "silu is torch's own SiLU, which is known"),
        ((nn.Tanh,), {"name": "own"}, ValueError, "Tanh is torch's own Tanh"),
        ((torch.relu,), {"name": "own"}, ValueError, "relu is torch's own ReLU"),
        ((torch.Tensor.tanh_,), {"name": "own"}, ValueError, "tanh_ is torch's own Tanh"),
        ((bump, bump), {}, ValueError, "given twice"),
        ((bump,), {"inactive": 3}, TypeError, "inactive=3 must be pairs"),
        ((bump,), {"inactive": [3]}, TypeError, "must be pairs"),
        ((bump,), {"inactive": [(1, 2, 3)]}, TypeError, "must be two numbers"),
        ((bump,), {"inactive": [("a", 2)]}, TypeError, "must be two numbers"),
        ((bump,), {"saturated": [(True, INF)]}, TypeError, "must be two numbers"),
        ((bump,), {"inactive": [(2, 1)]}, ValueError, "must rise"),
        ((bump,), {"inactive": [(1, 1)]}, ValueError, "must rise"),
        ((bump,), {"inactive": [(math.nan, 1)]}, ValueError, "must rise"),
        ((bump,), {"inactive": [(-INF, INF)]}, ValueError, "all of z"),
        ((bump,), {"inactive": [(-INF, 1), (1, 3)]}, ValueError, "overlap"),
        ((bump,), {"saturated": [(0, INF), (-INF, 0.5)]}, ValueError, "overlap"),
        ((bump,), {"saturated": [(0, 1)]}, ValueError, "only outer sides saturate"),
        ((bump,), {"steepest": 0}, ValueError, "steepest=0 must be above 0"),
        ((bump,), {"steepest": INF}, ValueError, "finite"),
        ((bump,), {"steepest": math.nan}, ValueError, "steepest=nan"),
        ((bump,), {"steepest": "1"}, TypeError, "must be a number, not str"),
        ((bump,), {"passes": 1.5}, ValueError, "at most 1"),
        ((bump,), {"initialization": "zeros_"}, ValueError, "one of xavier_normal_, kaiming_normal_"),
        ((bump,), {"replaced_by": ["Swoosh"]}, ValueError, "Swoosh must be classes in torch.nn"),
        ((bump,), {"replaced_by": ["GLU"]}, ValueError, "GLU must be classes in torch.nn"),
        ((bump,), {"replaced_by": "ReLU"}, TypeError, "must be a sequence of str"),
        ((bump,), {"nodes": "ReluBackward"}, TypeError, "must be a sequence of str"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_nothing_is_registered(functions, arguments, error, says):
    with pytest.raises(error, match=says.replace("(", r"\(")):
        register_activation(*functions, **arguments)
    assert not is_known("bump")
    assert not is_known("own")


def test_a_function_has_one_name():
    register_activation(bump, name="first")
    with pytest.raises(ValueError, match="bump is registered already, as first"):
        register_activation(bump, name="second")


def test_a_name_is_one_functions():
    register_activation(bump)
    with pytest.raises(ValueError, match="'Bump' is that of another"):
        register_activation(Squash, name="Bump")


def test_one_that_is_defined_anew_takes_the_earlier_ones_place():
    """As where a notebook's cell is run again, or a module is loaded again."""

    def define():
        def wave(z):
            return z

        return wave

    register_activation(define(), steepest=0.5)
    later = define()
    register_activation(later, steepest=0.7)
    assert look_up("wave").steepest == 0.7
    assert look_up("wave").functions == (later,)


def test_a_name_that_nobody_registered_is_taken_to_shrink_nothing():
    unknown = look_up("swoosh")
    assert (unknown.module, unknown.steepest, unknown.flat_zero, unknown.saturates) == ("swoosh", 1.0, False, True)
