"""Nobody but us sees what we compute: not the user's modes and classes, and nothing that traces the net."""

import contextlib
import functools

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from lightning_gradwatch import GradWatchWarning
from lightning_gradwatch.measure import faults
from lightning_gradwatch.measure.probe import Probe


class Dispatched(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


class Counted(torch.Tensor):
    seen: list = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        Counted.seen.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


class Flops(FlopCounterMode):
    def __init__(self):
        super().__init__(display=False)

    @property
    def seen(self):
        return [self.get_total_flops()]


def save_all(*_, **__):
    return CheckpointPolicy.MUST_SAVE


class Net(nn.Module):
    def __init__(self, *, selective=False):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.selective = selective

    def inner(self, x):
        return torch.tanh(self.b(torch.relu(self.a(x))))

    def forward(self, x):
        if self.selective:
            contexts = functools.partial(create_selective_checkpoint_contexts, save_all)
            x = checkpoint(self.inner, x, use_reentrant=False, context_fn=contexts)
        else:
            x = self.inner(x)
        return self.c(x)


def train(net, *, probed, mode=contextlib.nullcontext, around=False, data=torch.Tensor):
    """Return the weights, what the modes saw, and the probe."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    probe = Probe(net, optimizer) if probed else None
    seen = []
    for _ in range(3):
        entered = mode()
        with contextlib.ExitStack() as stack:
            if around:
                stack.enter_context(entered)
            if probe is not None:
                stack.enter_context(probe)
            if not around:
                stack.enter_context(entered)
            optimizer.zero_grad()
            x = torch.randn(5, 4).as_subclass(data)
            net(x).square().mean().backward()
            optimizer.step()
        seen.append(list(getattr(entered, "seen", ())))
    return [parameter.detach().clone() for parameter in net.parameters()], seen, probe


def made(**settings):
    torch.manual_seed(0)
    return Net(**settings)


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("mode", [Dispatched, Called, Flops])
@pytest.mark.parametrize("selective", [False, True])
def test_a_mode_of_the_users_sees_what_it_would_see_without_us(mode, around, selective):
    plain, seen, _ = train(made(selective=selective), probed=False, mode=mode, around=around)
    watched, seen_too, probe = train(made(selective=selective), probed=True, mode=mode, around=around)
    assert seen_too == seen
    assert all(map(torch.equal, plain, watched))
    _, _, alone = train(made(), probed=True)
    for metric in ("signal_norm", "grad_norm", "update_ratio"):
        assert probe.record.metrics[metric] == pytest.approx(alone.record.metrics[metric], rel=1e-6)


def test_a_tensor_class_of_the_users_is_called_as_it_would_be_without_us():
    Counted.seen = []
    plain, _, _ = train(made(), probed=False, data=Counted)
    without, Counted.seen = Counted.seen, []
    watched, _, probe = train(made(), probed=True, data=Counted)
    assert Counted.seen == without
    assert all(map(torch.equal, plain, watched))
    _, _, alone = train(made(), probed=True)
    assert probe.record.metrics["signal_norm"] == pytest.approx(alone.record.metrics["signal_norm"])
    assert probe.record.loss == pytest.approx(alone.record.loss)


LOSSES = {
    "cross entropy": lambda y: F.cross_entropy(y, torch.arange(5) % 3),
    "of probabilities": lambda y: F.nll_loss(y.softmax(-1).log(), torch.arange(5) % 3),
    "with a sigmoid": lambda y: F.binary_cross_entropy_with_logits(y, torch.zeros(5, 3)),
    "of a norm and dropout": lambda y: F.dropout(F.batch_norm(y, None, None, training=True), 0.0).abs().max(),
    "of cuts and squares": lambda y: (y.detach() > 0).float().mul(y).clamp(min=0).add(y.square()).sum(),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_tensor_class_is_called_so_whatever_the_loss_is(loss):
    seen = []
    for probed in (False, True):
        Counted.seen = []
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        probe = Probe(net, optimizer) if probed else contextlib.nullcontext()
        for _ in range(3):
            with probe:
                optimizer.zero_grad()
                loss(net(torch.randn(5, 4).as_subclass(Counted))).backward()
                optimizer.step()
        seen.append(Counted.seen)
    assert seen[1] == seen[0]


def test_a_tensor_class_that_refuses_what_it_does_not_know_refuses_nothing_of_ours():
    class Strict(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func.__name__ not in {"linear", "relu", "tanh", "square", "mean", "backward"}:
                raise NotImplementedError(func.__name__)
            return super().__torch_function__(func, types, args, kwargs or {})

    _, _, probe = train(made(), probed=True, data=Strict)
    assert (probe.record.metrics["signal_norm"] > 0).all()


class TestAParameterOfAClassOfItsOwn:
    """Whose values only that class knows, as those of quantised weights."""

    @pytest.fixture
    def probe(self):
        net = made()
        net.b.weight = nn.Parameter(TwoTensor(net.b.weight.detach(), net.b.weight.detach().clone()))
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, foreach=False)
        with (probe := Probe(net, optimizer)):
            net(torch.randn(5, 4)).square().mean().backward()
            optimizer.step()
        return probe

    def test_is_told_and_not_read(self, probe):
        reasons = {each.name: each.reason for each in probe.info.coverage}
        assert "TwoTensor" in reasons["b"]
        assert "TwoTensor" in reasons[":tanh"]

    def test_leaves_the_others_numbers_there(self, probe):
        numbers = dict(zip(probe.info.names("grad_norm"), probe.record.metrics["grad_norm"], strict=True))
        assert numbers["a"] != numbers["a"] or numbers["a"] > 0
        assert numbers["b"] != numbers["b"]


TRACED = {
    "jit.trace": lambda net, x: torch.jit.trace(net, (x,), check_trace=False).inlined_graph,
    "jit.trace, checked": lambda net, x: torch.jit.trace(net, (x,)).inlined_graph,
    "jit.script": lambda net, x: torch.jit.script(net).inlined_graph,
    "make_fx": lambda net, x: make_fx(net)(x).graph,
    "make_fx, fake": lambda net, x: make_fx(net, tracing_mode="fake", _allow_non_fake_inputs=True)(x).graph,
    "export": lambda net, x: torch.export.export(net, (x,)).graph,
    "export, not strict": lambda net, x: torch.export.export(net, (x,), strict=False).graph,
    "fx": lambda net, x: torch.fx.symbolic_trace(net).graph,
}


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class Encoder(nn.Module):
    """With a module for which the tracer steps aside."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval().requires_grad_(False)
        self.out = nn.Linear(4, 1)

    def forward(self, x):
        return self.out(torch.relu(self.frozen(x)))


def count_nodes(graph):
    return len(list(graph.nodes() if callable(getattr(graph, "nodes", None)) else graph.nodes))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("way", TRACED)
@pytest.mark.parametrize("kind", [Plain, Encoder])
def test_what_is_traced_in_a_measured_step_holds_nothing_of_ours(kind, way):
    if kind is Encoder and way == "fx":
        pytest.skip("symbolic_trace can't trace this module, with or without us")

    def run(probed):
        torch._dynamo.reset()
        torch.manual_seed(0)
        net = kind()
        inside = net if kind is Plain else net.frozen
        optimizer = torch.optim.SGD([each for each in net.parameters() if each.requires_grad], lr=0.1)
        x = torch.randn(5, 3, 4)
        with Probe(net, optimizer) if probed else contextlib.nullcontext() as probe:
            net(x).square().mean().backward()
            nodes = count_nodes(TRACED[way](inside, x))
            optimizer.step()
        return nodes, [parameter.detach() for parameter in net.parameters()], probe

    nodes, plain, _ = run(probed=False)
    nodes_too, watched, probe = run(probed=True)
    assert nodes_too == nodes
    assert all(map(torch.equal, plain, watched))
    assert (probe.record.metrics["signal_norm"] > 0).all()


def test_observations_of_a_pass_that_is_only_traced_do_not_count(measure):
    net = made()

    def traced_first(output):
        torch.jit.trace(net, (torch.randn(50, 4),), check_trace=False)
        return output.square().mean()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        result = measure(net, torch.randn(5, 4), loss=traced_first, observations=5)
    assert all(site.fill == 1.0 for site in result.sites.values())


def test_a_fault_beside_a_mode_is_told_once(monkeypatch):
    monkeypatch.setattr(faults, "RAISE", False)
    monkeypatch.setattr("lightning_gradwatch.measure.units.site_stats.SiteStatistics.add_signal", None)
    with pytest.warns(GradWatchWarning, match="signal off"):
        train(made(), probed=True, mode=Dispatched, around=True)


def test_functional_calls_are_seen_beside_modes(measure):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Linear(4, 8), nn.Linear(8, 1)

        def forward(self, x):
            with Called():
                return self.c(F.elu(self.a(x)))

    assert list(measure(Functional(), torch.randn(5, 4)).sites) == [":elu"]
