"""Contract 2, walked: whichever function of ours raises, the user's training is what it would have been, and nothing stays."""

from __future__ import annotations

import gc
import importlib
import inspect
import pkgutil
import sys
import warnings

import pytest
import torch
from integration.nets import Classifier, batches, seed, trainer
from torch import nn
from torch.nn import functional as F
from torch.overrides import _len_torch_function_stack
from torch.utils.checkpoint import checkpoint

import lightning_gradwatch.measure
from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.fit.callback_base import guarded
from lightning_gradwatch.measure import faults, step
from lightning_gradwatch.measure.probe import Probe
from lightning_gradwatch.measure.step import StepMeter

MEASURING = [
    importlib.import_module(each.name)
    for each in pkgutil.walk_packages(lightning_gradwatch.measure.__path__, "lightning_gradwatch.measure.")
    if each.name != "lightning_gradwatch.measure.faults"  # what tells of a fault has to work
]
FITTING = [
    importlib.import_module(f"lightning_gradwatch.{name}")
    for name in (
        "fit.batch_hooks",
        "fit.trainer",
        "fit.strategies",
        "fit.fit",
        "fit.schedule",
        "fit.writing.writer",
        "record.events.step_events",
        "fit.callback",
    )
]
# What a user calls by hand, and is told of by an exception; and what makes an exception of the user's own.
OWN = {"Probe.record", "Probe.info", "Probe.__enter__", "Probe.__exit__", "Probe.__init__", "GradWatch.__init__"}
OWN |= {"BatchHooks.__init__", "Windows.__init__", "GradWatch.__getstate__", "GradWatch.__setstate__"}
# Torch and the user's program call these of their own accord, so here is the guard itself.
ENTRIES = {f"Tracer.{name}" for name in ("__torch_function__", "_run_unobserved", "_run_backward", "_before", "_after")}
ENTRIES |= {"Tracer._run_observed", "Tracer._run_on_gradients", "manual_gradients.changes_gradients"}
ENTRIES |= {
    "Tracer._run_told",
    "AuditedTracer.__torch_function__",
    "AuditedTracer._note",
    "tracer._op",
    "_Single.__call__",
}
ENTRIES |= {
    "OptimizerSteps._begins",
    "OptimizerSteps._ends",
    "_Detour._run",
    "_Harmless.__enter__",
    "_Harmless.__exit__",
}
ENTRIES |= {"StepMeter._saw_backward", "StepMeter.give_up", "step._harmless", "StepMeter.tracing"}
# Nothing takes away what these should.
REMOVING = {
    "OptimizerSteps.remove",
    "Patch.remove",
    "Patch.removed",
    "Patch.put_back",
    "patches._patch_of",
    "patches._clear",
    "Tracer.stop",
    "Probe._end",
    "_Detour._remove",
    "_Detour.stands",
    "SignalHooks.remove",
}
REMOVING |= {"StepMeter.close", "BatchHooks.release", "TracedTrainingStep.release"}
REMOVING |= {"TracedTrainingStep.remove", "GradWatch._release"}
LIGHTNINGS = {name for name in vars(GradWatch) if name.startswith("on_")} | {
    "teardown",
    "state_dict",
    "load_state_dict",
}


def functions(modules):
    """Yield each function and method that some modules define: where it is kept, under which name, and what it is called."""
    for module in modules:
        for name, found in vars(module).items():
            if getattr(found, "__module__", None) != module.__name__:
                continue
            if isinstance(found, type) and not issubclass(found, BaseException):
                for own, member in vars(found).items():
                    called = member.fget if isinstance(member, property) else member
                    if callable(getattr(called, "__func__", called)) and inspect.isroutine(
                        getattr(called, "__func__", called)
                    ):
                        yield found, own, f"{name}.{own}"
            elif callable(found) and not isinstance(found, type):
                yield module, name, f"{module.__name__.rpartition('.')[2]}.{name}"


def bug(*args, **kwargs):
    raise RuntimeError("injected")


def inject(monkeypatch, owner, name):
    """Have a function raise, wherever it was imported to."""
    original = inspect.getattr_static(owner, name)
    if isinstance(original, property):
        return monkeypatch.setattr(owner, name, property(bug))
    if isinstance(original, (classmethod, staticmethod)):
        return monkeypatch.setattr(owner, name, staticmethod(bug))
    # What a guard is put around in its own definition fails within it, as it would there.
    guard = {StepMeter: step._harmless, GradWatch: guarded()}.get(owner) if hasattr(original, "__wrapped__") else None
    monkeypatch.setattr(owner, name, bug if guard is None else guard(bug))
    if not isinstance(owner, type):
        for module in [each for key, each in sys.modules.items() if key.startswith("lightning_gradwatch")]:
            for key, value in list(vars(module).items()):
                if value is original:
                    monkeypatch.setattr(module, key, bug)
    return None


