"""Reads back what the page's model packs, by its description alone: an independent reader."""

from __future__ import annotations

import base64

import numpy as np


def unpacked(packed, columns):
    """Return values, shape [N, columns]."""
    data = base64.b64decode(packed["data"])
    if packed["encoding"] == "float64":
        return np.frombuffer(data, "<f8").reshape(-1, columns)
    codes = np.frombuffer(data, "<u2").reshape(-1, columns).astype(int)
    levels = packed["low"] + (codes - 5) / packed["levels"] * packed["span"]
    with np.errstate(over="ignore"):
        values = 10.0**levels if packed["encoding"] == "log16" else levels
    for code, value in enumerate((np.nan, 0.0, np.inf, -np.inf)):
        values[codes == code] = value
    return values
