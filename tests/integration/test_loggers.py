"""Contract 6: one event a measured step, in the logger's own file or in one of ours; other loggers get the summaries."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import pytorch_lightning as pl
from integration.nets import CLASSES, FEATURES, Classifier, batches, relu_net, seed, trainer, vanishing_net
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn

from lightning_gradwatch import GradWatch, GradWatchWarning, evaluate, read_run

pytestmark = pytest.mark.judges


def event_files(folder):
    return sorted(folder.rglob("*tfevents*"))


def own_events(path):
    """Return the steps of our events in a file, read by TensorBoard: the measured ones, and one behind them that says how it ended."""
    return [
        event.step
        for event in EventFileLoader(str(path)).Load()
        if any(value.tag == "gradwatch/step" for value in event.summary.value)
    ]


def tags(path):
    return {value.tag for event in EventFileLoader(str(path)).Load() for value in event.summary.value}


def fit(folder, watch, net=None, max_steps=10, **settings):
    seed()
    run = trainer(folder, watch, max_steps=max_steps, **settings)
    run.fit(Classifier(relu_net() if net is None else net), batches())
    return run


def same_run(run, watch):
    """Whether what is read back is what was measured: records bit for bit, findings, and a second verdict."""
    assert run.problems == ()
    assert run.findings == watch.findings == evaluate(run)
    assert [record.step for record in run.records] == [record.step for record in watch.records]
    for stored, live in zip(run.records, watch.records, strict=True):
        assert {name: vector.tobytes() for name, vector in stored.metrics.items()} == {
            name: vector.tobytes() for name, vector in live.metrics.items()
        }
        assert stored.layer_state.tolist() == live.layer_state.tolist()
        assert stored.window_fill.tobytes() == live.window_fill.tobytes()
        assert stored.forward_rms.tobytes() == live.forward_rms.tobytes()
        for scalar in ("step", "layout", "batch_idx", "optimizers", "loss", "learning_rates", "global_grad_norm"):
            assert getattr(stored, scalar) == getattr(live, scalar)
    assert run.info == watch.info


class LeavesBlocksOut(nn.Module):
    """Two of its blocks are left out in every other step, so who feeds whom is known only after a few."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh()) for _ in range(4))
        self.last = nn.Linear(FEATURES, CLASSES)
        self.steps = 0

    def forward(self, x):
        for index, block in enumerate(self.blocks):
            if self.steps % 2 == 0 or index not in (1, 2):
                x = block(x)
        self.steps += 1
        return self.last(x)


def test_predecessors_that_show_later_are_a_layout_of_their_own(tmp_path):
    watch = GradWatch(every_n_steps=1)
    run = fit(tmp_path, watch, LeavesBlocksOut(), logger=TensorBoardLogger(tmp_path), max_steps=6)
    stored = read_run(run.log_dir)
    same_run(stored, watch)
    first, last = stored.infos.values()
    names = [f"net.blocks.{index}.1" for index in range(4)]
    assert [site.name for site in first.sites] == [site.name for site in last.sites] == names
    assert [site.predecessors for site in first.sites] == [(), (names[0],), (names[1],), (names[2],)]
    assert [site.predecessors for site in last.sites] == [(), (names[0],), (names[1],), (names[0], names[2])]
    assert [record.layout for record in stored.records] == [first.layout] + [last.layout] * 5
    _, gains = stored.series("weight_gain")
    assert np.isnan(gains).tolist() == [[True, False, False, False], [True, True, True, False]] * 3
    assert len(own_events(event_files(tmp_path)[0])) == 6 + 1


def test_a_tensorboard_loggers_own_file_holds_one_event_a_measured_step(tmp_path):
    watch = GradWatch(every_n_steps=3)
    run = fit(tmp_path, watch, logger=TensorBoardLogger(tmp_path), log_every_n_steps=3)
    (path,) = event_files(tmp_path)
    assert str(path.parent) == run.log_dir
    assert own_events(path) == [0, 1, 2, 5, 8, 9]
    assert {"loss", "hp_metric"} & tags(path)
    same_run(read_run(run.log_dir), watch)


@pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")
def test_findings_are_stored_as_they_were_told(tmp_path):
    watch = GradWatch(every_n_steps=5)
    logger = TensorBoardLogger(tmp_path)
    run = trainer(tmp_path, watch, logger=logger, max_steps=40)
    seed()
    run.fit(Classifier(vanishing_net()), batches())
    assert [finding.code for finding in watch.findings] == ["GW101", "GW301"]
    same_run(read_run(run.log_dir), watch)
    assert "gradwatch/findings/text_summary" in tags(event_files(tmp_path)[0]) | {
        f"{tag}/text_summary" for tag in tags(event_files(tmp_path)[0])
    }


def test_without_any_logger_there_is_a_file_of_ours(tmp_path):
    watch = GradWatch(every_n_steps=1)
    fit(tmp_path, watch)
    (path,) = event_files(tmp_path)
    assert path.parent == tmp_path / "gradwatch" / "version_0"
    assert own_events(path) == list(range(11))
    same_run(read_run(path.parent), watch)
    # A second fit has a folder of its own.
    fit(tmp_path, watch)
    assert [path.parent.name for path in event_files(tmp_path)] == ["version_0", "version_1"]
    same_run(read_run(tmp_path / "gradwatch" / "version_1"), watch)


