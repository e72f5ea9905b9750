from __future__ import annotations

import pytest
import torch
from integration.situation import fit_both
from integration.table import SITUATIONS


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors are slower on many threads, and sums in one order are the same in each run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=SITUATIONS)
def pair(request, tmp_path_factory):
    """A situation's fit without the monitor and with it: made once for all tests of the promises."""
    return fit_both(request.param, SITUATIONS[request.param], tmp_path_factory.mktemp(request.param))
