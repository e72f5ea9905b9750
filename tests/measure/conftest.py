"""One measured step of a model, and its numbers by name."""

from types import SimpleNamespace

import pytest
import torch

from lightning_gradwatch.measure.probe import Probe
from lightning_gradwatch.record.step import LayerState


class Result:
    """The last record of a probe, column by column."""

    def __init__(self, probe):
        self.probe, self.record, self.info = probe, probe.record, probe.info
        metric = self.record.metrics
        self.sites = {
            site.name: SimpleNamespace(
                function=site.function,
                role=site.role,
                units=site.units,
                dead=metric["dead_fraction"][i],
                saturated=metric["saturated_fraction"][i],
                inactive_share=metric["inactive_share"][i],
                signal=metric["signal_norm"][i],
                activation_gain=metric["activation_gain"][i],
                weight_gain=metric["weight_gain"][i],
                predecessors=site.predecessors,
                rms=self.record.forward_rms[i],
                fill=self.record.window_fill[i],
            )
            for i, site in enumerate(self.info.sites)
        }
        self.layers = {
            layer.name: SimpleNamespace(
                kind=layer.kind,
                weight=layer.weight,
                used=layer.used,
                shapes=layer.shapes,
                grad_norm=metric["grad_norm"][i],
                grad_rms=metric["grad_rms"][i],
                weight_rms=metric["weight_rms"][i],
                update_ratio=metric["update_ratio"][i],
                state=LayerState(int(self.record.layer_state[i])),
            )
            for i, layer in enumerate(self.info.layers)
        }

    @property
    def roles(self):
        return {name: site.role for name, site in self.sites.items()}

    @property
    def site(self):
        (site,) = self.sites.values()
        return site


def measure_steps(model, *inputs, loss=None, optimizer=None, steps=1, **window):
    """Measure steps of a plain training loop; the window is full after one observation, unless said otherwise."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, optimizer, **{"observations": 1, "batch_elements": 1, **window})
    for _ in range(steps):
        with probe:
            output = model(*inputs)
            (loss(output) if loss else output.square().mean()).backward()
            optimizer.step()
        optimizer.zero_grad()
    return Result(probe)


@pytest.fixture
def measure():
    torch.manual_seed(0)
    return measure_steps


@pytest.fixture
def result_of():
    return Result
