"""The release, where modules that must stay light can read it."""

from __future__ import annotations

__version__ = "0.1.0"
