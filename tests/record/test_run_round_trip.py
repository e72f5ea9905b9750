"""Any run that can be written is read back bit for bit."""

import dataclasses
import math
import tempfile
from typing import get_args

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lightning_gradwatch.judge.run import read_run
from lightning_gradwatch.record.events.file import EventFile
from lightning_gradwatch.record.events.step_events import step_event
from lightning_gradwatch.record.metrics import METRICS, is_over_layers
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import (
    LayerInfo,
    LostGradient,
    LostKind,
    NotCovered,
    OptimizerInfo,
    SiteInfo,
    StepRecord,
    Wiring,
    WiringKind,
)

# Two lone halves side by side are one character after JSON, and no module is named so: one half is hostile enough.
NAMES = st.text(st.characters(exclude_categories=["Cs"]) | st.just("\ud800") | st.sampled_from("\x00\n<|`/.\U0001f600"))
SPECIAL = st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1e-43, 5e-324, 1e308, -1e308, 1 / 3])
FLOATS = st.floats() | SPECIAL
COUNTS = st.integers(0, 2**40)
LAYERS = st.builds(
    LayerInfo,
    name=NAMES,
    kind=NAMES,
    shapes=st.lists(st.lists(COUNTS, max_size=3).map(tuple), max_size=2).map(tuple),
    parameters=COUNTS,
    weight=st.booleans(),
    used=st.sampled_from([True, False, None]),
    feeds=NAMES,
    place=st.none() | COUNTS,
    lost=st.none()
    | st.builds(
        LostGradient, st.sampled_from(get_args(LostKind)), NAMES, NAMES, st.lists(NAMES, max_size=2).map(tuple)
    ),
)
SITES = st.builds(
    SiteInfo,
    name=NAMES,
    function=NAMES,
    role=st.sampled_from(["hidden", "gate", "output"]),
    units=COUNTS,
    predecessors=st.lists(NAMES, max_size=2).map(tuple),
    past_unseen=st.lists(NAMES, max_size=2).map(tuple),
    place=st.none() | COUNTS,
)
SETTINGS = st.dictionaries(NAMES, st.none() | st.booleans() | COUNTS | st.floats(allow_nan=False) | NAMES, max_size=3)
INFOS = st.builds(
    RunInfo,
    layers=st.lists(LAYERS, max_size=5).map(tuple),
    sites=st.lists(SITES, max_size=4).map(tuple),
    optimizers=st.lists(
        st.builds(
            OptimizerInfo,
            name=NAMES,
            settings=SETTINGS,
            layers=st.lists(NAMES, max_size=2).map(tuple),
            rates=st.lists(st.floats(0, 1), max_size=2).map(tuple),
        ),
        max_size=2,
    ).map(tuple),
    precision=NAMES,
    accumulation=COUNTS,
    clipping=NAMES,
    planned_steps=st.none() | COUNTS,
    world_size=COUNTS,
    strategy=NAMES,
    coverage=st.lists(st.builds(NotCovered, NAMES, NAMES), max_size=2).map(tuple),
    wiring=st.none()
    | st.lists(
        st.builds(
            Wiring,
            st.sampled_from(get_args(WiringKind)),
            st.lists(NAMES, max_size=2).map(tuple),
            NAMES,
            NAMES,
            st.none() | st.floats(allow_nan=False),
        ),
        max_size=2,
    ).map(tuple),
    rules=st.dictionaries(NAMES, SETTINGS, max_size=2),
    versions=st.dictionaries(NAMES, NAMES, max_size=2),
)


def vectors(length):
    return npst.arrays(np.float64, length, elements=FLOATS)


@st.composite
def runs(draw):
    """Draw a run whose layers and sites grow: descriptions, and records that each have one of them."""
    whole = draw(INFOS)
    infos = [
        dataclasses.replace(
            whole,
            layers=whole.layers[: draw(st.integers(0, len(whole.layers)))],
            sites=whole.sites[: draw(st.integers(0, len(whole.sites)))],
        ),
        whole,
    ]
    steps = draw(st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=4, unique=True))
    found = []
    for number, step in enumerate(sorted(steps)):
        info = infos[min(number, 1)]
        layers, sites = len(info.layers), len(info.sites)
        measured = draw(st.sets(st.sampled_from([*METRICS])))
        record = StepRecord(
            step=step,
            layout=info.layout,
            metrics={name: draw(vectors(layers if is_over_layers(name) else sites)) for name in measured},
            layer_state=draw(npst.arrays(np.uint8, layers)),
            window_fill=draw(vectors(sites)),
            forward_rms=draw(vectors(sites)),
            loop_calls=draw(vectors(sites) | vectors(0)),
            loop_attenuation=draw(vectors(sites) | vectors(0)),
            batch_idx=draw(COUNTS),
            optimizers=draw(st.lists(COUNTS, max_size=2).map(tuple)),
            loss=draw(FLOATS),
            learning_rates=draw(st.lists(FLOATS, max_size=2).map(tuple)),
            gradient_scale=draw(FLOATS),
            skipped=draw(st.booleans()),
            partial=draw(st.booleans()),
            clip_factor=draw(FLOATS),
            global_grad_norm=draw(FLOATS),
            world_size=draw(COUNTS),
        )
        found.append((info, record))
    return found


def bits(record):
    """Return everything a record holds in a form that compares bit for bit."""
    data = dict(vars(record))
    names = ("layer_state", "window_fill", "forward_rms", "loop_calls", "loop_attenuation")
    arrays = {name: data.pop(name) for name in names} | data.pop("metrics")
    return repr(data), {name: (str(vector.dtype), vector.tobytes()) for name, vector in arrays.items()}


@settings(deadline=None, max_examples=100)
@given(runs())
def test_what_was_written_is_read_bit_for_bit(written):
    with tempfile.TemporaryDirectory() as folder:
        with EventFile(folder) as file:
            layout = None
            for info, record in written:
                file.write(step_event(record, info, describe=record.layout != layout))
                layout = record.layout
        run = read_run(folder)
    assert run.problems == ()
    assert [bits(record) for record in run.records] == [bits(record) for _, record in written]
    assert run.info == written[-1][0] or run.info.layout == written[0][1].layout
    assert all(run.infos[info.layout].names("grad_norm") == info.names("grad_norm") for info, _ in written)
    steps, values = run.series("weight_gain")
    assert steps.tolist() == [record.step for record in run.records]
    assert values.shape == (len(steps), len(run.names("weight_gain")))
