"""Units whose features were split into heads or merged again: each feature of the layer that made it, against a count of those."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gradwatch.measure.probe import Probe

B, T, H, D, WIDTH = 5, 7, 3, 4, 6
FEATURES = H * D
DEAD = (0, 1, 4, 11)  # no d is dead in each head, no head in each d


class Net(nn.Module):
    """A layer whose features `way` arranges otherwise before the activation; `first` makes them, [B, T, FEATURES] or as it likes."""

    def __init__(self, way, first=None, act=torch.relu):
        super().__init__()
        self.first = first or nn.Linear(WIDTH, FEATURES)
        self.last = nn.Linear(1, 1)
        self.way, self.act = way, act

    def forward(self, x):
        self.made = self.first(x)
        return self.last(self.act(self.way(self.made)).square().mean().view(1, 1))


def measured(model, x, *, steps=1, mask=None):
    with torch.no_grad():
        model.first.bias[list(DEAD)] -= 1000.0
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    probe = Probe(model, optimizer, observations=1, batch_elements=1, mask=mask)
    for _ in range(steps):
        with probe:
            model(x).sum().backward()
            optimizer.step()
    return probe


def windows(y):
    """As Swin has it: positions into windows of their own, which go to the batch."""
    y = y.view(B, 2, 2, 2, 4, H, D)
    return y.permute(0, 1, 3, 2, 4, 5, 6).reshape(-1, 8, FEATURES)


HEADS = {
    "view, transpose": lambda y: y.view(B, T, H, D).transpose(1, 2),
    "view": lambda y: y.view(B, T, H, D),
    "reshape, permute": lambda y: y.reshape(B, T, H, D).permute(0, 2, 1, 3),
    "reshape, permute, heads first": lambda y: y.reshape(B, T, H, D).permute(2, 0, 1, 3),
    "unflatten": lambda y: y.unflatten(-1, (H, D)),
    "unflatten, movedim": lambda y: y.unflatten(2, (H, -1)).movedim(2, 1),
    "nn.Unflatten": lambda y: nn.Unflatten(2, (H, D))(y).swapaxes(1, 2),
    "keys: features before positions": lambda y: y.view(B, T, H, D).permute(0, 2, 3, 1),
    "heads with the batch": lambda y: y.view(B, T, H, D).transpose(1, 2).reshape(B * H, T, D),
    "heads with the batch, as a rearrangement": lambda y: y.reshape(B, T, H, D).permute(0, 2, 1, 3).reshape(B * H, T, D),
    "heads before the batch": lambda y: y.reshape(B, T, H, D).permute(2, 0, 1, 3).reshape(H * B, T, D),
    "torch's own attention": lambda y: y.transpose(0, 1).contiguous().view(T, B * H, D).transpose(0, 1),
    "all but the last together": lambda y: y.view(-1, D),
    "positions with the batch": lambda y: y.reshape(B * T, H, D),
    "contiguous between": lambda y: y.view(B, T, H, D).transpose(1, 2).contiguous() * 2.0 + 0.0,
    "merged again": lambda y: y.view(B, T, H, D).transpose(1, 2).transpose(1, 2).reshape(B, T, H * D),
    "merged again from the batch": lambda y: y.view(B, T, H, D).transpose(1, 2).reshape(B * H, T, D).view(B, H, T, D).transpose(1, 2).flatten(2),
    "merged the other way round": lambda y: y.view(B, T, H, D).transpose(2, 3).flatten(2),
    "merged with positions before": lambda y: y.view(B, T, H, D).permute(0, 2, 3, 1).reshape(B, H * D, T),
    "three levels": lambda y: y.view(B, T, H, 2, 2).permute(0, 3, 2, 1, 4),
    "an axis added and taken": lambda y: y.view(B, T, H, D)[:, None].transpose(1, 3).squeeze(3),
    "viewed as another": lambda y: y.view_as(torch.empty(B, T, H, D)).transpose(1, 2),
    "normalised": lambda y: y.view(B, T, H, D).transpose(1, 2) / (1.0 + y.view(B, T, H, D).transpose(1, 2).detach().norm(dim=-1, keepdim=True)),
    "in place": lambda y: y.view(B, T, H, D).transpose(1, 2).mul(1.0),
    "flattened with the positions, and back": lambda y: y.flatten(1, 2).view(B, T, FEATURES),
    "flattened with the positions, then into heads": lambda y: y.flatten(1, 2).view(B, T, H, D).transpose(1, 2),
    "flattened behind features, and back": lambda y: y.mT.flatten(1).view(B, FEATURES, T),
    "flattened with dropout between": lambda y: F.dropout(y.flatten(1), 0.0).unflatten(1, (T, FEATURES)),
    "positions and heads together, and back": lambda y: y.view(B, T, H, D).flatten(1, 2).view(B, T, H, D),
}  # fmt: skip


def judged(probe, made):
    """Compare with a count of the layer's own features, [..., FEATURES]."""
    (site,) = probe.info.sites
    record = probe.record
    off = (made.detach().reshape(-1, made.shape[-1]).numpy() <= 0).astype(float)
    assert site.units == off.shape[1]
    assert record.metrics["dead_fraction"][0] == pytest.approx(np.mean(off.min(0) == 1))
    assert record.metrics["inactive_share"][0] == pytest.approx(off.mean())
    assert probe.info.coverage == ()


