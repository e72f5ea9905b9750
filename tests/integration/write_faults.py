"""One short fit whose logs meet a disaster at some step: what became of it, with and without the monitor."""

from __future__ import annotations

import contextlib
import csv
import errno
import gc
import importlib
import os
import re
import resource
import shutil
import signal
import subprocess
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from integration.nets import Classifier, batches, relu_net, seed, trainer
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.plugins.environments import SLURMEnvironment
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch.nn import functional as F

from lightning_gradwatch import GradWatch, GradWatchWarning, read_run
from lightning_gradwatch.judge.run import RunError

STEPS = 24
AT = 12
"""The step at whose start a disaster strikes."""


class Module(Classifier):
    """Gets a signal in mid-step, where one is given."""

    def __init__(self, *, logs, signum):
        super().__init__(relu_net(), lambda parameters: torch.optim.Adam(parameters, lr=0.01))
        self.logs, self.signum = logs, signum

    def training_step(self, batch, batch_idx):
        if self.signum is not None and self.global_step == AT:
            os.kill(os.getpid(), self.signum)
        loss = F.cross_entropy(self(batch[0]), batch[1])
        if self.logs:
            self.log("loss", loss)
        return loss


class Cloud(Logger):
    """As W&B's: what it is given goes elsewhere, over a file of its own that is opened each time."""

    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder) / "cloud"
        self.folder.mkdir(exist_ok=True)

    name, version = "cloud", 0

    @property
    def save_dir(self):
        return str(self.folder)

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        with (self.folder / "sent").open("a") as file:
            file.write(f"{step} {sorted(metrics.items())}\n")


LOGGERS = {
    "none": lambda folder: False,
    "tensorboard": lambda folder: TensorBoardLogger(folder, name="", version="tb"),
    "csv": lambda folder: CSVLogger(folder, name="", version="csv"),
    "cloud": Cloud,
    "several": lambda folder: [
        CSVLogger(folder, name="", version="csv"),
        TensorBoardLogger(folder, name="", version="tb"),
    ],
}


class Disaster(pl.Callback):
    """Strikes once; stands before the monitor in the Trainer."""

    def __init__(self, strike, folder, at):
        self.strike, self.folder, self.at = strike, folder, at

    def on_fit_start(self, trainer, module):
        if self.at < 0:
            self.strike(self.folder)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.at and self.strike is not None:
            self.strike(self.folder)


def fill_disk(folder):
    """Fill it to the last byte."""
    with contextlib.suppress(OSError), (folder.parent / "filling").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def nearly_fill_disk(folder):
    """Leave others what a few events of theirs take."""
    found = os.statvfs(folder)
    (folder.parent / "filling").write_bytes(bytes(found.f_bavail * found.f_frsize - 40_000))


def delete(folder):
    shutil.rmtree(folder)


def delete_files(folder):
    for path in [each for each in folder.rglob("*") if each.is_file()]:
        path.unlink()


def replace_files(folder):
    for path in [each for each in folder.rglob("*tfevents*") if each.is_file()]:
        path.unlink()
        path.write_bytes(b"")


def move(folder):
    folder.rename(folder.with_name("moved"))


def take_handles(folder):
    """Take all that are left."""
    with contextlib.suppress(OSError):
        while True:
            _HELD.append(os.open(os.devnull, os.O_RDONLY))


_HELD = []


def freeze(folder):
    """Let nothing be made in any folder, and no file be written to."""
    subprocess.run(["chattr", "-R", "+i", str(folder)], check=True, capture_output=True)


def thaw(folder):
    subprocess.run(["chattr", "-R", "-i", str(folder)], check=False, capture_output=True)


DISASTERS = {
    "nothing": None,
    "full disk": fill_disk,
    "nearly full disk": nearly_fill_disk,
    "deleted folder": delete,
    "deleted files": delete_files,
    "replaced files": replace_files,
    "moved folder": move,
    "no handles": take_handles,
    "read-only folder": freeze,
}


@contextlib.contextmanager
def signalled_inside(place, signum):
    """Send this process a signal when a function of ours is called for the record of step `AT`."""
    module, _, name = place.rpartition(".")
    home = importlib.import_module(module)
    real, calls = getattr(home, name), []

    def struck(*args, **kwargs):
        calls.append(None)
        if len(calls) == AT:
            os.kill(os.getpid(), signum)
        return real(*args, **kwargs)

    setattr(home, name, struck)
    try:
        yield
    finally:
        setattr(home, name, real)


