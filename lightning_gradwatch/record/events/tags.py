"""Under which tags an event of ours holds what, and the seal over it: what writing and reading must agree on."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from lightning_gradwatch.record.events import encoding
from lightning_gradwatch.record.metrics import METRICS, RECORD_VECTORS
from lightning_gradwatch.record.step import StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterable

STEP_TAG = "gradwatch/step"
RUN_TAG = "gradwatch/run"
FINDINGS_TAG = "gradwatch/findings"
HEATMAP_TAG = "gradwatch/heatmap"

PREFIX = f"{encoding.PLUGIN}/"
VECTOR_TAGS = {name: PREFIX + name for name in RECORD_VECTORS}
"""Of the vectors that records hold beside their metrics, by the name of the field."""
SCALARS: dict[str, Any] = {"step": 0, "layout": ""} | {
    entry.name: entry.default for entry in dataclasses.fields(StepRecord) if entry.default is not dataclasses.MISSING
}
"""Fields of a record that are no vectors, each with a value of its type."""


def known_tags() -> frozenset[str]:
    """Return the tags that this release writes beside those for people."""
    return _known_tags(tuple(METRICS))


@lru_cache(maxsize=2)
def _known_tags(metrics: tuple[str, ...]) -> frozenset[str]:
    return frozenset((STEP_TAG, RUN_TAG, *VECTOR_TAGS.values(), *(PREFIX + name for name in metrics)))


def tensors_in_order() -> tuple[str, ...]:
    """Return the tags of an event's tensors in the order in which it has them; what isn't measured is left out there.

    For readers who are given them without an order; the seal is over them in this one.
    """
    return (*(PREFIX + name for name in METRICS), *VECTOR_TAGS.values(), RUN_TAG)


_encoded = lru_cache(maxsize=256)(str.encode)


def seal(text: bytes, vectors: Iterable[tuple[str, tuple[int, bytes]]]) -> bytes:
    """Return a checksum that C computes; the file's own takes Python a hundred times as long, so readers skip it.

    Args:
        text: Of the envelope.
        vectors: All that it seals: a tag, and the type of a tensor with its bytes; the type isn't sealed.
    """
    crc = crc32(text)
    for tag, (_, content) in vectors:
        crc = crc32(content, crc32(_encoded(tag), crc))
    return b"%08x" % crc


_MOST_DIGITS = 24


class Stamp(NamedTuple):
    """The place of an event; compares in the order of writing."""

    fit: int
    """How many fits wrote into the folder before."""
    number: int
    """How many events the file has before this one."""
    check: bytes = b""
    """Of the two and the event's seal: an event that stands twice has the same."""


def read_stamp(text: bytes, seal: bytes) -> Stamp | None:
    """Return what `Numbering.stamp` wrote beside a seal; None if it is something else."""
    numbers, _, check = text.rpartition(b".")
    fit, _, number = numbers.partition(b".")
    if not (fit.isdigit() and number.isdigit() and len(numbers) <= _MOST_DIGITS and check == check_of(numbers, seal)):
        return None
    return Stamp(int(fit), int(number), check)


def check_of(text: bytes, seal: bytes) -> bytes:
    """Return what ties two numbers to the seal of the event that they stand in."""
    return b"%04x" % (crc32(text, crc32(seal)) & 0xFFFF)
