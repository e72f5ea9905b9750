"""How skip connections and norms carry the signal: residual blocks, and the transformer's two places for its norm."""

import math

import numpy as np
import pytest
import torch
from theory.published import EXACT, agrees, by_name, factor, he, measure, percent, random_upstream, show
from torch import nn
from torch.nn import functional

pytestmark = pytest.mark.judges

DEPTHS = (6, 12, 24)


class Block(nn.Module):
    """Two He-initialised layers around a ReLU, and what is done with their input x.

    ``stream`` is an activation function that changes nothing (slope 1 on both sides): its signal is dL/dx of the block.
    """

    def __init__(self, kind, width):
        super().__init__()
        self.kind = kind
        self.stream = nn.LeakyReLU(1.0)
        self.up, self.down = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        he(self.up)
        if kind == "zero-init last":
            nn.init.zeros_(self.down.weight)
        else:
            he(self.down)
        self.act = nn.ReLU()
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        x = self.stream(x)
        branch = self.down(self.act(self.up(self.norm(x) if self.kind == "pre-LN" else x)))
        if self.kind == "plain":
            return branch
        return self.norm(x + branch) if self.kind == "post-LN" else x + branch


def first_over_last(kind, depth, site, *, width=256):
    """Return the signal of the first block's site over that of the last one's, the geometric mean over three seeds."""
    logs = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.Sequential(*(Block(kind, width) for _ in range(depth)))
        x = torch.randn(16, width, requires_grad=True)
        signal = by_name(measure(model, x, random_upstream), "signal_norm")
        logs.append(math.log(signal[f"0.{site}"] / signal[f"{depth - 1}.{site}"]))
    return math.exp(np.mean(logs))


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_signal_of_pre_norm_blocks_grows_slowly_towards_the_input(depth):
    """Each block adds a variance of 2 to a stream that starts with 1, and its norm divides δ by the stream's deviation.

    So dL/dx of the last of L blocks over the first's is 1 / √(2 L - 1); inside the blocks, one block on, √(3 / (2 L + 1)).
    """
    reading = first_over_last("pre-LN", depth, "act")
    agrees(f"pre-LN, {depth} blocks, δ first / last", reading, {6: 2.0, 12: 3.0, 24: 4.0}[depth], factor(2))
    agrees(f"theory: pre-LN, {depth} blocks, δ", reading, math.sqrt((2 * depth + 1) / 3), percent(10))
    reading = first_over_last("pre-LN", depth, "stream")
    agrees(f"theory: pre-LN, {depth} blocks, dL/dx", reading, math.sqrt(2 * depth - 1), percent(10))


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_signal_of_post_norm_blocks_stays_level(depth):
    agrees(f"post-LN, {depth} blocks, δ first / last", first_over_last("post-LN", depth, "act"), 1.0, factor(2))
    gain = first_over_last("post-LN", depth, "stream") ** (1 / (depth - 1))
    agrees(f"theory: post-LN, {depth} blocks, gain a block", gain, 1.0, percent(3))


@pytest.mark.parametrize("depth", DEPTHS)
def test_blocks_whose_last_layer_starts_at_zero_pass_the_signal_on_bit_by_bit(depth):
    agrees(f"zero-init last, {depth} blocks, dL/dx", first_over_last("zero-init last", depth, "stream"), 1.0, EXACT)


def test_in_such_a_block_no_signal_enters_yet():
    model = nn.Sequential(*(Block("zero-init last", 16) for _ in range(3)))
    signal = by_name(measure(model, torch.randn(16, 16), random_upstream), "signal_norm")
    agrees("zero-init last, δ inside a block", signal["1.act"], 0.0, EXACT)


def test_skips_without_a_norm_triple_the_variance_a_block_and_no_skips_double_it():
    """What the norms are there for. The branch's gain is 2 (ReLU halves one layer's 2), and the skip adds 1."""
    plain, skips = (first_over_last(kind, 12, "stream") ** (1 / 11) for kind in ("plain", "skips only"))
    agrees("theory: plain stack, 12 blocks, gain a block", plain, math.sqrt(2), percent(3))
    agrees("theory: skips without a norm, 12 blocks, gain a block", skips, math.sqrt(3), percent(3))


class Transformer(nn.Module):
    """Encoder layers with Xavier weights, each drawn for itself."""

    def __init__(self, layers, *, norm_first, width=64):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=norm_first)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width) if norm_first else nn.Identity()
        self.head = nn.Linear(width, 100)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)).flatten(0, 1)


def last_feed_forward(layers, *, norm_first):
    """Return the gradient norm of the last layer's second feed-forward weights, the mean over three seeds."""
    norms = []
    for seed in range(3):
        torch.manual_seed(seed)
        model, tokens = Transformer(layers, norm_first=norm_first), torch.randint(0, 100, (8 * 16,))
        probe = measure(model, torch.randn(8, 16, 64), lambda y, tokens=tokens: functional.cross_entropy(y, tokens))
        norms.append(by_name(probe, "grad_norm")[f"layers.{layers - 1}.linear2"])
    return np.mean(norms)


@pytest.mark.slow
def test_deeper_pre_norm_transformers_have_smaller_last_gradients_and_post_norm_ones_have_not():
    """Xiong et al. 2020, theorem 1: Pre-LN's falls as 1 / √L, Post-LN's doesn't depend on L. Only the signs are published."""
    depths = (3, 6, 12, 24)
    rows = {
        "Pre-LN": (True, (0.410, 0.321, 0.265, 0.227)),
        "Post-LN": (False, (0.465, 0.609, 0.806, 1.03)),
    }
    slopes = {}
    for name, (norm_first, published) in rows.items():
        readings = [last_feed_forward(layers, norm_first=norm_first) for layers in depths]
        for layers, reading, value in zip(depths, readings, published, strict=True):
            show(
                f"{name} transformer, {layers} layers, last feed-forward gradient", reading, value, "sign of the trend"
            )
        slopes[name] = np.polyfit(np.log(depths), np.log(readings), 1)[0]
        if norm_first:
            assert readings == sorted(readings, reverse=True)
    line = show("Pre-LN transformer, power of the depth", slopes["Pre-LN"], -0.5, "below -0.25")
    assert slopes["Pre-LN"] < -0.25, line
    line = show("Post-LN transformer, power of the depth", slopes["Post-LN"], 0.0, "above -0.05")
    assert slopes["Post-LN"] > -0.05, line