def slurm(root):
    """Let this process be a job of SLURM's, whose command does nothing."""
    command = root / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\nexit 0\n")
    command.chmod(0o755)
    job = {"JOB_ID": "7", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "train"}
    os.environ.update({f"SLURM_{name}": value for name, value in job.items()})
    os.environ["PATH"] = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return [SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR1)]


def fit(
    root,
    kind,
    *,
    watched,
    logs,
    disaster="nothing",
    at=AT,
    limit=None,
    handles=None,
    logger=None,
    signum=None,
    inside=None,
    way="always",
):
    """Train below a folder; return all that can be told of it afterwards.

    Args:
        root: The folder.
        kind: Which loggers.
        watched: With the monitor.
        logs: Whether the module logs its loss.
        disaster: What happens.
        at: When.
        limit: The largest file.
        handles: The most handles.
        logger: In the place of `kind`'s.
        signum: Sent in the middle of step `AT`, or when a function of ours is called there.
        inside: That function.
        way: What is made of warnings.
    """
    folder = Path(root) / "logs"
    folder.mkdir(parents=True)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    if handles is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (handles, handles))
    seed()
    watch = GradWatch(every_n_steps=1)
    module = Module(logs=logs, signum=signum if inside is None else None)
    run = trainer(
        folder,
        Disaster(DISASTERS[disaster], folder, at),
        *([watch] if watched else []),
        max_steps=STEPS,
        logger=LOGGERS[kind](folder) if logger is None else logger(folder),
        log_every_n_steps=1,
        plugins=slurm(Path(root)) if signum == signal.SIGUSR1 else None,
    )
    handles_before = _event_files_open()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter(way, GradWatchWarning)
        try:
            with signalled_inside(inside, signum) if inside is not None else contextlib.nullcontext():
                run.fit(module, batches(STEPS, shuffle=True))
            end = "ended"
        except BaseException as error:  # noqa: BLE001 - that it is the same as without the monitor is what is tested
            end = re.sub(r"tfevents[0-9.a-z-]+", "tfevents", f"{type(error).__name__}: {error}")
    for handle in _HELD:
        os.close(handle)
    _HELD.clear()
    thaw(folder)
    gc.collect()
    return {
        "end": end,
        "steps": run.global_step,
        "weights": {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()},
        "logged": users_numbers(folder if folder.exists() else folder.with_name("moved")),
        "warnings": [str(each.message) for each in caught if issubclass(each.category, GradWatchWarning)],
        "others": [str(each.message) for each in caught if each.category is ResourceWarning],
        "measured": [record.step for record in watch.records],
        "coverage": [each.reason for each in watch.coverage],
        "stored": stored_steps(folder),
        "open": _event_files_open() - handles_before,
    }


def users_numbers(folder):
    """Return what the user's own code logged and is there."""
    found = {}
    for path in sorted(folder.rglob("*tfevents*")) if folder.exists() else ():
        if "gradwatch" in path.parts:
            continue
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if not value.tag.startswith("gradwatch"):
                    found.setdefault(f"tensorboard {value.tag}", []).append(
                        (event.step, value.tensor.SerializeToString())
                    )
    for path in sorted(folder.rglob("metrics.csv")):
        rows = list(csv.DictReader(path.open()))
        found["csv"] = [(row["step"], row["loss"]) for row in rows if row.get("loss")]
    for path in sorted(folder.rglob("sent")):
        found["cloud"] = [line for line in path.read_text().splitlines() if "'loss'" in line]
    return {name: numbers for name, numbers in found.items() if numbers}


def stored_steps(folder):
    """Return the steps of what can be read of ours, by where it lies."""
    found = {}
    for path in {each.parent for each in folder.rglob("*tfevents*")}:
        try:
            run = read_run(path)
        except RunError as error:
            found[path.name] = str(error)
        else:
            found[path.name] = [record.step for record in run.records] + [*run.problems]
    return found


def _event_files_open():
    count = 0
    for handle in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += "tfevents" in str(handle.readlink())
    return count


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a disk of so many bytes.

    Raises:
        OSError: this user may not.
    """
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise OSError(errno.EPERM, done.stderr)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
