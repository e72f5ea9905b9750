"""What GradWatch costs: ratios to the plain step, all kinds of step interleaved in one fit of a real Trainer.

    python benchmarks/overhead.py [--nets mlp small cnn transformer] [--rounds 30] [--peers]

A round is one step of each kind, in turn, so that a slow moment of the machine hits all of them. Timed is what a user
waits for: from the first callback's `on_train_batch_start` to the last one's `on_train_batch_end`, with the transfer, the
rules and the event file. "plain" leaves out every hook of the callback, "idle" runs them on a step that isn't measured,
"watched" counts units alone, as in the first steps and after some seem to have died.
TensorBoard writes in a thread of its own, which takes its time from the step after; so what a plain step that follows a
measured one takes longer than usual counts as the measured one's. "idle hooks" is the time inside our own hooks in an idle
step: differences of whole steps are noisier than that.

With `--peers` there are columns for Lightning's own grad_norm and, where wandb is installed, for `wandb.watch`.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from nets import NETS
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch

KINDS = ("plain", "idle", "watched", "after watched", "gradients", "after gradients", "all", "after all")
MEASURED = ("watched", "gradients", "all")
PEERS = ("Lightning grad_norm", *(["wandb.watch"] if importlib.util.find_spec("wandb") else []))
EVERY_N_STEPS = 50


class Module(pl.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class Clock(pl.Callback):
    """Times each batch, as the outermost of the callbacks; the checkpoint hooks of Lightning are off."""

    def __init__(self, kinds, warm_up):
        self.kinds = kinds
        self.warm_up = warm_up
        self.seconds = defaultdict(list)
        self.started = 0.0

    def kind(self, batch_idx):
        return self.kinds[batch_idx % len(self.kinds)]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.started = time.perf_counter()

    def stop(self, batch_idx):
        if batch_idx >= self.warm_up:
            self.seconds[self.kind(batch_idx)].append(time.perf_counter() - self.started)


class Stop(pl.Callback):
    def __init__(self, clock):
        self.clock = clock

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.clock.stop(batch_idx)


class Switched(GradWatch):
    """GradWatch, told by the clock what kind of step each one is."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.current = "plain"
        self.in_hooks = []
        """Seconds inside the hooks of each idle step."""

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        schedule = self._fit._schedule
        due = schedule.due  # asked all the same, as it is part of what an idle step costs
        schedule.due = lambda step, *, confirming: [due(step, confirming=confirming)] and self.current in MEASURED[1:]
        schedule.fills_windows = lambda: False
        schedule.looks = lambda step, wanted: self.current == "watched"

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.current = self.clock.kind(batch_idx)
        self._rest = 2 if self.current == "idle" else 0  # as nearly all steps that aren't measured
        self._faults.reasons.clear()
        if self.current == "gradients":
            self._faults.reasons.update(activations="benchmark", signal="benchmark", updates="benchmark")
        if self.current == "idle":
            self.in_hooks.append(0.0)
        self._call("on_train_batch_start", trainer, pl_module, batch, batch_idx)

    def _call(self, hook, *arguments):
        if self.current == "idle":
            own = getattr(super(), hook)
            started = time.perf_counter()
            own(*arguments)
            self.in_hooks[-1] += time.perf_counter() - started
        elif self.current in MEASURED:
            getattr(super(), hook)(*arguments)

    def on_before_backward(self, *arguments):
        self._call("on_before_backward", *arguments)

    def on_after_backward(self, *arguments):
        self._call("on_after_backward", *arguments)

    def on_before_optimizer_step(self, *arguments):
        self._call("on_before_optimizer_step", *arguments)

    def on_train_batch_end(self, *arguments):
        self._call("on_train_batch_end", *arguments)


class LightningGradNorm(pl.Callback):
    """Lightning's own `grad_norm`, read at each step of its kind."""

    def __init__(self, clock):
        self.clock = clock
        self.batch_idx = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch_idx = batch_idx

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.clock.kind(self.batch_idx) == "Lightning grad_norm":
            for value in pl.utilities.grad_norm(pl_module, norm_type=2).values():
                float(value)


