"""What one process hands to another comes out bit for bit, and nothing but data ever does."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from enum import IntEnum
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lightning_gradwatch.fit.plain_data import decode, encode


@dataclass(frozen=True)
class Pair:
    left: object
    right: object


class Level(IntEnum):
    LOW = 1


CLASSES = (Pair, Level)
NANS = st.sampled_from([0x7FF8000000000001, 0xFFF8000000000000, 0x7FF0000000000001])
FLOATS = st.floats() | NANS.map(lambda bits: np.array(bits, np.uint64).view(np.float64).item())
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | FLOATS
    | st.text(st.characters() | st.sampled_from("\ud83d\ude00"))
    | st.builds(Path, st.text(st.characters(exclude_characters="\x00"), min_size=1))
    | st.just(Level.LOW)
    | npst.arrays(
        npst.scalar_dtypes().filter(lambda dtype: dtype.kind in "biuf"), npst.array_shapes(min_dims=0, min_side=0)
    )
    | FLOATS.map(np.float64)
    | st.integers(0, 255).map(np.uint8)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=8,
)


def exact(value):
    """Return a value in a form that compares type by type and bit by bit."""
    if isinstance(value, (np.ndarray, np.generic)):
        return type(value), str(value.dtype), np.shape(value), value.tobytes()
    if isinstance(value, float):
        return float, np.float64(value).tobytes()
    if isinstance(value, (list, tuple)):
        return type(value), [exact(entry) for entry in value]
    if isinstance(value, dict):
        return dict, [(exact(key), exact(entry)) for key, entry in value.items()]
    if isinstance(value, Pair):
        return Pair, exact(value.left), exact(value.right)
    return type(value), value


@settings(deadline=None)
@given(VALUES)
def test_every_value_comes_back_bit_for_bit(value):
    assert exact(decode(encode(value, CLASSES), CLASSES)) == exact(value)


def test_an_array_that_came_back_can_be_written_to():
    (array,) = decode(encode((np.zeros(3),), ()), ())
    array[0] = 1.0


@pytest.mark.parametrize("value", [object(), b"bytes", {1}, len, np.array([object()]), Pair, 1j, Pair(1, [object()])])
def test_what_is_no_data_is_refused(value):
    with pytest.raises(TypeError, match="is no plain data"):
        encode(value, CLASSES)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def framed(text, arrays=b""):
    whole = encode(None, ())
    return whole[:16] + len(text).to_bytes(8, "little") + text + arrays


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"gradwatch data 1",
        encode((1, 2, np.arange(3)), ())[:-1],
        encode(None, ())[:-1],
        b"X" + encode(None, ())[1:],
        framed(b"[" * 100_000),
        framed(b'{"Level":2}'),
        framed(b'{"Pair":{"left":1}}'),
        framed(b'{"Pair":{"left":1,"right":2,"more":3}}'),
        framed(b'{"Other":{}}'),
        framed(b'{"float":1,"list":[]}'),
        framed(b'{"mapping":[[[{"list":[]}],1]]}'),
        framed(b'{"array":["<f8",[4611686018427387904,2],0]}', bytes(8)),
        framed(b'{"array":["<f8",[-1],0]}', bytes(8)),
        framed(b'{"array":["<f8",[1],-8]}', bytes(8)),
        framed(b'{"array":["|O",[1],0]}', bytes(8)),
        framed(b'{"array":["V8",[1],0]}', bytes(8)),
        framed(b'{"array":["f8,O",[1],0]}', bytes(16)),
        framed(b'{"path":7}'),
        framed(b"9" * 5000),
    ],
    ids=range(20),
)
def test_what_is_damaged_or_made_up_is_refused(data):
    with pytest.raises(ValueError, match="it is damaged"):
        decode(data, CLASSES)


def test_no_bytes_are_code(tmp_path):
    """Not a pickle, nor one in the place of each part."""
    evil = bytes(ForkingPickler.dumps(Evil(str(tmp_path / "ran"))))
    for data in (evil, framed(evil), framed(json.dumps({"text": evil.hex()}).encode()), framed(b"[]", evil)):
        try:
            decode(data, CLASSES)
        except ValueError:
            continue
    assert not (tmp_path / "ran").exists()
    ForkingPickler.loads(evil)
    assert (tmp_path / "ran").exists()  # it could


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_changed_byte_is_refused_or_other_data(data):
    value = Pair((1.5, math.nan, "text", np.arange(4)), {"key": [Level.LOW, Path("a")]})
    changed = bytearray(encode(value, CLASSES))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decode(bytes(changed), CLASSES)
    except ValueError as error:
        assert str(error).startswith("it is damaged")  # noqa: PT017 - either is right
