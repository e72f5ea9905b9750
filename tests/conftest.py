from __future__ import annotations

import os

# Before torch is imported: tiny nets run faster on one thread, and the suite's workers don't fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random

import numpy as np
import pytest
import torch
from hypothesis import settings
from judging import why_unmarked

from lightning_gradwatch.fit.fit import Fit
from lightning_gradwatch.measure import faults

# What is red is red again, here and elsewhere; `pytest --hypothesis-profile=default` draws anew each time.
settings.register_profile("the same each time", derandomize=True)
settings.load_profile("the same each time")


@pytest.fixture(autouse=True)
def _same_numbers_each_time():
    """A test draws the same numbers alone, in any order and in any process."""
    _seed()


def _seed():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the generator that Lightning and the nets' data use
    torch.manual_seed(0)


_seed()  # nets and tensors that a test file makes when it is imported


@pytest.fixture(autouse=True)
def _raise_faults(monkeypatch):
    """A fault inside the monitor is a bug: tests see it raised; those about faults switch this off."""
    monkeypatch.setattr(faults, "RAISE", True)


@pytest.fixture(autouse=True)
def _marked_if_it_judges(request, monkeypatch):
    """A test that judges a run of some length is run in a second arithmetic too, so it has to say so."""
    fed = {}
    take = Fit._take

    def counted(self, *args):
        fed[id(self)] = fed.get(id(self), 0) + 1
        return take(self, *args)

    monkeypatch.setattr(Fit, "_take", counted)
    yield
    if why := why_unmarked(max(fed.values(), default=0), request.node.iter_markers()):
        pytest.fail(why, pytrace=False)