@pytest.mark.parametrize("name", HEADS)
def test_each_feature_of_the_layer_is_a_unit_however_heads_are_split(name):
    torch.manual_seed(0)
    model = Net(HEADS[name])
    probe = measured(model, torch.randn(B, T, WIDTH))
    judged(probe, model.made)
    assert probe.record.metrics["dead_fraction"][0] == len(DEAD) / FEATURES


@pytest.mark.parametrize("act", [torch.sigmoid, F.gelu, lambda y: y * torch.sigmoid(y), lambda y: y.clamp(min=0)])
def test_they_are_those_of_each_function(act):
    records = []
    for way in (HEADS["heads with the batch"], lambda y: y):
        torch.manual_seed(0)
        records.append(measured(Net(way, act=act), torch.randn(B, T, WIDTH)).record)
    split, plain = records
    for metric in ("dead_fraction", "saturated_fraction", "inactive_share"):
        assert np.array_equal(split.metrics[metric], plain.metrics[metric], equal_nan=True)


def test_gated_linear_units_of_heads_are_judged_by_their_gates():
    torch.manual_seed(0)
    model = Net(HEADS["view, transpose"], act=F.glu)
    probe = measured(model, torch.randn(B, T, WIDTH))
    gates = model.made.unflatten(2, (H, 2, 2))[..., 1, :].flatten(2).flatten(0, 1)
    flat = (gates.abs() > 4).double()
    assert probe.info.sites[0].units == FEATURES // 2
    assert probe.record.metrics["inactive_share"][0] == pytest.approx(flat.mean().item())
    assert probe.record.metrics["saturated_fraction"][0] == pytest.approx((flat.mean(0) >= 0.95).double().mean().item())


FLAT = {
    "view": lambda y: y.view(B, H, D),
    "unflatten": lambda y: y.unflatten(1, (H, D)),
    "view, transpose": lambda y: y.view(-1, H, D).transpose(1, 2),
    "to the batch": lambda y: y.view(B * H, D),
    "heads, then one of them left": lambda y: y.view(B, H, D).flatten(1),
}


@pytest.mark.parametrize("name", FLAT)
def test_without_positions(name):
    torch.manual_seed(0)
    model = Net(FLAT[name])
    judged(measured(model, torch.randn(B, WIDTH)), model.made)


def test_windows_of_positions_keep_their_features():
    torch.manual_seed(0)
    model = Net(windows)
    judged(measured(model, torch.randn(B, 32, WIDTH).view(B, 4, 8, WIDTH)), model.made)


@pytest.mark.parametrize("take", [lambda y: y.unbind(0)[1], lambda y: y[1], lambda y: y.chunk(3)[1].squeeze(0)])
def test_one_of_three_that_share_a_layer(take):
    torch.manual_seed(0)
    model = Net(lambda y: take(y.view(B, T, 3, 2, 2).permute(2, 0, 3, 1, 4)))
    judged(measured(model, torch.randn(B, T, WIDTH)), model.made.clone()[..., 4:8])


def test_a_mean_over_positions_leaves_the_features():
    torch.manual_seed(0)
    model = Net(lambda y: y.view(B, T, H, D).transpose(1, 2).mean(2))
    judged(measured(model, torch.randn(B, T, WIDTH)), model.made.mean(1))


def test_channels_in_groups_are_channels():
    torch.manual_seed(0)

    def shuffled(y):
        return y.view(B, 3, 4, 5, 5).transpose(1, 2).reshape(B, 12, 5, 5)

    for way in (
        shuffled,
        lambda y: y.view(B, 3, 4, 5, 5),
        lambda y: y.view(B * 3, 4, 5, 5),
        lambda y: y.view(B, 3, 4, -1),
    ):
        model = Net(way, nn.Conv2d(2, FEATURES, 3))
        judged(measured(model, torch.randn(B, 2, 7, 7)), model.made.movedim(1, -1))


