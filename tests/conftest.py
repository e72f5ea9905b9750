from __future__ import annotations

import os

# Before torch or Lightning is imported: no Lightning tips, one thread a core that the machine has for us.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import pytest

from lightning_gradwatch.measure import faults


@pytest.fixture(autouse=True)
def _raise_faults(monkeypatch):
    """A fault inside the monitor is a bug: tests see it raised; those about faults switch this off."""
    monkeypatch.setattr(faults, "RAISE", True)
