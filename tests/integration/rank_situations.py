"""What happens to a rank in the tests of several: called on each before its fit, as it comes from another process."""

from __future__ import annotations

import functools
from datetime import timedelta
from unittest import mock

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from integration import ranked
from integration.nets import FEATURES, Classifier, batches, seed, trainer
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional as F

from lightning_gradwatch import GradWatch, Probe
from lightning_gradwatch.fit import strategies
from lightning_gradwatch.fit.ranks import exchange
from lightning_gradwatch.fit.ranks import ranks as ranks_module
from lightning_gradwatch.fit.schedule import Schedule
from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.measure import gradients, updates
from lightning_gradwatch.measure.model.shards import Shards
from lightning_gradwatch.measure.units import counting, site_stats


def bug(*_, **__):
    raise RuntimeError("injected")


def fit_with_fault(rank, *, where, of_ranks=(1,), at_call=1, **settings):
    """Train; from the given call on, one of our functions fails on some ranks."""
    owner, name = FAULTS[where]
    original = getattr(owner, name)
    calls = []

    @functools.wraps(original)
    def failing(*args, **kwargs):
        calls.append(None)
        if len(calls) >= at_call:
            bug()
        return original(*args, **kwargs)

    if rank in of_ranks:
        setattr(owner, name, failing)
    try:
        return ranked.fit(rank, raises=False, **settings)
    finally:
        setattr(owner, name, original)


FAULTS = {
    "counting": (counting.Counter, "count"),
    "signal": (site_stats.SiteStatistics, "add_signal"),
    "gradients": (gradients, "l2_norms"),
    "updates": (updates, "_copy"),
    "schedule": (Schedule, "due"),
    "combining": (ranks_module, "assemble"),
    "rules": (Evaluator, "feed"),
}


def fit_counting_collectives(rank, **settings):
    """Train, and say in which batch the monitor's group was used for what."""
    used, batch = [], []

    def counted(name, original):
        def call(*args, group=None, **kwargs):
            if group is not None and group is not dist.group.WORLD:
                used.append((batch[-1] if batch else -1, name))
            return original(*args, group=group, **kwargs)

        return call

    class Batches(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch_, batch_idx):
            batch.append(batch_idx)

    originals = {name: getattr(dist, name) for name in ("all_reduce", "all_gather", "barrier", "broadcast")}
    for name, original in originals.items():
        setattr(dist, name, counted(name, original))
    try:
        return {**ranked.fit(rank, callbacks=[Batches], **settings), "collectives": used}
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


class Dies(Classifier):
    """Most units of a layer are killed before a step, on one rank as on the other."""

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 60:
            with torch.no_grad():
                self.net[0].bias[:7].fill_(-100.0)


class Jumps(Classifier):
    """The weights of the last layer become infinite before a step, on one rank as on the other."""

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 29:
            with torch.no_grad():
                self.net[-1].weight.mul_(float("inf"))


def fit_watched_on_rank_0(rank, *, patience, **settings):
    """Train with a callback on rank 0 only, which waits so long for the others."""
    original, exchange._TIMEOUT = exchange._TIMEOUT, timedelta(seconds=patience)
    try:
        return ranked.fit(rank, watched=rank == 0, **settings)
    finally:
        exchange._TIMEOUT = original


def sync_batch_norm(rank):
    """Say what torch does with a synchronised BatchNorm on a CPU."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=rank, world_size=2)
    norm = nn.SyncBatchNorm(4)
    try:
        norm(torch.randn(3, 4))
    except ValueError as error:
        return {"error": str(error)}


def fit_with_scaler(rank, **settings):
    """Train in mixed precision, with a gradient scaler, which Lightning itself has only on a device."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return ranked.fit(rank, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)], **settings)


def fit_with_lag(rank, *, lag, counted=False, **settings):
    """Train with exchanges as late as on a device; `counted`: and say in which batch there were some."""
    original = ranks_module.Ranks.__init__

    def lagging(self, *args, **kwargs):
        original(self, *args, **{**kwargs, "lag": lag})

    ranks_module.Ranks.__init__ = lagging
    try:
        return (fit_counting_collectives if counted else ranked.fit)(rank, **settings)
    finally:
        ranks_module.Ranks.__init__ = original


def error_of(rank, **settings):
    """Return the error that a fit ends with."""
    try:
        ranked.fit(rank, **settings)
    except Warning as error:
        return {"kind": type(error).__name__, "text": str(error)}


