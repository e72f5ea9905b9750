"""A layer without a gradient, in a real Trainer: what is meant is information, what isn't is named, and one cause is one finding."""

from __future__ import annotations

import warnings

import pytest
import pytorch_lightning as pl
import torch
from integration.nets import FEATURES, batches, seed, trainer
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import GradWatch, GradWatchWarning, Severity, evaluate, read_run

pytestmark = pytest.mark.judges


class Module(pl.LightningModule):
    """A loss given as a function of the module and the inputs."""

    def __init__(self, loss_of, after=None, **modules):
        super().__init__()
        self.loss_of, self.after = loss_of, after
        for name, module in modules.items():
            setattr(self, name, module)

    def training_step(self, batch, batch_idx):
        return self.loss_of(self, batch[0])

    def on_after_backward(self):
        if self.after is not None:
            self.after(self)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def fit(folder, module, *, steps=8):
    """Fit, expect the file to say the same; return warnings and GW104's findings."""
    seed()
    watch = GradWatch(every_n_steps=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer(folder, watch, max_steps=steps).fit(module, batches(size=32))
    run = read_run(folder / "gradwatch" / "version_0")
    assert run.findings == watch.findings == evaluate(run)
    ours = [str(entry.message) for entry in told if issubclass(entry.category, GradWatchWarning)]
    return ours, [finding for finding in watch.findings if finding.code == "GW104"]


def test_a_last_layer_that_is_held_back_for_an_epoch_is_information_that_heals(tmp_path):
    """As DINO holds back its own: the gradient is set to None after each backward pass."""

    def hold_back(module):
        if module.global_step < 4:
            for parameter in module.last_layer.parameters():
                parameter.grad = None

    body = nn.Sequential(nn.Linear(FEATURES, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU())
    module = Module(
        lambda m, x: m.last_layer(m.body(x)).pow(2).mean(), hold_back, body=body, last_layer=nn.Linear(16, 1)
    )
    told, (finding,) = fit(tmp_path, module)
    assert told == []
    assert (finding.severity, finding.layers) == (Severity.INFO, ("last_layer",))
    assert "A gradient arrives at its parameters, and is gone when the optimizer steps" in finding.cause
    assert (finding.last_step, finding.healed_step) == (3, 6)


def test_a_layer_that_is_given_zeros_is_information(tmp_path):
    """No covariates in this data set: a context of zeros into a layer without a bias."""

    def loss(module, x):
        return module.body(module.values(x) + module.context(torch.zeros(len(x), 4))).pow(2).mean()

    layers = {"values": nn.Linear(FEATURES, 16), "context": nn.Linear(4, 16, bias=False)}
    module = Module(loss, body=nn.Sequential(nn.ELU(), nn.Linear(16, 1)), **layers)
    told, (finding,) = fit(tmp_path, module)
    assert told == []
    assert (finding.severity, finding.layers) == (Severity.INFO, ("context",))
    assert "all that it is given is exactly 0" in finding.cause


def test_an_encoder_whose_output_the_loss_leaves_out_is_information(tmp_path):
    def loss(module, x):
        size = module.side(x)
        size = x.sum(1, keepdim=True)
        return (module.main(x) * module.scale + 0 * size).pow(2).mean()

    def make():
        return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, 1))

    module = Module(loss, side=make(), main=make(), scale=nn.Parameter(torch.ones(1)))
    told, (finding,) = fit(tmp_path, module)
    assert told == []
    assert (finding.severity, finding.layers) == (Severity.INFO, ("side.0", "side.2"))
    assert "no loss depends on what it puts out" in finding.cause
    assert "main" not in finding.cause + finding.remedy.text


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (lambda h: h.detach(), "the graph is cut by detach(), called in test_missing_gradients.py:"),
        (lambda h: h.data, "the graph is cut by .data"),
    ],
    ids=["detach", "data"],
)
def test_a_graph_that_is_cut_is_an_error_that_names_the_call(cut, said, tmp_path):
    module = Module(
        lambda m, x: m.head(cut(m.body(x))).pow(2).mean(),
        body=nn.Sequential(nn.Linear(FEATURES, 16), nn.GELU(), nn.Linear(16, 16)),
        head=nn.Linear(16, 1),
    )
    (told,), (finding,) = fit(tmp_path, module)
    assert (finding.severity, finding.layers) == (Severity.ERROR, ("body.0", "body.2"))
    assert said in finding.cause
    assert "cut by" in " ".join(told.split())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(FEATURES, FEATURES) for _ in range(4))

    def forward(self, x):
        weights = (self.q(x) @ self.k(x).transpose(1, 2) / FEATURES**0.5).softmax(-1)
        return x + F.gelu(self.o(weights @ self.v(x)))


