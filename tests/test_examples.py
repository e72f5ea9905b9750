"""Each example runs as it stands, with a small budget."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from replayed import check_equals_live

pytestmark = pytest.mark.judges

EXAMPLES = Path(__file__).parents[1] / "examples"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}


def run(cwd, *command):
    command = [sys.executable, *map(str, command)]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", check=False, cwd=cwd, env=ENVIRONMENT, timeout=600
    )


def example(cwd, name, *arguments):
    done = run(cwd, EXAMPLES / name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here():
    """An example that nobody runs is an example that is broken."""
    here = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in here] == []


def test_three_neurons_shows_both_cases(tmp_path):
    first, second = example(tmp_path, "three_neurons.py").split("Case 2")
    assert "GW104 unreached-layer" in first
    assert "the same, to the last bit" in first
    assert "GW101" not in first
    assert "GW101 vanishing-gradient" in second
    assert "the same" not in second
    rows = re.findall(r"neuron \d +(\S+) +(\S+) +(\S+)$", first + second, re.MULTILINE)
    assert len(rows) == 6
    for hand, measured, _ in rows:
        assert float(measured) == pytest.approx(float(hand), rel=1e-4, abs=0)
    ratios = [float(ratio) for _, _, ratio in rows]
    assert ratios[:3] == [0, 0, 0]
    assert 0 < ratios[3] < 1e-4


def test_plain_pytorch_judges_its_own_records(tmp_path):
    assert "findings: none" in example(tmp_path, "plain_pytorch.py")


def test_a_rule_of_ones_own_is_told_live_and_when_the_stored_run_is_judged_again(tmp_path):
    told = example(tmp_path, "own_rule.py")
    assert re.search(r"^LAB001 loud-layer at brightness: The gradient of brightness is \S+ times", told, re.MULTILINE)


@pytest.mark.slow
def test_vgg16_learns_only_when_fixed(tmp_path):
    told = example(tmp_path, "vgg16.py", "--max-steps", 60)
    assert re.search(r"^plain: .*GW101", told, re.MULTILINE)
    assert re.search(r"^fixed: .*findings: none", told, re.MULTILINE)
    assert check_equals_live(tmp_path) == 2


@pytest.mark.slow
def test_residual_net_needs_its_skip_connections(tmp_path):
    told = example(tmp_path, "residual.py", "--max-steps", 100)
    assert re.search(r"^without skip .*GW101", told, re.MULTILINE)
    assert re.search(r"^with skip .*findings: none", told, re.MULTILINE)
    assert check_equals_live(tmp_path) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["char_transformer.py", "gan.py", "finetune.py"])
def test_healthy_example_raises_no_warning(name, tmp_path):
    told = example(tmp_path, name, "--max-steps", 60)
    assert told.rstrip().endswith("findings: none")
    assert check_equals_live(tmp_path) >= 1


@pytest.mark.slow
def test_smoke_training_keeps_its_run(tmp_path):
    assert "failed: 2 findings" in example(tmp_path, "ci_smoke.py", "--net", "sigmoid")
    assert (tmp_path / "smoke-run" / "gradwatch" / "version_0").is_dir()
    assert check_equals_live(tmp_path) == 1


@pytest.mark.slow
def test_smoke_test_fails_as_it_should(tmp_path):
    done = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLES / "test_smoke.py")
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
    assert "GradWatchError" in done.stdout
    assert "vanishing-gradient, " in done.stdout