def fit_in_two_parts(rank, *, steps, folder):
    """Train half of the steps, save, and go on in another Trainer."""
    module = ranked.make("vanishing", "ddp", "sgd")
    data = ranked.loader(rank, 2, 8, parts=2)  # an epoch is one batch: Lightning would begin a cut one again
    path = f"{folder}/half.ckpt"
    for limit in (steps // 2, steps):
        watch = GradWatch(every_n_steps=1)
        run = trainer(folder, watch, devices=2, strategy="ddp", max_steps=limit, use_distributed_sampler=False)
        run.fit(module, data, ckpt_path=path if limit == steps else None, weights_only=False)
        if limit < steps:
            run.save_checkpoint(path)
    return ranked.seen(watch)


class Manual(Classifier):
    """Steps by hand, every `every` batches; on rank 1 it leaves out the step of batch `skipped`."""

    every, skipped = 1, None

    def __init__(self, *args):
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        optimizer = self.optimizers()
        loss = F.cross_entropy(self(x), y)
        self.manual_backward(loss)
        if (batch_idx + 1) % self.every == 0 and not (batch_idx == self.skipped and self.global_rank == 1):
            optimizer.step()
            optimizer.zero_grad()


class ManualEveryThird(Manual):
    every = 3


class ManualSkipping(Manual):
    skipped = 2


class OverriddenStep(Classifier):
    """An optimizer step that rank 1 leaves out, in an overridden hook of automatic optimization."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if batch_idx == 2 and self.global_rank == 1:
            optimizer_closure()
            return
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


class Unequal(Classifier):
    """Batches of another size on each rank."""

    def training_step(self, batch, batch_idx):
        rows = 4 if self.global_rank == 1 and batch_idx % 2 else 16
        return super().training_step([each[:rows] for each in batch], batch_idx)


class Failing(Classifier):
    """Code of the user's that fails on one rank."""

    at = 2

    def training_step(self, batch, batch_idx):
        if batch_idx == self.at and self.global_rank == 1:
            raise ZeroDivisionError("the user's own")
        return super().training_step(batch, batch_idx)


class FailingLater(Failing):
    at = 3


class Validated(ranked.Sharded):
    """With a validation pass, after which FSDP keeps the root's parameters whole."""

    def validation_step(self, batch, batch_idx):
        self.log("seen", self(batch[0]).sum(), sync_dist=True)

    def val_dataloader(self):
        return batches(1)


def probe_shards(rank):
    """Measure a step of a sharded net in a plain loop, where each process has a probe of its own."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=rank, world_size=2)
    seed()
    net = ranked.deep_net()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Probe(net, optimizer) as probe:
        F.cross_entropy(net(torch.randn(4, FEATURES)), torch.zeros(4, dtype=torch.long)).backward()
        optimizer.step()
    return {
        "record": ranked.plain(probe.record),
        "coverage": [(entry.name, entry.reason) for entry in probe.info.coverage],
        "used": [layer.used for layer in probe.info.layers],
        "roles": [site.role for site in probe.info.sites],
    }


class HalfParallel(ranked.Sharded):
    """A norm whose positions are split, so that its gradients are sums which nobody has added up."""

    def configure_model(self):
        plan = {
            "0": ColwiseParallel(),
            "2": RowwiseParallel(output_layouts=Shard(1)),
            "3": SequenceParallel(),
            "4": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
        }
        parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)

    def forward(self, x):
        return self.net(x.unsqueeze(1).expand(-1, 4, -1)).mean(1)


class Grid(ranked.Sharded):
    """Four ranks: two parts of the data, and two ranks that share each layer's work."""

    def configure_model(self):
        mesh = self.device_mesh
        parallelize_module(self.net, mesh["tensor_parallel"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        for child in self.net:
            if any(True for _ in child.parameters()):
                fully_shard(child, mesh=mesh["data_parallel"])
        fully_shard(self.net, mesh=mesh["data_parallel"])


class Hybrid(ranked.Sharded):
    """Four ranks: each parameter is split in two, and each part is on two ranks."""

    def configure_model(self):
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        fully_shard(self.net, mesh=mesh)


class Gather(torch.autograd.Function):
    """Puts the units of two ranks side by side; of the gradient each takes its own."""

    @staticmethod
    def forward(_, units):
        parts = [torch.empty_like(units) for _ in range(2)]
        dist.all_gather(parts, units.contiguous())
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(_, gradient):
        return gradient.chunk(2, dim=-1)[dist.get_rank()]


class HalfLinear(nn.Module):
    """This rank's half of the units of a layer, in tensors that don't say that they are halves."""

    def __init__(self, whole):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(each.detach().chunk(2)[dist.get_rank()].clone()) for each in (whole.weight, whole.bias)
        )
        self.weight.is_half = self.bias.is_half = True

    def forward(self, x):
        return Gather.apply(F.linear(x, self.weight, self.bias))


class SplitByHand(DDPStrategy):
    """Both ranks see all of the data and share the work on one layer, by collectives of the model's own."""

    def configure_ddp(self):
        """Leave the model as it is."""

    @property
    def distributed_sampler_kwargs(self):
        return {"num_replicas": 1, "rank": 0}


class Split(ranked.Sharded):
    def configure_model(self):
        if not isinstance(self.net[0], HalfLinear):
            self.net[0] = HalfLinear(self.net[0])


class ByMark(Shards):
    """Which parameters are halves is said by a mark on them."""

    def replicas(self, tensors):
        return [1 if hasattr(each, "is_half") else self.processes for each in tensors]


def fit_with_a_row_of_its_own(rank, **settings):
    """Train under a strategy that is known by one row more."""
    row = strategies.Strategy(("SplitByHand",), "Halves of a layer.", shards=ByMark)
    with (
        mock.patch.object(strategies, "STRATEGIES", (*strategies.STRATEGIES, row)),
        mock.patch.dict(ranked.STRATEGIES, {"by_hand": SplitByHand}),
        mock.patch.dict(ranked.PARTS, {"by_hand": {"parts": 1}}),
    ):
        return ranked.fit(rank, strategy="by_hand", kind=Split, **settings)
