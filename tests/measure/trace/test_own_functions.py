"""Activation functions that users have registered are measured wherever they are called, and nothing is left behind."""

from __future__ import annotations

import math
import threading
from contextlib import nullcontext

import pytest
import torch
from registering import table_kept
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch import register_activation
from lightning_gradwatch.measure.probe import Probe
from lightning_gradwatch.measure.units.counting import counter
from lightning_gradwatch.record.activations import look_up

INF = math.inf
compiles = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch's own


@pytest.fixture(autouse=True)
def table():
    with table_kept():
        yield


def squareplus(x, b=4.0):
    return (x + torch.sqrt(x * x + b)) / 2


def of_closure(k):
    def shifted(x):
        return torch.tanh(x) + k

    return shifted


class Squash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.sigmoid(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * y * (1 - y)


class Learnt(nn.Module):
    """A Swish whose slope is learnt: a function and a layer in one."""

    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


class Plain(nn.Module):
    def forward(self, x):
        return squareplus(x)


class Inherits(Plain):
    """Runs its parent's code."""


class Net(nn.Module):
    """Three layers, between which a function of its own is called."""

    def __init__(self, way, **modules):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
        for name, module in modules.items():
            self.add_module(name, module)
        self.way = way

    def forward(self, x):
        return self.way(self, x)


def measured(model, *, steps=2, before=None, **settings):
    """Return the probe after some measured steps, each after one that isn't."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = Probe(model, optimizer, observations=1, batch_elements=1, **settings)
    torch.manual_seed(1)
    if before is not None:
        before()
    for _ in range(steps):
        x = torch.randn(64, 8)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        with probe:
            model(x).square().mean().backward()
            optimizer.step()
    return probe


def sites(probe):
    return [(site.name, site.function, site.role) for site in probe.info.sites]


def chain(function):
    return Net(lambda m, x: m.c(function(m.b(torch.tanh(m.a(x))))))


class Callable_:
    def __call__(self, x):
        return torch.tanh(x) * 1.5


CALLED = {
    "a function": (squareplus, squareplus),
    "a function with a closure": ((closure := of_closure(0.5)), closure),
    "a lambda": ((own := lambda z, *rest, scale=1.0, **more: torch.tanh(z) * scale), own),
    "a function given by its name": (squareplus, lambda x: squareplus(x=x, b=3.0)),
    "a function of positional parameters": ((only := eval("lambda x, /, y=0.0, *, w=1.0: torch.tanh(x) * w")), lambda x: only(x, w=2.0)),  # noqa: S307
    "a method": (Net.forward, None),
    "an autograd function": (Squash, Squash.apply),
    "what was taken of one before": (Squash.apply, Squash.apply),
    "an operator": (torch.sinc, torch.sinc),
    "a method of tensors": (torch.Tensor.sinc, lambda x: x.sinc()),
    "an operator that is no function of its own elsewhere": (torch.abs, torch.abs),
    "an operator of the dispatcher": (torch.ops.aten.sinc, torch.ops.aten.sinc),
    "an overload of one": (torch.ops.aten.sinc, torch.ops.aten.sinc.default),
    "an instance of a class": (Callable_, Callable_()),
}  # fmt: skip


@pytest.mark.parametrize("case", [case for case in CALLED if case != "a method"])
def test_a_call_is_one_site(case):
    given, called = CALLED[case]
    register_activation(given, name="own_one", saturated=[(-INF, -2), (2, INF)])
    assert sites(measured(chain(called))) == [(":tanh", "tanh", "hidden"), (":own_one", "own_one", "hidden")]


def test_a_module_is_a_site_of_its_name_and_its_subclasses_are():
    register_activation(Plain, squareplus, name="squareplus")
    model = Net(lambda m, x: m.c(m.child(m.b(m.act(m.a(x))))), act=Plain(), child=Inherits())
    assert sites(measured(model)) == [("act", "squareplus", "hidden"), ("child", "squareplus", "hidden")]


def test_one_of_two_that_run_the_same_code_is_told_from_the_other():
    register_activation(Inherits, name="heir")
    model = Net(lambda m, x: m.c(m.heir(m.b(m.act(m.a(x))))), act=Plain(), heir=Inherits())
    assert sites(measured(model)) == [("heir", "heir", "hidden")]


def test_one_with_a_parameter_is_a_layer_and_a_site():
    register_activation(Learnt)
    probe = measured(Net(lambda m, x: m.c(m.act(m.a(x))), act=Learnt()))
    assert sites(probe) == [("act", "Learnt", "hidden")]
    assert [layer.name for layer in probe.info.layers] == ["a", "act", "c", "b"]  # what isn't called comes last
    assert probe.info.coverage == ()


def test_nothing_inside_is_a_site():
    register_activation(Squash, of_closure)  # whichever of them is called
    register_activation(squareplus)
    probe = measured(Net(lambda m, x: m.c(squareplus(m.b(Squash.apply(m.a(x)))))))
    assert [site.function for site in probe.info.sites] == ["Squash", "squareplus"]
    assert probe.info.coverage == ()


def test_without_being_registered_it_is_none():
    assert "squareplus" not in str(sites(measured(chain(squareplus))))


@pytest.mark.parametrize("late", [False, True])
def test_it_may_be_registered_when_the_probe_is_there(late):
    def register():
        register_activation(squareplus)

    if not late:
        register()
    assert sites(measured(chain(squareplus), before=register if late else None))[1:] == [(":squareplus", "squareplus", "hidden")]  # fmt: skip


def test_signal_and_gains_are_autograds():
    register_activation(squareplus)
    model = chain(squareplus)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    probe, x = Probe(model, optimizer), torch.randn(64, 8)
    with probe:
        model(x).square().mean().backward()
        optimizer.step()
    z = model.b(torch.tanh(model.a(x)))
    a = squareplus(z)
    arriving, delta = torch.autograd.grad(model.c(a).square().mean(), (a, z))
    assert float(probe.record.metrics["signal_norm"][1]) == pytest.approx(delta.norm().item(), rel=1e-5)
    assert float(probe.record.metrics["activation_gain"][1]) == pytest.approx((delta.norm() / arriving.norm()).item(), rel=1e-5)  # fmt: skip
    assert probe.info.sites[1].predecessors == (":tanh",)
    assert math.isfinite(probe.record.metrics["weight_gain"][1])


BETWEEN = [(-INF, -4.0), (-1.0, 0.25), (3.0, INF)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [40, 40_000])
@pytest.mark.parametrize("unit_axis", [0, 1])
def test_observations_in_intervals_are_numpys_count(dtype, rows, unit_axis):
    """The ends are in, as float64 compares them, and NaN is nowhere; a large tensor is counted in blocks, small ones many at once."""
    register_activation(squareplus, inactive=BETWEEN[1:2], saturated=[BETWEEN[0], BETWEEN[2]])
    ends = torch.tensor([-4.0, -1.0, 0.25, 3.0, 0.1, math.nan], dtype=torch.float64)
    z = torch.cat([torch.randn(rows, 8, dtype=torch.float64) * 3, ends[:, None].expand(6, 8)]).to(dtype)
    z = z.T.contiguous() if unit_axis == 0 else z
    counts = counter(look_up("squareplus").usual, dtype, 2, unit_axis)
    expected = [((low <= z.double()) & (z.double() <= high)).sum(1 - unit_axis).tolist() for low, high in BETWEEN]
    by_region = [counts.inactive, counts.saturated[:1], counts.saturated[1:]]
    for found in (counts.count(z), [row[1] for row in counts.count_rows(torch.stack([z, z]))] if rows == 40 else None):
        if found is not None:
            assert [found[place].tolist() for (place,) in by_region] == [expected[1], expected[0], expected[2]]


def test_of_small_tensors_the_last_interval_is_counted_as_the_others_are():
    """The last region of a stack of them is worked out in place where that can be."""
    register_activation(squareplus, inactive=BETWEEN[1:2])
    z = torch.randn(3, 40, 8)
    inside = (z >= -1.0) & (z <= 0.25)
    (found,) = counter(look_up("squareplus").usual, torch.float32, 2, 1).count_rows(z.clone())
    assert torch.equal(found, inside.sum(1).float())


@pytest.mark.parametrize("steps", [1, 6])
def test_units_in_intervals_are_numpys_share(steps):
    register_activation(squareplus, inactive=BETWEEN[1:2], saturated=[BETWEEN[0], BETWEEN[2]])
    model = Net(lambda m, x: m.c(squareplus(m.a(x) * 4)))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    probe, x = Probe(model, optimizer, observations=1, batch_elements=1), torch.randn(64, 8)
    for _ in range(steps):
        with probe:
            model(x).sum().backward()
            optimizer.step()
    z = (model.a(x) * 4).detach().double()
    inside = sum(((low <= z) & (z <= high)).double() for low, high in BETWEEN)
    assert float(probe.record.metrics["inactive_share"][0]) == pytest.approx(inside.mean().item(), rel=1e-12)


def test_training_is_bit_identical_and_each_function_has_its_own_code_again():
    register_activation(squareplus)
    register_activation(Squash)
    register_activation(Learnt)
    codes = squareplus.__code__, Squash.apply.__func__.__code__, Learnt.forward.__code__

    def train(*, watched):
        model = Net(lambda m, x: m.c(Squash.apply(m.act(m.b(squareplus(m.a(x)))))), act=Learnt())
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        probe = Probe(model, optimizer)
        for seed in range(4):
            x = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            if watched:
                with probe:
                    model(x).square().mean().backward()
                    optimizer.step()
            else:
                model(x).square().mean().backward()
                optimizer.step()
        return [each.detach().clone() for each in model.parameters()]

    for one, other in zip(train(watched=False), train(watched=True), strict=True):
        assert torch.equal(one, other)
    assert (squareplus.__code__, Squash.apply.__func__.__code__, Learnt.forward.__code__) == codes


def test_an_error_inside_is_the_users_and_leaves_nothing():
    def broken(x):
        raise KeyError("the user's")

    register_activation(broken)
    code = broken.__code__
    model = chain(broken)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = Probe(model, optimizer)
    with pytest.raises(KeyError, match="the user's"), probe:
        model(torch.randn(4, 8))
    assert broken.__code__ is code


def test_code_that_somebody_else_put_in_stays():
    def mine(x):
        return torch.tanh(x)

    def theirs(x):
        return torch.tanh(x) * 2

    register_activation(mine)
    model = chain(mine)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = Probe(model, optimizer)
    with probe:
        model(torch.randn(4, 8)).sum().backward()
        mine.__code__ = theirs.__code__
        optimizer.step()
    assert mine.__code__ is theirs.__code__


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_a_checkpoint_each_observation_counts_once(reentrant):
    register_activation(squareplus, saturated=[(-INF, -3)])
    model = Net(lambda m, x: m.c(checkpoint(lambda y: squareplus(m.b(y)), torch.tanh(m.a(x)), use_reentrant=reentrant)))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    probe = Probe(model, optimizer, observations=1000, least_observations=1000, batch_elements=1)
    for _ in range(2):
        with probe:
            model(torch.randn(64, 8)).square().mean().backward()
            optimizer.step()
    assert list(probe.record.window_fill) == pytest.approx([0.128, 0.128])


def test_its_product_with_another_tensor_makes_a_gate_of_it():
    register_activation(squareplus, gates=True)
    assert sites(measured(Net(lambda m, x: m.c(squareplus(m.a(x)) * m.b(x))))) == [
        (":squareplus", "squareplus", "gate")
    ]


def test_one_that_returns_something_else_than_a_tensor_is_left_out_and_named():
    def both(x):
        return torch.tanh(x), x

    register_activation(both)
    probe = measured(Net(lambda m, x: m.c(both(m.a(x))[0])))
    assert sites(probe) == []
    assert [(each.name, each.reason[:11]) for each in probe.info.coverage] == [(":both", "it returns ")]


def test_a_mode_of_the_users_sees_its_own_calls_alone():
    register_activation(squareplus)

    def calls(*, watched):
        model, seen = chain(squareplus), []
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        probe, x = Probe(model, optimizer), torch.randn(4, 8)

        class Counts(TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                seen.append(func)
                return func(*args, **(kwargs or {}))

        with Counts(), probe if watched else nullcontext():
            model(x).sum().backward()
            optimizer.step()
        assert not watched or [site.function for site in probe.info.sites] == ["tanh", "squareplus"]
        return seen

    assert calls(watched=True) == calls(watched=False)


def test_of_weights_it_is_none():
    """A function that makes weights of parameters isn't one that data goes through."""
    register_activation(squareplus)
    model = Net(lambda m, x: F.linear(torch.tanh(m.a(x)), squareplus(m.b.weight)))
    assert sites(measured(model)) == [(":tanh", "tanh", "hidden")]


def test_two_probes_at_a_time_see_each_call():
    register_activation(squareplus)
    model = chain(squareplus)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    outer, inner = Probe(model, optimizer), Probe(model, optimizer)
    with outer, inner:
        model(torch.randn(64, 8)).sum().backward()
        optimizer.step()
    assert sites(outer) == sites(inner)
    assert [site.function for site in outer.info.sites] == ["tanh", "squareplus"]


def test_a_call_on_another_thread_runs_its_own_code():
    register_activation(squareplus)
    found = []

    def way(m, x):
        thread = threading.Thread(target=lambda: found.append(squareplus(torch.zeros(2, 2))))
        thread.start()
        thread.join()
        return m.c(squareplus(m.a(x)))

    assert sites(measured(Net(way))) == [(":squareplus", "squareplus", "hidden")]
    assert all(torch.equal(each, torch.ones(2, 2)) for each in found)


@compiles
def test_a_compiled_module_is_not_compiled_again_for_it():
    register_activation(squareplus)
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    inside = torch.compile(Net(lambda m, x: squareplus(m.a(x))), backend=backend, fullgraph=True)
    probe = measured(Net(lambda m, x: m.c(inside(squareplus(m.a(x)))), inside=inside), steps=3)
    assert len(compiled) == 1
    assert sites(probe) == [(":squareplus", "squareplus", "hidden")]


@compiles
def test_a_compiled_function_may_call_it_in_one_graph():
    register_activation(squareplus)
    torch._dynamo.reset()
    inside = torch.compile(lambda x: squareplus(x) * 2, backend="eager", fullgraph=True)
    x = torch.randn(4, 8)
    model = Net(lambda m, x: m.c(inside(m.a(x))))
    measured(model, steps=3)
    assert torch.equal(inside(x), squareplus(x) * 2)


def test_what_is_made_out_of_sight_is_missed_by_the_name_of_its_node():
    """Called under a mode that hides it, nothing is known of it but its node."""

    def hidden(z):
        with torch._C.DisableTorchFunction():
            return Squash.apply(z)

    way = Net(lambda m, x: m.c(torch.tanh(m.b(hidden(m.b(F.relu(m.a(x))))))))
    assert math.isfinite(measured(way).record.metrics["weight_gain"][1])  # taken for weights between two activations
    register_activation(Squash, nodes=["SquashBackward"])
    assert math.isnan(measured(way).record.metrics["weight_gain"][1])


def test_a_layer_without_gradient_behind_one_that_is_flat_is_explained():
    """A step that is followed call by call follows it, too, though what happens inside isn't looked at."""

    def step(x):
        return x.clamp(1e6, 2e6)

    register_activation(step, inactive=[(-INF, 1e6)])
    model = Net(lambda m, x: m.c(step(m.a(x))))
    probe = measured(model, steps=3)
    lost = probe.info.layers[0].lost
    assert (lost.kind, lost.operation) == ("inactive", "step")
