"""Whoever steps, and however: the gradients and the weights' movement are those of the whole step, and nothing stays."""

import contextlib
import math
from collections import defaultdict

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from lightning_gradwatch.measure.optimizer_step import inner_optimizers
from lightning_gradwatch.measure.probe import Probe


class Lookahead(Optimizer):
    """As packages have it: its constructor calls no other, so torch's hooks have nowhere to be."""

    def __init__(self, inner):
        self.inner, self.param_groups, self.defaults = inner, inner.param_groups, inner.defaults
        self.state, self.count = defaultdict(dict), 0

    def step(self, closure=None):
        loss = self.inner.step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    slow = self.state[parameter].setdefault("slow", parameter.detach().clone())
                    slow.lerp_(parameter, 0.5)
                    parameter.copy_(slow)
        return loss

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)


class WithDictionaries(Lookahead):
    """With torch's dictionaries of hooks, which nobody calls."""

    def __init__(self, inner):
        super().__init__(inner)
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}


class Every(Lookahead):
    """Steps at each second call only, as a wrapper that accumulates."""

    def step(self, closure=None):
        self.count += 1
        return self.inner.step(closure) if self.count % 2 == 0 else None


class Sam(Optimizer):
    def __init__(self, params, lr=0.1, rho=0.5):
        super().__init__(params, {"lr": lr, "rho": rho})
        self.base = SGD(self.param_groups, lr=lr)
        self.param_groups = self.base.param_groups
        self.kept = []

    @property
    def _all(self):
        return [each for group in self.param_groups for each in group["params"]]

    @torch.no_grad()
    def first_step(self):
        self.kept = [each.clone() for each in self._all]
        norm = torch.stack([each.grad.norm() for each in self._all]).norm()
        for each in self._all:
            each.add_(each.grad * (0.5 / norm))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for each, before in zip(self._all, self.kept, strict=True):
            each.copy_(before)
        self.base.step()

    @torch.no_grad()
    def step(self, closure=None):
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


class Chained(Optimizer):
    """One for the matrices, one for the rest, as Muon is used."""

    def __init__(self, params):
        params = list(params)
        self.optimizers = [
            SGD([p for p in params if p.dim() > 1], lr=0.1),
            SGD([p for p in params if p.dim() < 2], lr=0.2),
        ]
        self.param_groups = [group for each in self.optimizers for group in each.param_groups]
        self.defaults, self.state = {}, defaultdict(dict)

    def step(self, closure=None):
        for each in self.optimizers:
            each.step()

    def zero_grad(self, set_to_none=True):
        for each in self.optimizers:
            each.zero_grad()


def once(net, optimizer, x, y, way):
    def closure():
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    optimizer.zero_grad()
    if way == "two steps":
        closure()
        optimizer.first_step()
        closure()
        optimizer.second_step()
    elif way == "backward, then a closure":
        closure()
        optimizer.step(closure)
    elif way == "raw":
        closure()
        optimizer.inner.step()
    else:
        closure()
        optimizer.step()


WAYS = {
    "Lookahead": (lambda params: Lookahead(SGD(params, lr=0.1)), ""),
    "Lookahead of Lookahead": (lambda params: Lookahead(Lookahead(SGD(params, lr=0.1))), ""),
    "with dictionaries": (lambda params: WithDictionaries(SGD(params, lr=0.1)), ""),
    "the inner one alone": (lambda params: Lookahead(SGD(params, lr=0.1)), "raw"),
    "Chained": (Chained, ""),
    "SAM, two steps": (Sam, "two steps"),
    "SAM, a closure": (Sam, "backward, then a closure"),
    "SGD": (lambda params: SGD(params, lr=0.1), ""),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_whole_step_is_measured(name):
    make, way = WAYS[name]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    twin = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    twin.load_state_dict(net.state_dict())
    optimizer, plain = make(net.parameters()), make(twin.parameters())
    attributes = set(vars(optimizer))
    probe = Probe(net, optimizer)
    for step in range(3):
        x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))
        before = [each.detach().clone() for each in net.parameters()]
        with probe:
            once(net, optimizer, x, y, way)
        once(twin, plain, x, y, way)
        assert all(map(torch.equal, net.parameters(), twin.parameters()))
        record = probe.record
        assert record.step == step
        assert not record.skipped
        # What the optimizer has used last is still there.
        expected = [(net[i].weight.grad.norm() ** 2 + net[i].bias.grad.norm() ** 2).sqrt().item() for i in (0, 2)]
        assert record.metrics["grad_norm"].tolist() == pytest.approx(expected, rel=1e-5)
        moved = [((net[i].weight - before[i]).norm() / before[i].norm()).item() for i in (0, 2)]
        assert record.metrics["update_ratio"].tolist() == pytest.approx(moved, rel=1e-5)
    assert set(vars(optimizer)) == attributes
    for each in [optimizer, *inner_optimizers(optimizer)]:
        assert not getattr(each, "_optimizer_step_pre_hooks", ())
        assert not getattr(each, "_optimizer_step_post_hooks", ())