class WandbWatch(pl.Callback):
    """`wandb.watch` of everything, on for the steps of its kind alone; before the clock, so that switching isn't timed."""

    def __init__(self, clock, folder):
        import wandb  # noqa: PLC0415 - an optional peer

        self.clock = clock
        self.run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True))
        self.watched = False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        wanted = self.clock.kind(batch_idx) == "wandb.watch"
        if wanted and not self.watched:
            self.run.watch(pl_module, log="all", log_freq=1)
        elif self.watched and not wanted:
            self.run.unwatch(pl_module)
        self.watched = wanted

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.watched:
            self.run.log({"loss": float(outputs["loss"])})

    def teardown(self, trainer, pl_module, stage):
        self.run.finish()


@contextmanager
def quiet():
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning_gradwatch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def fit(name, rounds, kinds, folder):
    """Return the seconds of each kind of step, and those inside our hooks of each idle one."""
    torch.manual_seed(0)
    net, x = NETS[name]()
    steps = (rounds + 2) * len(kinds)
    clock = Clock(kinds, warm_up=2 * len(kinds))
    watch = Switched(clock)
    callbacks = [clock, watch]
    if "Lightning grad_norm" in kinds:
        callbacks.append(LightningGradNorm(clock))
    if "wandb.watch" in kinds:
        callbacks.insert(0, WandbWatch(clock, folder))
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[*callbacks, Stop(clock)],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader(TensorDataset(x.repeat(steps, *[1] * (x.dim() - 1))[: steps * len(x)]), len(x))
    trainer.fit(Module(net), data)
    return clock.seconds, watch.in_hooks


def peak_bytes(step, baseline):
    """Return the most that is allocated during a step, by torch's own profiler.

    The profiler sees changes only, so what was there before (weights, their old gradients, the optimizer's state) is
    handed in.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = baseline
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def memory(name):
    """Return the peak of a measured step over that of a plain one."""
    from lightning_gradwatch import Probe  # noqa: PLC0415 - only here

    torch.manual_seed(0)
    net, x = NETS[name]()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)

    def step():
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    probe = Probe(net, optimizer)

    def measured():
        with probe:
            step()

    step()
    measured()
    step()
    held = [x, *net.parameters(), *(parameter.grad for parameter in net.parameters())]
    held += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    baseline = sum(tensor.numel() * tensor.element_size() for tensor in held)
    return peak_bytes(measured, baseline) / peak_bytes(step, baseline)


def ratios(seconds, kind):
    extra = [other - plain for other, plain in zip(seconds[kind], seconds["plain"], strict=True)]
    if kind in MEASURED:
        after = zip(seconds[f"after {kind}"], seconds["plain"], strict=True)
        extra = [here + later - plain for here, (later, plain) in zip(extra, after, strict=True)]
    return sorted(1 + more / plain for more, plain in zip(extra, seconds["plain"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--peers", action="store_true", help=f"add what others cost at each step: {', '.join(PEERS)}")
    options = parser.parse_args()
    kinds = (*KINDS, *PEERS) if options.peers else KINDS
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}, pytorch-lightning {pl.__version__}"
    )
    print(f"medians of {options.rounds} paired ratios to the plain step [quartiles]\n")
    columns = [kind for kind in kinds[1:] if not kind.startswith("after")]
    header = ["net", "plain, ms", *columns, f"amortised over {EVERY_N_STEPS}", "idle hooks, µs", "peak memory"]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for name in options.nets:
        with quiet(), tempfile.TemporaryDirectory() as folder:
            seconds, in_hooks = fit(name, options.rounds, kinds, folder)
            peak = memory(name)
        plain = statistics.median(seconds["plain"])
        cells = [name, f"{plain * 1e3:.2f}"]
        for kind in columns:
            found = ratios(seconds, kind)
            low, _, high = statistics.quantiles(found, n=4)
            cells.append(f"{statistics.median(found):.3f} [{low:.3f}, {high:.3f}]")
        extra = statistics.median(ratios(seconds, "all")) - 1
        cells += [f"{extra / EVERY_N_STEPS:+.2%}", f"{statistics.median(in_hooks) * 1e6:.1f}", f"{peak:.3f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
