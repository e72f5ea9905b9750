"""Folders that aren't on this machine: ``s3://``, ``gs://``, ``memory://`` and whatever else fsspec knows. No torch.

As paths they would be taken for folders called ``s3:`` below the current one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)::?//")
_LOCAL = ("file", "local")


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Tell whether a place is the address of something remote; ``C:/runs`` isn't.

    >>> is_remote("s3://bucket/runs"), is_remote("file:///runs"), is_remote("runs/a://b"), is_remote("C:/runs")
    (True, False, False, False)
    """
    scheme = _SCHEME.match(os.fspath(place))
    return scheme is not None and scheme[1].lower() not in _LOCAL


def local_path(place: str | os.PathLike[str]) -> Path:
    """Return the path of a place on this machine, which may be given as an address, ``file:///runs``."""
    text = os.fspath(place)
    scheme = _SCHEME.match(text)
    return Path(text[scheme.end() :] if scheme is not None and scheme[1].lower() in _LOCAL else text)
