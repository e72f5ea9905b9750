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


A = torch.rand(7, 7, generator=torch.Generator().manual_seed(1))
# Name: a product of the features of a convolution [B, C, T, 7] with data, the axis of its units.
OF_DATA = {
    "joints of a skeleton": (lambda y: y @ A, 1),
    "the graph first": (lambda y: (A @ y.mT).mT, 1),
    "nodes before features": (lambda y: A @ y.permute(0, 2, 3, 1), 3),
    "nodes before features, from the right": (lambda y: y.permute(0, 2, 3, 1).__rmatmul__(A), 3),
    "einsum": (lambda y: torch.einsum("nctv,vw->nctw", y, A), 1),
    "einsum, rearranged": (lambda y: torch.einsum("nctv,vw->nwtc", y, A), 3),
    "einsum, an ellipsis": (lambda y: torch.einsum("...v,vw->...w", y, A), 1),
    "einsum, the graph first": (lambda y: torch.einsum("vw,nctv->ntcw", A, y), 2),
    "einsum of one": (lambda y: torch.einsum("nctv->nvct", y), 2),
    "einsum of one, added up": (lambda y: torch.einsum("nctv->nct", y), 1),
    "bmm": (lambda y: torch.bmm(y[:, :, 0], A.expand(4, 7, 7)), 1),
    "bmm, nodes first": (lambda y: torch.bmm(A.expand(4, 7, 7), y[:, :, 0].mT), 2),
    "values of attention": (lambda y: (y.flatten(2).mT @ y.flatten(2)).softmax(-1) @ y.flatten(2).mT, 2),
    "values of attention, features first": (lambda y: y.flatten(2) @ (y.flatten(2).mT @ y.flatten(2)).softmax(-1).mT, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_DATA)
def test_what_data_is_multiplied_with_leaves_the_features(name):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, FEATURES, 1), nn.Linear(FEATURES, 1)

        def forward(self, x):
            self.z = way(self.first(x))
            return self.last(F.relu(self.z).movedim(axis, -1))

    way, axis = OF_DATA[name]
    torch.manual_seed(0)
    model = Mixed()
    with torch.no_grad():
        model.first.bias[:3] -= 1000.0
    probe = Probe(model, torch.optim.SGD(model.parameters(), 0.0), observations=1, batch_elements=1)
    for _ in range(2):
        with probe:
            model(torch.randn(4, 3, 6, 7)).sum().backward()
    column = [site.function for site in probe.info.sites].index("relu")
    assert probe.info.sites[column].units == FEATURES
    off = (model.z.detach() <= 0).movedim(axis, -1).flatten(0, -2).double()
    assert probe.record.metrics["inactive_share"][column] == pytest.approx(off.mean().item())
    assert probe.record.metrics["dead_fraction"][column] == (off.mean(0) == 1).double().mean().item() > 0
    assert probe.info.coverage == ()


SCORES = {
    "matmul": lambda q, k: q.transpose(1, 2) @ k.permute(0, 2, 3, 1),
    "einsum": lambda q, k: torch.einsum("bqhd,bkhd->bhqk", q, k),
    "bmm": lambda q, k: torch.bmm(q.transpose(1, 2).reshape(10, 6, 4), k.permute(0, 2, 3, 1).reshape(10, 4, 6)),
}


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
def test_scores_have_what_they_are_made_along_for_units(scores, heads):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.last = nn.Linear(8, 4 * heads), nn.Linear(8, 4 * heads), nn.Linear(1, 1)

        def forward(self, x):
            q, k = (layer(x).view(x.shape[0], 6, heads, 4) for layer in (self.q, self.k))
            self.z = scores(q, k)
            return self.last(F.relu(self.z).mean().view(1, 1))

    torch.manual_seed(0)
    model = Attention()
    with Probe(model, torch.optim.SGD(model.parameters(), 0.0), observations=1, batch_elements=1) as probe:
        model(torch.randn(10 // heads, 6, 8)).sum().backward()
    (site,) = probe.info.sites
    assert site.units == 6
    assert probe.record.metrics["inactive_share"][0] == pytest.approx((model.z <= 0).double().mean().item())
    assert probe.info.coverage == ()
