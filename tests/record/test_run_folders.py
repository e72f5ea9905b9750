"""The runs that lie below a folder, as `gradwatch check` is given it; and how they are told, a line each."""

from __future__ import annotations

import os

import pytest
from written import write_run

from lightning_gradwatch.cli import command
from lightning_gradwatch.cli.check import find_runs
from lightning_gradwatch.record import run_folders
from lightning_gradwatch.record.reasons import CannotJudgeError
from lightning_gradwatch.record.run_folders import runs_below


@pytest.fixture
def logs(tmp_path):
    """Eleven healthy runs and an ill one, in a folder that has others' things too."""
    for number in range(11):
        write_run(tmp_path / "logs" / f"version_{number}")
    write_run(tmp_path / "logs" / "old" / "version_0", attenuation=1e-6)
    (tmp_path / "logs" / ".hidden").mkdir()
    write_run(tmp_path / "logs" / ".hidden" / "version_0")
    (tmp_path / "logs" / "checkpoints").mkdir()
    (tmp_path / "logs" / "latest").symlink_to("version_3")
    (tmp_path / "logs" / "round").symlink_to(".")
    write_run(tmp_path / "logs" / "version_2" / "hparams")  # a run's folders are its own
    return tmp_path / "logs"


def named(paths, logs):
    return [os.path.relpath(path, logs) for path in paths]


def test_the_runs_below_a_folder_are_found_in_natural_order(logs):
    wanted = ["old/version_0", *(f"version_{number}" for number in range(11))]
    assert named(find_runs(str(logs)), logs) == wanted
    assert find_runs(str(logs / "version_3")) == [str(logs / "version_3")]
    assert named(find_runs(str(logs / "old")), logs) == ["old/version_0"]
    assert find_runs(str(logs / "checkpoints")) == [str(logs / "checkpoints")]
    assert find_runs(str(logs / "nowhere")) == [str(logs / "nowhere")]


def test_a_single_run_below_is_judged_as_if_it_were_named(logs, capsys):
    assert command.main(["check", str(logs / "old"), "--no-config"]) == 1
    below = capsys.readouterr().out
    assert command.main(["check", str(logs / "old" / "version_0"), "--no-config"]) == 1
    assert capsys.readouterr().out == below


def test_several_are_told_in_a_line_each(logs, capsys):
    assert command.main(["check", str(logs), "--no-config"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 15
    assert lines[0].startswith(f"{logs}/old/version_0: failed: ")
    assert lines[0].endswith("GW101 vanishing-gradient")
    assert all(line.startswith(f"{logs}/version_{number}: healthy: ") for number, line in enumerate(lines[1:12]))
    assert lines[13] == "12 runs: 11 healthy, 1 failed"
    assert lines[14] == f"  more: gradwatch check {logs}/old/version_0"


def test_what_can_not_be_judged_among_them_decides(logs, capsys):
    empty = logs / "version_11"
    empty.mkdir()
    (empty / "events.out.tfevents.1.host").write_bytes(b"")
    assert command.main(["check", str(logs), "--no-config"]) == 2
    assert "1 can't be judged" in capsys.readouterr().out


def test_a_folder_without_any_run_is_told(tmp_path, capsys):
    assert command.main(["check", str(tmp_path), "--no-config"]) == 2
    assert "no TensorBoard event file in" in capsys.readouterr().out


def test_the_baseline_may_be_the_folder_that_it_lies_in(logs, capsys):
    run = str(logs / "version_1")
    assert command.main(["check", run, "--no-config", "--baseline", str(logs / "old")]) == 0
    capsys.readouterr()
    assert command.main(["check", run, "--no-config", "--baseline", str(logs)]) == 2
    assert "12 runs below" in " ".join(capsys.readouterr().out.split())


def test_the_search_has_a_limit(logs, monkeypatch, capsys):
    monkeypatch.setattr(run_folders, "_MOST_ENTRIES", 20)
    with pytest.raises(CannotJudgeError, match="more than 20 files and folders"):
        runs_below(logs)
    assert command.main(["check", str(logs), "--no-config"]) == 2
    assert "name a run" in capsys.readouterr().err


def test_folders_in_folders_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folders, "_DEEPEST", 3)
    write_run(tmp_path / "a" / "b" / "c")
    write_run(tmp_path / "a" / "b" / "d" / "e")
    assert named(runs_below(tmp_path), tmp_path) == ["a/b/c"]
