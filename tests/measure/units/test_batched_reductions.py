"""Tensors measured many at once against numpy on each alone, whatever came before, between and afterwards."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from measure.recount import CASES, DTYPES, NoReadBack, near_the_bounds, recount
from torch import nn

from lightning_gradwatch.measure.trace.identify import identify
from lightning_gradwatch.measure.transfer.host import HostTransfer
from lightning_gradwatch.measure.units import batched_reductions
from lightning_gradwatch.measure.units.batched_reductions import BatchedReductions
from lightning_gradwatch.measure.units.counting import counter


def counter_of(name, z, axis):
    return counter(CASES[name][0](z).zones, z.dtype, z.dim(), axis)


def step(measured, put):
    """Run a step and return its values and what `put` returned, which puts in what the step has."""
    pack = HostTransfer()
    measured.begin(pack)
    found = put(measured)
    measured.end()
    return pack.send().wait(), found


def staged(put):
    """Run a step that measures as the second of two alike does, and see that it had stacks."""
    measured = BatchedReductions()
    step(measured, put)
    assert not measured._stacks  # nothing was known of what would come
    values, found = step(measured, put)
    assert measured._stacks
    return values, found


def numpy_norm(tensor):
    return np.linalg.norm(tensor.detach().double().numpy().reshape(-1))


def check_counts(values, slots, name, z, axis):
    own = counter_of(name, z, axis)
    assert len(slots) == own.regions
    _, *rules = CASES[name]
    for places, rule in zip((own.inactive, own.saturated), rules, strict=True):
        if rule is not None:
            np.testing.assert_array_equal(sum(values[slots[place]] for place in places), recount(rule, z, axis))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", sorted(set(CASES) - {"leaky_relu"}))
def test_counts_are_those_of_a_float64_recount(name, dtype):
    for shape, axis in (((30,), 0), ((60, 5), 1), ((5, 60), 0), ((6, 4, 9), -2), ((2, 3, 4, 5), 1)):
        tensors = [near_the_bounds(shape, dtype, seed) for seed in range(5)]
        values, found = staged(
            lambda to, tensors=tensors, axis=axis: [to.count(counter_of(name, z, axis), z) for z in tensors]
        )
        for slots, z in zip(found, tensors, strict=True):
            check_counts(values, slots, name, z, axis)


@pytest.mark.parametrize(("dim", "axis"), [(-1, 2), (2, -1), (1, 2), (0, 0), (-1, 0)])
def test_glu_is_judged_by_its_gate(dim, axis):
    tensors = [near_the_bounds((2, 6, 8), torch.float32, seed) for seed in range(4)]
    zones = identify(F.glu, (tensors[0], dim), {}).zones
    own = counter(zones, torch.float32, 3, axis)
    values, found = staged(lambda to: [to.count(own, z) for z in tensors])
    for (slot,), z in zip(found, tensors, strict=True):
        np.testing.assert_array_equal(values[slot], recount(lambda u: abs(u) > 4, z.chunk(2, dim)[1], axis))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7,), (64, 64), (3, 1, 5), (1,)])
def test_norms_are_those_of_numpy(shape, dtype):
    generator = np.random.default_rng(0)
    tensors = [torch.from_numpy(generator.normal(size=shape)).to(dtype) for _ in range(9)]
    values, found = staged(lambda to: [to.norm(tensor) for tensor in tensors])
    np.testing.assert_allclose(values.numbers(found), [numpy_norm(tensor) for tensor in tensors], rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_norm_of_relus_output_follows_from_the_copy_of_its_argument(dtype, monkeypatch):
    monkeypatch.setattr(batched_reductions, "_STACK", 4 * 40)  # less than all of them
    tensors = [near_the_bounds((8, 5), dtype, seed) for seed in range(11)]
    tensors[3][0, 0], tensors[4][1, 2], tensors[5][0, 0] = math.nan, math.inf, -math.inf
    values, found = staged(lambda to: [to.count_and_rectify(counter_of("relu", z, 1), z) for z in tensors])
    for (slots, norm), z in zip(found, tensors, strict=True):
        check_counts(values, slots, "relu", z, 1)
        assert norm is not None
        with np.errstate(over="ignore"):  # of float64's largest
            np.testing.assert_allclose(values[norm], numpy_norm(torch.relu(z)), rtol=1e-12)


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-19, 1e19, 1e30, 1e38])
def test_norms_are_right_over_the_whole_range(size):
    tensors = [torch.full((50, 60), size) for _ in range(4)]
    values, found = staged(lambda to: [to.norm(tensor) for tensor in tensors])
    np.testing.assert_allclose(values.numbers(found), numpy_norm(tensors[0]), rtol=1e-12)
    assert values.numbers(found)[0] > 0


def test_what_is_not_finite_stays_with_its_own_tensor():
    tensors = [torch.full((3,), value) for value in (1.0, math.nan, 2.0, math.inf, 0.0)]
    values, found = staged(lambda to: [to.norm(tensor) for tensor in tensors])
    np.testing.assert_allclose(values.numbers(found), [3**0.5, math.nan, 12**0.5, math.inf, 0.0])


def test_what_the_program_writes_afterwards_makes_no_difference():
    def put(to):
        found = []
        for value in range(6):
            z = torch.full((4, 3), float(value - 2))
            found.append((to.norm(z), *to.count(counter_of("relu", z, 1), z)))
            z.fill_(-99.0)
        return found

    values, found = staged(put)
    norms, counts = map(list, zip(*found, strict=True))
    np.testing.assert_allclose(values.numbers(norms), [12**0.5 * abs(value - 2) for value in range(6)])
    assert [values[slot].tolist() for slot in counts] == [[4] * 3] * 3 + [[0] * 3] * 3


@pytest.mark.parametrize("name", ["relu", "relu6", "sigmoid"])
def test_a_stack_that_is_full_is_used_again(name, monkeypatch):
    """Units observed once are counted without a sum; the counts must not share the stack's memory."""
    monkeypatch.setattr(batched_reductions, "_STACK", 4 * 9)
    tensors = [near_the_bounds((9,), torch.float32, seed) for seed in range(14)]
    values, found = staged(lambda to: [(to.norm(z), to.count(counter_of(name, z, 0), z)) for z in tensors])
    for (norm, slots), z in zip(found, tensors, strict=True):
        np.testing.assert_allclose(values.numbers([norm]), numpy_norm(z))
        check_counts(values, slots, name, z, 0)


