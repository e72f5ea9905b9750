"""Reading and judging a run needs neither torch nor Lightning: their import takes seconds, and may not be there."""

import subprocess
import sys

import pytest

LIGHT = [
    "",
    ".record.events.step_events",
    ".record.events.file",
    ".judge.run",
    ".rules",
    ".tell.terminal",
    ".cli",
    ".record.finding",
    ".record.step",
    ".record.activations",
    ".pytest_plugin",
    ".testing.plugin.watched",
    ".tell.training",
    ".tab.loader",
    ".tab.plugin",
]
HEAVY = ["torch", "lightning", "pytorch_lightning"]


def heavy_modules_after(statement):
    """Return which of the heavy packages a fresh interpreter holds after a statement."""
    program = f"{statement}\nimport sys\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("module", LIGHT)
def test_importing_it_imports_neither_torch_nor_lightning(module):
    assert heavy_modules_after(f"import lightning_gradwatch{module}") == "[]"


def test_the_public_names_of_judging_are_light_too():
    names = "read_run, evaluate, DEFAULT_RULES, Finding, Severity, GradWatchError, Run"
    assert heavy_modules_after(f"from lightning_gradwatch import {names}") == "[]"


def test_this_test_can_fail():
    assert "'torch'" in heavy_modules_after("import lightning_gradwatch.measure.probe")
    assert "'torch'" in heavy_modules_after("from lightning_gradwatch import Probe")


def test_measuring_does_not_import_lightning():
    assert heavy_modules_after("import lightning_gradwatch.measure.probe") == "['torch']"


@pytest.mark.parametrize(
    "arguments", ["check nowhere --format sarif", "compare a b", "rules", "explain GW101", "--help"]
)
def test_the_command_line_stays_light_while_it_works(arguments):
    program = f"from lightning_gradwatch.cli.command import main\nmain({arguments.split()!r})"
    assert heavy_modules_after(program) == "[]"
