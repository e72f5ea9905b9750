"""Heads that are taken apart and copied, and joined again: each piece has its own units, against a count of the layer's features."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from measure.trace.test_unit_axis_of_heads import DEAD, FEATURES, WIDTH, B, D, H, Net, T, judged, measured
from torch import nn

from lightning_gradwatch.measure.probe import Probe


def heads(y):
    return y.split(D, -1)


def index_of(head):
    return torch.arange(head * D, head * D + D)


# Each calls the activation once a head, with copies of it.
COPIED = {
    "contiguous": lambda y: [F.relu(head.contiguous()) for head in heads(y)],
    "cloned": lambda y: [F.relu(head.clone()) for head in heads(y)],
    "scaled": lambda y: [F.relu(head * 2.0) for head in heads(y)],
    "shifted": lambda y: [F.relu(head + torch.zeros(D)) for head in heads(y)],
    "unbound": lambda y: [F.relu(head.contiguous()) for head in y.view(B, T, H, D).unbind(2)],
    "indexed": lambda y: [F.relu(y.view(B, T, H, D)[:, :, head].clone()) for head in range(H)],
    "before the batch": lambda y: [F.relu(head.contiguous()) for head in y.view(B, T, H, D).permute(2, 0, 1, 3)],
    "reshaped": lambda y: [F.relu(head.reshape(B * T, D)) for head in y.chunk(H, -1)],
    "transposed": lambda y: [F.relu(head.transpose(1, 2).contiguous()) for head in y.chunk(H, -1)],
    "tensor_split": lambda y: [F.relu(head.contiguous()) for head in y.tensor_split(H, -1)],
    "narrow": lambda y: [F.relu(y.narrow(-1, head * D, D).contiguous()) for head in range(H)],
    "in strides": lambda y: [F.relu(y[..., head::H].clone()) for head in range(H)],
    "index_select": lambda y: [F.relu(torch.index_select(y, -1, index_of(head))) for head in range(H)],
    "by an index": lambda y: [F.relu(y[..., index_of(head)]) for head in range(H)],
    "by a list": lambda y: [F.relu(y[..., index_of(head).tolist()]) for head in range(H)],
    "gather": lambda y: [F.relu(y.gather(-1, index_of(head).expand(B, T, D))) for head in range(H)],
    "double": lambda y: [F.relu(head.double()).float() for head in heads(y)],
    "a mean over positions": lambda y: [F.relu(head.mean(1)) for head in heads(y)],
    "chosen": lambda y: [F.relu(torch.where(torch.ones(D) > 0, head, head)) for head in heads(y)],
    "rotated": lambda y: [F.relu(torch.cat((-head[..., 2:], head[..., :2]), -1)) for head in heads(y)],
    "attended": lambda y: [F.relu((head @ head.mT).softmax(-1) @ head) for head in heads(y)],
}


@pytest.mark.parametrize("way", COPIED.values(), ids=COPIED)
def test_a_call_for_each_copied_head_counts_none(way):
    net = Net(lambda y: torch.stack([head.flatten() for head in way(y)]), act=lambda x: x)
    probe = measured(net, torch.randn(B, T, WIDTH), steps=2)
    column = [site.function for site in probe.info.sites].index("relu")
    assert (probe.info.sites[column].name, probe.info.sites[column].units) == (":relu", 0)
    assert np.isnan(probe.record.metrics["dead_fraction"][column])
    assert np.isfinite(probe.record.metrics["signal_norm"][column])
    assert ["other units" in entry.reason for entry in probe.info.coverage] == [True]


def test_so_does_one_for_each_heads_weights():
    class PerHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.bias = nn.Parameter(torch.randn(H, WIDTH, D)), nn.Parameter(torch.zeros(FEATURES))

        def forward(self, x):
            return torch.cat([F.relu(x @ w + b) for w, b in zip(self.w, self.bias.view(H, D), strict=True)], -1)

    probe = measured(Net(lambda y: y, PerHead(), act=lambda x: x), torch.randn(B, T, WIDTH))
    assert [site.units for site in probe.info.sites] == [0]
    assert ["other units" in entry.reason for entry in probe.info.coverage] == [True]


JOINED = {
    "stacked": lambda y: torch.stack(heads(y), 1),
    "stacked first": lambda y: torch.stack(heads(y)),
    "stacked last": lambda y: torch.stack(heads(y), -1),
    "stacked by a keyword": lambda y: torch.stack(heads(y), dim=-2),
    "copies stacked": lambda y: torch.stack([head.clone() for head in y.view(-1, T, H, D).unbind(2)], 1),
    "scaled, stacked": lambda y: torch.stack([head * 1.0 for head in heads(y)], 2),
    "to the batch": lambda y: torch.cat(heads(y), 0),
    "to the batch, by a keyword": lambda y: torch.cat(torch.chunk(y, H, dim=2), dim=0),
    "vstack": lambda y: torch.vstack(heads(y)),
    "to the positions": lambda y: torch.cat(heads(y), 1),
    "hstack": lambda y: torch.hstack(heads(y)),
    "along an axis of their own": lambda y: torch.cat([head.unsqueeze(1) for head in heads(y)], 1),
    "to the features again": lambda y: torch.cat(heads(y), -1),
    "dstack": lambda y: torch.dstack(heads(y)),
    "to the batch and back": lambda y: torch.cat(torch.cat(heads(y), 0).split(len(y), 0), -1),
    "transposed": lambda y: torch.cat([head.mT for head in heads(y)], 1),
    "each twice": lambda y: torch.stack((y[..., ::2], y[..., 1::2]), -1),
    "each twice, flat": lambda y: torch.stack((y[..., ::2], y[..., 1::2]), -1).flatten(-2),
    "unequal": lambda y: torch.cat([y[..., :3], y[..., 3:]], -1),
    "positions": lambda y: torch.stack([y[:, at] for at in range(T)], 1),
    "positions again": lambda y: torch.cat([y[:, :3], y[:, 3:]], 1),
    "samples": lambda y: torch.stack(tuple(y)),
    "queries for each key": lambda y: y.view(-1, T, H, D).transpose(1, 2)[:, :, None].expand(-1, H, 2, T, D).reshape(-1, 2 * H, T, D),
    "repeated": lambda y: y.view(-1, T, H, D).repeat(2, 1, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("size", [B, H])
@pytest.mark.parametrize("way", JOINED.values(), ids=JOINED)
def test_pieces_that_are_joined_have_the_layers_features(way, size):
    torch.manual_seed(0)
    model = Net(way)
    probe = measured(model, torch.randn(size, T, WIDTH), steps=2)
    judged(probe, model.made)
    assert probe.record.metrics["dead_fraction"][0] == len(DEAD) / FEATURES


def filled(shape, parts):
    made = torch.zeros(shape)
    for place, part in parts:
        made[place] = part
    return made


def at(head):
    return slice(None), head


MIXED = {
    "assigned": lambda y: filled((B, H, T, D), [(at(head), part) for head, part in enumerate(heads(y))]),
    "assigned, after positions": lambda y: filled(
        (B, T, H, D), [((..., head, at(0)[0]), part) for head, part in enumerate(heads(y))]
    ),
    "unfolded": lambda y: y.unfold(-1, D, D),
    "one twice": lambda y: torch.stack([*heads(y), heads(y)[0]], 1),
    "unequal, along positions": lambda y: torch.cat([heads(y)[0], heads(y)[1][:, :3]], 1),
}


@pytest.mark.parametrize("way", MIXED.values(), ids=MIXED)
def test_pieces_that_cannot_be_told_apart_are_absent_with_the_reason(way):
    probe = measured(Net(way), torch.randn(B, T, WIDTH), steps=2)
    assert [site.units for site in probe.info.sites] == [0]
    assert ["can't be told from positions" in entry.reason for entry in probe.info.coverage] == [True]


ASSIGNED = {
    "positions": lambda y: filled((B, T, FEATURES), [(at(place), each) for place, each in enumerate(y.unbind(1))]),
    "positions, heads apart": lambda y: filled((B, T, H, D), [(at(place), each.view(B, H, D)) for place, each in enumerate(y.unbind(1))]),
    "samples": lambda y: filled((B, T, FEATURES), list(enumerate(y))),
    "features": lambda y: filled((B, T, FEATURES), [((..., slice(D * head, D * head + D)), part) for head, part in enumerate(heads(y))]),
    "some positions": lambda y: filled((B, T + 2, FEATURES), [(at(slice(1, T + 1)), y)])[:, 1:-1],
}  # fmt: skip


@pytest.mark.parametrize("way", ASSIGNED.values(), ids=ASSIGNED)
def test_what_is_assigned_part_by_part_has_the_layers_features(way):
    torch.manual_seed(0)
    model = Net(way)
    judged(measured(model, torch.randn(B, T, WIDTH), steps=2), model.made)


def test_layers_of_a_loop_that_take_turns_are_not_one():
    class Turns(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            turns = [(self.one, self.other)[at % 2](each) for at, each in enumerate(x.unbind(1))]
            return F.relu(torch.stack(turns, 1)).square().mean()

    torch.manual_seed(0)
    model = Turns()
    with Probe(model, torch.optim.SGD(model.parameters(), 0.0), observations=1, batch_elements=1) as probe:
        model(torch.randn(6, 3, 4)).backward()
    assert [site.units for site in probe.info.sites] in ([0], [])
