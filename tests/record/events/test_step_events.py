"""Events: their tags, their size, and what TensorBoard itself reads in them."""

import dataclasses
import json
import re
import struct

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2

from lightning_gradwatch.record.events import encoding
from lightning_gradwatch.record.events.file import EventFile
from lightning_gradwatch.record.events.step_events import _seal, decode_event, findings_event, heatmap_event, step_event
from lightning_gradwatch.record.finding import Action, Finding, Remedy, Severity
from lightning_gradwatch.record.metrics import METRICS, is_over_layers
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, SiteInfo, StepRecord
from lightning_gradwatch.record.summaries import DESCRIPTIONS


def make_info(layers=3, sites=2, **settings):
    return RunInfo(
        layers=tuple(LayerInfo(f"net.{2 * i}", "Linear", ((4, 4), (4,)), 20, weight=True) for i in range(layers)),
        sites=tuple(SiteInfo(f"net.{2 * i + 1}", "relu", "hidden", 4) for i in range(sites)),
        **settings,
    )


def make_record(info, step=0, seed=0, **changes):
    random = np.random.default_rng(seed)
    layers, sites = len(info.layers), len(info.sites)
    fields = {
        "step": step,
        "layout": info.layout,
        "metrics": {name: random.random(layers if is_over_layers(name) else sites) for name in METRICS},
        "layer_state": np.ones(layers, np.uint8),
        "window_fill": random.integers(0, 1025, sites) / 1024,
        "forward_rms": random.random(sites, np.float32).astype(np.float64),
        "loss": random.random(),
        "learning_rates": (random.random(),),
        "clip_factor": random.random(),
        "global_grad_norm": random.random(),
    }
    return StepRecord(**fields | changes)


def make_finding(layers=("net.0",), message="net.0 is dead"):
    remedy = Remedy("Use LeakyReLU.", (Action("replace_activation", ("net.1",), (("with", "LeakyReLU"),)),))
    return Finding("GW201", "dead-units", Severity.WARNING, tuple(layers), 0, 4, 0.5, 0.25, "why", remedy, message)


def tags(event):
    return [value.tag for value in event.summary.value]


def test_tags_are_the_documented_ones():
    info = make_info()
    event = step_event(make_record(info), info, describe=True, findings=[make_finding()])
    assert event.step == 0
    assert sorted(tags(event)) == sorted(
        [f"gradwatch/{name}" for name in METRICS]
        + ["gradwatch/layer_state", "gradwatch/window_fill", "gradwatch/forward_rms"]
        + ["gradwatch/step", "gradwatch/run", "gradwatch/findings"]
        + list(DESCRIPTIONS)
        + ["gradwatch.grad_norm/000.net.0", "gradwatch.grad_norm/001.net.2", "gradwatch.grad_norm/002.net.4"]
        + [f"gradwatch.{kind}_fraction/{site}" for kind in ("dead", "saturated") for site in ("000.net.1", "001.net.3")]
    )


def test_what_did_not_change_is_not_written_again():
    info = make_info()
    event = step_event(make_record(info), info, describe=False)
    assert not {"gradwatch/run", "gradwatch/findings"} & set(tags(event))
    assert {value.metadata.plugin_data.plugin_name for value in event.summary.value} == {"gradwatch", ""}


@pytest.mark.parametrize(("layers", "max_curves", "curves"), [(4, 4, 4), (5, 4, 0), (5, None, 5), (1, 0, 0)])
def test_curves_stop_above_the_limit(layers, max_curves, curves):
    info = make_info(layers, 0)
    event = step_event(make_record(info), info, describe=False, max_curves=max_curves)
    assert sum(tag.startswith("gradwatch.grad_norm/") for tag in tags(event)) == curves


def test_only_weight_layers_have_curves_and_all_count_in_the_numbering():
    info = make_info(3, 0)
    norm = dataclasses.replace(info.layers[1], kind="LayerNorm", weight=False)
    info = dataclasses.replace(info, layers=(info.layers[0], norm, info.layers[2]))
    event = step_event(make_record(info), info, describe=False, max_curves=2)
    assert [tag for tag in tags(event) if tag.startswith("gradwatch.")] == [
        "gradwatch.grad_norm/000.net.0",
        "gradwatch.grad_norm/002.net.4",
    ]


def test_numbers_in_tags_grow_with_the_model():
    info = make_info(1001, 0)
    event = step_event(make_record(info), info, describe=False, max_curves=None)
    assert "gradwatch.grad_norm/0007.net.14" in tags(event)


def test_what_tensorboard_cannot_draw_is_no_curve():
    info = make_info(5, 0)
    record = make_record(info)
    record.metrics["grad_norm"][:4] = np.nan, np.inf, 1e300, 0.0
    event = step_event(record, info, describe=False)
    curves = {value.tag: value.simple_value for value in event.summary.value if value.tag.startswith("gradwatch.")}
    assert list(curves) == ["gradwatch.grad_norm/003.net.6", "gradwatch.grad_norm/004.net.8"]
    assert curves["gradwatch.grad_norm/003.net.6"] == 0.0


