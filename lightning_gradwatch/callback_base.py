"""What a callback of ours starts from: the Callback of every installed Lightning package at once, and harmless hooks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from lightning_gradwatch.findings import GradWatchError, GradWatchWarning
from lightning_gradwatch.measure.faults import GivenUp

if TYPE_CHECKING:
    from pytorch_lightning import Callback

    class AnyCallback(Callback):
        """As far as types go, one package is enough."""

    from lightning_gradwatch.measure.faults import Faults
else:

    def _find_bases() -> tuple[type, ...]:
        """Return the Callback class of each package there is: each package's Trainer accepts only its own."""
        bases = []
        for name in ("lightning.pytorch", "pytorch_lightning"):
            try:
                bases.append(importlib.import_module(name).Callback)
            except ImportError:
                continue
        if not bases:
            raise ImportError("GradWatch needs PyTorch Lightning: pip install pytorch-lightning (or lightning)")
        return tuple(bases)

    class AnyCallback(*_find_bases()):
        """What a callback for any of the packages derives from."""


_Hook = TypeVar("_Hook", bound=Callable[..., None])


class _Guarded(Protocol):
    """What a guarded hook's callback has."""

    _faults: Faults

    def _release(self) -> None:
        """Take away what a measured batch puts in place."""

    def _stop(self) -> None:
        """End the fit's monitoring."""


def guarded(hook: _Hook) -> _Hook:
    """Make a hook harmless: a fault in it switches the monitor off for this fit, and training goes on."""

    @wraps(hook)
    def harmless(self: _Guarded, *args: Any, **kwargs: Any) -> None:
        if not self._faults.on("schedule"):
            return
        try:
            hook(self, *args, **kwargs)
        except (GradWatchError, GradWatchWarning):
            self._release()
            raise
        except GivenUp as reason:
            self._stop()
            self._faults.give_up(reason)
        except Exception as error:  # noqa: BLE001 - contract: a monitor never breaks training; it is reported
            self._stop()
            self._faults.report("schedule", error)

    return cast("_Hook", harmless)