class Net(nn.Module):
    """A little of everything that is measured in a way of its own."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True).eval().requires_grad_(False)
        self.first, self.norm, self.loop = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.conv, self.rnn = nn.Conv1d(1, 3, 3, padding=1), nn.GRU(8, 8, batch_first=True)
        self.last = nn.Linear(8, 3)
        self.act = nn.PReLU()

    def forward(self, x):
        with torch.no_grad():
            x = x + self.frozen(x[:, None])[:, 0]
        x = F.relu(self.first(x))
        x = x * torch.sigmoid(1.5 * x)
        x = self.norm(x + 0.5 * x * (1 + torch.erf(x / 2**0.5)))
        for _ in range(2):
            x = torch.tanh(self.loop(x))
        x = x + checkpoint(lambda z: F.elu(self.loop(z)), x, use_reentrant=False)
        x = self.act(self.conv(x[:, None])).mean(1)
        x, _ = self.rnn(x[:, None].expand(-1, 2, -1))
        return self.last(x[:, -1].mul_(1.25))


def steps(probed):
    seed()
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    probe = Probe(net, optimizer, mask=torch.ones(8, dtype=torch.bool)) if probed else None
    for number in range(2):
        x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            return loss

        if probe is None:
            closure()
            optimizer.step()
        else:
            with probe:
                if number:
                    optimizer.step(closure)
                else:
                    closure()
                    optimizer.step()
    assert _len_torch_function_stack() == 0
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert "step" not in vars(optimizer)
    assert "forward" in vars(nn.TransformerEncoderLayer)
    assert nn.TransformerEncoderLayer.forward.__code__.co_name == "forward"
    assert nn.TransformerEncoderLayer.forward.__module__ == "torch.nn.modules.transformer"
    assert not hasattr(nn.TransformerEncoderLayer.forward, "__wrapped__")
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.fixture
def _faults_are_caught(monkeypatch):
    monkeypatch.setattr(faults, "RAISE", False)


@pytest.mark.slow
@pytest.mark.usefixtures("_faults_are_caught")
def test_a_plain_loop_goes_on_whichever_function_fails(monkeypatch):
    expected = steps(probed=False)
    reached = told = 0
    for owner, name, called in functions(MEASURING):
        if called in OWN | ENTRIES | REMOVING:
            continue
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            inject(patch, owner, name)
            watched = steps(probed=True)
        assert all(torch.equal(expected[key], watched[key]) for key in expected), called
        assert {each.category for each in caught} <= {GradWatchWarning}, called
        assert len({str(each.message) for each in caught}) == len(caught), "no part is told of twice"
        reached += 1
        told += bool(caught)
    assert reached > 250
    assert told > reached * 0.45, "about half of the functions are called in these few steps, and so are told"


def fit(folder, *callbacks):
    seed()
    module = Classifier(Net(), lambda parameters: torch.optim.Adam(parameters, lr=0.01))
    run = trainer(folder, *callbacks, max_steps=3, accumulate_grad_batches=2, gradient_clip_val=0.1)
    run.fit(module, batches(shuffle=True))
    assert "training_step" not in vars(run.strategy)
    assert _len_torch_function_stack() == 0
    assert not run.optimizers[0]._optimizer_step_pre_hooks
    assert not run.optimizers[0]._optimizer_step_post_hooks
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.slow
@pytest.mark.usefixtures("_faults_are_caught")
@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode:UserWarning")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # where what closes it is made to fail
def test_a_fit_goes_on_whichever_function_fails(monkeypatch, tmp_path):
    expected = fit(tmp_path)
    reached = 0
    for owner, name, called in functions([*MEASURING, *FITTING]):
        if called in OWN | ENTRIES | REMOVING or name in LIGHTNINGS:
            continue
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            inject(patch, owner, name)
            watched = fit(tmp_path, GradWatch(every_n_steps=1))
        assert all(torch.equal(expected[key], watched[key]) for key in expected), called
        told = [str(each.message) for each in caught if issubclass(each.category, GradWatchWarning)]
        assert len(set(told)) == len(told), (called, told)
        reached += 1
    assert reached > 300
    gc.collect()  # such files go here, and not in whichever test comes next
