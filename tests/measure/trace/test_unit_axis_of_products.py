"""Which axis has the units where weights and data are multiplied by hand: ``W @ X``, ``einsum`` by its output string."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gradwatch.measure.probe import Probe

UNITS, DEAD, FEATURES = 20, 15, 8
# Name: the product of weights [UNITS, FEATURES] and data, the data's shape, the axis of the units.
PRODUCTS = {
    "W @ X": (lambda w, x: w @ x, (FEATURES, 64), 0),
    "W @ X + b": (lambda w, x: w @ x + torch.zeros(UNITS, 1), (FEATURES, 64), 0),
    "mm": (torch.mm, (FEATURES, 64), 0),
    "addmm": (lambda w, x: torch.addmm(torch.zeros(UNITS, 1), w, x), (FEATURES, 64), 0),
    "W @ x of a batch": (lambda w, x: w @ x, (64, FEATURES, 30), 1),
    "x @ W.T": (lambda w, x: x @ w.t(), (64, FEATURES), 1),
    "a normalised W": (lambda w, x: (w / w.norm(dim=1, keepdim=True)) @ x, (FEATURES, 64), 0),
    "(W @ X).T": (lambda w, x: (w @ x).t(), (FEATURES, 64), 1),
    "einsum, channels amid": (lambda w, x: torch.einsum("bchw,oc->bohw", x, w), (64, FEATURES, 6, 5), 1),
    "einsum, features first": (lambda w, x: torch.einsum("uf, fn -> un", w, x), (FEATURES, 64), 0),
    "einsum, features last": (lambda w, x: torch.einsum("bf,uf->bu", x, w), (64, FEATURES), 1),
    "einsum, an ellipsis before": (lambda w, x: torch.einsum("...f,uf->...u", x, w), (64, 3, FEATURES), 2),
    "einsum, an ellipsis behind": (lambda w, x: torch.einsum("uf,f...->u...", w, x), (FEATURES, 64), 0),
    "einsum of a list": (lambda w, x: torch.einsum("uf,bfl->bul", [w, x]), (64, FEATURES, 7), 1),
}


class Net(nn.Module):
    def __init__(self, product, axis):
        super().__init__()
        self.w, self.last = nn.Parameter(torch.randn(UNITS, FEATURES)), nn.Linear(1, 1)
        self.product, self.axis = product, axis

    def forward(self, x):
        z = self.product(self.w, x)
        shift = torch.zeros(UNITS)
        shift[:DEAD] = -1000.0
        shape = [1] * z.dim()
        shape[self.axis] = UNITS
        self.z = z + shift.view(shape)
        return self.last(F.relu(self.z).mean().view(1, 1))


@pytest.mark.parametrize("name", PRODUCTS)
def test_units_are_what_the_weights_have_made(name):
    product, shape, axis = PRODUCTS[name]
    torch.manual_seed(0)
    model = Net(product, axis)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    probe = Probe(model, optimizer)
    for _ in range(16):
        with probe:
            model(torch.randn(shape)).sum().backward()
            optimizer.step()
    (site,) = probe.info.sites
    assert site.units == UNITS
    record = probe.record
    assert record.window_fill[0] == 1
    assert record.metrics["dead_fraction"][0] == DEAD / UNITS
    off = (model.z <= 0).movedim(axis, 0).flatten(1).numpy()
    assert record.metrics["inactive_share"][0] == pytest.approx(np.mean(off))


def test_columns_are_the_batch_and_their_number_may_change():
    torch.manual_seed(0)
    model = Net(*PRODUCTS["W @ X"][::2])
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    probe = Probe(model, optimizer, observations=100, least_observations=100, batch_elements=100)
    for columns in (40, 41, 18):
        with probe:
            model(torch.randn(FEATURES, columns)).sum().backward()
            optimizer.step()
        assert len(probe.info.sites) == 1
    assert probe.record.window_fill[0] == 0.99
