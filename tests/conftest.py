from __future__ import annotations

import os

# Before torch is imported: tiny nets run faster on one thread, and the suite's workers don't fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from lightning_gradwatch.measure import faults


@pytest.fixture(autouse=True)
def _raise_faults(monkeypatch):
    """A fault inside the monitor is a bug: tests see it raised; those about faults switch this off."""
    monkeypatch.setattr(faults, "RAISE", True)