def test_the_tensors_and_their_graphs_stay_as_they_were():
    tensors = [torch.randn(5, 6, requires_grad=True) * 3 for _ in range(4)]
    before = [(z.detach().clone(), z.grad_fn) for z in tensors]
    staged(lambda to: [(to.norm(z), to.count(counter_of("relu6", z, 1), z)) for z in tensors])
    for z, (content, node) in zip(tensors, before, strict=True):
        assert torch.equal(z, content)
        assert z.grad_fn is node
        assert z._version == 0


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_numbers_are_right_whatever_comes_in_which_step(data):
    """Stacks too small, full in between, left over, missing: the numbers don't tell."""
    shapes = [(6,), (4, 3), (3, 4), (2, 3, 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batched_reductions, "_STACK", data.draw(st.integers(12, 200), "stack"))
        patch.setattr(batched_reductions, "KEPT", data.draw(st.integers(0, 400), "kept"))
        patch.setattr(batched_reductions, "SMALL", data.draw(st.sampled_from([11, 8192]), "small"))
        patch.setattr(batched_reductions, "FEWEST", data.draw(st.integers(1, 4), "fewest"))
        measured = BatchedReductions()
        for number in range(4):
            kinds = data.draw(st.lists(st.sampled_from(["relu6", "sigmoid", "norm"]), max_size=25), f"step {number}")
            pack, expected = HostTransfer(), []
            measured.begin(pack)
            for seed, kind in enumerate(kinds):
                shape = shapes[data.draw(st.integers(0, 3))]
                dtype = data.draw(st.sampled_from(DTYPES))
                if kind == "norm":
                    z = torch.randn(shape).to(dtype)
                    expected.append((kind, measured.norm(z), z))
                else:
                    z = near_the_bounds(shape, dtype, seed)
                    expected.append((kind, measured.count(counter_of(kind, z, 0), z), z))
            if data.draw(st.booleans(), "aborted"):
                continue
            measured.end()
            values = pack.send().wait()
            for kind, found, z in expected:
                if kind == "norm":
                    np.testing.assert_allclose(values.numbers([found]), numpy_norm(z), rtol=1e-6)
                else:
                    check_counts(values, found, kind, z, 0)


class Named(torch.Tensor):
    """A tensor of somebody else's type."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(6, 4).t(),
        lambda: torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        lambda: torch.randn(8, 4)[::2],
        lambda: torch.randn(1, 4).expand(6, 4),
        lambda: nn.Parameter(torch.randn(6, 4)),
        lambda: torch.randn(6, 4, dtype=torch.complex64),
        lambda: torch.randn(6, 4).to_sparse(),
        lambda: torch.randn(6, 4).as_subclass(Named),
        lambda: torch.empty(0, 4),
        lambda: torch.tensor(3.0),
    ],
    ids=["transposed", "channels-last", "strided", "expanded", "parameter", "complex", "sparse", "subclass", "empty", "0-d"],
)  # fmt: skip
def test_every_kind_of_tensor_has_its_norm(make):
    tensors = [make() for _ in range(5)]
    measured = BatchedReductions()
    for _ in range(2):
        values, found = step(measured, lambda to: [to.norm(tensor) for tensor in tensors])
    dense = [tensor.to_dense() if tensor.is_sparse else tensor for tensor in tensors]
    expected = [np.linalg.norm(tensor.detach().numpy().reshape(-1)) for tensor in dense]
    np.testing.assert_allclose(values.numbers(found), expected, rtol=1e-6)


def test_tensors_made_in_inference_mode_are_measured_in_and_outside_it():
    with torch.inference_mode():
        tensors = [torch.ones(3) for _ in range(4)]
    measured = BatchedReductions()
    for inside in (True, True, False, True, False):
        with torch.inference_mode(mode=inside):
            values, found = step(measured, lambda to: [to.norm(tensor) for tensor in tensors])
        np.testing.assert_allclose(values.numbers(found), 3**0.5)


def test_a_step_left_in_the_middle_leaves_nothing_to_the_next():
    measured = BatchedReductions()
    tensors = [torch.full((4,), float(value)) for value in range(6)]
    step(measured, lambda to: [to.norm(tensor) for tensor in tensors])
    pack = HostTransfer()
    measured.begin(pack)
    for _ in range(3):
        measured.norm(torch.full((4,), 99.0))
    values, found = step(measured, lambda to: [to.norm(tensor) for tensor in tensors])
    np.testing.assert_allclose(values.numbers(found), [2.0 * value for value in range(6)])
    assert np.isnan(pack.send().wait().numbers([0, 1, 2])).all()


def test_a_fault_in_a_step_left_in_the_middle_is_none_of_the_next(monkeypatch):
    measured = BatchedReductions()
    tensors = [torch.ones(4) for _ in range(6)]
    step(measured, lambda to: [to.norm(tensor) for tensor in tensors])
    with monkeypatch.context() as patch:
        patch.setattr(batched_reductions, "l2_norms_of_rows", None)
        with pytest.raises(TypeError):
            step(measured, lambda to: [to.norm(tensor) for tensor in tensors])
        with pytest.raises(TypeError):
            measured.end()
    values, found = step(measured, lambda to: [to.norm(tensor) for tensor in tensors])
    np.testing.assert_allclose(values.numbers(found), 2.0)


def test_stacks_go_when_nothing_comes_for_them_and_stay_through_one_step_without():
    measured = BatchedReductions()
    full = [torch.ones(4) for _ in range(16)]
    for tensors, rows in ((full, 0), ([], 16), ([], 8), ([], 4), ([], 0)):
        step(measured, lambda to, tensors=tensors: [to.norm(tensor) for tensor in tensors])
        assert sum(len(stack.firsts) for stack in measured._stacks.values()) == 0
        assert max([0, *(min(len(stack.rows), 16) for stack in measured._stacks.values())]) == (16 if rows else 0)
        assert measured._wanted.get((torch.Size([4]), None, False), 0) == rows


def test_memory_stays_within_its_limit():
    measured = BatchedReductions()
    shapes = [(entries,) for entries in range(8000, 8192, 2)]
    for _ in range(3):
        step(measured, lambda to: [to.norm(torch.ones(shape)) for shape in shapes for _ in range(9)])
    kept = sum(stack.memory.numel() for stack in measured._stacks.values())
    assert 0.9 * batched_reductions.KEPT < kept <= batched_reductions.KEPT
    assert all(stack.memory.numel() <= batched_reductions._STACK for stack in measured._stacks.values())


def test_nothing_is_read_back():
    tensors = [torch.randn(5, 6) for _ in range(6)]
    measured = BatchedReductions()
    for _ in range(3):
        pack = HostTransfer()
        with NoReadBack():
            measured.begin(pack)
            for z in tensors:
                measured.norm(z)
                measured.count(counter_of("relu6", z, 1), z)
            measured.end()
