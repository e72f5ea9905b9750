"""Counts against a plain numpy recount in float64, in every layout and dtype, on both ways through the code."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from measure.recount import CASES, DTYPES, NoReadBack, near_the_bounds, recount

from lightning_gradwatch.measure.trace.identify import identify
from lightning_gradwatch.measure.units import counting
from lightning_gradwatch.measure.units.counting import Counter, counter

SHAPES = [((3000,), 0), ((600, 5), 1), ((5, 600), 0), ((6, 4, 90), 1), ((3, 2, 9, 11), -3), ((2, 3, 4, 5, 6), 4)]


@pytest.fixture(params=["few operations", "blocks", "one block"])
def way(request, monkeypatch):
    """Send small tensors through the code for large ones too."""
    if request.param != "few operations":
        monkeypatch.setattr(counting, "_LARGE", 0)
    if request.param == "blocks":
        monkeypatch.setattr(counting, "_BLOCK", 7)
        monkeypatch.setattr(counting, "_BYTES", 3)
        monkeypatch.setattr(counting, "_WIDE", 5)


def summed(counts, places, wanted):
    """Return what the regions at some places add up to; None where there are none."""
    assert all(found.dtype == torch.int32 and not found.requires_grad for found in counts)
    return sum(counts[place] for place in places) if wanted else None


def count(call, z, axis):
    """Return observations of each unit, inactive and saturated ones a unit, None for a function without fractions."""
    own = Counter(call.zones, z.dtype, z.dim(), axis)
    if not own.judges:
        return None
    counts = own.count(z)
    inactive, saturated = (summed(counts, places, places) for places in (own.inactive, own.saturated))
    return SimpleNamespace(observations=own.seen(z)[0], inactive=inactive, saturated=saturated)


def check(name, z, axis):
    make, inactive, saturated = CASES[name]
    counts = count(make(z), z, axis)
    assert counts.observations == (z.numel() // z.shape[axis] if z.shape[axis] else 0)
    for found, rule in ((counts.inactive, inactive), (counts.saturated, saturated)):
        if rule is None:
            assert found is None
        else:
            np.testing.assert_array_equal(found.numpy(), recount(rule, z, axis))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_counts_are_those_of_a_float64_recount(name, dtype, way):
    for shape, axis in SHAPES:
        check(name, near_the_bounds(shape, dtype), axis)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_counts_are_right_in_every_layout(data):
    shape = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=5), "shape")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    z = near_the_bounds(shape, dtype, data.draw(st.integers(0, 100), "seed"))
    z = z.permute(data.draw(st.permutations(range(len(shape))), "order"))
    z = z[tuple(slice(None, None, data.draw(st.integers(1, 2), "stride")) for _ in shape)]
    axis = data.draw(st.integers(-z.dim(), z.dim() - 1), "axis")
    name = data.draw(st.sampled_from(sorted(CASES)), "function")
    check(name, z, axis)
    if z.numel():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(counting, "_LARGE", 0)
            patch.setattr(counting, "_BLOCK", data.draw(st.integers(1, 500), "block"))
            patch.setattr(counting, "_BYTES", data.draw(st.integers(1, 128), "bytes"))
            patch.setattr(counting, "_WIDE", data.draw(st.integers(1, 64), "wide"))
            check(name, z, axis)


@pytest.mark.parametrize(
    ("shape", "axis"), [((1100, 257), 1), ((9000, 33), 1), ((70000, 2), 1), ((300, 3, 17, 19), 1), ((1, 5, 200, 200), 1), ((600, 500), 0)]
)  # fmt: skip
@pytest.mark.parametrize("value", [-9.0, None])
def test_large_tensors_count_right_past_what_a_byte_holds(shape, axis, value):
    z = torch.full(shape, value) if value is not None else near_the_bounds(shape, torch.float32)
    for name in ("relu", "sigmoid", "relu6"):
        check(name, z, axis)


def test_channels_last_memory_is_counted_without_a_copy(way, monkeypatch):
    z = near_the_bounds((3, 4, 5, 6), torch.float32).to(memory_format=torch.channels_last)
    monkeypatch.setattr(torch.Tensor, "contiguous", None)
    check("relu", z, 1)


def test_a_number_without_axes_is_one_unit_observed_once(way):
    z = torch.tensor(-1.0)
    counts = count(identify(F.relu, (z,), {}), z, 0)
    assert (counts.observations, counts.inactive.tolist()) == (1, [1])


@pytest.mark.parametrize(("dim", "axis", "units"), [(-1, 2, 4), (2, -1, 4), (1, 2, 8), (0, 0, 1), (-1, 0, 2)])
def test_glu_is_judged_by_its_gate(dim, axis, units, way):
    z = torch.full((2, 6, 8), 9.0, requires_grad=True)
    gate = z.detach().chunk(2, dim)[1]
    gate.copy_(near_the_bounds(gate.shape, torch.float32))
    counts = count(identify(F.glu, (z, dim), {}), z, axis)
    assert (len(counts.saturated), counts.observations) == (units, 48 // units)
    np.testing.assert_array_equal(counts.saturated.numpy(), recount(lambda u: abs(u) > 4, gate, axis))


def test_softmax_is_not_counted():
    z = torch.randn(3, 4)
    assert count(identify(torch.softmax, (z, 1), {}), z, 1) is None


def test_a_function_that_can_be_neither_needs_no_tensor():
    z = torch.randn(3, 4)
    assert vars(count(identify(F.leaky_relu, (z,), {}), z, 1)) == {
        "observations": 3,
        "inactive": None,
        "saturated": None,
    }


@pytest.mark.parametrize("name", CASES)
def test_counting_leaves_the_tensor_and_its_graph_alone(name, way):
    z = torch.randn(5, 6, requires_grad=True) * 3
    before, node = z.detach().clone(), z.grad_fn
    check(name, z, 1)
    assert torch.equal(z, before)
    assert z.grad_fn is node
    assert z._version == 0


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_read_back(name, way):
    z = torch.randn(5, 6)
    with NoReadBack():
        count(CASES[name][0](z), z, 1)
    with pytest.raises(AssertionError), NoReadBack():
        z.sum().item()


def test_counts_stay_on_the_tensors_device():
    z = torch.randn(5, 6, device="meta")
    assert count(identify(F.relu6, (z,), {}), z, 1).saturated.device.type == "meta"


def test_a_region_of_both_is_counted_once():
    z = torch.randn(5, 6)
    for function, regions in ((F.hardtanh, 1), (F.relu6, 2), (F.sigmoid, 1), (F.leaky_relu, 0)):
        assert len(Counter(identify(function, (z,), {}).zones, z.dtype, 2, 1).count(z)) == regions


@pytest.mark.parametrize(
    ("shape", "axis", "batch_elements"),
    [((), 0, 1), ((6,), 0, 1), ((3, 4), 1, 3), ((3, 4), 0, 1), ((5, 4, 3), 2, 5), ((5, 4, 3), -1, 5)],
)
def test_batch_elements_are_the_first_axis_unless_that_is_the_units(shape, axis, batch_elements):
    z = torch.randn(shape)
    assert Counter(identify(F.relu, (z,), {}).zones, z.dtype, z.dim(), axis).seen(z)[1] == batch_elements


def test_calls_that_are_counted_alike_share_a_counter():
    z = torch.randn(5, 6)
    zones = identify(F.relu, (z,), {}).zones
    own = counter(zones, z.dtype, 2, 1)
    assert counter(identify(torch.relu_, (z,), {}).zones, z.dtype, 2, 1) is own
    assert counter(zones, torch.float64, 2, 1) is not own
    assert counter(zones, z.dtype, 2, 0) is not own
