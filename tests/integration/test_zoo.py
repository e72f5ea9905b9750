"""What people train: architectures of all families from `transformers`, tiny, with random weights, two steps each."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from integration.captures import compare
from integration.nets import seed, trainer
from integration.situation import Situation, differences, fit_both, others, ours
from integration.zoo_covered import COVERED
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from benchmarks.architectures import ZOO
from lightning_gradwatch import GradWatch, LayerState, Severity

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

STEPS = 2
LONGER = 40
ANY = (LayerState.OK, LayerState.NONE, LayerState.ZERO, LayerState.UNUSED)


class Trained(pl.LightningModule):
    """A model that computes its own loss."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@pytest.fixture(scope="module", params=ZOO)
def pair(request, tmp_path_factory):
    """An architecture's fit without the monitor and with it."""
    pytest.importorskip("transformers")
    architecture = ZOO[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = Situation(
            make=lambda: Trained(architecture.build()),
            data=lambda: DataLoader([architecture.batch()] * STEPS, batch_size=None),
            settings={"max_steps": STEPS},
            steps=STEPS,
        )
        return fit_both(request.param, row, tmp_path_factory.mktemp(request.param))


def test_training_is_bit_identical_and_nothing_is_left(pair):
    assert list(differences(pair.without.end, pair.watched.end)) == []
    assert pair.without.traces == pair.watched.traces
    assert pair.without.between == pair.watched.between


def test_gradients_and_updates_equal_the_reference(pair):
    assert len(pair.watch.records) == STEPS
    states = dict.fromkeys((layer.name for layer in pair.watch.info.layers), ANY)
    compare(pair.watch, pair.watched.captures, states=states)


def test_nothing_is_warned_of(pair):
    assert ours(pair.watched.warned) == []
    assert set(others(pair.watched.warned)) <= set(others(pair.without.warned))


def test_no_signal_is_a_silent_zero_and_each_absent_one_is_named(pair):
    named = {entry.name for entry in pair.watch.coverage}
    for column, site in enumerate(pair.watch.info.sites):
        signals = np.array([record.values("signal_norm", column + 1)[column] for record in pair.watch.records])
        assert not (signals == 0).any(), site.name
        assert np.isfinite(signals).any() or site.name in named, site.name


ILL = {
    "efficientnet": ["GW101"],  # BatchNorm over two samples of one pixel is a sign function: it doesn't learn
}


@pytest.mark.judges
def test_no_rule_fires_falsely_when_it_is_trained_on(pair, tmp_path):
    architecture = ZOO[pair.name]
    seed()
    watch, data = GradWatch(every_n_steps=1), [architecture.batch()] * LONGER
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path, watch, max_steps=LONGER).fit(Trained(architecture.build()), DataLoader(data, batch_size=None))
    assert len(watch.records) == LONGER
    warned = [finding.code for finding in watch.findings if finding.severity >= Severity.WARNING]
    assert warned == ILL.get(pair.name, [])


ACTIVATIONS = [
    "relu",
    "relu_",
    "threshold",
    "gelu",
    "gelu_",
    "silu",
    "silu_",
    "tanh",
    "tanh_",
    "sigmoid",
    "sigmoid_",
    "_softmax",
    "elu",
    "elu_",
    "hardtanh",
    "hardtanh_",
    "hardswish",
    "hardswish_",
    "hardsigmoid",
    "leaky_relu",
    "leaky_relu_",
    "softplus",
    "mish",
    "log_sigmoid_forward",
    "glu",
    "_prelu_kernel",
    "_safe_softmax",
    "_scaled_dot_product_flash_attention_for_cpu",
]


class Dispatched(TorchDispatchMode):
    """What the machine really computes: each activation operation below Python, with the module it was in."""

    def __init__(self, model):
        super().__init__()
        self.found = set()
        self.inside = [""]
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self.inside.append(name))
            module.register_forward_hook(lambda *_: self.inside.pop() and None, always_call=True)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        result = func(*args, **(kwargs or {}))
        trained = any(isinstance(each, torch.Tensor) and each.requires_grad for each in args)
        if name in ACTIVATIONS and (trained or torch.is_grad_enabled()):
            self.found.add((self.inside[-1], name))
        return result


def test_every_activation_that_runs_is_a_site_or_named_as_not_covered(pair):
    """Against the operations that the machine ran, whatever function, module or kernel asked for them."""
    torch.manual_seed(0)
    architecture = ZOO[pair.name]
    model = architecture.build()
    with Dispatched(model) as dispatched:
        model(**architecture.batch())
    known = {site.name for site in pair.watch.info.sites} | {entry.name for entry in pair.watch.coverage}
    owners = {name.partition(":")[0].partition("#")[0] for name in known}
    assert dispatched.found
    for module, operation in sorted(dispatched.found):
        assert f"model.{module}".rstrip(".") in owners, (module, operation, sorted(owners))


def test_the_count_of_known_sites_is_that_of_seen_and_named_ones(pair):
    info = pair.watch.info
    assert info.known_sites == len(info.sites) + sum(entry.sites for entry in info.coverage)
    assert len(info.sites) > 0


def test_no_less_of_it_is_seen_than_before(pair, capsys):
    info = pair.watch.info
    seen, known = len(info.sites), info.known_sites
    with capsys.disabled():
        print(f"\n{pair.name}: {seen} of {known} activation sites are covered, {100 * seen / known:.0f} %")  # noqa: T201 - for whoever reads the log
    before, of = COVERED[pair.name]
    assert seen / known >= before / of
    assert seen >= before


def test_what_is_seen_of_each_architecture_is_written_down():
    assert COVERED.keys() == ZOO.keys()
