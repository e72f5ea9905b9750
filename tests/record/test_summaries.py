"""Summaries against numpy by hand, and findings as text that shows strangers' names as they are."""

import html
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest

from lightning_gradwatch.record.finding import Finding, Remedy, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, SiteInfo, StepRecord
from lightning_gradwatch.record.summaries import DESCRIPTIONS, curve_tags, findings_markdown, summaries

HOSTILE = (
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "a|b",
    "`c`",
    "*d*",
    "&lt;e",
    "\n# f",
    "_g_",
    "~~h~~",
)


def make_info(layers, roles):
    return RunInfo(
        layers=tuple(LayerInfo(f"net.{i}", "Linear", ((4, 4),), 16, weight=True) for i in range(layers)),
        sites=tuple(SiteInfo(f"act.{i}", "tanh", role, 4) for i, role in enumerate(roles)),
    )


def make_record(info, **changes):
    fields = {
        "step": 0,
        "layout": info.layout,
        "metrics": {},
        "layer_state": np.ones(len(info.layers), np.uint8),
        "window_fill": np.ones(len(info.sites)),
        "forward_rms": np.ones(len(info.sites)),
    }
    return StepRecord(**fields | changes)


def make_finding(layers, message):
    return Finding(
        "GW201", "dead-units", Severity.WARNING, tuple(layers), 0, 4, 0.5, 0.25, "why", Remedy("Fix."), message
    )


def test_there_are_at_most_twelve_summaries():
    assert len(DESCRIPTIONS) <= 12


def test_summaries_are_what_numpy_computes():
    info = make_info(4, ["hidden"] * 3)
    record = make_record(
        info,
        clip_factor=0.5,
        global_grad_norm=1e-7,
        layer_state=np.array([1, 2, 3, 4], np.uint8),
        metrics={
            "grad_norm": np.array([1e-9, 5, 6, 1e3]),
            "signal_norm": np.array([np.nan, 1e-300, 1e300]),
            "dead_fraction": np.array([0.25, 0.75, np.nan]),
            "saturated_fraction": np.full(3, np.nan),
            "update_ratio": np.array([1e-3, 1e-5, np.nan, 1e-2]),
        },
    )
    found = summaries(record, info)
    assert found == pytest.approx(
        {
            "gradwatch/log10_grad_norm": -7,
            "gradwatch/log10_first_layer_grad_norm": -9,
            "gradwatch/log10_last_layer_grad_norm": 3,
            "gradwatch/log10_attenuation": -600,
            "gradwatch/max_dead_fraction": 0.75,
            "gradwatch/mean_dead_fraction": 0.5,
            "gradwatch/log10_min_update_ratio": -5,
            "gradwatch/log10_median_update_ratio": -3,
            "gradwatch/log10_max_update_ratio": -2,
            "gradwatch/clip_factor": 0.5,
            "gradwatch/layers_without_gradient": 2,
        }
    )


def test_a_run_without_any_column_has_summaries_too():
    info = RunInfo()
    assert summaries(make_record(info, clip_factor=0.5, global_grad_norm=1.0), info).keys() == {
        "gradwatch/log10_grad_norm",
        "gradwatch/clip_factor",
        "gradwatch/layers_without_gradient",
    }


def test_a_curve_keeps_its_number_when_another_layer_takes_its_place_before_it():
    early = make_info(2, ["hidden", "gate"])
    assert [tag for _, tag in curve_tags("grad_norm", early, None)] == [
        "gradwatch.grad_norm/000.net.0", "gradwatch.grad_norm/001.net.1",
    ]  # fmt: skip
    late = RunInfo(
        layers=(
            LayerInfo("late", "Linear", ((4, 4),), 16, weight=True, place=2),
            *(replace(layer, place=place) for place, layer in enumerate(early.layers)),
        ),
        sites=(SiteInfo("new", "tanh", "hidden", 4, place=2), replace(early.sites[0], place=0), early.sites[1]),
    )
    assert curve_tags("grad_norm", late, None) == (
        (0, "gradwatch.grad_norm/002.late"),
        (1, "gradwatch.grad_norm/000.net.0"),
        (2, "gradwatch.grad_norm/001.net.1"),
    )
    # Without a number of its own, a site has that of its column.
    assert [tag for _, tag in curve_tags("dead_fraction", late, None)] == [
        f"gradwatch.dead_fraction/{name}" for name in ("002.new", "000.act.0", "002.act.1")
    ]


def test_a_gate_is_left_out_of_the_saturation_summary():
    info = make_info(0, ["hidden", "gate"])
    record = make_record(info, metrics={"saturated_fraction": np.array([0.1, 0.9])})
    assert summaries(record, info)["gradwatch/max_saturated_fraction"] == 0.1


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_only_shown(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a library that it brings along is deprecated
        from tensorboard.plugin_util import markdowns_to_safe_html  # noqa: PLC0415 - see above

    page = str(
        markdowns_to_safe_html([findings_markdown([make_finding([name], f"at {name}")])], lambda parts: parts[0])
    )
    assert set(re.findall(r"<(\w+)", page)) == {"h3", "ul", "li", "strong"}
    rows = dict(re.findall(r"<li><strong>(.*?)</strong>(.*?)</li>", page))
    rows = {label: html.unescape(text).strip() for label, text in rows.items()}
    assert rows["layers"] == " ".join(name.split())
    assert rows["seen"] == f"at {' '.join(name.split())}"


def test_no_findings_are_said_and_many_layers_are_counted():
    assert findings_markdown([]) == "No findings."
    assert " and 3 more\n" in findings_markdown([make_finding([f"n{i}" for i in range(9)], "m")])
