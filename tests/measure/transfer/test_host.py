"""What goes in by slots comes out by slots, whatever it was and in whatever order it came."""

import math

import numpy as np
import pytest
import torch

from lightning_gradwatch.measure.transfer.host import HostTransfer

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int32, torch.int64, torch.bool]


def test_tensors_of_all_kinds_come_back_under_their_slots():
    generator = np.random.default_rng(0)
    pack, wanted = HostTransfer(), {}
    for _ in range(60):
        shape = ((), (1,), (5,), (3, 2), (0,))[generator.integers(5)]
        tensor = torch.from_numpy(generator.integers(0, 2, shape)).to(DTYPES[generator.integers(len(DTYPES))])
        wanted[pack.add(tensor)] = tensor.double().reshape(-1).tolist()
    values = pack.send().wait()
    assert {slot: values[slot].tolist() for slot in wanted} == wanted


def test_rows_go_to_the_slots_they_are_for():
    pack = HostTransfer()
    before = pack.add(torch.tensor([7.0, 8.0]))
    start = pack.reserve(3)
    first = [start, start + 1, start + 2]
    between = pack.add(torch.tensor(9, dtype=torch.int32))
    second = pack.reserve(1)
    # In any order, and those of one reservation in several parts.
    pack.fill([second, first[2]], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    pack.fill([first[1], first[0]], torch.tensor([5.0, 6.0], dtype=torch.float64))
    values = pack.send().wait()
    found = [values[slot].tolist() for slot in (before, *first, between, second)]
    assert found == [[7.0, 8.0], [6.0], [5.0], [3.0, 4.0], [9.0], [1.0, 2.0]]
    assert values.numbers([first[1], between, first[0]]).tolist() == [5.0, 9.0, 6.0]


def test_a_slot_that_nothing_came_for_reads_as_not_a_number():
    pack = HostTransfer()
    pack.add(torch.tensor(1.0))
    first = pack.reserve(2)
    slots = [first, first + 1]
    pack.fill(slots[:1], torch.tensor([2.0]))
    values = pack.send().wait()
    np.testing.assert_array_equal(values.numbers([0, *slots]), [1.0, 2.0, math.nan])
    assert values[slots[1]].size == 0


def test_an_empty_pack_has_nothing_but_what_was_never_filled():
    pack = HostTransfer()
    slots = [pack.reserve(1)]
    values = pack.send().wait()
    assert np.isnan(values.numbers(slots)).all()
    assert values.sums([]).tolist() == []


def test_what_is_shared_is_sent_once():
    pack, shared = HostTransfer(), torch.tensor([1.0, 2.0])
    assert pack.add_once(shared) == pack.add_once(shared)
    assert pack.add_once(shared.clone()) != pack.add_once(shared)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 2], [1], [3], []])
def test_sums_are_of_each_slots_own_entries(order):
    """The last of them ends where all ends, and one of them is empty."""
    parts = [[1.0, 2.0], [], [4.0], [8.0, 16.0, 32.0]]
    pack = HostTransfer()
    slots = [pack.add(torch.tensor(part)) for part in parts]
    values = pack.send().wait()
    assert values.sums([slots[place] for place in order]).tolist() == [sum(parts[place]) for place in order]


def test_what_lies_between_spoils_no_sum():
    pack = HostTransfer()
    slots = [pack.add(torch.tensor(part)) for part in ([1.0, 2.0], [math.nan, math.inf], [4.0])]
    assert pack.send().wait().sums([slots[0], slots[2]]).tolist() == [3.0, 4.0]
