"""`Probe` in a loop of Lightning Fabric's, whose model and optimizer are wrapped."""

from __future__ import annotations

import math

import pytest
import torch
from integration.captures import norm
from integration.nets import CLASSES, FEATURES, batches, relu_net, seed
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import Probe


def fabrics():
    from lightning.fabric import Fabric  # noqa: PLC0415 - each package brings its own
    from lightning_fabric import Fabric as Standalone  # noqa: PLC0415 - as above

    return {"lightning.fabric": Fabric, "lightning_fabric": Standalone}


def train(fabric, *, watched, steps=3):
    """Return the records and the weights; the reference norms are taken between backward pass and step."""
    seed()
    net = relu_net()
    model, optimizer = fabric.setup(net, torch.optim.AdamW(net.parameters(), lr=0.01))
    loader = fabric.setup_dataloaders(batches(steps))
    probe = Probe(model, optimizer)
    records, references = [], []

    def step(x, y):
        optimizer.zero_grad()
        fabric.backward(F.cross_entropy(model(x), y))
        references.append({name: norm(p.grad for p in net[int(name)].parameters()) for name in ("0", "2", "4")})
        before = {name: net[int(name)].weight.detach().clone() for name in ("0", "2", "4")}
        optimizer.step()
        references[-1] |= {
            f"ratio {name}": norm([net[int(name)].weight - old]) / norm([old]) for name, old in before.items()
        }

    for x, y in loader:
        if watched:
            with probe:
                step(x, y)
            records.append(probe.record)
        else:
            step(x, y)
    return probe, records, references, net


@pytest.mark.parametrize("package", ["lightning.fabric", "lightning_fabric"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_a_step_of_fabrics_is_measured(package, precision):
    fabric = fabrics()[package](accelerator="cpu", devices=1, precision=precision)
    probe, records, references, net = train(fabric, watched=True)
    assert [layer.name for layer in probe.info.layers] == ["0", "2", "4"]
    assert [site.name for site in probe.info.sites] == ["1", "3"]
    assert probe.info.coverage == ()
    for record, reference in zip(records, references, strict=True):
        assert record.metrics["grad_norm"] == pytest.approx([reference[name] for name in ("0", "2", "4")], rel=1e-6)
        ratios = [reference[f"ratio {name}"] for name in ("0", "2", "4")]
        assert record.metrics["update_ratio"] == pytest.approx(ratios, rel=1e-4)
        assert (record.metrics["signal_norm"] > 0).all()
    _, _, _, unwatched = train(fabrics()[package](accelerator="cpu", devices=1, precision=precision), watched=False)
    for one, other in zip(net.parameters(), unwatched.parameters(), strict=True):
        assert torch.equal(one, other)


def test_accumulation_in_one_block():
    """Without synchronisation between micro-batches, as `no_backward_sync` has it on several devices."""
    from lightning.fabric import Fabric  # noqa: PLC0415 - as above

    fabric = Fabric(accelerator="cpu", devices=1)
    seed()
    net = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    probe = Probe(model, optimizer)
    losses = []
    with probe:
        for x, y in batches(2):
            with fabric.no_backward_sync(model, enabled=True):
                loss = F.cross_entropy(model(x), y) / 2
                fabric.backward(loss)
                losses.append(float(loss.detach()))
        expected = norm(parameter.grad for parameter in net.parameters())
        optimizer.step()
    assert probe.record.global_grad_norm == pytest.approx(expected, rel=1e-6)
    assert math.isclose(probe.record.loss, sum(losses), rel_tol=1e-6)
