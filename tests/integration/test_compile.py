"""Compiled nets on a schedule: nothing is compiled again for us, and steps that run eagerly show everything.

That weights stay identical, numbers are right and what isn't seen is said: `test_every_situation.py`, for each of these.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from integration.captures import Captures, compare
from integration.nets import Classifier, batches, relu_net, seed, trainer
from integration.situations.compiled import SITUATIONS, Block, ManualSilent, Silent, around, compiled_step
from integration.situations.loop import SITES, adam
from integration.traces import traces
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters

from lightning_gradwatch import DeadUnits, GradWatch, GradWatchWarning, Probe
from lightning_gradwatch.measure import faults

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

AT_ONCE = [DeadUnits(observations=1, batch_elements=1)]
"""Windows that are full after a step: until then each is measured, and no step is left that runs compiled."""
MODULES = ("compiled-whole", "compiled-submodule", "compiled-full-graph", "compiled-by-its-method")
STEPS = (
    "compiled-step",
    "compiled-step-clipped",
    "compiled-step-nesterov",
    "compiled-step-twice",
    "compiled-step-manual",
    "compiled-step-scaler",
    "compiled-update",
)


def fit(make, folder, *callbacks, **settings):
    """Train for a dozen steps; return the module, and how many graphs were compiled and how many ended early."""
    torch._dynamo.reset()
    counters.clear()
    seed()
    whole = make()
    run = trainer(folder, *callbacks, **{"max_steps": 12, **settings})
    run.fit(whole, batches())
    module = getattr(whole, "_orig_mod", whole)
    left = {name: what for name, what in traces(run, module).items() if not name.startswith("parameter")}
    return module, left, (counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def settings_of(name):
    return {key: value() if callable(value) else value for key, value in SITUATIONS[name].settings.items()}


@pytest.mark.judges
@pytest.mark.parametrize("name", [*MODULES, *STEPS])
def test_nothing_is_compiled_again(name, tmp_path):
    row = SITUATIONS[name]
    watch = GradWatch(every_n_steps=4, rules=AT_ONCE)
    module, left, (graphs, breaks) = fit(row.make, tmp_path / "without", **settings_of(name))
    watched, left_too, counted = fit(row.make, tmp_path / "with", watch, **settings_of(name))
    assert graphs > 0
    assert counted == (graphs, breaks)
    assert torch.equal(weights(module), weights(watched))
    assert left == left_too
    assert 4 <= len(watch.records) < max(12, row.steps)


@pytest.mark.judges
@pytest.mark.parametrize("name", [*MODULES, *STEPS])
def test_eager_steps_see_everything_and_compile_nothing_again(name, tmp_path):
    row = SITUATIONS[name]
    watch = GradWatch(every_n_steps=4, rules=AT_ONCE, compiled="eager")
    module, left, (graphs, _) = fit(row.make, tmp_path / "without", **settings_of(name))
    watched, left_too, (graphs_too, _) = fit(row.make, tmp_path / "with", watch, **settings_of(name))
    assert 0 < graphs_too <= graphs
    torch.testing.assert_close(weights(module), weights(watched))
    assert left == left_too
    assert [site.name for site in watch.info.sites] == (
        ["net.1", "net.2.act", "net.2:sigmoid"] if row.sites == ("net.1",) else list(SITES)
    )
    assert watch.coverage == ()
    assert 4 <= len(watch.records) < max(12, row.steps)
    assert (watch.records[-1].metrics["signal_norm"] > 0).all()


@pytest.mark.judges
@pytest.mark.parametrize("name", MODULES)
def test_numbers_of_eager_steps_equal_the_reference(name, tmp_path):
    watch, captures = GradWatch(every_n_steps=1, compiled="eager"), Captures()
    fit(SITUATIONS[name].make, tmp_path, captures, watch)
    compare(watch, captures)


def test_code_for_the_machine_is_left_alone_too(tmp_path):
    """Inductor's kernels round otherwise than eager steps, so that a measured step that ran eagerly would show."""

    def make():
        return Silent(around(torch.compile(Block(), fullgraph=True)), adam)

    try:
        without, _, counts = fit(make, tmp_path / "without")
    except BackendCompilerFailed:  # under ATEN_CPU_CAPABILITY=default it writes vector code without its header
        pytest.skip("torch's own compiler makes no code for this arithmetic")
    with_it, _, counts_too = fit(make, tmp_path / "with", GradWatch(every_n_steps=2))
    assert torch.equal(weights(without), weights(with_it))
    assert counts == counts_too
    eager, _, _ = fit(make, tmp_path / "eager", GradWatch(every_n_steps=2, compiled="eager"))
    torch.testing.assert_close(weights(without), weights(eager))


class CompiledFunction(Silent):
    """Calls a compiled function, which is no module that could be told apart."""

    def __init__(self):
        super().__init__(relu_net(), adam)
        self.function = torch.compile(lambda x: torch.relu(x) * 2, backend="aot_eager", fullgraph=True)

    def forward(self, x):
        return self.net[1:](self.function(self.net[0](x)))


