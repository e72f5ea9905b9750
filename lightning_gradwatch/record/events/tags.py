"""Under which tags an event of ours holds what, and the seal over it: what writing and reading must agree on."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any
from zlib import crc32

from lightning_gradwatch.record.events import encoding
from lightning_gradwatch.record.step import LOOP_VECTORS, METRICS, StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterable

STEP_TAG = "gradwatch/step"
RUN_TAG = "gradwatch/run"
FINDINGS_TAG = "gradwatch/findings"
HEATMAP_TAG = "gradwatch/heatmap"

PREFIX = f"{encoding.PLUGIN}/"
SITE_VECTORS = ("window_fill", "forward_rms")
STATE_TAG, FILL_TAG, RMS_TAG = (PREFIX + name for name in ("layer_state", *SITE_VECTORS))
VECTOR_TAGS = {name: PREFIX + name for name in (*METRICS, *LOOP_VECTORS)}
TAGS = frozenset((STEP_TAG, RUN_TAG, STATE_TAG, FILL_TAG, RMS_TAG, *VECTOR_TAGS.values()))
SCALARS: dict[str, Any] = {"step": 0, "layout": ""} | {
    entry.name: entry.default for entry in dataclasses.fields(StepRecord) if entry.default is not dataclasses.MISSING
}
"""Fields of a record that are no vectors, each with a value of its type."""


_ENCODED = {tag: tag.encode() for tag in TAGS}


def seal(text: bytes, vectors: Iterable[tuple[str, tuple[int, bytes]]]) -> bytes:
    """Return a checksum that C computes; the file's own takes Python a hundred times as long, so readers skip it.

    Args:
        text: Of the envelope.
        vectors: All that it seals: a tag, and the type of a tensor with its bytes; the type isn't sealed.
    """
    crc = crc32(text)
    for tag, (_, content) in vectors:
        crc = crc32(content, crc32(_ENCODED.get(tag) or tag.encode(), crc))
    return b"%08x" % crc
