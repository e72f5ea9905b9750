"""Contract 5: one transfer a measured step, none inside a hook, and nothing at all between measured steps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from integration.nets import Classifier, Everything, Gan, batches, seed, trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_gradwatch
from lightning_gradwatch import GradWatch

OURS = str(Path(lightning_gradwatch.__file__).parent)
READS = ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__", "__len__")


def called_by_us():
    """Return the innermost function of this package that is running; None if the caller is somebody else's code."""
    frame = sys._getframe(2)
    while frame is not None and "torch" in Path(frame.f_code.co_filename).parts:
        frame = frame.f_back
    inside = frame is not None and frame.f_code.co_filename.startswith(OURS)
    return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}" if inside else None


@pytest.fixture
def reads(monkeypatch):
    """Every read of a tensor's values from our code: the function that reads, and how."""
    found = []

    def counted(name, original):
        def read(self, *args, **kwargs):
            caller = called_by_us()
            # A length is a shape's, except that of a 0-d tensor; numpy arrays made from host tensors are no transfer.
            if caller is not None and name != "__len__":
                found.append((caller, name))
            return original(self, *args, **kwargs)

        return read

    for name in READS:
        monkeypatch.setattr(Tensor, name, counted(name, getattr(Tensor, name)))
    return found


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda: Classifier(Everything()), {}),
        (lambda: Classifier(Everything()), {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}),
        (Gan, {}),
    ],
    ids=["plain", "accumulation-and-clipping", "two-optimizers"],
)
def test_one_transfer_a_measured_step(make, settings, tmp_path, reads):
    seed()
    watch = GradWatch(every_n_steps=1)
    trainer(tmp_path, watch, max_steps=6, **settings).fit(make(), batches())
    steps = len(watch.records)
    assert steps == (3 if make is Gan else 6)
    # `numpy` is of the tensor that has arrived; it copies nothing.
    assert reads.count(("host.send", "cpu")) == steps
    assert set(reads) <= {("host.send", "cpu"), ("host.wait", "numpy")}


def test_a_step_of_activations_only_has_one_transfer_too(tmp_path, reads):
    watch = GradWatch(every_n_steps=100)
    trainer(tmp_path, watch, max_steps=20).fit(Classifier(Everything()), batches())
    assert len(watch.records) == 6  # 0, 1, 2, 4, 8, 16
    assert reads.count(("host.send", "cpu")) == 20
    assert set(reads) <= {("host.send", "cpu"), ("host.wait", "numpy")}


class Operations(TorchDispatchMode):
    """Every operation that our code runs, and every read of one value (`_local_scalar_dense`)."""

    def __init__(self):
        super().__init__()
        self.ours = []
        self.scalars = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        caller = called_by_us()
        if caller is not None:
            self.ours.append((caller, str(func)))
            if "_local_scalar_dense" in str(func) or "nonzero" in str(func):
                self.scalars.append((caller, str(func)))
        return func(*args, **(kwargs or {}))


def test_unmeasured_steps_run_no_operation_of_ours(tmp_path):
    """The window is full and nothing is due: 9, 17 … are plain steps."""
    operations = {}

    class Counts(GradWatch):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.mode = Operations()
            self.mode.__enter__()
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self.mode.__exit__(None, None, None)
            operations[batch_idx] = self.mode

    seed()
    watch = Counts(every_n_steps=1000)
    trainer(tmp_path, watch, max_steps=12).fit(Classifier(), batches(12, 1024))
    assert [record.step for record in watch.records] == [0, 1, 2, 4, 8]
    for step, mode in operations.items():
        assert bool(mode.ours) is (step in (0, 1, 2, 4, 8)), (step, mode.ours)
        assert mode.scalars == []


@pytest.fixture
def peek():
    """Return a function that reads a tensor and seems to stand in this package."""

    def peek(tensor):
        return tensor.item(), bool(tensor)

    peek.__code__ = peek.__code__.replace(co_filename=f"{OURS}/peeking.py")
    return peek


def test_a_read_by_us_is_counted_and_one_by_others_is_not(reads, peek):
    """The tests above can fail."""
    one = torch.ones(())
    assert float(one) == 1.0
    assert reads == []
    peek(one)
    assert reads == [("peeking.peek", "item"), ("peeking.peek", "__bool__")]


def test_an_operation_by_us_is_counted_and_one_by_others_is_not(peek):
    one = torch.ones(())
    with Operations() as operations:
        float(one + one)
        assert operations.ours == []
        peek(one)
    assert len(operations.scalars) == 2
