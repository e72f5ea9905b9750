"""Under a mask the units' numbers equal those of the unpadded samples alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import Probe
from lightning_gradwatch.measure.units.mask import Masks

BATCH, LENGTH, WIDTH = 6, 5, 4
LENGTHS = torch.tensor([5, 1, 3, 2, 4, 0])
MASK = torch.arange(LENGTH) < LENGTHS[:, None]


class Net(nn.Module):
    """Applies a function between two layers and stores what it got and gave."""

    def __init__(self, apply, *, convolves=False):
        super().__init__()
        self.first = nn.Conv1d(3, WIDTH, 1) if convolves else nn.Linear(3, WIDTH)
        self.last = nn.Linear(WIDTH, 2)
        self.apply_function = apply
        self.convolves = convolves

    def forward(self, x):
        z = self.first(x.transpose(1, 2) if self.convolves else x)
        self.z = z.detach().clone()
        a = self.apply_function(z)
        self.a = a.detach().clone()
        return self.last(a.transpose(1, 2) if self.convolves else a)


def data():
    return torch.randn(BATCH, LENGTH, 3)


def measure(net, x, mask, *, steps=1, **settings):
    probe = Probe(
        net, torch.optim.SGD(net.parameters(), lr=0.1), observations=1, batch_elements=1, mask=mask, **settings
    )
    for _ in range(steps):
        net.zero_grad()
        with probe:
            net(x).square().mean().backward()
    return probe


def recount(net, mask, inside, *, axis=-1):
    """Return the share of samples inside, how many units are inside in all, and the rms of the output, by numpy."""
    z = net.z.movedim(axis, -1)[mask].double().numpy()
    a = net.a.movedim(axis, -1)[mask].double().numpy()
    marks = inside(z)
    return marks.mean(), marks.all(0).mean(), math.sqrt((a**2).mean())


def relu_dead(z):
    return z <= 0


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize(
    ("apply", "inside"),
    [
        (F.relu, relu_dead),
        (lambda z: F.relu(z, inplace=True), relu_dead),
        (torch.tanh, lambda z: np.abs(z) > 2),
        (lambda z: z * torch.sigmoid(z), lambda z: z < -3.298184345921125),
        (lambda z: 0.5 * z * (1 + torch.erf(z / math.sqrt(2))), lambda z: z / math.sqrt(2) < -1.450117796488662),
    ],
    ids=["relu", "in-place", "tanh", "silu-by-hand", "gelu-by-hand"],
)
def test_only_samples_count(apply, inside, large):
    net, x, mask = Net(apply), 6 * data(), MASK
    if large:  # beyond what is judged together
        x, mask = x.repeat(800, 1, 1), MASK.repeat(800, 1)
    for steps in (1, 2):  # a new site is measured otherwise than a known one
        probe = measure(net, x, mask, steps=steps)
        share, whole, rms = recount(net, mask, inside)
        record = probe.record
        assert record.metrics["inactive_share"][0] == pytest.approx(share, abs=1e-12)
        if not np.isnan(record.metrics["dead_fraction"][0]) and inside is relu_dead:
            assert record.metrics["dead_fraction"][0] == whole
        assert record.forward_rms[0] == pytest.approx(rms, rel=1e-6)
        assert not any("mask" in entry.reason for entry in probe.info.coverage)


def test_a_padded_position_neither_kills_nor_revives_a_unit():
    net = Net(F.relu)
    with torch.no_grad():
        net.first.weight.fill_(1.0)
        net.first.bias.copy_(torch.tensor([0.0, 0.0, -9.0, 9.0]))
    x = torch.where(MASK[..., None], torch.tensor(-1.0), torch.tensor(1.0)).expand(BATCH, LENGTH, 3).clone()
    assert measure(net, x, None).record.metrics["dead_fraction"][0] == 0.25
    assert measure(net, x, MASK).record.metrics["dead_fraction"][0] == 0.75
    assert measure(net, -x, MASK).record.metrics["dead_fraction"][0] == 0.25


def test_windows_fill_by_samples_and_by_batch_elements_that_have_one():
    net = Net(F.relu)
    probe = Probe(net, torch.optim.SGD(net.parameters(), lr=0.1), observations=60, batch_elements=20, mask=MASK)
    with probe:
        net(data()).sum().backward()
    assert int(MASK.sum()) == 15
    assert probe.record.window_fill.tolist() == [min(15 / 60, 5 / 20)]
    wide = Probe(net, torch.optim.SGD(net.parameters(), lr=0.1), observations=15, batch_elements=20, mask=MASK)
    with wide:
        net(data()).sum().backward()
    assert wide.record.window_fill.tolist() == [5 / 20]


def test_channels_and_flattened_positions_fit_too():
    net = Net(F.relu, convolves=True)
    probe = measure(net, data(), MASK)
    share, _, rms = recount(net, MASK, relu_dead, axis=1)
    assert probe.record.metrics["inactive_share"][0] == pytest.approx(share)
    assert probe.record.forward_rms[0] == pytest.approx(rms, rel=1e-6)
    net = Net(lambda z: F.relu(z.reshape(-1, WIDTH)).view(z.shape))
    probe = measure(net, data(), MASK)
    share, _, rms = recount(net, MASK, relu_dead)
    assert probe.record.metrics["inactive_share"][0] == pytest.approx(share)
    assert probe.record.forward_rms[0] == pytest.approx(rms, rel=1e-6)


def test_a_mask_of_batch_elements_holds_for_all_their_positions():
    mask = LENGTHS > 2
    net = Net(F.relu)
    probe = measure(net, data(), mask)
    share, _, rms = recount(net, mask[:, None].expand(BATCH, LENGTH), relu_dead)
    assert probe.record.metrics["inactive_share"][0] == pytest.approx(share)
    assert probe.record.forward_rms[0] == pytest.approx(rms, rel=1e-6)


def test_integers_are_a_mask_as_tokenizers_make_it():
    net, x = Net(F.relu), data()
    assert measure(net, x, MASK.long()).record.forward_rms == measure(net, x, MASK).record.forward_rms


class Pools(nn.Module):
    """An encoder over positions, and a head over their mean."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, WIDTH), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