@pytest.mark.judges
def test_a_compiled_function_is_named_and_costs_a_graph_a_tracer(tmp_path):
    """Torch compiles anew where a function mode is active: ours, and the one that audits a net's first step."""
    watch = GradWatch(every_n_steps=4, rules=AT_ONCE)
    without, _, (graphs, breaks) = fit(CompiledFunction, tmp_path / "without")
    watched, _, counted = fit(CompiledFunction, tmp_path / "with", watch)
    assert torch.equal(weights(without), weights(watched))
    assert counted == (graphs + 2, breaks)
    assert [(entry.name, entry.reason) for entry in watch.coverage] == [
        ("", f"a function that is {SITUATIONS['compiled-submodule'].uncovered['net.2']}")
    ]
    eager = GradWatch(every_n_steps=4, rules=AT_ONCE, compiled="eager")
    _, _, counted = fit(CompiledFunction, tmp_path / "eager", eager)
    assert counted == (graphs, breaks)
    assert eager.coverage == ()
    assert [site.name for site in eager.info.sites] == [":relu", "net.1", "net.3"]


def test_a_compiled_step_of_a_plain_loop_is_measured_from_outside():
    """With `Probe`, whose hooks on the optimizer would be compiled with its step."""
    found = []
    for watched in (False, True):
        torch._dynamo.reset()
        counters.clear()
        seed()
        module = Classifier(relu_net())
        optimizer = adam(module.parameters())
        optimizer.step = torch.compile(optimizer.step, backend="aot_eager")
        step = optimizer.step
        probe = Probe(module, optimizer)

        def train(x, y, module=module, optimizer=optimizer):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(x), y).backward()
            optimizer.step()

        for place, (x, y) in enumerate(batches(6)):
            before = {name: each.detach().clone() for name, each in module.named_parameters()}
            if watched and place % 2:
                with probe:
                    train(x, y)
                for layer, ratio in zip(("net.0", "net.2", "net.4"), probe.record.metrics["update_ratio"], strict=True):
                    old, new = before[f"{layer}.weight"], module.get_parameter(f"{layer}.weight")
                    assert ratio == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-4)
                    gradients = [each.grad for each in module.get_submodule(layer).parameters()]
                    norm = float(torch.cat([each.flatten() for each in gradients]).norm())
                    assert probe.record.values("grad_norm", 3)[int(layer[-1]) // 2] == pytest.approx(norm, rel=1e-6)
                assert (probe.record.metrics["signal_norm"] > 0).all()
            else:
                train(x, y)
        assert optimizer.step is step
        counted = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
        found.append((weights(module).tolist(), counted))
    assert found[0] == found[1]
    assert found[0][1][0] > 0


def test_a_compiled_step_of_a_plain_loop_that_is_given_a_closure_is_measured_too():
    """Its loss and its gradients are made inside."""
    torch._dynamo.reset()
    seed()
    module = Classifier(relu_net())
    optimizer = compiled_step(module.parameters())
    probe = Probe(module, optimizer)
    x, y = next(iter(batches()))

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x), y)
        loss.backward()
        return loss

    with probe:
        loss = optimizer.step(closure)
    gradients = torch.cat([each.grad.flatten() for each in module.parameters()])
    assert probe.record.loss == pytest.approx(float(loss), rel=1e-6)
    assert probe.record.global_grad_norm == pytest.approx(float(gradients.norm()), rel=1e-6)
    assert (probe.record.metrics["update_ratio"] > 0).all()


@pytest.mark.judges
@pytest.mark.parametrize(
    "where",
    [
        "lightning_gradwatch.measure.gradients.l2_norms",
        "lightning_gradwatch.measure.optimizer_step._at_the_end",
        "lightning_gradwatch.measure.probe.Probe.before_optimizer_step",
    ],
)
def test_a_fault_of_ours_within_a_backward_pass_is_told_and_training_goes_on(where, tmp_path, monkeypatch):
    make = SITUATIONS["compiled-step"].make
    without, *_ = fit(make, tmp_path / "without")
    monkeypatch.setattr(faults, "RAISE", False)

    def bug(*_, **__):
        raise RuntimeError("injected")

    monkeypatch.setattr(where, bug)
    watch = GradWatch(every_n_steps=1)
    with pytest.warns(GradWatchWarning, match="injected"):
        watched, *_ = fit(make, tmp_path / "with", watch)
    assert torch.equal(weights(without), weights(watched))


class StepsInAFunction(ManualSilent):
    """As torch's own recipe has it: a compiled function that calls the optimizer."""

    def step(self, optimizer, batch_idx):
        if "stepping" not in vars(self):
            object.__setattr__(self, "stepping", torch.compile(optimizer.step, backend="aot_eager"))
        self.stepping()
        optimizer.zero_grad()


@pytest.mark.judges
def test_a_compiled_function_that_steps_is_measured_right(tmp_path):
    """Our hooks in there are left to the interpreter, so that its graphs end early: the optimizer's step is the one to compile."""
    watch, by_hand = GradWatch(every_n_steps=1), GradWatch(every_n_steps=1)
    without, *_ = fit(lambda: StepsInAFunction(relu_net(), adam), tmp_path / "without")
    watched, *_ = fit(lambda: StepsInAFunction(relu_net(), adam), tmp_path / "with", watch)
    assert torch.equal(weights(without), weights(watched))
    fit(lambda: ManualSilent(relu_net(), adam), tmp_path / "eager", by_hand)
    for record, expected in zip(watch.records, by_hand.records, strict=True):
        for metric in ("grad_norm", "update_ratio", "signal_norm"):
            np.testing.assert_allclose(record.metrics[metric], expected.metrics[metric], rtol=1e-4)
