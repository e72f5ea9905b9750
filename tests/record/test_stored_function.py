"""What a run keeps of a registered function, there and back, and from files that nobody wrote."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from registering import table_kept

from lightning_gradwatch import register_activation
from lightning_gradwatch.record.activations import look_up
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import SiteInfo
from lightning_gradwatch.record.stored_function import StoredFunction

INF = math.inf


def shaped(z):
    return z


@pytest.fixture(autouse=True)
def table():
    with table_kept():
        yield


def described(**said):
    """The description of a run with one site of `shaped`, as a file has it."""
    register_activation(shaped, **said)
    site = SiteInfo("act", "shaped", "hidden", 4, own_function=StoredFunction.of("shaped"))
    return json.loads(json.dumps(RunInfo(sites=(site,)).to_dict()))


SAID = [
    {"inactive": [(-INF, 0)], "saturated": [(2, INF)], "initialization": "xavier_normal_"},
    {"inactive": [(-0.5, 1)], "replaced_by": ["SiLU", "ELU"], "flat_middle": True},
    {"saturated": [(-INF, -2), (2, INF)], "steepest": 0.25, "passes": 0.24},
    {},
]


@pytest.mark.parametrize("said", SAID, ids=range(len(SAID)))
def test_it_is_judged_by_what_was_said_where_nobody_registered_it(said):
    data = described(**said)
    row = look_up("shaped")
    with table_kept():
        assert look_up("shaped").usual.inactive == ()
        (site,) = RunInfo.from_dict(data).sites
        own = site.activation
    for what in ("name", "module", "usual", "steepest", "passes", "linear", "flat_middle", "when_fading", "when_dead"):
        assert getattr(own, what) == getattr(row, what), what
    assert (own.flat_zero, own.saturates, own.two_sided) == (row.flat_zero, row.saturates, row.two_sided)


def test_a_run_is_judged_by_what_was_said_when_it_was_measured():
    data = described(steepest=0.25)
    register_activation(shaped, steepest=0.9)
    assert RunInfo.from_dict(data).sites[0].activation.steepest == 0.25


def test_functions_of_torchs_are_not_stored():
    assert StoredFunction.of("relu") is None
    assert SiteInfo("act", "relu", "hidden", 4).activation is look_up("relu")


def test_what_was_said_tells_one_layout_from_another():
    one = RunInfo.from_dict(described(steepest=0.25))
    assert one.layout == RunInfo.from_dict(one.to_dict()).layout
    assert one.layout != RunInfo.from_dict(described(steepest=0.5)).layout


DAMAGED = [
    3,
    {"inactive": 5},
    {"inactive": [["<", 0.0]]},
    {"inactive": [["~", 0.0, False, None]]},
    {"inactive": [["<", "0", False, None]]},
    {"inactive": [["<", INF, False, None]]},
    {"inactive": [["<", 0.0, False, None]] * 17},
    {"saturated": [["<", 0.0, 1, None]]},
    {"steepest": 0},
    {"steepest": True},
    {"passes": 1.5},
    {"initialization": "zeros_"},
    {"when_fading": [3]},
]


@pytest.mark.parametrize("own", DAMAGED, ids=range(len(DAMAGED)))
def test_what_no_function_can_have_is_refused(own):
    data = RunInfo(sites=(SiteInfo("act", "shaped", "hidden", 4),)).to_dict()
    data["sites"][0]["own_function"] = own
    with pytest.raises((TypeError, ValueError)):
        RunInfo.from_dict(data)


def test_what_takes_its_place_is_a_name():
    """It goes into advice, and may be looked up in ``torch.nn``."""
    data = dataclasses.asdict(StoredFunction(when_dead=("ELU", "os.system", "<b>")))
    assert StoredFunction.read(data).when_dead == ("ELU",)
