"""What ranks make of each other's numbers: the protocol and the sums, with threads in the place of processes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from fit.ranks.meeting import Meeting, chunk, layer, pending, ranks_of, site, tally_of, together
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradwatch.fit.ranks.columns import Description, Table
from lightning_gradwatch.measure.assemble import assemble
from lightning_gradwatch.measure.coverage import VARIES
from lightning_gradwatch.measure.faults import GivenUp
from lightning_gradwatch.record.metrics import OfLayer, OfSite
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerState, NotCovered, SiteInfo, Wiring


def combine(meeting, steps, **settings):
    """Return what each rank makes of one step."""
    ranks = ranks_of(meeting, **settings)
    return together(
        [lambda one=one, step=step: one.combine(step) for one, step in zip(ranks, steps, strict=True)]
    ), ranks


def test_the_first_step_is_told_and_the_next_ones_are_one_sum():
    ranks = ranks_of(Meeting(2))
    steps = [pending(sites=[site("a")], layers=[layer("first")]) for _ in range(2)]
    for _ in range(3):
        together([lambda one=one, step=step: one.combine(step) for one, step in zip(ranks, steps, strict=True)])
    assert [one._exchange.calls for one in ranks] == [["sum", "gather", "sum", "sum", "sum"]] * 2


def test_norms_add_up_as_squares_and_counts_as_they_are():
    steps = [
        pending(
            sites=[site("a")],
            layers=[layer("first")],
            of_layers={OfLayer.GRADIENT: norm, OfLayer.MATRIX_ENTRIES: 8},
            of_sites={OfSite.OUTPUT: norm, OfSite.SIGNAL: norm, OfSite.OUTPUT_ENTRIES: 16},
            chunks=[chunk(inactive, observations)],
            loss=loss,
        )
        for norm, inactive, observations, loss in ((3.0, [4, 0, 1, 2], 4, 1.0), (4.0, [6, 3, 0, 6], 6, 2.0))
    ]
    tallies, _ = combine(Meeting(2), steps)
    for tally in tallies:
        assert tally.layers[0, [OfLayer.GRADIENT, OfLayer.MATRIX_ENTRIES]].tolist() == [5, 16]
        assert tally.sites[0, [OfSite.OUTPUT, OfSite.SIGNAL, OfSite.OUTPUT_ENTRIES]].tolist() == [5, 2.5, 32]
        assert tally.chunks[0].inactive.tolist() == [10, 3, 1, 8]
        assert tally.chunks[0].observations == tally.chunks[0].batch_elements == 10
        assert tally.chunks[0].saturated is None
        assert tally.loss == 1.5


@given(st.lists(st.floats(1e-45, 1e38) | st.just(0.0), min_size=2, max_size=5))
@settings(max_examples=30, deadline=None)
def test_a_norm_is_right_over_the_whole_range(norms):
    steps = [pending(layers=[layer("first")], of_layers={OfLayer.GRADIENT: norm}) for norm in norms]
    tallies, _ = combine(Meeting(len(norms)), steps)
    for tally in tallies:
        assert tally.layers[0, OfLayer.GRADIENT] == pytest.approx(math.hypot(*norms), rel=1e-12)


@pytest.mark.parametrize(
    ("numbers", "state"),
    [
        # On the first rank, and on the second: the gradient's parameters, of those not all 0, used in the step, ever.
        (((1, 1, 1, 1), (1, 1, 1, 1)), LayerState.OK),
        (((1, 0, 0, 0), (1, 1, 1, 1)), LayerState.OK),
        (((1, 0, 1, 1), (1, 0, 0, 1)), LayerState.ZERO),
        (((0, 0, 1, 1), (0, 0, 0, 1)), LayerState.NONE),
        (((0, 0, 0, 0), (0, 0, 0, 1)), LayerState.UNUSED),
        (((0, 0, 0, 0), (0, 0, 0, 0)), LayerState.NONE),
    ],
)
def test_a_layers_state_is_that_of_all_ranks(numbers, state):
    columns = (OfLayer.GRADIENTS, OfLayer.NONZERO, OfLayer.USED, OfLayer.KNOWN)
    steps = [pending(layers=[layer("one")], of_layers=dict(zip(columns, of_rank, strict=True))) for of_rank in numbers]
    tallies, ranks = combine(Meeting(2), steps)
    for tally, one in zip(tallies, ranks, strict=True):
        assert assemble(tally, one.info.layout, [], steps[0].facts).layer_state.tolist() == [state]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_on_one_rank_is_not_finite(bad):
    steps = [pending(layers=[layer("first")], of_layers={OfLayer.GRADIENT: norm}) for norm in (1.0, bad)]
    tallies, _ = combine(Meeting(2), steps)
    assert not np.isfinite([tally.layers[0, OfLayer.GRADIENT] for tally in tallies]).any()


def test_columns_are_those_of_all_ranks_in_an_order_of_all():
    """The second rank has another order, a site of its own, and another place under a name that is taken."""
    first = [site("a"), site("relu", key="here")]
    second = [site("relu", key="there", predecessors=["a"]), site("a"), site("b")]
    ranks = ranks_of(Meeting(2))
    steps = [
        pending(sites=first, layers=[layer("one"), layer("two", used=False)], of_sites={OfSite.OUTPUT: [1, 2]}),
        pending(sites=second, layers=[layer("two"), layer("one")], of_sites={OfSite.OUTPUT: [10, 20, 30]}),
    ]
    tallies = together([lambda one=one, step=step: one.combine(step) for one, step in zip(ranks, steps, strict=True)])
    for tally, one in zip(tallies, ranks, strict=True):
        assert [each.name for each in one.info.sites] == ["relu#2", "a", "relu", "b"]
        assert [each.name for each in one.info.layers] == ["two", "one"]  # the only order in which one was used
        assert [each.used for each in one.info.layers] == [True, True]
        assert one.info.sites[0].predecessors == ("a",)
        assert tally.sites[:, OfSite.OUTPUT].tolist() == pytest.approx([10, math.hypot(1, 20), 2, 30])
    names = [layer("one"), layer("two")]
    grown = [pending(sites=[*first, site("c")], layers=names), pending(sites=second, layers=names[::-1])]
    together([lambda one=one, step=step: one.combine(step) for one, step in zip(ranks, grown, strict=True)])
    assert [each.name for each in ranks[1].info.sites] == ["relu#2", "a", "relu", "b", "c"]
    assert [each.name for each in ranks[1].info.layers] == ["one", "two"]  # they disagree, and so it's as first told


def test_coverage_says_on_which_ranks_something_is_not_measured():
    everywhere, here = NotCovered("x", "fused"), NotCovered("y", "sparse")
    path = NotCovered("z", "not called in a measured step")
    steps = [pending(layers=[layer("one")], coverage=each) for each in ([everywhere], [everywhere, here, path])]
    _, ranks = combine(Meeting(2), steps)
    assert ranks[0].info.coverage == (everywhere, NotCovered("y", "sparse (on rank 1)"))


def test_what_is_wired_wrongly_on_some_rank_is_known_to_all_by_the_names_that_all_use():
    of_one, stale = Wiring("norm-of-sample", ("norm",), "batch_norm"), Wiring("stale-gradient", ("one",), "SGD")
    twice = Wiring("output-twice", ("relu",), "cross_entropy")
    table = Table(ranks=2, replicas=2)
    table.update(
        [
            Description(0, RunInfo(sites=(site_info("relu"),), wiring=(of_one, stale)), keys=("first",), features=(0,)),
            Description(1, RunInfo(sites=(site_info("relu"),), wiring=(stale, twice)), keys=("second",), features=(0,)),
        ]
    )
    assert table.info.site_names == ("relu", "relu#2")
    assert table.info.wiring == (of_one, stale, replace(twice, names=("relu#2",)))


def site_info(name):
    return SiteInfo(name, "relu", "hidden", 4)


def test_units_of_another_size_on_each_rank_are_not_counted():
    """Weights of attention over as many positions as the rank's part of the data has."""
    steps = [
        pending(sites=[site("a", units=units, key="one"), site("b")], chunks=[chunk([1] * units), chunk([1] * 4)])
        for units in (3, 5)
    ]
    tallies, ranks = combine(Meeting(2), steps)
    for tally, one in zip(tallies, ranks, strict=True):
        assert [each.units for each in one.info.sites] == [0, 4]
        assert tally.chunks[0] is None or not tally.chunks[0].inactive.size
        assert tally.chunks[1].inactive.tolist() == [2, 2, 2, 2]
        assert one.info.coverage == (NotCovered("a", VARIES),)