def test_a_step_of_160_layers_and_sites_fits_in_16000_bytes_on_disk(tmp_path):
    info = make_info(160, 160)
    with EventFile(tmp_path) as file:
        file.write(step_event(make_record(info, 99_999, 1), info, describe=True))
        before = file.path.stat().st_size
        file.write(step_event(make_record(info, 100_000, 2), info, describe=False))
        assert 12_800 < file.path.stat().st_size - before < 16_000


def test_the_stock_reader_sees_curves_summaries_text_and_tensors(tmp_path):
    info = make_info()
    records = [make_record(info, step, step) for step in range(5)]
    with EventFile(tmp_path) as file:
        for record in records:
            findings = [make_finding()] if record.step == 3 else None
            file.write(step_event(record, info, describe=record.step == 0, findings=findings))
        file.write(heatmap_event(4, struct.pack(">4sIII", b"\x89PNG", 0, 0, 0) + struct.pack(">II", 30, 20)))
    stock = EventAccumulator(str(tmp_path)).Reload()
    scalars = stock.Scalars("gradwatch.grad_norm/001.net.2")
    assert [(point.step, point.value) for point in scalars] == [
        (record.step, float(np.float32(record.metrics["grad_norm"][1]))) for record in records
    ]
    assert {tag for tag in DESCRIPTIONS if len(stock.Scalars(tag)) == 5} == set(DESCRIPTIONS)
    assert stock.SummaryMetadata("gradwatch/clip_factor").summary_description == DESCRIPTIONS["gradwatch/clip_factor"]
    assert [point.step for point in stock.Tensors("gradwatch/findings")] == [3]
    assert stock.Tensors("gradwatch/findings")[0].tensor_proto.tensor_shape.dim == []  # else a table of one cell
    assert stock.SummaryMetadata("gradwatch/findings").plugin_data.plugin_name == "text"
    vectors = stock.Tensors("gradwatch/weight_gain")
    assert [np.frombuffer(point.tensor_proto.tensor_content).tolist() for point in vectors] == [
        record.metrics["weight_gain"].tolist() for record in records
    ]
    assert stock.SummaryMetadata("gradwatch/weight_gain").data_class == 2  # without it a tensor is hidden
    assert [(image.step, image.width, image.height) for image in stock.Images("gradwatch/heatmap")] == [(4, 30, 20)]


def test_a_series_that_starts_late_is_described_where_the_caller_keeps_count():
    info = make_info()
    early = make_record(info, 0, metrics={})
    seen = set()
    step_event(early, info, describe=True, seen=seen)
    for step, described in ((1, True), (2, False)):
        event = step_event(make_record(info, step), info, describe=False, seen=seen)
        late = next(value for value in event.summary.value if value.tag == "gradwatch/max_dead_fraction")
        assert bool(late.metadata.summary_description) is described


def test_lone_surrogates_in_names_can_be_written():
    info = make_info(1, 0)
    info = dataclasses.replace(info, layers=(dataclasses.replace(info.layers[0], name="a\ud800"),))
    event = step_event(make_record(info), info, describe=True, findings=[make_finding(["a\ud800"])])
    assert "gradwatch.grad_norm/000.a\\ud800" in tags(event)
    assert decode_event(event.SerializeToString()).info == info


def test_findings_can_be_told_without_a_step():
    decoded = decode_event(findings_event([make_finding()], step=7).SerializeToString())
    assert decoded.findings == (make_finding(),)
    assert decoded.record is decoded.info is None


