"""A step whose optimizer wants several passes has the loss and the signals of the first through each micro-batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gradwatch.measure.probe import Probe


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation, in both of its forms."""

    def __init__(self, params, *, data=False, zeroes=True, base=torch.optim.SGD):
        super().__init__(params, {"rho": 0.5})
        self.base = base(self.param_groups, lr=0.05)
        self.data, self.zeroes, self.old = data, zeroes, {}

    @torch.no_grad()
    def first_step(self):
        self.old = {}
        for p in self.param_groups[0]["params"]:
            self.old[p] = p.clone()
            (p.data if self.data else p).add_(p.grad * 0.5)
        self.zero_grad(set_to_none=self.zeroes)

    @torch.no_grad()
    def second_step(self):
        for p, old in self.old.items():
            (p.data if self.data else p).copy_(old)
        self.base.step()

    def step(self, closure=None):
        if closure is None:
            self.second_step()
            return
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


class Run:
    def __init__(self, micro_batches, **settings):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.optimizer = settings.pop("optimizer", SAM)(self.model.parameters(), **settings)
        self.batches = [torch.randn(9, 6).double() for _ in range(micro_batches)]

    def passes(self, batches=None):
        losses = []
        for batch in self.batches if batches is None else batches:
            loss = self.model(batch).square().mean()
            loss.backward()
            losses.append(loss)
        return sum(losses)

    def reference(self):
        """The loss, and the signals at both sites, of one pass through each micro-batch at the weights as they are."""
        loss, signals = 0.0, [0.0, 0.0]
        for batch in self.batches:
            z = [self.model[0](batch)]
            z.append(self.model[2](z[0].tanh()))
            each = self.model[4](z[1].tanh()).square().mean()
            loss += each.item()
            for place, delta in enumerate(torch.autograd.grad(each, z)):
                signals[place] += delta.square().sum().item()
        return loss, [square**0.5 for square in signals]


def closes(run):
    run.passes()
    run.optimizer.step(run.passes)


def makes_all_in_closure(run):
    def closure():
        run.optimizer.zero_grad()
        return run.passes()

    run.optimizer.step(closure)


def last_in_closure(run):
    run.passes(run.batches[:-1])
    run.optimizer.step(lambda: run.passes(run.batches[-1:]))


def two_steps(run):
    run.passes()
    run.optimizer.first_step()
    run.passes()
    run.optimizer.second_step()


def plain(run):
    run.passes()
    run.optimizer.step()


LBFGS = {"optimizer": torch.optim.LBFGS, "lr": 0.1, "max_iter": 3}
SGD = {"optimizer": torch.optim.SGD, "lr": 0.1}
WAYS = {
    "closure": (closes, {}),
    "closure, weights moved by their data": (closes, {"data": True}),
    "closure, weights moved by their data, gradients zeroed": (closes, {"data": True, "zeroes": False}),
    "two steps": (two_steps, {}),
    "two steps, gradients zeroed": (two_steps, {"zeroes": False}),
    "two steps of a SAM around Adam": (two_steps, {"base": torch.optim.Adam}),
    "LBFGS": (makes_all_in_closure, LBFGS),
    "a closure that is called once": (makes_all_in_closure, SGD),
    "accumulated, the last in a closure": (last_in_closure, SGD),
    "accumulated": (plain, SGD),
}


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
@pytest.mark.parametrize(("way", "settings"), WAYS.values(), ids=WAYS)
def test_loss_and_signals_are_those_of_the_first_passes(way, settings, micro_batches):
    run = Run(micro_batches, **settings)
    probe = Probe(run.model, run.optimizer)
    for _ in range(3):
        loss, signals = run.reference()
        if way is not makes_all_in_closure:
            run.optimizer.zero_grad()
        with probe:
            way(run)
        assert probe.record.loss == pytest.approx(loss, rel=1e-9)
        assert probe.record.metrics["signal_norm"].tolist() == pytest.approx(signals, rel=1e-6)


def flat_shares(run):
    """The share of saturated observations at both sites, and the outputs' rms, at the weights as they are."""
    sites = [torch.cat([run.model[:end](batch) for batch in run.batches]).detach() for end in (1, 3)]
    return [(z.abs() > 2).double().mean().item() for z in sites], [
        z.tanh().square().mean().sqrt().item() for z in sites
    ]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 2, 3])
@pytest.mark.parametrize(("way", "settings"), WAYS.values(), ids=WAYS)
def test_units_and_outputs_are_counted_in_the_first_passes_alone(way, settings, micro_batches, masked):
    run = Run(micro_batches, **settings)
    run.model[0].weight.data.mul_(6)
    run.model[2].weight.data.mul_(4)
    mask = torch.ones(9, dtype=torch.bool) if masked else None
    filling, last = (
        Probe(run.model, run.optimizer, observations=wanted, batch_elements=1, mask=mask) for wanted in (256, 1)
    )
    for step, probe in enumerate((filling, filling, last), 1):
        shares, outputs = flat_shares(run)
        if way is not makes_all_in_closure:
            run.optimizer.zero_grad()
        with probe:
            way(run)
        assert probe.record.forward_rms.tolist() == pytest.approx(outputs, rel=1e-6)
        if probe is filling:
            assert (probe.record.window_fill * 256).tolist() == [9 * micro_batches * step] * 2
    assert last.record.metrics["inactive_share"].tolist() == pytest.approx(shares)
    assert min(shares) > 0