def test_a_gain_is_of_ranks_that_agree_where_its_segment_starts():
    sites = [site("a"), site("b"), site("c")]
    agreed = [pending(sites=sites, starts=[None, 0, 1]) for _ in range(2)]
    assert [tally.starts for tally in combine(Meeting(2), agreed)[0]] == [[None, 0, 1]] * 2
    split = [pending(sites=sites, starts=[None, 0, start]) for start in (0, 1)]
    assert [tally.starts for tally in combine(Meeting(2), split)[0]] == [[None, 0, None]] * 2
    alone = [pending(sites=sites, starts=[None, 0, 1]), pending(sites=sites, starts=[None, None, 1])]
    assert [tally.starts for tally in combine(Meeting(2), alone)[0]] == [[None, None, 1]] * 2


def test_units_that_ranks_share_stand_side_by_side():
    """Two parts of the data, two ranks for each: a layer's 8 features are split, and 4 units each are all of them."""
    steps = [
        pending(
            sites=[site("a", features=8)],
            of_sites={OfSite.SIGNAL: rank + 1.0, OfSite.INACTIVE_OR_SATURATED: sum(inactive)},
            chunks=[chunk(inactive)],
        )
        for rank, inactive in enumerate(([4, 0, 0, 0], [4, 4, 0, 0], [4, 0, 0, 3], [4, 4, 0, 0]))
    ]
    tallies, ranks = combine(Meeting(4), steps, replicas=2)
    for tally, one in zip(tallies, ranks, strict=True):
        assert one.info.sites[0].units == 8
        assert tally.chunks[0].inactive.tolist() == [8, 0, 0, 3, 8, 8, 0, 0]
        assert tally.chunks[0].observations == 8
        assert tally.sites[0, OfSite.INACTIVE_OR_SATURATED] == 27
        assert tally.sites[0, OfSite.SIGNAL] == pytest.approx(math.hypot(1, 2, 3, 4) / 2)