def test_attention_over_a_single_key_is_one_finding_in_all_blocks_that_names_the_softmax(tmp_path):
    blocks = nn.Sequential(*(Attention() for _ in range(4)))
    module = Module(lambda m, x: m.head(m.blocks(x[:, None])).pow(2).mean(), blocks=blocks, head=nn.Linear(FEATURES, 1))
    (told,), (finding,) = fit(tmp_path, module, steps=24)
    assert "GW104" in told
    assert finding.layers == tuple(f"blocks.{block}.{layer}" for block in range(4) for layer in "qk")
    assert finding.cause.startswith(
        "Softmax over a single entry: softmax(), called in blocks.0 … blocks.3 (4 modules), runs over an axis of length 1"
    )
    assert "initialise" not in finding.remedy.text


def test_a_gradient_that_zero_grad_throws_away_in_every_layer_is_an_error(tmp_path):
    module = Module(lambda m, x: m.net(x).pow(2).mean(), lambda m: m.zero_grad(), net=nn.Linear(FEATURES, 1))
    (told,), (finding,) = fit(tmp_path, module)
    assert finding.severity == Severity.ERROR
    assert "zero_grad() belongs before backward()" in " ".join(told.split())


@pytest.mark.parametrize("layers", ["one", "all"])
def test_gradients_that_a_hook_sets_to_zero_are_what_the_optimizer_gets(layers, tmp_path):
    def clear(module):
        for parameter in (module.net if layers == "one" else module).parameters():
            parameter.grad.zero_()

    module = Module(
        lambda m, x: m.head(m.net(x)).pow(2).mean(), clear, net=nn.Linear(FEATURES, 8), head=nn.Linear(8, 1)
    )
    _, findings = fit(tmp_path, module)
    (finding,) = [each for each in findings if each.code == "GW104"]
    assert finding.layers == (("net",) if layers == "one" else ("net", "head"))


class Squeeze(nn.Module):
    """Squeeze and excite, over a bottleneck of few units."""

    def __init__(self, channels, units):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, units, 1), nn.Conv2d(units, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


@pytest.mark.parametrize("start", range(3))
def test_units_that_a_handful_of_samples_leaves_inactive_are_no_dead_layer(start, tmp_path):
    """Four units, two samples a batch: in a few steps, none of them happens to be active."""

    class Net(Module):
        def train_dataloader(self):
            return batches(count=40, size=2)

    seed(start)
    squeeze = Squeeze(8, 4)
    nn.init.constant_(squeeze.fc1.bias, -0.4)  # so that each is inactive for most samples
    net = nn.Sequential(
        nn.Linear(FEATURES, 8 * 4), nn.Tanh(), nn.Unflatten(1, (8, 2, 2)), squeeze, nn.Flatten(), nn.Linear(32, 1)
    )
    module = Net(lambda m, x: F.mse_loss(m.net(x), x[:, :1]), net=net)
    watch = GradWatch(every_n_steps=1, ignore=("GW3",))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer(tmp_path, watch, max_steps=40).fit(module)
    column = watch.info.layer_names.index("net.3.fc1")
    assert any(record.layer_state[column] != 1 for record in watch.records), "the case isn't one"
    assert [entry for entry in told if issubclass(entry.category, GradWatchWarning)] == []
