from __future__ import annotations

import pytest
import torch
from integration import ranked
from integration.processes import Processes
from integration.situation import fit_both
from integration.table import SITUATIONS

FROM_THE_COMPILER = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors are slower on many threads, and sums in one order are the same in each run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


ROWS = [
    pytest.param(name, marks=[pytest.mark.slow, *FROM_THE_COMPILER]) if row.compiles else name
    for name, row in SITUATIONS.items()
]


@pytest.fixture(scope="session", params=ROWS)
def pair(request, tmp_path_factory):
    """A situation's fit without the monitor and with it: made once for all tests of the promises."""
    return fit_both(request.param, SITUATIONS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def processes():
    """Two of them, started once for all tests; anew after one that left them unusable."""
    running = []

    def run(function=ranked.fit, **arguments):
        if not running:
            running.append(Processes(2))
        try:
            answers = running[0].run(function, **arguments)
        except Exception:
            running.pop().kill()
            raise
        errors = [answer for answer in answers if not isinstance(answer, dict)]
        if errors:
            running.pop().kill()
            pytest.fail(f"raised on {len(errors)} of 2 ranks:\n{errors[0]}")
        return answers

    yield run
    for each in running:
        each.kill()