def test_patches_have_each_channel_at_each_of_their_places():
    torch.manual_seed(0)
    model = Net(lambda y: F.unfold(y, 2, stride=2), nn.Conv2d(2, FEATURES, 3))
    probe = measured(model, torch.randn(B, 2, 8, 8))
    patches = F.unfold(model.made.detach(), 2, stride=2).movedim(1, -1).flatten(0, 1)
    (site,) = probe.info.sites
    assert site.units == patches.shape[1] == 4 * FEATURES
    assert probe.record.metrics["dead_fraction"][0] == (patches <= 0).all(0).double().mean().item() >= len(DEAD) / 12


def test_features_that_become_an_image_are_the_layers():
    torch.manual_seed(0)
    model = Net(lambda y: y.view(B, 3, 2, 2))
    judged(measured(model, torch.randn(B, WIDTH)), model.made)


def test_a_mask_over_positions_holds_for_each_head():
    torch.manual_seed(0)
    model, x = Net(HEADS["view, transpose"]), torch.randn(B, T, WIDTH)
    mask = torch.rand(B, T) > 0.3
    probe = measured(model, x, mask=mask)
    judged(probe, model.made[mask])
    assert probe.record.forward_rms[0] == pytest.approx(model.made[mask].relu().square().mean().sqrt().item(), rel=1e-6)


class PerHead(nn.Module):
    """Weights for each head, or expert."""

    def __init__(self, product):
        super().__init__()
        self.w, self.bias, self.product = (
            nn.Parameter(torch.randn(H, WIDTH, D)),
            nn.Parameter(torch.zeros(FEATURES)),
            product,
        )

    def forward(self, x):
        return self.product(x, self.w) + self.bias.view(H, 1, D)


@pytest.mark.parametrize("product", [lambda x, w: torch.einsum("bhti,hio->bhto", x, w), torch.matmul])
def test_weights_of_each_head_make_its_own_features(product):
    torch.manual_seed(0)
    model = Net(lambda y: y, PerHead(product))
    judged(measured(model, torch.randn(B, H, T, WIDTH)), model.made.transpose(1, 2).reshape(B, T, FEATURES))


def test_experts_that_are_one_product_have_their_own_units():
    torch.manual_seed(0)
    model = Net(lambda y: y, PerHead(torch.bmm))
    judged(measured(model, torch.randn(H, T, WIDTH)), model.made.transpose(0, 1).reshape(T, FEATURES))


def test_einsum_into_heads():
    class Into(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.bias = nn.Parameter(torch.randn(H, D, WIDTH)), nn.Parameter(torch.zeros(FEATURES))

        def forward(self, x):
            return torch.einsum("bti,hoi->btho", x, self.w) + self.bias.view(H, D)

    torch.manual_seed(0)
    model = Net(lambda y: y.transpose(1, 2), Into())
    judged(measured(model, torch.randn(B, T, WIDTH)), model.made.flatten(2))


def test_what_a_head_shared_by_all_makes_are_its_own_features():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.own = nn.Linear(WIDTH, FEATURES), nn.Linear(D, FEATURES)
            self.bias = self.own.bias

        def forward(self, x):
            return self.own(self.heads(x).view(B, T, H, D).transpose(1, 2))

    torch.manual_seed(0)
    model = Net(lambda y: y, Shared())
    judged(measured(model, torch.randn(B, T, WIDTH)), model.made)


def test_attentions_output_merged_has_a_unit_a_feature():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.bias = nn.Linear(WIDTH, 3 * FEATURES), nn.Parameter(torch.zeros(FEATURES))

        def forward(self, x):
            q, k, v = self.qkv(x).view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)
            y = (q @ k.mT).softmax(-1) @ v if self.training else F.scaled_dot_product_attention(q, k, v)
            return y.transpose(1, 2).reshape(B, T, FEATURES) + self.bias

    for mode in (True, False):
        torch.manual_seed(0)
        model = Net(lambda y: y, Attention()).train(mode)
        probe = measured(model, torch.randn(B, T, WIDTH))
        column = [site.function for site in probe.info.sites].index("relu")
        assert probe.info.sites[column].units == FEATURES
        off = (model.made <= 0).flatten(0, 1)
        assert probe.record.metrics["dead_fraction"][column] == off.all(0).double().mean().item()
        assert probe.record.metrics["inactive_share"][column] == pytest.approx(off.double().mean().item())


class Heads(nn.Module):
    """A layer for each head."""

    def __init__(self):
        super().__init__()
        self.heads, self.bias = (
            nn.ModuleList(nn.Linear(WIDTH, D) for _ in range(H)),
            nn.Parameter(torch.zeros(FEATURES)),
        )

    def forward(self, x):
        return torch.stack([head(x) for head in self.heads], 1) + self.bias.view(H, 1, D)


def test_layers_that_are_stacked_have_their_own_features():
    torch.manual_seed(0)
    model = Net(lambda y: y, Heads())
    judged(measured(model, torch.randn(B, T, WIDTH)), model.made.transpose(1, 2).flatten(2))


