"""L2 norms that are right over the whole range of floats, at nearly the price of float32.

Squares of float32 entries below 1e-19 underflow and above 1e19 overflow, so a plain float32 norm reads 0 for 4,096
entries of 1e-24. float64 is right but costs five to twenty times as much on a CPU. So on a CPU long tensors are reduced
in float32 in short rows (whose rounding stays below 1e-7), the rows are combined in float64, and only rows that left
the safe range, in a tensor where they can matter, are done again in float64. All of it stays on the device: choosing
the rows is a masked selection, never a number that Python reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

vector_norm: Callable[..., Tensor] = torch.linalg.vector_norm
_ROW = 256
"""Entries in a row: at most 32 additions in a SIMD lane, so a relative error below 32 x 2^-24 / 2 even in the worst case."""
_LONG = 32_768
"""Entries from which two short passes are cheaper than one in float64 (measured on a CPU)."""
_ROW_FLOOR = 1e-13
"""A row norm below this may have lost squares to underflow: 256 x 1.2e-38 is then more than 1e-7 of its square."""
_ROW_CEILING = 1e18
_MEAN_FLOOR = 3.2e-10
"""A tensor whose rows' rms is above this can ignore rows below the floor: (1e-13 / 3.2e-10)^2 < 1e-7."""


def l2_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of each tensor as float64[N], on their device.

    Within 1e-6 relative of a float64 computation for entries from 1e-45 to 1e38; 0 only where every entry is 0 (for
    dtypes of up to 32 bits, as the square of every such entry is a normal float64). NaN and infinity propagate. Sparse,
    complex and zero-size tensors are fine.

    Small ones aren't stacked, though that takes fewer operations: the system hands out memory of such a size page by
    page, at each step anew, which takes longer than all of this.

    Raises:
        RuntimeError: the tensors are on several devices, or there are none.
    """
    with torch.no_grad():
        plain = [tensor if _is_plain(tensor) else _plain(tensor) for tensor in tensors]
        by_rows = [_takes_rows(tensor) for tensor in plain]
        at_once = [tensor for tensor, alone in zip(plain, by_rows, strict=True) if not alone]
        fused = iter(torch._foreach_norm(at_once, 2, torch.float64) if at_once else ())  # noqa: SLF001 - the one fused reduction; torch's own clipping calls it
        return torch.stack(
            [_norm_by_rows(tensor) if alone else next(fused) for tensor, alone in zip(plain, by_rows, strict=True)]
        )


def l2_norm(tensor: Tensor) -> Tensor:
    """Return the L2 norm of one tensor, as a float64 scalar on its device; accurate as `l2_norms` is."""
    if tensor.dtype is torch.float32 and tensor.layout is torch.strided and tensor.numel() < _LONG:
        # The usual small tensor, of which a deep net has hundreds, in as few calls as there are.
        return vector_norm(tensor.detach(), dtype=torch.float64)
    tensor = _plain(tensor.detach())
    return _norm_by_rows(tensor) if _takes_rows(tensor) else vector_norm(tensor, dtype=torch.float64)


def l2_norms_of_rows(stack: Tensor) -> Tensor:
    """Return the L2 norms of N small tensors that are the rows of one, as float64[N]; accurate as `l2_norms` is."""
    return vector_norm(stack.flatten(1), dim=1, dtype=torch.float64)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_complex()


def _plain(tensor: Tensor) -> Tensor:
    """Return dense real entries with the same L2 norm."""
    if tensor.layout is not torch.strided:
        # Uncoalesced entries that share an index add up before they count.
        tensor = tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor


def _takes_rows(tensor: Tensor) -> bool:
    return (
        tensor.numel() >= _LONG
        and tensor.device.type == "cpu"
        and tensor.dtype is not torch.float64
        and tensor.is_contiguous()
    )


def _norm_by_rows(tensor: Tensor) -> Tensor:
    flat = tensor.view(-1)
    whole = flat.numel() // _ROW * _ROW
    rows = flat[:whole].view(-1, _ROW)
    narrow = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
    norms = narrow.double()
    total = torch.linalg.vector_norm(norms)
    floor = (total < _MEAN_FLOOR * norms.numel() ** 0.5) * _ROW_FLOOR
    # Written so that NaN counts as unsafe, and so that no row does in a tensor of ordinary size.
    unsafe = ~((norms >= floor) & (norms < _ROW_CEILING))
    norms[unsafe] = torch.linalg.vector_norm(rows[unsafe], dim=1, dtype=torch.float64)
    if whole < flat.numel():
        norms = torch.cat((norms, torch.linalg.vector_norm(flat[whole:], dtype=torch.float64).reshape(1)))
    norm: Tensor = torch.linalg.vector_norm(norms)
    return norm
