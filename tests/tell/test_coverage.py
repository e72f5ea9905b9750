from __future__ import annotations

from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, NotCovered, SiteInfo
from lightning_gradwatch.tell.coverage import columns_text, coverage_line

LAYERS = tuple(LayerInfo(f"net.{place}", "Linear", ((2, 2),), 4, weight=True) for place in range(41))
SITES = tuple(SiteInfo(f"act.{place}", "relu", "hidden", 8) for place in range(38))
FUSED = "scaled_dot_product_attention is fused: its softmax isn't seen"


def test_what_is_known_and_not_seen_is_counted():
    info = RunInfo(
        layers=LAYERS,
        sites=SITES,
        coverage=(NotCovered("attn", FUSED, 1), NotCovered("head", "compiled", 1), NotCovered("act.3", "no signal", 0)),
    )
    assert columns_text(info) == "41 layers, 38 of 40 activation sites"
    assert coverage_line(info) == (
        f"GradWatch: 41 layers, 38 of 40 activation sites; not covered: `attn` ({FUSED}), `head` (compiled), `act.3` "
        "(no signal)"
    )


def test_a_reason_is_given_once_for_all_its_places():
    attention = [NotCovered(f"layers.{place}.attn", FUSED, 1) for place in range(12)]
    info = RunInfo(layers=LAYERS, sites=SITES, coverage=(*attention, NotCovered("", "a scripted function", 2)))
    assert coverage_line(info) == (
        f"GradWatch: 41 layers, 38 of 52 activation sites; not covered: `layers.0.attn` and 11 more ({FUSED}), "
        "a scripted function"
    )


def test_more_reasons_than_fit_are_counted():
    coverage = tuple(NotCovered(f"place {number}", f"reason {number // 2}", 0) for number in range(10))
    line = coverage_line(RunInfo(coverage=coverage))
    assert line.count("reason") == 3
    assert line.endswith("(reason 2) and 4 more")
    assert columns_text(RunInfo(coverage=coverage)) == "0 layers, 0 activation sites"