def test_numpy_scalars_are_stored_as_numbers():
    info = make_info(optimizers=())
    record = make_record(info, np.int64(3), loss=np.float32(0.5), skipped=np.bool_(True), optimizers=(np.int64(1),))
    decoded = decode_event(step_event(record, info, describe=False).SerializeToString()).record
    assert (decoded.step, decoded.loss, decoded.skipped, decoded.optimizers) == (3, 0.5, True, (1,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"grad_nrom": np.zeros(3)}}, "unknown metrics.*grad_nrom"),
        ({"metrics": {"grad_norm": np.zeros(4)}}, r"grad_norm has shape \(4,\) where the layout has 3"),
        ({"forward_rms": np.zeros(0)}, "forward_rms"),
        ({"layout": "0" * 12}, "is not info.layout"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(changes, message):
    info = make_info()
    with pytest.raises(ValueError, match=message):
        step_event(make_record(info, **changes), info, describe=True)


def flipped(data):
    for at in range(len(data)):
        yield data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_any_flipped_bit_in_what_is_ours_is_noticed():
    info = make_info(1, 1)
    event = step_event(make_record(info), info, describe=True, max_curves=0, findings=[make_finding()])
    flips = 0
    for value in event.summary.value:
        if value.metadata.plugin_data.plugin_name != "gradwatch":
            continue
        for field, parts in (
            ("tensor_content", [value.tensor.tensor_content]),
            ("string_val", value.tensor.string_val),
        ):
            for index, part in enumerate(list(parts)):
                for damaged in flipped(part):
                    copy = event_pb2.Event.FromString(event.SerializeToString())
                    tensor = next(entry.tensor for entry in copy.summary.value if entry.tag == value.tag)
                    if field == "tensor_content":
                        tensor.tensor_content = damaged
                    else:
                        tensor.string_val[index] = damaged
                    flips += 1
                    with pytest.raises(ValueError, match="checksum"):
                        decode_event(copy.SerializeToString())
    assert flips > 1000


def reseal(value, change):
    """Change an event's JSON as one would who knows the format, with the right checksum."""
    event = event_pb2.Event.FromString(value)
    ours = [entry for entry in event.summary.value if entry.metadata.plugin_data.plugin_name == "gradwatch"]
    step = next(entry.tensor for entry in ours if entry.tag == "gradwatch/step")
    step.string_val[0] = change(step.string_val[0])
    step.string_val[1] = _seal(
        step.string_val[0],
        {entry.tag: encoding.content(entry.tensor) for entry in ours if entry.tag != "gradwatch/step"},
    )
    return event.SerializeToString()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"[" * 100_000,
        lambda text: b"3",
        lambda text: b'{"record": 3}',
        lambda text: b'{"record": {}}',
        lambda text: b"\xff",
        lambda text: text.replace(b'"step":0', b'"step":1'),
        lambda text: text.replace(b'"layout":"', b'"layout":3,"other":"'),
        lambda text: re.sub(rb'"loss":[^,]*', b'"loss":"x"', text),
        lambda text: re.sub(rb'"loss":[^,]*', b'"loss":1' + b"0" * 400, text),
        lambda text: re.sub(rb'"learning_rates":\[[^]]*\]', b'"learning_rates":[{}]', text),
        lambda text: b'{"findings": [{"code": 1}]}',
    ],
)
def test_hostile_json_with_a_right_checksum_is_refused(change):
    info = make_info()
    payload = step_event(make_record(info), info, describe=False).SerializeToString()
    with pytest.raises(ValueError, match=r"\S"):
        decode_event(reseal(payload, change))


def test_a_claimed_size_allocates_nothing():
    info = make_info()
    event = step_event(make_record(info), info, describe=False)
    vector = event.summary.value[0].tensor
    vector.tensor_shape.dim[0].size = 1 << 60
    assert decode_event(event.SerializeToString()).record.metrics["grad_norm"].shape == (3,)


def test_json_keys_of_a_newer_version_are_left_out():
    info = make_info()
    payload = step_event(make_record(info), info, describe=False).SerializeToString()

    def add(text):
        data = json.loads(text)
        data["record"]["mood"] = "good"
        return json.dumps(data).encode()

    assert decode_event(reseal(payload, add)).record.layout == info.layout


@pytest.mark.parametrize("broken", [False, True], ids=["all drawn", "some left out"])
def test_curves_are_the_bytes_that_protobuf_makes_of_them_one_by_one(broken):
    random = np.random.default_rng(1)
    named = ["gradwatch.grad_norm/000.net", "gradwatch.grad_norm/001.schön", "", "x" * 500]
    named += [f"gradwatch.dead_fraction/{number:03}.net.{number}" for number in range(100)]
    numbers = random.standard_normal(len(named)) * 10.0 ** random.uniform(-50, 36, len(named))
    numbers[10:14] = [0.0, -0.0, 5e-324, np.finfo(np.float32).max]
    if broken:
        numbers[20:26] = [np.nan, np.inf, -np.inf, 3.5e38, -3.5e38, np.finfo(np.float64).max]
    expected = event_pb2.Event().summary
    for tag, number in zip(named, numbers, strict=True):
        encoding.add_scalar(expected.value, tag, float(number), "", None)
    found = event_pb2.Event().summary
    found.MergeFromString(encoding.Curves(named).of(numbers))
    assert found == expected
    assert found.SerializeToString() == expected.SerializeToString()
    assert len(found.value) == len(named) - (6 if broken else 0)


def test_curves_of_nothing_are_no_bytes():
    assert encoding.Curves([]).of(np.empty(0)) == b""


def test_an_event_whose_series_are_described_has_the_values_of_one_that_describes_them():
    info = make_info(layers=5, sites=4)
    record = make_record(info)
    seen: set[str] = set()
    first = step_event(record, info, describe=True, seen=seen)
    second = step_event(record, info, describe=False, seen=seen)
    assert [(value.tag, value.simple_value) for value in first.summary.value if value.HasField("simple_value")] == [
        (value.tag, value.simple_value) for value in second.summary.value if value.HasField("simple_value")
    ]
