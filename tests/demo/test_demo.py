"""``gradwatch demo``: what it prints, where it writes, and that each net is failing or fixed as it says."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from background import LISTENS_TO_CTRL_C
from replayed import check_equals_live

from lightning_gradwatch import Severity, read_run
from lightning_gradwatch.demo import main
from lightning_gradwatch.demo.catalogue import DEFAULT_NET, WHAT_TO_SEE
from lightning_gradwatch.demo.gallery import GALLERY
from lightning_gradwatch.demo.table import Scale, _bar, _chosen

ENVIRONMENT = {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
EXPECTED = {
    "sigmoid": {"sigmoid": "GW101"},
    "three-neurons": {"three-neurons-case-1": "GW104", "three-neurons-case-2": "GW101"},
    "vgg16": {"vgg16": "GW101"},
    "fcnn": {"fcnn": "GW101"},
    "relu": {"relu": "GW201"},
    "leaky-relu": {"leaky-relu-relu": "GW201"},
    "elu": {"elu": "GW202"},
    "bad-init": {"bad-init": "GW401"},
    "exploding": {"exploding": "GW102"},
    "skip": {"skip-without": "GW101"},
}


RUN = 'import runpy; runpy.run_module("lightning_gradwatch", run_name="__main__", alter_sys=True)'


def demo(*arguments, cwd):
    command = [sys.executable, "-m", "lightning_gradwatch", "demo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=ENVIRONMENT, timeout=600)


class TestGallery:
    def test_has_each_net_of_the_catalogue(self):
        assert list(GALLERY) == list(WHAT_TO_SEE) == list(EXPECTED)
        assert DEFAULT_NET in GALLERY

    def test_gives_each_run_a_name_of_its_own(self):
        runs = [demo_run.run for pair in GALLERY.values() for demo_run in (*pair.failing, pair.fixed)]
        assert len(runs) == len(set(runs))
        assert {"sigmoid", "fixed"} <= set(runs)

    def test_says_in_one_sentence_what_to_see(self):
        assert all(sentence.endswith(".") and sentence.count(". ") == 0 for sentence in WHAT_TO_SEE.values())

    @pytest.mark.parametrize("net", GALLERY)
    def test_pairs_layers_with_sites(self, net):
        """A row of the table shows the k-th weight layer beside the k-th activation function."""
        for demo_run in (*GALLERY[net].failing, GALLERY[net].fixed):
            kinds = [type(module).__name__ for module in demo_run.build().modules()]
            weights = sum(kind in {"Linear", "Conv2d"} for kind in kinds)
            functions = sum(kind in {"ReLU", "LeakyReLU", "ELU", "Sigmoid", "Tanh"} for kind in kinds)
            assert weights - functions in {0, 1}


class TestTable:
    def test_scale_spans_the_values(self):
        scale = Scale.over([3e-7, 0.0, math.nan, 0.02])
        assert (scale.lowest, scale.highest) == (-7, -1)
        assert scale.share(1e-4) == pytest.approx(0.5)
        assert scale.share(0.0) == scale.share(math.nan) == scale.share(1e-9) == 0
        assert scale.share(5.0) == 1

    def test_scale_of_level_values_leaves_room(self):
        scale = Scale.over([0.5, 0.6])
        assert scale.highest - scale.lowest == 4

    def test_scale_of_nothing_is_a_scale(self):
        assert Scale.over([0.0]).share(0.0) == 0

    def test_bar_grows_by_eighths(self):
        assert _bar(1.0, 4, ascii_only=False) == "████"
        assert _bar(0.5 + 1 / 32, 4, ascii_only=False) == "██▏"
        assert _bar(0.5, 4, ascii_only=True) == "##"
        assert not _bar(math.nan, 4, ascii_only=False)

    def test_long_table_keeps_both_ends(self):
        places = _chosen(51, 12)
        assert len(places) <= 12
        assert places[0] == 0
        assert places[-2:] == [49, 50]
        assert _chosen(4, 12) == [0, 1, 2, 3]


class TestFolder:
    def test_is_the_one_asked_for(self, tmp_path):
        (tmp_path / "logs" / "mine").mkdir(parents=True)
        assert main._free(tmp_path / "logs", ["sigmoid", "fixed"]) == tmp_path / "logs"

    def test_never_mixes_with_an_earlier_demo(self, tmp_path):
        (tmp_path / "logs" / "fixed").mkdir(parents=True)
        (tmp_path / "logs-2" / "sigmoid").mkdir(parents=True)
        assert main._free(tmp_path / "logs", ["sigmoid", "fixed"]) == tmp_path / "logs-3"


def test_unknown_net_and_unusable_folder_are_said(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main.run(net="nonsense") == 2
    assert main.run(logdir=tmp_path / "file" / "logs") == 2
    assert main.run(steps=0) == 2
    told = capsys.readouterr().err
    assert "'nonsense'" in told
    assert "three-neurons" in told
    assert f"{tmp_path / 'file' / 'logs'} can't be used" in told
    assert "steps=0" in told


@pytest.mark.slow
@pytest.mark.judges
def test_short_demo_leaves_a_clean_terminal_and_two_runs(tmp_path):
    """Thirty steps are enough for the warning; nothing of Lightning's shows."""
    done = demo("--steps", 30, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "  tensorboard --logdir gradwatch-demo"
    assert sorted(path.name for path in (tmp_path / "gradwatch-demo").iterdir()) == ["fixed", "sigmoid"]
    rows = [int(row[1]) for row in re.finditer(r"^ *(\d+) +\d\.\de", done.stdout, re.MULTILINE)]
    assert rows[:50] == list(range(1, 51))
    assert re.findall(r"^(\w+Warning): (GW\d+)", done.stderr, re.MULTILINE) == [
        ("VanishingGradientWarning", "GW101"),
        ("StalledUpdateWarning", "GW301"),
    ]
    assert done.stderr.count("follows from GW101") == 1
    assert not re.search("GPU|Tip|max_steps|dataloader", done.stdout + done.stderr)
    assert max(map(len, done.stdout.splitlines())) <= 80
    again = demo("--steps", 2, cwd=tmp_path)
    assert again.stdout.splitlines()[-1] == "  tensorboard --logdir gradwatch-demo-2"
    assert "holds the runs of an earlier demo" in again.stdout


@pytest.mark.slow
def test_speaks_ascii_where_the_terminal_does(tmp_path):
    command = [sys.executable, "-m", "lightning_gradwatch", "demo", "--net", "three-neurons", "--steps", "3"]
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "####" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_ends_it_cleanly(tmp_path):
    command = [sys.executable, "-c", LISTENS_TO_CTRL_C + RUN, "demo", "--steps", "100000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, text=True, **pipes) as running:
        try:
            for _ in range(600):
                if list(tmp_path.glob("gradwatch-demo/sigmoid/events*")):
                    break
                time.sleep(0.1)  # until training has started, however busy the machine is
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 130, err
    assert "Stopped. What was measured is in gradwatch-demo." in out
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.judges
@pytest.mark.parametrize("net", GALLERY)
def test_net_is_failing_or_fixed_as_it_says(net, tmp_path):
    """The failing form raises the right warning within 10 % of its run or 60 steps; the fixed one none."""
    done = demo("--net", net, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for demo_run in GALLERY[net].failing:
        found = read_run(tmp_path / "gradwatch-demo" / demo_run.run).findings
        hits = [each for each in found if each.code == EXPECTED[net][demo_run.run]]
        assert hits, (demo_run.run, found)
        assert hits[0].severity >= Severity.WARNING
        assert hits[0].first_step <= max(0.1 * demo_run.steps, 60)
        if net == "exploding":  # a single step that wrecks the net would be a matter of luck
            assert hits[0].last_step > 0.9 * demo_run.steps
    assert check_equals_live(tmp_path) == len(GALLERY[net].failing) + 1
    fixed = read_run(tmp_path / "gradwatch-demo" / GALLERY[net].fixed.run)
    assert all(each.severity < Severity.WARNING for each in fixed.findings)
    if net != "three-neurons":
        failing, good = (int(share) for share in re.findall(r"accuracy (\d+) %", done.stdout))
        assert failing < 30
        assert good > 85
