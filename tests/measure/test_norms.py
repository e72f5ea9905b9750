"""L2 norms against numpy in float64, over the whole range of floats (contract 4)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradwatch.measure.norms import l2_norm, l2_norms

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LENGTHS = [1, 2, 255, 256, 257, 1000, 32_767, 32_768, 32_769, 33_000, 70_001]


def reference(tensor):
    """Return the norm in numpy's float64, scaled so that no square is lost."""
    dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    if dense.is_complex():
        dense = torch.view_as_real(dense.resolve_conj())
    entries = np.abs(dense.to(torch.float64).numpy().ravel())
    largest = entries.max(initial=0.0)
    if largest == 0.0 or not np.isfinite(entries).all():
        return float(entries.sum())
    return float(largest * np.sqrt(np.sum((entries / largest) ** 2)))


def norms_of(*tensors):
    norms = l2_norms(tensors)
    assert (norms.dtype, norms.shape) == (torch.float64, (len(tensors),))
    assert not norms.requires_grad
    return norms.tolist()


def check(*tensors):
    for tensor, norm in zip(tensors, norms_of(*tensors), strict=True):
        assert norm == pytest.approx(reference(tensor), rel=1e-6, abs=0.0, nan_ok=True)
        assert l2_norm(tensor).item() == pytest.approx(norm, rel=1e-6, abs=0.0, nan_ok=True)


def entries(generator, length, low, high):
    """Return numbers of both signs, their magnitudes spread evenly over the decades from 10^low to 10^high."""
    return generator.choice([-1.0, 1.0], size=length) * 10 ** generator.uniform(low, high, size=length)


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_norms_are_those_of_a_float64_computation_from_1e45_to_1e38(data):
    generator = np.random.default_rng(data.draw(st.integers(0, 1000), "seed"))
    length = data.draw(st.sampled_from(LENGTHS), "length")
    low = data.draw(st.sampled_from([-45.0, -40.0, -30.0, -24.0, -20.0, -13.0, -10.0, -3.0, 0.0, 15.0, 30.0]), "low")
    high = data.draw(st.floats(low, 38.0), "high")
    dtype = data.draw(st.sampled_from(FLOATS[1:]), "dtype")
    values = entries(generator, length, low, high)
    pattern = data.draw(
        st.sampled_from(["mixed", "constant", "zero rows", "one large", "one in a thousand"]), "pattern"
    )
    if pattern == "constant":
        values[:] = values[0]
    elif pattern == "zero rows":
        values[np.arange(length) // 256 % 3 > 0] = 0.0
    elif pattern == "one large":
        values *= 1e-20
        values[length // 2] = 10**high
    elif pattern == "one in a thousand":
        values[np.arange(length) % 1000 > 0] = 0.0
    check(torch.from_numpy(values).to(dtype))


@pytest.mark.parametrize(
    "magnitude", [1e-45, 1e-43, 1e-38, 1e-30, 1e-24, 1e-20, 1e-19, 1e-15, 1e-13, 1.0, 1e17, 1e19, 1e25, 1e38]
)
@pytest.mark.parametrize("length", [1, 4096, 32_768, 40_000])
def test_a_constant_of_any_size_has_its_norm(magnitude, length):
    check(torch.full((length,), magnitude))


def test_rows_on_both_sides_of_what_float32_squares_hold_add_up():
    rows = torch.ones(400, 256)
    rows *= torch.logspace(-44, 38, 400)[:, None]
    for part in (rows, rows[:200], rows[:100], rows[-100:], rows[150:250]):
        check(part)


@pytest.mark.parametrize("length", [1, 1000, 32_768, 1_000_000])
@pytest.mark.parametrize("place", [0, -1])
def test_one_denormal_among_zeros_is_not_zero(length, place):
    tensor = torch.zeros(length)
    assert l2_norm(tensor).item() == 0.0
    tensor[place] = 1.4e-45
    assert l2_norm(tensor).item() == pytest.approx(float(np.float32(1.4e-45)), rel=1e-9)
    assert norms_of(tensor, torch.zeros(length)) == [pytest.approx(1.401298464324817e-45), 0.0]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_dtype_is_reduced_without_its_own_limits(dtype):
    largest, smallest = torch.finfo(dtype).max ** 0.9, torch.finfo(dtype).smallest_normal
    if dtype is torch.float64:
        largest, smallest = 1e38, 1e-45
    for length in (100, 32_768, 50_001):
        check(torch.full((length,), largest, dtype=dtype), torch.full((length,), smallest, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("length", [10, 40_000])
def test_a_complex_entry_counts_by_its_magnitude(dtype, length):
    tensor = torch.full((length,), 3e-24 + 4e-24j, dtype=dtype)
    assert l2_norm(tensor).item() == pytest.approx(5e-24 * math.sqrt(length), rel=1e-6)
    check(tensor, tensor.conj(), tensor.reshape(-1, 5).T)


def test_uncoalesced_sparse_entries_add_up_before_they_count():
    tensor = torch.sparse_coo_tensor([[0, 0, 2], [1, 1, 0]], [3.0, -3.0, 2.0], (4, 3), check_invariants=True)
    assert not tensor.is_coalesced()
    assert l2_norm(tensor).item() == 2.0
    indices, values = torch.randint(0, 50, (2, 40_000)), torch.randn(40_000) * 1e-30
    check(tensor, torch.sparse_coo_tensor(indices, values, (50, 50), check_invariants=True), torch.zeros(3).to_sparse())


LAYOUTS = {
    "transposed": lambda t: t.view(200, 200).T,
    "strided": lambda t: t[::3],
    "channels last": lambda t: t.view(4, 10, 25, 40).to(memory_format=torch.channels_last),
    "expanded": lambda t: t[:7, None].expand(7, 6000),
    "a view with an offset": lambda t: t[3:],
    "no axes": lambda t: t[0],
    "zero-size": lambda t: t[:0].view(0, 5),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
def test_the_layout_in_memory_does_not_matter(layout, magnitude):
    torch.manual_seed(0)
    check(LAYOUTS[layout](torch.randn(40_000) * magnitude))


@pytest.mark.parametrize("length", [5, 40_000])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", [0, 4])
def test_nan_and_infinity_reach_the_norm_of_their_tensor_only(length, value, place):
    bad, good = torch.ones(length), torch.ones(length)
    bad[place - length % 256] = value
    norms = norms_of(bad, good)
    assert math.isnan(norms[0]) if math.isnan(value) else norms[0] == math.inf
    assert norms[1] == pytest.approx(math.sqrt(length))


def test_what_overflows_float32_as_a_norm_does_not_become_infinity():
    check(torch.full((1_000_000,), 3e38), torch.full((100,), 3e38))


def test_long_short_and_odd_tensors_keep_their_order():
    check(
        torch.full((40_000,), 1e-25), torch.ones(3), torch.zeros(40_000), torch.full((2, 2), 1e30),
        torch.ones(40_000, dtype=torch.float64), torch.zeros(0), torch.ones(50_000, dtype=torch.bfloat16),
    )  # fmt: skip


def test_the_tensors_and_their_graph_are_left_alone():
    tensor = torch.randn(40_000, requires_grad=True) * 1e-20
    before, node = tensor.detach().clone(), tensor.grad_fn
    l2_norms([tensor, tensor])
    assert torch.equal(tensor, before)
    assert tensor.grad_fn is node
    assert tensor._version == 0