def test_what_ranks_do_alike_counts_once_and_what_they_do_not_is_absent():
    steps = [
        pending(
            sites=[site("same"), site("other")],
            of_sites={OfSite.SIGNAL: [2.0, 2.0 + rank]},
            chunks=[chunk([1, 2, 3, 4]), chunk([1, 2, 3, 4])],
        )
        for rank in range(2)
    ]
    tallies, ranks = combine(Meeting(2), steps, replicas=1)
    for tally, one in zip(tallies, ranks, strict=True):
        assert tally.sites[0, OfSite.SIGNAL] == 2
        assert tally.chunks[0].inactive.tolist() == [1, 2, 3, 4]
        assert tally.chunks[1] is None
        assert tally.sites[1, OfSite.NOT_COMBINABLE] == tally.sites[1, OfSite.INCOMPLETE] == 1
        ((name, reason),) = [(entry.name, entry.reason) for entry in one.info.coverage]
        assert name == "other"
        assert "not the same on the ranks" in reason


def test_a_layer_that_only_some_ranks_hold_is_not_measured():
    """As in a pipeline: of what is whole on a rank each counts its share of all ranks, which would be half of it here."""
    numbers = {OfLayer.GRADIENT: 3.0, OfLayer.MATRIX_ENTRIES: 8, OfLayer.WEIGHT: 5.0, OfLayer.WEIGHT_ENTRIES: 8}
    steps = [pending(layers=[layer(name) for name in names], of_layers=numbers) for names in (("a", "c"), ("b", "c"))]
    tallies, ranks = combine(Meeting(2), steps)
    for tally, one in zip(tallies, ranks, strict=True):
        record = assemble(tally, one.info.layout, [], steps[0].facts)
        found = dict(zip(one.info.layer_names, record.metrics["grad_norm"].tolist(), strict=True))
        assert found == pytest.approx({"a": math.nan, "b": math.nan, "c": math.hypot(3, 3)}, nan_ok=True)
        assert np.isnan(record.metrics["weight_rms"]).tolist() == [name != "c" for name in one.info.layer_names]
        assert set(record.layer_state.tolist()) == {LayerState.UNMEASURED, LayerState.OK}
        assert math.isnan(record.global_grad_norm)
        assert {entry.name for entry in one.info.coverage} == {"a", "b"}
        assert "only some of the ranks hold it, as in a pipeline" in one.info.coverage[0].reason


def test_a_step_that_one_rank_waits_for_is_no_record():
    ranks = ranks_of(Meeting(2))
    outcome = together([lambda: ranks[0].combine(pending(layers=[layer("one")])), lambda: ranks[1].all_wait(0)])
    assert outcome == [None, False]
    assert [one.info.coverage for one in ranks] == [
        (NotCovered("", "steps that only some of the ranks took aren't measured"),)
    ] * 2
    assert together([lambda one=one: one.all_wait(1) for one in ranks]) == [True, True]


def test_ranks_that_are_at_different_steps_say_so():
    ranks = ranks_of(Meeting(2))
    calls = [lambda one=one, step=step: one.all_wait(step) for step, one in enumerate(ranks)]
    with pytest.raises(RuntimeError, match=r"ranks measured different steps: \[0, 1\]"):
        together(calls)


def test_one_that_leaves_is_heard_of_whenever_the_others_come_by():
    ranks = ranks_of(Meeting(3))
    steps = [pending(sites=[site("a")], layers=[layer("one")]) for _ in ranks]
    together([lambda one=one, step=step: one.combine(step) for one, step in zip(ranks, steps, strict=True)])
    ranks[1].leave()
    ranks[1].leave()

    def come_by(one, step):
        with pytest.raises(GivenUp, match="the monitor of rank 1 has failed"):
            one.combine(step)

    together([lambda one=ranks[place], step=steps[place]: come_by(one, step) for place in (0, 2)])


def test_tallies_of_the_test_are_shaped_as_real_ones():
    assert tally_of(2, 3).layers.shape == (2, len(OfLayer))
    assert tally_of(2, 3).sites.shape == (3, len(OfSite))
