"""A line at the start and one at the end of a fit: what is measured and where it is written, what came out, what says more."""

from __future__ import annotations

import shlex

import pytest
from integration.nets import Classifier, batches, relu_net, seed, trainer, vanishing_net
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from lightning_gradwatch import GradWatch, GradWatchError, RunError, read_run
from lightning_gradwatch.cli import command as cli
from lightning_gradwatch.cli.check import find_runs
from lightning_gradwatch.measure import faults

pytestmark = pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")


@pytest.fixture
def _faults_are_caught(monkeypatch):
    monkeypatch.setattr(faults, "RAISE", False)


@pytest.fixture
def lines(caplog):
    caplog.set_level("INFO", logger="lightning_gradwatch")
    return lambda: [entry.message for entry in caplog.records if entry.name == "lightning_gradwatch"]


def fit(folder, net=None, watch=None, **options):
    seed()
    watch = GradWatch(every_n_steps=1) if watch is None else watch
    trainer(folder, watch, **options).fit(Classifier(net or relu_net()), batches())
    return watch


@pytest.mark.judges
def test_a_healthy_fit_is_told_in_two_lines_and_the_command_runs(tmp_path, lines, capsys):
    fit(tmp_path, max_steps=20)
    start, end = lines()
    place = tmp_path / "gradwatch" / "version_0"
    assert start == f"GradWatch: 3 layers, 2 activation sites, each step; written to {place}"
    assert end.startswith("GradWatch: healthy by ")
    assert "20 rules in 20 measured steps (0 to 19). More: gradwatch check " in end
    command = shlex.split(end.partition("More: ")[2])
    assert cli.main([*command[1:], "--no-config"]) == 0
    assert "20 measured steps (0 to 19)" in capsys.readouterr().out


@pytest.mark.judges
def test_an_ill_fit_is_told_by_its_root_cause(tmp_path, lines):
    watch = fit(tmp_path, vanishing_net(), max_steps=30)
    _, end = lines()
    roots = [each for each in watch.findings if not each.consequence_of]
    assert end.startswith(f"GradWatch: not healthy: {roots[0].code} {roots[0].name} ({roots[0].severity.label})")
    for each in watch.findings:
        assert (f"{each.code} " in end) == (not each.consequence_of)
    assert (" that follow" in end) == any(each.consequence_of for each in watch.findings)


def test_the_loggers_own_folder_is_named(tmp_path, lines):
    fit(tmp_path, logger=TensorBoardLogger(tmp_path), max_steps=4)
    place = tmp_path / "lightning_logs" / "version_0"
    start, end = lines()
    assert f"written to {place}" in start
    assert end.endswith(f"gradwatch check {place}")


def test_other_loggers_are_named_beside_the_file(tmp_path, lines):
    fit(tmp_path, logger=CSVLogger(tmp_path), max_steps=4)
    start, _ = lines()
    assert "gradwatch/version_0; summaries go to CSVLogger" in start


def test_of_every_fit_there_is_one_end(tmp_path, lines):
    watch = GradWatch(every_n_steps=1)
    for _ in range(2):
        fit(tmp_path, watch=watch, max_steps=3)
    assert [line.split(":")[1].strip().split(" ")[0] for line in lines()] == ["3", "healthy"] * 2


def test_what_writes_nothing_says_so(tmp_path, lines):
    fit(tmp_path, fast_dev_run=True)
    start, end = lines()
    assert start.endswith("; written nowhere (fast_dev_run)")
    assert "More" not in end


@pytest.mark.judges
def test_a_fit_that_fail_on_ends_has_told_its_end(tmp_path, lines):
    with pytest.raises(GradWatchError, match="GW101"):
        fit(tmp_path, vanishing_net(), GradWatch(every_n_steps=1, fail_on="warning"), max_steps=40)
    assert len(lines()) == 1


def test_an_interrupted_fit_says_what_came_out_until_then(tmp_path, lines):
    class Stops(Classifier):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise RuntimeError("the user's own")
            return super().training_step(batch, batch_idx)

    watch = GradWatch(every_n_steps=1)
    with pytest.raises(RuntimeError, match="the user's own"):
        trainer(tmp_path, watch, max_steps=20).fit(Stops(), batches())
    assert "3 measured steps (0 to 2)" in lines()[1]


@pytest.mark.usefixtures("_faults_are_caught")
def test_a_monitor_that_was_switched_off_calls_nothing_healthy(tmp_path, lines, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("lightning_gradwatch.judge.evaluator.Evaluator.feed", broken)
    fit(tmp_path, max_steps=4)
    assert lines()[1].startswith("GradWatch: can't judge: the rules are switched off")


@pytest.mark.parametrize("place", ["memory://bucket/runs", "s3://bucket/runs", "gs://bucket/runs"])
def test_a_remote_folder_is_refused_with_the_reason(tmp_path, place, lines, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_gradwatch.fit.callback.folder_of", lambda _: place)
    watch = fit(tmp_path / "elsewhere", max_steps=3)
    start, end = lines()
    assert f"no event file is written: {place} is remote, where a file can't grow by appending" in start
    assert "healthy" in end
    assert "More" not in end
    assert [each.reason for each in watch.coverage if "is remote" in each.reason]
    assert [each.name for each in tmp_path.iterdir() if each.name != "elsewhere"] == []
    with pytest.raises(RunError, match="is remote, and event files are read from a disk"):
        read_run(place)
    assert find_runs(place) == [place]


def test_the_address_of_a_local_folder_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_gradwatch.fit.callback.folder_of", lambda _: f"file://{tmp_path}/runs")
    fit(tmp_path, max_steps=3)
    assert len(read_run(f"file://{tmp_path}/runs/gradwatch/version_0").records) == 3