def test_a_wrapper_that_leaves_its_step_out_has_not_stepped():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = Every(SGD(net.parameters(), lr=0.1))
    probe = Probe(net, optimizer)
    told = []
    for _ in range(4):
        with probe:
            once(net, optimizer, torch.randn(8, 6), torch.randint(0, 3, (8,)), "")
        told.append((probe.record.skipped, bool((probe.record.metrics["update_ratio"] > 0).all())))
    assert told == [(True, False), (False, True)] * 2


def test_where_none_is_seen_to_step_coverage_says_so_until_one_does():
    class TwoSteps(torch.optim.SGD):
        def second_step(self):
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.sub_(parameter.grad, alpha=0.1)

    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = TwoSteps(net.parameters(), lr=0.1)
    probe = Probe(net, optimizer)
    said = []
    for step in (optimizer.second_step, optimizer.second_step, optimizer.step, optimizer.second_step):
        with probe:
            optimizer.zero_grad()
            net(torch.randn(5, 4)).square().mean().backward()
            step()
        said.append([entry.reason.split(",")[0] for entry in probe.info.coverage])
    assert said == [["parameters change and no optimizer was seen to step"]] * 2 + [[], []]


def test_an_exception_in_the_step_leaves_nothing():
    class Breaks(Lookahead):
        def step(self, closure=None):
            raise ValueError("the user's own")

    net = nn.Linear(6, 3)
    optimizer = Breaks(SGD(net.parameters(), lr=0.1))
    attributes = set(vars(optimizer))
    with pytest.raises(ValueError, match="the user's own"), Probe(net, optimizer):
        once(net, optimizer, torch.randn(8, 6), torch.randint(0, 3, (8,)), "")
    assert set(vars(optimizer)) == attributes
    assert torch.overrides._len_torch_function_stack() == 0


def test_optimizers_inside_are_found_once_and_circles_end():
    inner = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    outer = Lookahead(inner)
    outer.itself, outer.again, inner.back = outer, {"same": inner}, outer
    assert inner_optimizers(outer) == [inner]


def taps(net, signals):
    """Have each activation module's argument tell the norm of its gradient."""
    for name, module in net.named_modules():
        if not list(module.children()) and not list(module.parameters()):

            def keep(_, args, name=name):
                args[0].register_hook(lambda gradient: signals.__setitem__(name, gradient.norm().item()))

            yield module.register_forward_pre_hook(keep)


def swap_in(net, optimizer, what):
    if what == "activation":
        for place in (1, 3, 5):
            net[place] = nn.GELU()
        return
    if what == "layer":
        net[6] = nn.Linear(6, 3)
    else:
        net.insert(2, nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    optimizer.param_groups.clear()
    optimizer.add_param_group({"params": list(net.parameters())})


@pytest.mark.parametrize("what", ["activation", "layer", "block"])
def test_what_replaces_a_module_has_its_own_numbers(what):
    """A new object may have the `id` of one that is gone."""
    torch.manual_seed(0)
    net = nn.Sequential(*[each for _ in range(3) for each in (nn.Linear(6, 6), nn.ReLU())], nn.Linear(6, 3))
    optimizer = SGD(net.parameters(), lr=0.1)
    probe = Probe(net, optimizer)
    signals = {}
    for step in range(4):
        if step == 2:
            swap_in(net, optimizer, what)
        signals.clear()
        with probe:
            handles = list(taps(net, signals))
            F.cross_entropy(net(torch.randn(8, 6)), torch.randint(0, 3, (8,))).backward()
            optimizer.step()
        gradients = {
            name: float(sum(each.grad.norm() ** 2 for each in module.parameters(recurse=False)) ** 0.5)
            for name, module in net.named_modules()
            if list(module.parameters(recurse=False))
        }
        optimizer.zero_grad()
        for handle in handles:
            handle.remove()
    record, info = probe.record, probe.info
    read = dict(zip(info.names("grad_norm"), record.metrics["grad_norm"].tolist(), strict=True))
    assert read == pytest.approx(gradients, rel=1e-5)
    read = dict(zip(info.names("signal_norm"), record.metrics["signal_norm"].tolist(), strict=True))
    assert {name.partition(":")[0]: value for name, value in read.items() if not math.isnan(value)} == pytest.approx(
        signals, rel=1e-5
    )


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return torch.relu(self.linear(x))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["torch.compile", "module.compile()"])
def test_a_module_compiled_in_mid_training_is_compiled_as_without_us(way):
    def run(probed):
        torch._dynamo.reset()
        torch.manual_seed(0)
        net = nn.Sequential(Block(), nn.Linear(6, 3))
        optimizer, counter = SGD(net.parameters(), lr=0.1), CompileCounter()
        probe = Probe(net, optimizer)
        for step in range(6):
            if step == 2 and way == "torch.compile":
                net[0] = torch.compile(net[0], backend=counter)
            elif step == 2:
                net[0].compile(backend=counter)
            with probe if probed and step in (0, 1, 4) else contextlib.nullcontext():
                F.cross_entropy(net(torch.randn(8, 6)), torch.randint(0, 3, (8,))).backward()
                optimizer.step()
                optimizer.zero_grad()
        return counter.frame_count, [each.detach() for each in net.parameters()], probe

    graphs, plain, _ = run(probed=False)
    graphs_too, watched, probe = run(probed=True)
    assert graphs_too == graphs == 1
    assert all(map(torch.equal, plain, watched))
    assert any("compiled" in each.reason for each in probe.info.coverage)
