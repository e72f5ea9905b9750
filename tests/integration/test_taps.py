"""Units and signals in situations, against what the net itself notes of its activation calls, in a real Trainer.

A net calls its activation functions through a tap, which keeps z and asks autograd to keep dL/dz; the reference is computed
from those alone, after the step, in float64.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from integration.nets import CLASSES, FEATURES, Classifier, batches, seed, trainer
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch import GradWatch

WIDTH, LENGTH, STEPS = 8, 3, 3
ACTIVE = {
    "relu": lambda z: z <= 0,
    "tanh": lambda z: np.abs(z) > 2,
    "gelu": lambda z: z < -2.0507762548328534,
    "sigmoid": lambda z: np.abs(z) > 4,
    "elu": lambda z: z < math.log(math.cosh(2.0) ** -2),
}


class Tap:
    """Calls a function and notes its argument and output."""

    def __init__(self, function, axis=-1):
        self.function, self.axis = function, axis
        self.calls = []

    def __call__(self, z):
        z.retain_grad()
        a = getattr(F, self.function, None) or getattr(torch, self.function)
        a = a(z)
        self.calls.append((z, a.detach()))
        return a

    def note(self, scale):
        """Return ‖δ‖, the share of inactive or saturated observations, and the rms of the output over all calls."""
        z = [call.detach().movedim(self.axis, -1).double().numpy() for call, _ in self.calls]
        inside = ACTIVE[self.function]
        entries = sum(each.size for each in z)
        gradients = [call.grad.double() / scale for call, _ in self.calls if call.grad is not None]
        noted = (
            math.sqrt(sum(float(each.square().sum()) for each in gradients)),
            sum(int(inside(each).sum()) for each in z) / entries,
            math.sqrt(sum(float(a.double().square().sum()) for _, a in self.calls) / entries),
        )
        self.calls.clear()
        return noted


class Tapped(Classifier):
    """A classifier whose net has taps."""

    def __init__(self, net, penalty=0.0):
        super().__init__(net, lambda parameters: torch.optim.SGD(parameters, lr=0.5))
        self.penalty = penalty
        self.noted = defaultdict(list)

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = 2.0 * x
        if not self.penalty:
            return F.cross_entropy(self(x), y)
        out = self(x.requires_grad_())
        (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        for tap in self.net.taps.values():  # that backward pass was noted too
            for z, _ in tap.calls:
                z.grad = None
        return F.cross_entropy(out, y) + self.penalty * slope.detach().square().sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            scale = 1.0 if scaler is None else 2.0**10
            for name, tap in self.net.taps.items():
                self.noted[name].append(tap.note(scale))


class Spread(nn.Module):
    """Turns features into positions and back, around an inner net."""

    def __init__(self, **taps):
        super().__init__()
        self.taps = taps
        self.first, self.last = nn.Linear(FEATURES, LENGTH * WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.last(self.inner(self.first(x).view(-1, LENGTH, WIDTH)).mean(1))


class StockLayer(Spread):
    def __init__(self, **settings):
        super().__init__(**{"layer:relu": Tap("relu")})
        activation = self.taps["layer:relu"]
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.1, activation, batch_first=True, **settings)

    def inner(self, x):
        padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        padding[::2, -1] = True
        return self.layer(x, src_key_padding_mask=padding)


class Unrolled(Spread):
    """A recurrent cell: one site, as many calls as positions."""

    def __init__(self):
        super().__init__(cell=Tap("tanh"))
        self.into, self.again = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def inner(self, x):
        state = x.new_zeros(len(x), WIDTH)
        for position in x.unbind(1):
            state = self.taps["cell"](self.into(position) + self.again(state))
        return state.unsqueeze(1)


class Residual(Spread):
    """The branch's δ, not the trunk's: z is used past its activation too."""

    def __init__(self):
        super().__init__(branch=Tap("gelu"))
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def inner(self, x):
        return x + self.two(F.dropout(self.taps["branch"](self.one(x)), 0.2))


class Recomputed(Spread):
    """Without reentry: the block runs again in the backward pass, and counts once."""

    def __init__(self):
        super().__init__(before=Tap("elu"))
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def inner(self, x):
        x = self.taps["before"](self.one(x))
        return checkpoint(lambda x: torch.sigmoid(self.two(x)), x, use_reentrant=False)


class Routed(Spread):
    """A mixture of experts: each position goes to one of two."""

    def __init__(self):
        super().__init__(one=Tap("relu"), other=Tap("relu"))
        self.experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])

    def inner(self, x):
        flat = x.reshape(-1, WIDTH)
        second = flat[:, 0] > 0
        out = torch.zeros_like(flat)
        out = out.index_put((~second,), self.taps["one"](self.experts[0](flat[~second])))
        return out.index_put((second,), self.taps["other"](self.experts[1](flat[second]))).view(x.shape)


class Convolved(Spread):
    """Channels are the units, positions the observations."""

    def __init__(self):
        super().__init__(conv=Tap("relu", axis=1))
        self.conv, self.norm = nn.Conv1d(WIDTH, WIDTH, 2), nn.BatchNorm1d(WIDTH)

    def inner(self, x):
        return self.taps["conv"](self.norm(self.conv(x.mT))).mT


class Attended(Spread):
    """After fused attention, whose own softmax isn't seen."""

    def __init__(self):
        super().__init__(after=Tap("tanh"))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def inner(self, x):
        return self.taps["after"](self.out(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))))


def scaled():
    return [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))]


NETS = {
    "stock-transformer-layer": (StockLayer, 0),
    "norm-first": (lambda: StockLayer(norm_first=True), 0),
    "unrolled": (Unrolled, 0),
    "residual": (Residual, 0),
    "recomputed": (Recomputed, 1),
    "routed": (Routed, 0),
    "convolved": (Convolved, 0),
    "attended": (Attended, 0),
}
WAYS = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "fp16-scaler": {"plugins": scaled},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETS)
def test_units_and_signals_equal_what_the_net_notes(name, way, tmp_path):
    make, others = NETS[name]
    settings = {key: value() if callable(value) else value for key, value in WAYS[way].items()}
    seed()
    module = Tapped(make())
    watch = GradWatch(every_n_steps=1)
    trainer(tmp_path, watch, max_steps=STEPS, **settings).fit(module, batches(6, 16))
    assert len(watch.info.sites) == len(module.net.taps) + others
    tolerance = {"plain": 1e-6, "accumulation": 1e-6}.get(way, 2e-3)
    for place, record in enumerate(watch.records):
        for column, notes in enumerate(module.noted.values()):
            signal, share, rms = notes[place]
            assert record.metrics["signal_norm"][column] == pytest.approx(signal, rel=tolerance)
            assert record.metrics["inactive_share"][column] == pytest.approx(share, abs=1e-12)
            assert record.forward_rms[column] == pytest.approx(rms, rel=tolerance)
            assert signal > 0
    if all(tap.function == "relu" for tap in module.net.taps.values()):
        assert all(0 < note[1] < 1 for notes in module.noted.values() for note in notes)


def test_a_gradient_penalty_is_not_the_signal(tmp_path):
    """The backward pass inside the loss isn't the step's own."""
    module = Tapped(Convolved(), penalty=0.1)
    watch = GradWatch(every_n_steps=1)
    trainer(tmp_path, watch, max_steps=STEPS).fit(module, batches(6, 16))
    for place, record in enumerate(watch.records):
        assert record.metrics["signal_norm"][0] == pytest.approx(module.noted["conv"][place][0], rel=1e-6)
