"""Damaged event files: what is good is kept, what is lost is told."""

import numpy as np
import pytest
from record.small_runs import make_info, make_record, steps_of, write

from lightning_gradwatch.judge.run import RunError, read_run
from lightning_gradwatch.record.metrics import RECORD_VECTORS

NOISE = np.random.default_rng(0).bytes((1 << 20) + 77)


def bits(record):
    """Return everything a record holds in a form that compares bit for bit."""
    data = dict(vars(record))
    arrays = {name: data.pop(name) for name in RECORD_VECTORS} | data.pop("metrics")
    return repr(data), {name: (str(vector.dtype), vector.tobytes()) for name, vector in arrays.items()}


def test_a_file_cut_anywhere_in_its_last_record_keeps_the_others(tmp_path):
    path, starts = write(tmp_path)
    whole = path.read_bytes()
    for size in range(starts[-1], len(whole)):
        path.write_bytes(whole[:size])
        run = read_run(path)
        assert steps_of(run) == [0, 1]
        lost = size - starts[-1]
        assert len(run.problems) == bool(lost)
        assert not lost or f"its {lost} bytes are lost" in run.problems[0]


@pytest.mark.parametrize(
    "tail",
    [bytes(1), bytes(12), bytes(5000), b"\xff" * 3000, NOISE[:3000], bytes(3 << 20)],
    ids=["zero", "twelve zeros", "zeros", "ones", "noise", "more zeros than a block"],
)
def test_a_bad_tail_is_told_and_costs_nothing(tmp_path, tail):
    path, _ = write(tmp_path)
    with path.open("ab") as file:
        file.write(tail)
    run = read_run(path)
    assert steps_of(run) == [0, 1, 2]
    assert len(run.problems) == 1


def test_any_byte_damaged_costs_at_most_one_record(tmp_path):
    path, starts = write(tmp_path, (0, 1, 2, 3))
    whole = path.read_bytes()
    for at in range(starts[1], starts[2]):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        run = read_run(path)
        kept = steps_of(run)
        # A byte of what is drawn only, or of the checksum that nobody reads, costs nothing.
        assert kept == [0, 1, 2, 3] or (kept == [0, 2, 3] and run.problems), at
        assert all(bits(record) == bits(make_record(make_info(), record.step)) for record in run.records)


@pytest.mark.parametrize("kept", [5, 12, 300])
def test_a_record_torn_in_the_middle_does_not_hide_the_next(tmp_path, kept):
    path, starts = write(tmp_path, (0, 1, 2, 3))
    whole = path.read_bytes()
    path.write_bytes(whole[: starts[1] + kept] + whole[starts[2] :])
    run = read_run(path)
    assert steps_of(run) == [0, 2, 3]
    assert run.problems


@pytest.mark.parametrize("before", [0, 1, 6, 12, 13, 40])
def test_damage_as_long_as_a_block_is_bridged(tmp_path, before):
    """The next header lies across the end of the first block that is searched."""
    path, starts = write(tmp_path, (0, 1, 2))
    whole = path.read_bytes()
    path.write_bytes(whole[: starts[1]] + NOISE[: (1 << 20) + starts[0] + 1 - starts[1] - before] + whole[starts[1] :])
    assert steps_of(read_run(path)) == [0, 1, 2]


def test_damage_before_the_first_record_is_told(tmp_path):
    path, starts = write(tmp_path)
    path.write_bytes(path.read_bytes()[: starts[0] + 50])
    with pytest.raises(RunError, match=r"no GradWatch record that can be read: .*cut off"):
        read_run(path)
    path.write_bytes(b"not an event file, " * 100)
    with pytest.raises(RunError, match="damaged from byte 0"):
        read_run(path)


def test_a_file_whose_first_bytes_are_gone_is_told(tmp_path):
    """Cut at its end too, between two events, it looks like a shorter run that nothing happened to."""
    path, starts = write(tmp_path)
    path.write_bytes(path.read_bytes()[starts[0] : starts[1]])
    run = read_run(path)
    assert steps_of(run) == [0]
    assert run.problems == (f"{path.name}: its first bytes are missing, with which every event file begins",)
