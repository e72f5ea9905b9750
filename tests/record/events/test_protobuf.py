"""Protobuf's wire format, against protobuf's own writer and parser."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2

from lightning_gradwatch.record.events.protobuf import BrokenMessageError, fields


def taken(data, **changes):
    arguments = {"at": 0, "end": len(data), "most": 64, **changes}
    return list(fields(data, arguments["at"], arguments["end"], most=arguments["most"]))


@settings(deadline=None)
@given(
    st.floats(allow_nan=False).filter(bool),
    st.integers(1, 2**63 - 1),
    st.text(min_size=1),
    st.binary(min_size=1, max_size=300),
    st.floats(width=32, allow_nan=False),
)
def test_fields_are_those_that_protobuf_wrote(wall_time, step, tag, content, number):
    event = event_pb2.Event(wall_time=wall_time, step=step)
    tensor = tensor_pb2.TensorProto(dtype=2, tensor_content=content)
    event.summary.value.add(tag=tag, tensor=tensor)
    event.summary.value.add(tag=tag, simple_value=number)
    data = event.SerializeToString()
    (time_key, _, at, _), (step_key, value, _, _), (summary_key, _, start, end) = taken(data)
    assert (time_key >> 3, struct.unpack_from("<d", data, at)[0]) == (1, wall_time)
    assert (step_key >> 3, value) == (2, step)
    assert summary_key >> 3 == 5
    first, second = (summary_pb2.Summary.Value.FromString(data[a:b]) for _, _, a, b in taken(data, at=start, end=end))
    assert (first.tag, first.tensor) == (tag, tensor)
    assert (second.tag, second.simple_value) == (tag, number)


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",  # no length
        b"\x0a\x05abc",  # longer than there is
        b"\x09abc",
        b"\x0d",
        b"\x80",
        b"\x08" + b"\xff" * 11,  # a number without an end
        b"\x0b\x0c",  # a group
        b"\x0e",  # no such type
        b"\x00\x00",  # field 0
        b"\x02\x00",
    ],
)
def test_what_is_no_message_is_an_error(data):
    with pytest.raises(BrokenMessageError, match="its framing inside is broken"):
        taken(data)


def test_a_field_does_not_reach_beyond_its_message():
    data = b"\x0a\x04abcd"
    assert taken(data) == [(0x0A, 0, 2, 6)]
    with pytest.raises(BrokenMessageError):
        taken(data, end=5)


def test_no_more_fields_are_taken_than_asked_for():
    assert len(taken(b"\x08\x01" * 4, most=4)) == 4
    found = fields(b"\x08\x01" * 1_000_000, 0, 2_000_000, most=4)
    assert len([next(found) for _ in range(4)]) == 4
    with pytest.raises(BrokenMessageError):
        next(found)