def test_a_site_that_the_mask_does_not_fit_is_named():
    probe = measure(Pools(), data(), MASK)
    (entry,) = probe.info.coverage
    assert entry.name == "head.1"
    assert "isn't the mask's" in entry.reason
    probe = measure(Pools(), data(), {"encoder": MASK})
    assert probe.info.coverage == ()
    assert probe.record.metrics["inactive_share"].shape == (2,)


def test_each_module_has_its_own_mask():
    net, x = Pools(), data()
    probe = measure(net, x, {"encoder": MASK, "head": LENGTHS > 3})
    z = net.encoder[0](x)
    assert probe.record.metrics["inactive_share"][0] == pytest.approx(float((z[MASK] <= 0).double().mean()))
    pooled = net.head[0](z.relu().mean(1))[LENGTHS > 3]
    assert probe.record.metrics["inactive_share"][1] == pytest.approx(float((pooled <= 0).double().mean()))


def test_a_batch_of_padding_alone_leaves_numbers_absent():
    net = Net(F.relu)
    probe = measure(net, data(), torch.zeros(BATCH, LENGTH, dtype=torch.bool))
    assert np.isnan(probe.record.metrics["inactive_share"]).all()
    assert np.isnan(probe.record.forward_rms).all()
    assert np.isnan(probe.record.metrics["dead_fraction"]).all()
    assert probe.record.window_fill.tolist() == [0.0]


def test_the_signal_is_that_of_the_whole_tensor():
    """What a padded position passes back moves the weights like any other gradient."""
    net, x = Net(torch.tanh), data()
    assert measure(net, x, MASK).record.metrics["signal_norm"] == measure(net, x, None).record.metrics["signal_norm"]


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (torch.zeros(2, 2), "mask has dtype torch.float32: must be bool"),
        ([True], "mask is list"),
        ({"encoder": None}, r"mask\['encoder'\] is NoneType"),
    ],
)
def test_what_is_no_mask_is_refused(mask, said):
    with pytest.raises((TypeError, ValueError), match=said):
        Masks(mask)
