"""Each row of the table of activation functions from end to end: measured, against autograd and numpy, and judged."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gradwatch.judge.evaluator import evaluate_records
from lightning_gradwatch.judge.rules.dead import DeadUnits
from lightning_gradwatch.judge.rules.saturated import SaturatedUnits
from lightning_gradwatch.measure.probe import Probe
from lightning_gradwatch.record.activations import ROWS, function_of_node, look_up

INPUTS, UNITS, BATCH = 6, 12, 64
FLAT = math.cosh(2.0) ** -2
EXTRA = {"threshold": (0.0, 0.0), "softmax": (-1,), "softmin": (-1,), "log_softmax": (-1,), "prelu": (torch.full((1,), 0.25),)}  # fmt: skip


def computed(row):
    """Return what computes a row's function."""
    if row.name == "isru":
        return lambda z: z / torch.sqrt(1 + z * z)
    function = getattr(F, row.name, None) or getattr(torch, row.name)
    return lambda z: function(z, *(each.to(z) if isinstance(each, torch.Tensor) else each for each in EXTRA.get(row.name, ())))  # fmt: skip


class Net(nn.Module):
    """Two layers and a function between; the first unit lies at `low`, the second at `high`, the others around 0."""

    def __init__(self, act, *, bias=None, low=-9.0, high=9.0, halves=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(INPUTS, UNITS), nn.Linear(UNITS // (2 if halves else 1), 3)
        self.act = act
        with torch.no_grad():
            self.first.weight.mul_(2.0 if bias is None else 1e-2)
            if bias is None:
                self.first.bias[[0, 1, -2, -1]] = torch.tensor([low, high, low, high])
            else:
                self.first.bias.fill_(bias)

    def forward(self, x):
        self.z = self.first(x)
        self.a = self.act(self.z)
        return self.last(self.a)


def measured(model, steps=1):
    """Return the probe after some steps that change nothing, the records, and the input."""
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    probe = Probe(model, optimizer, observations=1, batch_elements=1)
    x, records = torch.randn(BATCH, INPUTS, generator=torch.Generator().manual_seed(1)), []
    for _ in range(steps):
        optimizer.zero_grad()
        with probe:
            model(x).square().mean().backward()
            optimizer.step()
        records.append(probe.record)
    return probe, records, x


def derivative(act, z):
    leaf = torch.as_tensor(z, dtype=torch.float64).clone().requires_grad_()
    (slope,) = torch.autograd.grad(act(leaf).sum(), leaf)
    return slope.numpy()


def is_flat(act, z, *, sides):
    """Whether |f'| is below sech²(2) of its maximum at z and all the way out, on a side on which f is bounded."""
    steepest = np.abs(derivative(act, np.linspace(-12, 12, 48001))).max()
    out = np.stack([np.abs(derivative(act, z * factor)) for factor in (1, 1.1, 1.3, 1.7, 2.5, 5)])
    flat = (out <= FLAT * steepest).all(0)
    far = torch.tensor([-2e6, -1e6, 1e6, 2e6]).double()
    low, lower, higher, high = act(far).tolist()
    bounded = {-1.0: abs(low - lower) < 1 and "left" in sides, 1.0: abs(high - higher) < 1 and "right" in sides}
    return flat & np.vectorize(lambda each: bounded.get(each, False), otypes=[bool])(np.sign(z))


def judged_alone(act, z):
    """The second half, of GLU."""
    return (torch.sigmoid, z[:, z.shape[1] // 2 :]) if act is None else (act, z)


def check_units(act, row, probe, model, *, sides=("left", "right")):
    """Hold the measured fractions of a net's one site against autograd and numpy."""
    gate = row.usual.gate_dim is not None
    act, z = judged_alone(None if gate else act, model.z.detach().double().numpy())
    dead, saturated = (float(probe.record.metrics[f"{kind}_fraction"][0]) for kind in ("dead", "saturated"))
    if not row.usual.fractions:
        assert math.isnan(dead)
        return
    inactive = derivative(act, z) == 0 if row.flat_zero else np.zeros_like(z, dtype=bool)
    flat = is_flat(act, z, sides=sides) if row.saturates else np.zeros_like(z, dtype=bool)
    assert dead == pytest.approx(inactive.all(0).mean())
    assert float(probe.record.metrics["inactive_share"][0]) == pytest.approx((inactive | flat).mean())
    if not row.saturates:
        assert math.isnan(saturated)
        return
    often = flat.mean(0) >= 0.95
    assert saturated == pytest.approx((often & ~inactive.all(0)).mean())
    assert often.any()


def check_gain(probe, model, x):
    """Hold the activation gain of a net's one site against `autograd.grad`."""
    loss = model(x).square().mean()
    arriving, delta = torch.autograd.grad(loss, (model.a, model.z))
    assert float(probe.record.metrics["activation_gain"][0]) == pytest.approx(
        (delta.double().norm() / arriving.double().norm()).item(), rel=1e-5
    )


def judged(act, rule, row):
    """Return the finding of a net whose units lie where a rule has something to say; None where they lie nowhere so."""
    for bias in (-20.0, 20.0, 0.0):
        probe, records, _ = measured(Net(act, bias=bias, halves=row.usual.gate_dim is not None), steps=rule.patience)
        found = evaluate_records(records, {info.layout: info for info in probe.infos}, [rule])
        if found:
            return found[0]
    return None


def check_findings(act, row):
    """Hold each finding that a function can have to what its row says."""
    for rule, can, trouble in ((DeadUnits(), row.flat_zero, "dies"), (SaturatedUnits(warm_up_steps=0), row.saturates, "")):  # fmt: skip
        finding = judged(act, rule, row)
        if row.gating == "itself":  # a gate is meant to saturate
            assert finding is None
            continue
        # One whose flat side is where its units die too has no units that are saturated and not dead.
        both = row.flat_zero and row.saturates
        assert (finding is not None) is can or both
        if finding is None:
            continue
        assert row.module in finding.cause
        if trouble:
            action = finding.remedy.actions[0]
            assert action.kind == "replace_activation"
            assert dict(action.arguments)["with"] == row.when_dead[0]
            assert finding.remedy.text.startswith(f"Replace {row.module} at ")
        elif row.steepest < 1:
            assert dict(finding.remedy.actions[0].arguments)["with"] == row.when_fading[0]
        if finding.code == "GW202" and row.steepest >= 1:
            assert f"with {row.initialization}" in finding.remedy.text


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
class TestARow:
    def test_is_measured_as_autograd_and_numpy_have_it(self, row):
        act = computed(row)
        model = Net(act, halves=row.usual.gate_dim is not None)
        probe, _, x = measured(model)
        (site,) = probe.info.sites
        assert (site.function, site.role) == (row.name, "gate" if row.gating == "itself" else "hidden")
        check_units(act, row, probe, model, sides=("right",) if row.name == "relu6" else ("left", "right"))
        check_gain(probe, model, x)

    def test_is_recognised_by_each_of_its_spellings(self, row):
        assert look_up(row.module) is look_up(row.name) is row
        names = [name for name in (row.name, *row.aliases) if row.name != "isru"]
        spelled = [
            getattr(space, name)
            for space in (F, torch, torch.special, torch._C._nn)
            for name in names
            if hasattr(space, name)
        ]
        assert spelled or row.name == "isru"
        assert bool(hasattr(nn, row.module)) is hasattr(F, row.name)
        for function in spelled:
            extra = [each.clone() if isinstance(each, torch.Tensor) else each for each in EXTRA.get(row.name, ())]
            if function is torch._C._nn.log_sigmoid and row.name == "logsigmoid":
                extra = []
            model = Net(lambda z, f=function, e=extra: f(z, *e), halves=row.usual.gate_dim is not None)
            assert [site.function for site in measured(model)[0].info.sites] == [row.name], function
        if hasattr(nn, row.module):
            given = {"Threshold": (0.0, 0.0), "Softmax": (-1,), "Softmin": (-1,), "LogSoftmax": (-1,)}
            model = Net(getattr(nn, row.module)(*given.get(row.module, ())), halves=row.usual.gate_dim is not None)
            assert [site.function for site in measured(model)[0].info.sites] == [row.name]

    def test_has_the_autograd_nodes_that_torch_makes(self, row):
        z = torch.randn(4, 8, requires_grad=True)
        made = [computed(row)(z).grad_fn]
        if row.name == "prelu":
            made = [F.prelu(z, torch.ones(1, requires_grad=True)).grad_fn]
        if row.name == "rrelu":
            made.append(F.rrelu(z, training=True).grad_fn)
        names = {re.sub("[0-9]+$", "", node.name()) for node in made}
        if row.nodes:
            assert set(row.nodes) == names
            (function,) = {function_of_node(name) for name in names}
            assert row.nodes == look_up(function).nodes
        else:  # of several, of other names, or one that serves for much else
            assert not any(function_of_node(name) for name in names)

    def test_is_as_steep_as_autograd_has_it(self, row):
        if not row.usual.fractions or row.usual.gate_dim is not None:
            return
        top = np.abs(derivative(computed(row), np.linspace(-12, 12, 48001))).max()
        assert min(row.steepest, 1) == pytest.approx(min(top, 1), rel=5e-3)
        assert row.steepest == pytest.approx(max(top, row.steepest if row.steepest == 1 else 0), rel=5e-3)

    def test_has_a_finding_with_cause_and_remedy_where_it_can_have_one(self, row):
        check_findings(computed(row), row)

    def test_that_is_written_out_has_the_formula_of_the_function(self, row):
        if row.formula is None:
            return
        x = np.linspace(-3, 3, 41)
        assert row.formula(x, x) == pytest.approx(computed(row)(torch.from_numpy(x)).numpy(), rel=1e-12)

    def test_names_modules_of_torchs_in_its_place(self, row):
        for module in (*row.when_fading, *row.when_dead):
            assert issubclass(getattr(nn, module), nn.Module)
            assert look_up(module) in ROWS


def test_no_two_rows_share_a_spelling():
    names = [name for row in ROWS for name in (row.name, *row.aliases)]
    assert len(set(names)) == len(names)
    modules = [row.module for row in ROWS]
    assert len(set(modules)) == len(modules)
