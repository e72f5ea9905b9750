"""What we compute is seen by nobody: no function mode, tensor subclass or dispatch mode of the user's, no tracer of torch's.

Otherwise a counter of calls or of operations would count ours too, a class that allows only what its author needed would
refuse them, and a cache of operations (selective checkpointing) would hand the user one of our results for one of its own.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from collections.abc import Iterator

_AWAITED = "torch.distributed._functional_collectives"
"""Where torch has its class for what another rank is still sending: any operation waits for it, and then it is plain."""
PLAIN = (Tensor, nn.Parameter)
"""The types of tensors of which torch runs what is called on them, and nobody else."""

is_traced_by_jit = torch._C._is_tracing  # noqa: SLF001 - asked at each call: without the public one's frame
dispatch_modes = torch._C._len_torch_dispatch_stack  # noqa: SLF001 - they have no public name
function_modes = torch._C._len_torch_function_stack  # noqa: SLF001 - as above
_TRACING = tuple(getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL"))  # noqa: SLF001 - as above


def is_traced() -> bool:
    """Whether torch writes down what runs (``jit.trace``, export, ``make_fx``) or only pretends to run it."""
    return bool(is_traced_by_jit()) or (
        dispatch_modes() > 0 and any(torch._C._get_dispatch_mode(key) is not None for key in _TRACING)  # noqa: SLF001 - as above
    )


@contextmanager
def unobserved() -> Iterator[None]:
    """Hide what runs in the block from the user's modes and classes."""
    with torch._C.DisableTorchFunction():  # noqa: SLF001 - as above
        if not dispatch_modes():
            yield
            return
        with _disable_current_modes():
            yield


def is_opaque(tensor: Tensor) -> bool:
    """Whether a tensor is of a class that runs operations in its own way, so that its numbers are what it says they are.

    Such are quantised and compressed parameters, which stand for values that they don't hold. DTensors are told apart by
    `shards.placed`.
    """
    kind: Any = type(tensor)
    return (
        kind not in PLAIN and kind.__torch_dispatch__ is not Tensor.__torch_dispatch__ and kind.__module__ != _AWAITED
    )
