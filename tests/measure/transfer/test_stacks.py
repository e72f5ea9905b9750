"""Stacks of copies: which tensors are in them, what their rows hold, and how long their memory is kept."""

import pytest
import torch

from lightning_gradwatch.measure.transfer import stacks
from lightning_gradwatch.measure.transfer.stacks import StackedCopies

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_copies_of_the_tensors_at_their_places(dtype):
    tensors = [torch.randn(shape).to(dtype) for shape in [(3, 4), (5,), (3, 4), (3, 4), (5,), (3, 4), (5,), (5,), (5,)]]
    before = [tensor.clone() for tensor in tensors]
    found = StackedCopies().take(tensors)
    assert [places for places, _ in found] == [[0, 2, 3, 5], [1, 4, 6, 7, 8]]
    for places, stack in found:
        assert stack.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for place, row in zip(places, stack, strict=True):
            assert torch.equal(row, tensors[place].to(stack.dtype))
        stack.zero_()
    assert all(map(torch.equal, tensors, before))


def test_any_layout_in_memory_is_copied_right():
    tensors = [
        torch.randn(4, 6),
        torch.randn(6, 4).t(),
        torch.randn(8, 12)[::2, ::2],
        torch.randn(1, 6).expand(4, 6),
        torch.randn(4, 1).expand(4, 6),
    ]
    ((places, stack),) = StackedCopies().take(tensors)
    assert places == [0, 1, 2, 3, 4]
    assert torch.equal(stack, torch.stack(tensors))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(stacks.SMALL + 1),
        lambda: torch.ones(0),
        lambda: torch.ones(3, dtype=torch.complex64),
        lambda: torch.ones(3, dtype=torch.int64),
        lambda: torch.ones(3, device="meta"),
        lambda: torch.ones(3).to_sparse(),
    ],
    ids=["long", "empty", "complex", "integers", "elsewhere", "sparse"],
)
def test_what_is_not_small_real_dense_and_here_stays_out(make):
    assert StackedCopies().take([make() for _ in range(9)]) == []
    ((places, _),) = StackedCopies().take([tensor for _ in range(9) for tensor in (make(), torch.ones(2))])
    assert places == [*range(1, 18, 2)]


def test_a_few_of_a_kind_stay_out():
    tensors = [torch.ones(2)] * (stacks.FEWEST - 1) + [torch.ones(2, dtype=torch.float64)] * (stacks.FEWEST - 1)
    assert StackedCopies().take(tensors) == []
    assert len(StackedCopies().take([*tensors, torch.ones(2)])) == 1


def test_memory_is_kept_for_as_long_as_as_many_come():
    kept = StackedCopies()

    def memory(count, size=3):
        found = kept.take([torch.full((size,), float(place)) for place in range(count)])
        return [stack.data_ptr() for _, stack in found], [stack[-1, 0].item() for _, stack in found]

    first = memory(6)
    assert memory(6) == first
    assert memory(8)[1] == [7.0]
    assert memory(5)[1] == [4.0]
    assert memory(0) == ([], [])
    assert kept._stacks == {}
    memory(6, size=5)
    assert list(kept._stacks) == [((5,), torch.float32)]


def test_memory_stays_within_its_limit(monkeypatch):
    monkeypatch.setattr(stacks, "KEPT", 100)
    tensors = [torch.ones(shape) for shape in [(10,)] * 8 + [(9,)] * 4 + [(5,)] * 4]
    assert [len(stack) for _, stack in StackedCopies().take(tensors)] == [8, 4]  # 80 entries and 20; 36 are too many


def test_memory_made_in_inference_mode_is_good_outside_it():
    kept = StackedCopies()
    tensors = [torch.ones(3) for _ in range(4)]
    with torch.inference_mode():
        kept.take(tensors)
    ((_, stack),) = kept.take(tensors)
    assert torch.equal(stack.sub_(1), torch.zeros(4, 3))
