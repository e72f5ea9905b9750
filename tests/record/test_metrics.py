"""The table of metrics: what is added to it goes all the way, and nothing else has to be changed."""

import numpy as np
import pytest
import torch
from fit.ranks.meeting import Meeting, layer, pending, ranks_of, site, together
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_gradwatch import Probe, read_run
from lightning_gradwatch.judge.compare import compare_runs
from lightning_gradwatch.record.events.file import EventFile
from lightning_gradwatch.record.events.step_events import step_event
from lightning_gradwatch.record.metrics import METRICS, RECORD_VECTORS, Compared, Metric, OfLayer, OfSite, over
from lightning_gradwatch.record.step import StepRecord

ADDED = (
    Metric(
        "twice_grad_norm",
        "twice the gradient norm",
        "layers",
        lambda sums: 2 * sums.layers[OfLayer.GRADIENT],
        "Twice the gradient's norm.",
        is_curve=True,
        compared=Compared("higher"),
    ),
    Metric(
        "output_norm",
        "output norm",
        "sites",
        lambda sums: sums.sites[OfSite.OUTPUT],
        "L2 norm of the output.",
        compared=Compared("higher"),
    ),
)


@pytest.fixture(autouse=True)
def _added(monkeypatch):
    for metric in ADDED:
        monkeypatch.setitem(METRICS, metric.name, metric)


def run_of(tmp_path, *, larger=1.0, steps=5):
    """Train in a plain loop; return the run's folder, its records, and by step what autograd says of both metrics."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    records, expected = [], []
    probe = Probe(model, optimizer)
    with EventFile(tmp_path) as file:
        for step in range(steps):
            inputs = torch.randn(16, 4)
            of_sites = [model[:2](inputs).detach().norm().item()]
            with probe:
                optimizer.zero_grad()
                (larger * model(inputs)).square().mean().backward()
                of_layers = [
                    2 * torch.sqrt(sum(each.grad.square().sum() for each in module.parameters())).item()
                    for module in (model[0], model[2])
                ]
                optimizer.step()
            record = probe.record
            records.append(record)
            expected.append((of_layers, of_sites))
            file.write(step_event(record, probe.info, describe=not step))
    return tmp_path, records, expected


def test_it_is_in_the_record_with_its_numbers(tmp_path):
    _, records, expected = run_of(tmp_path)
    for record, (of_layers, of_sites) in zip(records, expected, strict=True):
        assert record.metrics["twice_grad_norm"] == pytest.approx(of_layers, rel=1e-5)
        assert record.metrics["output_norm"] == pytest.approx(of_sites, rel=1e-5)


def test_it_is_in_the_event_and_in_the_run_that_is_read(tmp_path):
    folder, records, _ = run_of(tmp_path)
    run = read_run(folder)
    assert not run.problems
    for name, names in (("twice_grad_norm", ("0", "2")), ("output_norm", ("1",))):
        assert run.names(name) == names
        _, values = run.series(name)
        assert np.array_equal(values, [record.metrics[name] for record in records])


def test_one_with_curves_is_drawn_and_described(tmp_path):
    folder, records, _ = run_of(tmp_path)
    drawn = EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in drawn.Tags()["scalars"] if "twice_grad_norm" in tag]
    assert tags == ["gradwatch.twice_grad_norm/000.0", "gradwatch.twice_grad_norm/001.2"]
    assert drawn.SummaryMetadata(tags[0]).summary_description == ADDED[0].description
    values = [scalar.value for scalar in drawn.Scalars(tags[1])]
    assert values == pytest.approx([record.metrics["twice_grad_norm"][1] for record in records], rel=1e-6)
    assert not [tag for tag in drawn.Tags()["scalars"] if "output_norm" in tag]


def test_two_runs_are_compared_by_it(tmp_path):
    base, run = (read_run(run_of(tmp_path / str(larger), larger=larger)[0]) for larger in (1.0, 100.0))
    found = compare_runs(base, run, "base", ((), ()))
    assert {change.metric for change in found.changes} >= {"twice_grad_norm"}
    assert {change.name for change in found.changes if change.metric == "twice_grad_norm"} == {"0", "2"}


def test_two_ranks_have_that_of_both():
    parts = ranks_of(Meeting(2))
    steps = [
        pending(
            layers=[layer("first")],
            sites=[site("a")],
            of_layers={OfLayer.GRADIENT: norm},
            of_sites={OfSite.OUTPUT: norm},
        )
        for norm in (3.0, 4.0)
    ]
    records = together(
        [lambda mine=mine, step=step: mine.share(step).resolve() for mine, step in zip(parts, steps, strict=True)]
    )
    for record in records:
        assert record.metrics["twice_grad_norm"].tolist() == [10.0]
        assert record.metrics["output_norm"].tolist() == [5.0]


def test_every_row_says_what_it_is_over_and_what_it_is():
    for name, metric in METRICS.items():
        assert name == metric.name
        assert metric.over in ("layers", "sites")
        assert metric.description.endswith(".")
    assert [*over("layers")][:4] == ["grad_norm", "grad_rms", "weight_rms", "update_ratio"]
    assert not METRICS.keys() & RECORD_VECTORS.keys()


def test_the_vectors_beside_the_metrics_are_fields_of_a_record():
    assert RECORD_VECTORS.keys() < StepRecord.__dataclass_fields__.keys()
