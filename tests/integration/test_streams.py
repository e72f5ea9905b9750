"""The command line where a shell has closed its streams, its folder is gone, or Python throws docstrings away."""

from __future__ import annotations

import subprocess
import sys

import pytest
from written import write_run

CHECK = f"{sys.executable} -m lightning_gradwatch"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "good")
    write_run(folder / "ill", attenuation=1e-6)
    return folder


def shell(command, folder):
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=folder, check=False)
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    return done


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", ">&- 2>&- <&-"])
@pytest.mark.parametrize(("run", "code"), [("good", 0), ("ill", 1), ("nowhere", 2)])
def test_the_exit_code_is_that_of_the_verdict_whichever_stream_is_closed(runs, closed, run, code):
    assert shell(f"{CHECK} check {run} --no-config {closed}", runs).returncode == code


def test_a_report_goes_to_its_file_where_the_output_is_closed(runs, tmp_path):
    done = shell(f"{CHECK} check ill --no-config --format json --output {tmp_path}/report.json >&- 2>&-", runs)
    assert done.returncode == 1
    assert (tmp_path / "report.json").read_text().startswith("{")
    assert (tmp_path / "report.json").read_text().endswith("}\n")


@pytest.mark.parametrize("full", [">/dev/full", "1</dev/null"])
def test_an_output_that_takes_nothing_is_no_verdict(runs, full):
    done = shell(f"{CHECK} check good --no-config {full}", runs)
    assert done.returncode == 2
    assert done.stderr.startswith("gradwatch: the output: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_that_is_gone_has_no_settings(runs):
    done = shell(f"d=$(mktemp -d); cd $d; rmdir $d; {CHECK} check {runs}/good", runs)
    assert (done.returncode, done.stderr) == (0, "")


def test_pages_of_rules_are_the_same_without_docstrings(runs):
    for command in ("explain GW101", "explain dead-units", "rules"):
        plain = shell(f"{CHECK} {command}", runs).stdout
        assert shell(f"{sys.executable} -OO -m lightning_gradwatch {command}", runs).stdout == plain
        assert len(plain) > 500