def test_a_csv_logger_gets_the_summaries_and_we_write_beside_it(tmp_path):
    watch = GradWatch(every_n_steps=1)
    logger = CSVLogger(tmp_path)
    fit(tmp_path, watch, logger=logger, log_every_n_steps=1)
    (path,) = event_files(tmp_path)
    assert str(path.parent.parent.parent) == logger.log_dir
    assert path.parent.name == "version_0"
    same_run(read_run(path.parent), watch)
    with open(f"{logger.log_dir}/metrics.csv") as file:  # noqa: PTH123 - a string is what the logger has
        rows = list(csv.DictReader(file))
    ours = {int(row["step"]): row["gradwatch/log10_grad_norm"] for row in rows if row["gradwatch/log10_grad_norm"]}
    assert list(ours) == list(range(10))
    assert len([name for name in rows[0] if name.startswith("gradwatch/")]) <= 12
    losses = {int(row["step"]) for row in rows if row["loss"]}
    assert losses == set(ours)


def test_several_loggers_at_once(tmp_path):
    """The event goes into each TensorBoard logger's file, the summaries to the others, and no file of ours beside."""
    watch = GradWatch(every_n_steps=1)
    loggers = [
        CSVLogger(tmp_path, name="csv"),
        TensorBoardLogger(tmp_path, name="one"),
        TensorBoardLogger(tmp_path, name="two"),
    ]
    fit(tmp_path, watch, logger=loggers, log_every_n_steps=1)
    files = event_files(tmp_path)
    assert [path.parent.parent.name for path in files] == ["one", "two"]
    for path in files:
        assert own_events(path) == list(range(11))
        same_run(read_run(path.parent), watch)
    assert "gradwatch/log10_grad_norm" in (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()


@pytest.mark.parametrize("logger", [True, False])
def test_fast_dev_run_writes_nothing(logger, tmp_path):
    watch = GradWatch()
    run = trainer(tmp_path, watch, logger=logger, fast_dev_run=3)
    run.fit(Classifier(), batches())
    assert event_files(tmp_path) == []
    assert not (tmp_path / "gradwatch").exists()
    assert [record.step for record in watch.records] == [0, 1, 2]


def test_up_to_max_curves_there_are_curves(tmp_path):
    fit(tmp_path, GradWatch(max_curves=3))
    found = tags(event_files(tmp_path)[0])
    assert {tag for tag in found if tag.startswith("gradwatch.grad_norm/")} == {
        "gradwatch.grad_norm/000.net.0",
        "gradwatch.grad_norm/001.net.2",
        "gradwatch.grad_norm/002.net.4",
    }
    assert "gradwatch/heatmap" not in found


def test_above_max_curves_there_is_a_heatmap(tmp_path):
    """Three layers and two sites: the sites still have their curves."""
    watch = GradWatch(max_curves=2)
    fit(tmp_path, watch)
    found = tags(event_files(tmp_path)[0])
    assert not any(tag.startswith("gradwatch.grad_norm/") for tag in found)
    assert "gradwatch/heatmap" in found
    assert any(tag.startswith("gradwatch/log10_") for tag in found)
    same_run(read_run(event_files(tmp_path)[0]), watch)


def test_the_heatmap_is_there_while_a_long_run_goes_on(tmp_path):
    """At the 8th, 16th, … record, inside that record's own event; and at the end."""
    fit(tmp_path, GradWatch(max_curves=2, every_n_steps=1), max_steps=20)
    drawn = [
        event.step
        for event in EventFileLoader(str(event_files(tmp_path)[0])).Load()
        if any(value.tag == "gradwatch/heatmap" for value in event.summary.value)
    ]
    assert drawn == [7, 15, 19]


def test_at_most_twelve_summaries(tmp_path):
    fit(tmp_path, GradWatch(), logger=TensorBoardLogger(tmp_path), gradient_clip_val=0.1)
    scalars = {
        value.tag
        for event in EventFileLoader(str(event_files(tmp_path)[0])).Load()
        for value in event.summary.value
        if value.tag.startswith("gradwatch/") and value.metadata.plugin_data.plugin_name == "scalars"
    }
    assert 6 <= len(scalars) <= 12


def test_one_warning_a_fit_and_again_in_a_second_fit(tmp_path):
    """Contract 7: Python's registry of shown warnings doesn't swallow the second fit's."""
    watch = GradWatch(every_n_steps=5)
    for _ in range(2):
        seed()
        run = trainer(tmp_path, watch, max_steps=40)
        with pytest.warns(GradWatchWarning) as caught:
            run.fit(Classifier(vanishing_net()), batches())
        told, further = [str(entry.message) for entry in caught if issubclass(entry.category, GradWatchWarning)]
        assert "GW301" in further
        for part in ("GW101", "net.0", "step", "threshold", "Sigmoid", "kaiming_normal_"):
            assert part in told


def test_the_start_says_what_is_measured(tmp_path, caplog):
    with caplog.at_level("INFO", logger="lightning_gradwatch"):
        fit(tmp_path, GradWatch(every_n_steps=1))
    lines = [entry.message for entry in caplog.records if entry.name == "lightning_gradwatch"]
    assert lines[0].startswith("GradWatch: 3 layers, 2 activation sites, each step; written to ")
    assert len(lines) == 2


class Grows(Classifier):
    """Uses a third layer from step 4 on: the layout of the records changes in mid-run."""

    def __init__(self):
        super().__init__(relu_net())
        self.late = pl.LightningModule()
        self.late.head = relu_net(4)

    def forward(self, x):
        out = self.net(x)
        return out if self.global_step < 4 else out + self.late.head(x)


@pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")
def test_a_layer_that_is_first_used_later_is_read_back_too(tmp_path):
    watch = GradWatch(every_n_steps=1)
    seed()
    trainer(tmp_path, watch, max_steps=10).fit(Grows(), batches())
    run = read_run(event_files(tmp_path)[0])
    assert len({record.layout for record in watch.records}) > 1
    same_run(run, watch)
    assert run.names("signal_norm")[-1].startswith("late.head")
