"""Puts a module and the random generators back to where a check found them."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def generators_restored() -> Iterator[None]:
    """Restore the global generators of Python, numpy and torch (on all devices in use)."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's code may use the old one
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002 - as above


@contextmanager
def module_restored(module: nn.Module) -> Iterator[None]:
    """Restore parameters, gradients, buffers (those no checkpoint has too), modes and device.

    In place, so that optimizers, views and ties keep holding what they held. What a module keeps in other attributes
    isn't restored, nor are parameters that are created lazily or replaced by others.
    """
    undo = [_mode(part) for part in module.modules()]
    undo += [
        _buffer(part, name, buffer)
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if not nn.parameter.is_lazy(buffer)
    ]
    undo += [_parameter(each) for each in module.parameters() if not nn.parameter.is_lazy(each)]
    devices = {tensor.device for tensor in module.parameters()}
    try:
        yield
    finally:
        if len(devices) == 1:
            module.to(devices.pop())
        with torch.no_grad():
            for step in undo:
                step()


def _mode(part: nn.Module) -> Callable[[], None]:
    training = part.training

    def restore() -> None:
        part.training = training

    return restore


def _buffer(part: nn.Module, name: str, buffer: Tensor) -> Callable[[], None]:
    kept = buffer.detach().clone()

    def restore() -> None:
        if getattr(part, name) is not buffer:
            setattr(part, name, buffer)
        buffer.resize_(kept.shape).copy_(kept)

    return restore


def _parameter(parameter: nn.Parameter) -> Callable[[], None]:
    kept, trained = parameter.detach().clone(), parameter.requires_grad
    gradient: Any = parameter.grad
    kept_gradient = None if gradient is None else gradient.detach().clone()

    def restore() -> None:
        parameter.requires_grad_(trained)
        parameter.copy_(kept)
        parameter.grad = gradient
        if gradient is not None:
            gradient.copy_(kept_gradient)

    return restore
