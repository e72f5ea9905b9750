"""The page's model: what a run holds is there or thinned to what a screen shows, and what the tables get later appears."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from page.unpacked import unpacked
from written import make_info, make_record

from lightning_gradwatch.judge.catalog import _registered, register_rule
from lightning_gradwatch.judge.rule import Line, Rule
from lightning_gradwatch.judge.run import Run
from lightning_gradwatch.page.matrices import Columns, pack
from lightning_gradwatch.page.model import page_model
from lightning_gradwatch.page.redact import given_away
from lightning_gradwatch.page.runs import PageRun
from lightning_gradwatch.record.finding import Finding, Remedy, Severity
from lightning_gradwatch.record.metrics import METRICS, Metric
from lightning_gradwatch.record.step import LayerInfo, SiteInfo

FINDING = Finding(
    code="GW101",
    name="vanishing-gradient",
    severity=Severity.ERROR,
    layers=("net.0",),
    first_step=137,
    last_step=1000,
    value=1e-9,
    threshold=3e-3,
    cause="Sigmoid.",
    remedy=Remedy("Replace it."),
    message="The signal vanishes. So it is.",
    headline="The signal vanishes",
)


def shown(records, info, **changes):
    values = {"findings": (), "name": "run"} | changes
    return PageRun.of(Run.from_records(records, info), name=values.pop("name"), findings=values.pop("findings"))


def only(model, metric="grad_norm"):
    (run,) = model["runs"]
    return unpacked(run["series"][metric], len(run["steps"]["last"]))


def test_a_small_run_is_there_to_the_last_bit():
    info = make_info()
    records = [make_record(info, place, noise=0.3) for place in range(20)]
    model = page_model([shown(records, info)])
    for metric in records[0].metrics:
        expected = np.array([record.metrics[metric] for record in records]).T
        assert np.array_equal(only(model, metric), expected), metric
    assert model["runs"][0]["steps"] == {"first": list(range(20)), "last": list(range(20))}


def test_the_model_is_json_whatever_the_numbers_are():
    info = make_info()
    records = [
        make_record(info, place, loss=value, grad_norm=value, global_grad_norm=value)
        for place, value in enumerate((float("nan"), float("inf"), float("-inf"), 0.0, 5e-324, 1.7e308))
    ]
    text = json.dumps(page_model([shown(records, info)]), allow_nan=False)
    told = json.loads(text)
    assert told["runs"][0]["scalars"][0]["values"] == ["NaN", "Infinity", "-Infinity", 0.0, 5e-324, 1.7e308]
    row = only(told)[0]
    assert np.isnan(row[0])
    assert row[1:].tolist() == [np.inf, -np.inf, 0.0, 5e-324, 1.7e308]


class TestThinning:
    STEPS = 4000

    @pytest.fixture
    def made(self):
        """A long run with one zero, one infinity and one spike, each in a step of its own."""
        info = make_info(3)
        records = []
        for place in range(self.STEPS):
            norms = np.ones(3)
            norms[0] = {1001: 0.0, 2002: np.inf, 2501: 1e6, 3003: 1e-6}.get(place, 1.0)
            records.append(make_record(info, place, grad_norm=norms))
        return info, records

    def test_what_alarms_and_what_is_extreme_survives(self, made):
        info, records = made
        model = page_model([shown(records, info)], max_columns=100)
        (run,) = model["runs"]
        row = only(model)[0]
        assert len(row) == 100

        def column(at):
            return next(each for each, last in enumerate(run["steps"]["last"]) if last >= at)

        assert row[column(1001)] == 0
        assert row[column(2002)] == np.inf
        assert row[column(2501)] == pytest.approx(1e6)
        assert row[column(3003)] == pytest.approx(1e-6)
        assert (row == 1).sum() == 96

    def test_a_column_ends_at_each_step_that_a_finding_names(self, made):
        info, records = made
        finding = replace(FINDING, healed_step=2345)
        (run,) = page_model([shown(records, info, findings=(finding,))], max_columns=100)["runs"]
        assert {137, 1000, 2345} <= set(run["steps"]["last"])
        assert len(run["steps"]["last"]) <= 103

    def test_columns_leave_no_step_out(self, made):
        info, records = made
        (run,) = page_model([shown(records, info)], max_columns=77)["runs"]
        first, last = run["steps"]["first"], run["steps"]["last"]
        assert [first[0], last[-1]] == [0, self.STEPS - 1]
        assert first[1:] == [each + 1 for each in last[:-1]]

    def test_a_layer_without_a_gradient_in_one_step_is_seen(self, made):
        _, records = made
        states = np.array([1, 3, 1], np.uint8)
        records[1234] = replace(records[1234], layer_state=states)
        columns = Columns(range(self.STEPS), 50)
        thinned = columns.thin_codes(np.array([record.layer_state for record in records]), (3,))
        assert np.flatnonzero(thinned[:, 1] == 3).tolist() == [1234 * 50 // self.STEPS]

    def test_of_a_share_0_is_no_alarm_and_its_highest_survives(self):
        shares = np.zeros((100, 1))
        shares[41] = 1.0
        thinned = Columns(range(100), 10).thin(shares, log=False)[:, 0]
        assert thinned.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]

    def test_what_was_measured_once_in_a_column_is_no_gap(self):
        columns = Columns(range(15), 5)
        values = np.full((15, 1), np.nan)
        values[[0, 3, 6, 9], 0] = 0.5, 0.9, 0.1, 0.4
        assert columns.thin(values)[:, 0].tolist() == pytest.approx([0.5, 0.9, 0.1, 0.4, np.nan], nan_ok=True)


@pytest.mark.parametrize(("log", "values"), [(True, np.geomspace(1e-40, 1e5, 500)), (False, np.linspace(-2, 3, 500))])
def test_what_is_packed_is_within_its_level(log, values):
    """Of 65,531 levels: a value is within half of one."""
    special = [np.nan, 0.0, np.inf, -np.inf]
    given = np.array([*special, *values])[:, None]
    told = unpacked(pack(given, log=log, exact=False), len(given))[0]
    assert np.isnan(told[0])
    assert told[1:4].tolist() == special[1:]
    found, wanted = (np.log10(each) if log else each for each in (told[4:], values))
    assert np.abs(found - wanted).max() <= 0.51 * (wanted.max() - wanted.min()) / 65530


def test_a_number_below_0_on_a_log_scale_isnt_one_above():
    told = pack(np.array([[-1.0], [2.0]]), log=True, exact=False)
    assert np.frombuffer(base64.b64decode(told["data"]), "<u2")[0] == 4


def test_a_large_run_is_below_5_mb():
    names = [f"net.{place}" for place in range(160)]
    info = replace(
        make_info(),
        layers=tuple(LayerInfo(name, "Linear", ((4, 4),), 16, weight=True, feeds=f"{name}:relu") for name in names),
        sites=tuple(SiteInfo(f"{name}:relu", "relu", "hidden", 4) for name in names),
    )
    records = [make_record(info, place, noise=0.5) for place in range(2000)]
    model = page_model([shown(records, info)])
    assert len(json.dumps(model)) < 4.9e6
    assert len(model["runs"][0]["steps"]["last"]) > 700


def test_a_metric_that_the_table_gets_later_appears(monkeypatch):
    added = Metric("attention_entropy", "entropy of attention", "sites", lambda sums: sums.dead, "In nats.")
    monkeypatch.setitem(METRICS, added.name, added)
    info = make_info()
    records = [
        replace(record, metrics={**record.metrics, "attention_entropy": np.full(5, 2.0)})
        for record in (make_record(info, place) for place in range(3))
    ]
    model = page_model([shown(records, info)])
    (described,) = [each for each in model["metrics"] if each["name"] == "attention_entropy"]
    assert described == {
        "name": "attention_entropy",
        "of": "sites",
        "title": "entropy of attention",
        "description": "In nats.",
        "log": True,
    }
    assert only(model, "attention_entropy").tolist() == [[2.0] * 3] * 5


def test_each_metric_of_the_table_is_described():
    assert [each["name"] for each in page_model([])["metrics"]] == list(METRICS)


def test_a_kind_of_site_that_is_added_later_appears():
    info = make_info()
    info = replace(info, sites=(*info.sites[:-1], replace(info.sites[-1], role="head", function="swoosh")))
    (run,) = page_model([shown([make_record(info, 0)], info)])["runs"]
    assert (run["sites"][-1]["role"], run["sites"][-1]["function"]) == ("head", "swoosh")


def test_a_rule_that_is_added_later_appears_with_its_line(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class LoudLayer(Rule):
        """The layer is loud."""

        code: ClassVar[str] = "LAB001"
        name: ClassVar[str] = "loud-layer"
        loudness: float = 7.0

        def lines(self, info):
            return (Line("weight_rms", self.loudness * len(info.layers), "above"),)

    monkeypatch.setitem(_registered, "LAB001", LoudLayer)
    register_rule(LoudLayer)
    info = make_info(rules={"LAB001": {"loudness": 2.0}})
    model = page_model([shown([make_record(info, 0)], info)])
    assert model["rules"]["LAB001"] == {"name": "loud-layer", "says": "The layer is loud."}
    assert model["runs"][0]["lines"] == [
        {"code": "LAB001", "metric": "weight_rms", "value": 12.0, "side": "above", "of_last": False}
    ]


def test_a_rule_whose_line_fails_takes_no_page_away(monkeypatch):
    from lightning_gradwatch.rules import DeadUnits  # noqa: PLC0415 - to be broken

    monkeypatch.setattr(DeadUnits, "lines", lambda self, info: 1 / 0)
    info = make_info()
    (run,) = page_model([shown([make_record(info, 0)], info)])["runs"]
    assert "GW201" not in {line["code"] for line in run["lines"]}
    assert "GW101" in {line["code"] for line in run["lines"]}


def test_each_rule_of_ours_with_a_threshold_of_a_metric_shows_it():
    info = make_info()
    (run,) = page_model([shown([make_record(info, 0)], info)])["runs"]
    assert {(line["code"], line["metric"]) for line in run["lines"]} == {
        ("GW101", "signal_norm"),
        ("GW102", "signal_norm"),
        ("GW201", "dead_fraction"),
        ("GW202", "saturated_fraction"),
        ("GW301", "update_ratio"),
        ("GW302", "update_ratio"),
        ("GW401", "signal_norm"),
    }


def test_findings_stand_in_the_order_in_which_they_are_said():
    info = make_info()
    follows = replace(FINDING, code="GW301", name="stalled-update", consequence_of="GW101")
    healed = replace(FINDING, code="GW302", name="oversized-update", healed_step=5, severity=Severity.INFO)
    (run,) = page_model([shown([make_record(info, 0)], info, findings=(follows, healed, FINDING))])["runs"]
    assert [each["id"] for each in run["findings"]] == ["GW101-0", "GW302-1", "GW301-2"]
    assert run["outcome"] == "ill"
    assert run["findings"][0]["seen"] == "The signal vanishes"


@pytest.mark.parametrize(
    ("findings", "outcome"), [((), "healthy"), ((replace(FINDING, severity=Severity.INFO),), "noted")]
)
def test_the_outcome_is_one_word(findings, outcome):
    info = make_info()
    assert page_model([shown([make_record(info, 0)], info, findings=findings)])["runs"][0]["outcome"] == outcome
    assert page_model([PageRun.failed("x", "no such run")])["runs"][0]["outcome"] == "unknown"


class TestRows:
    def test_a_site_stands_beside_the_weight_layer_that_feeds_it(self):
        layers = (
            LayerInfo("a", "Linear", ((4, 4),), 16, weight=True, feeds="act"),
            LayerInfo("norm", "LayerNorm", ((4,),), 4, weight=False, feeds="act"),
            LayerInfo("head", "Linear", ((4, 4),), 16, weight=True),
        )
        info = replace(make_info(), layers=layers, sites=(SiteInfo("act", "relu", "hidden", 4),))
        (run,) = page_model([shown([make_record(info, 0)], info)])["runs"]
        assert run["rows"] == [[0, 0], [1, -1], [2, -1]]

    def test_of_several_weight_layers_it_is_the_last(self):
        layers = tuple(LayerInfo(name, "Linear", ((4, 4),), 16, weight=True, feeds="act") for name in "ab")
        info = replace(make_info(), layers=layers, sites=(SiteInfo("act", "relu", "hidden", 4),))
        (run,) = page_model([shown([make_record(info, 0)], info)])["runs"]
        assert run["rows"] == [[0, -1], [1, 0]]

    def test_one_that_no_layer_feeds_has_a_row_of_its_own(self):
        info = replace(make_info(2), sites=(SiteInfo("x", "relu", "gate", 4), *make_info(2).sites))
        layers = (info.layers[0], replace(info.layers[1], feeds="net.1"))
        info = replace(info, layers=layers)
        (run,) = page_model([shown([make_record(info, 0)], info)])["runs"]
        assert run["rows"] == [[0, -1], [-1, 0], [1, 1]]

    def test_without_a_record_of_that_they_stand_in_turn(self):
        info = make_info(4)
        (run,) = page_model([shown([make_record(info, 0)], info)])["runs"]
        assert run["rows"] == [[0, 0], [1, 1], [2, 2], [3, -1]]
        assert run["paths"] == [[0, 1, 2]]

    def test_a_layer_that_appears_in_mid_run_has_its_column_and_one_that_goes_keeps_it(self):
        early, late = make_info(3), make_info(4, prefix="net.")
        gone = replace(early, layers=(*early.layers, LayerInfo("old", "Linear", ((4, 4),), 16, weight=True)))
        records = [make_record(gone, 0), make_record(late, 1)]
        (run,) = page_model([shown(records, [gone, late])])["runs"]
        names = [layer["name"] for layer in run["layers"]]
        assert names == ["net.0", "net.2", "net.4", "net.6", "old"]
        assert run["layers"][-1] == {"name": "old", "gone": True}
        values = unpacked(run["series"]["grad_norm"], 2)
        assert np.isnan(values).tolist() == [[False] * 2] * 3 + [[True, False], [False, True]]


class TestRedacting:
    @pytest.fixture
    def told(self):
        info = replace(make_info(), versions={"torch": "2.13"})
        finding = replace(
            FINDING,
            message="It is cut in training_step (model.py:31), see /home/ann/secret/run7/x.",
            cause="events.out.tfevents.1795942906.annsbox.6788.35 says so, and /home/ann/data/x.csv.",
        )
        run = replace(
            shown([make_record(info, 0)], info, findings=(finding,)), path="/home/ann/secret/run7", name="run7"
        )
        run = replace(run, problems=("events.out.tfevents.17.annsbox.67.3: the last record is cut off",))
        return [run, PageRun.failed("gone", "/home/ann/gone: no such run", path="/home/ann/gone")]

    def test_it_says_what_it_gives_away(self, told):
        said = " ".join(given_away(page_model(told)))
        for part in ("/home/ann/secret/run7", "annsbox", "model.py:31", "SGD's lr", "version of torch"):
            assert part in said

    def test_redacted_it_gives_none_of_it_away(self, told):
        model = page_model(told, redact=True)
        text = json.dumps(model)
        for part in ("ann", "secret", "run7", "model.py", "tfevents", "2.13", '"lr"'):
            assert part not in text, part
        assert given_away(model) == []
        assert [run["name"] for run in model["runs"]] == ["run 1", "run 2"]
        assert model["runs"][0]["layers"][0]["name"] == "net.0"


def test_names_that_steer_are_spelled_and_findings_still_name_their_layers():
    name = "net.\u202e\x1b[2J\ud800\u2028x"
    info = make_info()
    info = replace(info, layers=(replace(info.layers[0], name=name), *info.layers[1:]))
    finding = replace(FINDING, layers=(name,))
    model = page_model([shown([make_record(info, 0)], info, findings=(finding,))])
    (run,) = model["runs"]
    assert run["layers"][0]["name"] == run["findings"][0]["layers"][0] == "net.\\u202e\\x1b[2J\\ud800\\u2028x"
    json.dumps(model).encode("ascii")


def test_two_runs_are_compared_as_compare_does():
    info = make_info()
    base = [make_record(info, place) for place in range(8)]
    worse = [make_record(info, place, update_ratio=1e-7) for place in range(8)]
    model = page_model([shown(base, info), shown(worse, info, name="worse"), PageRun.failed("gone", "no such run")])
    one, two = model["comparisons"]
    assert {change["metric"] for change in one["worse"]} == {"update_ratio"}
    assert len(one["worse"]) == len(info.layers)
    assert "no measured step" in two["failure"]


def test_a_page_of_nothing_is_one():
    assert page_model([])["runs"] == []
    (run,) = page_model([PageRun(name="empty", info=make_info())])["runs"]
    assert (run["outcome"], run["rows"], run["series"]) == ("unknown", [], {})
