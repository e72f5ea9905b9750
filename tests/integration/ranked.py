"""What ranks are asked to train, and what they tell of it: plain data, as it comes from other processes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import tempfile
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from integration.nets import (
    CLASSES,
    FEATURES,
    MODULE_HOOKS,
    Classifier,
    batches,
    relu_net,
    seed,
    trainer,
    vanishing_net,
)
from integration.situations.compiled import with_compiled_step
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F
from torch.overrides import _len_torch_function_stack
from torch.utils.data import DataLoader, DistributedSampler

from lightning_gradwatch import GradWatch
from lightning_gradwatch.measure import faults


def deep_net(width=15):
    """Sizes that two processes can't split evenly, unless told otherwise."""
    return nn.Sequential(
        nn.Linear(FEATURES, width),
        nn.ReLU(),
        nn.Linear(width, 9),
        nn.Tanh(),
        nn.Linear(9, 9),
        nn.ReLU(),
        nn.Linear(9, CLASSES),
    )


def partly_dead_net():
    """An even width, and dead units among those that the first of two ranks holds under tensor parallelism."""
    net = deep_net(16)
    with torch.no_grad():
        net[0].bias[:3] -= 9
    return net


class Branching(nn.Module):
    """Ranks take different branches: their own functional call, and a layer that only one of them uses."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)
        self.extra = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.steps = 0

    def forward(self, x):
        self.steps += 1
        rank = dist.get_rank() if dist.is_initialized() else 0
        h = F.relu(self.first(x))
        h = F.relu(self.extra[0](h)) + h if rank == 0 else F.relu(torch.tanh(self.extra[1](h)))
        if self.steps > 2 and rank == 1:
            h = F.softplus(h)
        return self.last(h)


def positions_net():
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, CLASSES))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(FEATURES, 12),
            nn.BatchNorm1d(12),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            nn.Linear(12, 8),
            nn.ReLU(),
        )
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.last(self.body(x))


NETS = {
    "deep": deep_net,
    "even": partly_dead_net,
    "relu": relu_net,
    "branching": Branching,
    "normed": Normed,
    "positions": positions_net,
    "vanishing": vanishing_net,
}


class Sharded(Classifier):
    """Parallelised as its mode says, once the device mesh is there."""

    def __init__(self, net, make_optimizer, mode):
        super().__init__(net, make_optimizer)
        self.mode = mode

    def configure_model(self):
        if self.mode == "fsdp2":
            mesh = self.device_mesh["data_parallel"]
            for child in self.net:
                if any(True for _ in child.parameters()):
                    fully_shard(child, mesh=mesh)
            fully_shard(self.net, mesh=mesh)
        else:
            plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
            parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)


STRATEGIES = {
    "grid": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=2),
    "hybrid": lambda: ModelParallelStrategy(data_parallel_size=4, tensor_parallel_size=1),
    "fsdp2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
    "tensor_parallel": lambda: ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2),
}
SGD = functools.partial(torch.optim.SGD, lr=0.1)
OPTIMIZERS = {
    "compiled-sgd": with_compiled_step(SGD),
    "sgd": SGD,
    "adam": functools.partial(torch.optim.Adam, lr=0.01),
}


def make(net, strategy, optimizer, kind=None):
    seed()
    built, of_optimizer = NETS[net](), OPTIMIZERS[optimizer]
    if strategy in STRATEGIES:
        return (kind or Sharded)(built, of_optimizer, strategy)
    return (kind or Classifier)(built, of_optimizer)


def fit(
    rank,
    *,
    strategy="ddp",
    net="deep",
    optimizer="sgd",
    watched=True,
    steps=4,
    size=8,
    count=8,
    raises=True,
    before=None,
    watch=None,
    callbacks=(),
    kind=None,
    devices=2,
    folder=None,
    filters=(),
    **settings,
):
    """Train for a few steps; say what was measured, what was said, and what is left behind."""
    faults.RAISE = raises
    folder = folder or tempfile.mkdtemp()
    callback = GradWatch(**{"every_n_steps": 1, **(watch or {})})
    module = make(net, strategy, optimizer, kind)
    run = trainer(
        folder,
        *([callback] if watched else []),
        *(each() for each in callbacks),
        devices=devices,
        strategy=STRATEGIES.get(strategy, lambda: strategy)(),
        max_steps=steps,
        use_distributed_sampler=False,
        **settings,
    )
    if before is not None:
        before(rank, callback, module, run)
    groups = len(dist.distributed_c10d._world.pg_map) if dist.is_initialized() else None
    seed(7)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for category in filters:
            warnings.filterwarnings("error", category=category)
        run.fit(module, loader(rank, count, size, **PARTS.get(strategy, {})))
    return {
        **seen(callback, heard),
        "weights": weights(module),
        "generator": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "left": left_behind(module, run),
        "groups": (groups, len(dist.distributed_c10d._world.pg_map)),
        "files": sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("events*")),
        "folder": str(folder),
    }


PARTS = {"tensor_parallel": {"parts": 1}, "grid": {"sharing": 2}, "hybrid": {"parts": 4}}


def loader(rank, count, size, *, parts=2, sharing=1):
    """Return each rank's part of the data, every so many rows of it in order: Lightning's own sampler would shuffle."""
    data = batches(count, size).dataset
    return DataLoader(data, size, sampler=DistributedSampler(data, parts, rank // sharing % parts, shuffle=False))


def seen(callback, heard=()):
    return {
        "records": [plain(record) for record in callback.records],
        "info": None if callback.info is None else callback.info.to_dict(),
        "findings": [finding.to_dict() for finding in callback.findings],
        "coverage": [(entry.name, entry.reason) for entry in callback.coverage],
        "warnings": [
            str(entry.message) for entry in heard if entry.category.__module__.startswith("lightning_gradwatch")
        ],
        "process": os.getpid(),
    }


def plain(record):
    fields = {each.name: getattr(record, each.name) for each in dataclasses.fields(record)}
    fields["metrics"] = {name: vector.tolist() for name, vector in record.metrics.items()}
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in fields.items()}


def weights(module):
    found = {}
    for name, parameter in module.named_parameters():
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        found[name] = whole.detach().numpy().copy()
    return found


def left_behind(module, run):
    found = [
        f"{kind} of {name}" for name, child in module.named_modules() for kind in MODULE_HOOKS if getattr(child, kind)
    ]
    found += [f"attribute {name}" for name in vars(run.strategy) if name == "training_step"]
    found += [f"optimizer hook of {each}" for each in run.optimizers if each._optimizer_step_post_hooks]
    return found + [f"{_len_torch_function_stack()} modes"] * (_len_torch_function_stack() > 0)