def test_turns_of_a_loop_that_are_stacked_are_positions():
    class Loop(nn.Linear):
        def forward(self, x):
            return torch.stack([super(Loop, self).forward(each) for each in x.unbind(1)], 1)

    torch.manual_seed(0)
    model = Net(lambda y: y, Loop(WIDTH, FEATURES))
    judged(measured(model, torch.randn(B, T, WIDTH)), model.made)


LOST = {
    "pieces that cross the layer's features": lambda y: y.reshape(B, 6, 14),
    "sorted": lambda y: y.sort(-1).values,
    "the largest": lambda y: torch.topk(y, 5, dim=2)[0],
    "sorted in pairs": lambda y: y.view(B, T, 6, 2).sort(-1).values.flatten(2),
    "picked by each sample": lambda y: y.gather(-1, torch.arange(B * T * D).view(B, T, D) % FEATURES),
    "in an order of each sample": lambda y: torch.take_along_dim(y, y.argsort(2), dim=2),
    "a part of what was merged": lambda y: y.view(B, T, H, D).transpose(1, 2).reshape(B * H, T, D)[:4],
}


KEPT = {
    "positions, sorted": lambda y: y.sort(1).values,
    "positions, picked by each sample": lambda y: y.gather(
        1, torch.arange(B * 3).view(B, 3, 1).expand(B, 3, FEATURES) % T
    ),
    "another order, of all": lambda y: y.gather(2, torch.arange(FEATURES).flip(0).expand(B, T, FEATURES)),
}


@pytest.mark.parametrize("name", KEPT)
def test_units_stay_where_samples_or_positions_are_picked(name):
    torch.manual_seed(0)
    model = Net(KEPT[name])
    judged(measured(model, torch.randn(B, T, WIDTH)), KEPT[name](model.made.detach()))


@pytest.mark.parametrize("name", LOST)
def test_units_that_cannot_be_told_are_absent_with_the_reason(name):
    torch.manual_seed(0)
    probe = measured(Net(LOST[name]), torch.randn(B, T, WIDTH), steps=2)
    assert [site.units for site in probe.info.sites] == [0]
    assert [entry.name for entry in probe.info.coverage] == [":relu"]
    assert "aren't counted" in probe.info.coverage[0].reason
    assert np.isnan(probe.record.metrics["dead_fraction"]).all()
    assert np.isfinite(probe.record.metrics["signal_norm"]).all()


PIECES = {
    "unbind": lambda y: [F.relu(head) for head in y.view(B, T, H, D).unbind(2)],
    "split": lambda y: [F.relu(head) for head in y.split(D, -1)],
    "by hand": lambda y: [F.relu(y[..., D * head : D * head + D]) for head in range(H)],
    "chunks of the transpose": lambda y: [F.relu(head) for head in y.transpose(1, 2).chunk(H, 1)],
    "heads before positions": lambda y: [F.relu(head) for head in y.view(B, T, H, D).transpose(1, 2).unbind(1)],
    "of what an activation made": lambda y: [F.relu(head) for head in (y + 1).unflatten(-1, (H, D)).unbind(2)],
}


@pytest.mark.parametrize("way", PIECES.values(), ids=PIECES)
def test_a_call_for_each_head_has_other_units_each_time_and_counts_none(way):
    probe = measured(Net(lambda y: torch.cat(way(y), -1), act=lambda x: x), torch.randn(B, T, WIDTH), steps=2)
    assert [(site.name, site.units) for site in probe.info.sites] == [(":relu", 0)]
    assert np.isnan(probe.record.metrics["dead_fraction"]).all()
    assert [entry.name for entry in probe.info.coverage] == [":relu"]
    assert "other units" in probe.info.coverage[0].reason


ONE_PIECE = {
    "each position": (lambda y: [F.relu(each) for each in y.unbind(1)], range(FEATURES)),
    "a head at each position": (lambda y: [F.relu(each[..., :D]) for each in y.unbind(1)], range(D)),
    "another": (lambda y: [F.relu(each[..., 1, :]) for each in y.view(B, T, H, D).unbind(1)], range(D, 2 * D)),
    "a head of each sample": (lambda y: [F.relu(each[:, D : 2 * D]) for each in y], range(D, 2 * D)),
}


@pytest.mark.parametrize(("way", "taken"), ONE_PIECE.values(), ids=ONE_PIECE)
def test_calls_that_take_the_same_units_each_time_count_them(way, taken):
    probe = measured(Net(lambda y: torch.stack(way(y)), act=lambda x: x), torch.randn(B, T, WIDTH))
    assert [site.units for site in probe.info.sites] == [len(taken)]
    assert probe.record.metrics["dead_fraction"][0] == len({*DEAD} & {*taken}) / len(taken)
    assert probe.info.coverage == ()
