"""What a user hasn't asked for doesn't arrive with us: others behave as they did before we were installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def what_arrives(*bases):
    command = [sys.executable, str(ROOT / ".ci" / "what_arrives"), *bases]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_plain_trainer_is_made_of_the_same_with_us_and_without():
    """Its progress bar and summary of the model change as soon as rich is installed, as it once was with us."""
    done = what_arrives()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "arrive: lightning-gradwatch\n" in done.stdout
    assert "TQDMProgressBar" in done.stdout


@pytest.mark.slow
def test_what_tensorboard_changes_is_seen():
    """So the comparison can fail; and this is the change that is declared."""
    done = what_arrives("pytorch-lightning")
    assert done.returncode == 1, done.stdout + done.stderr
    changes = [line for line in done.stdout.splitlines() if "->" in line]
    assert changes == [f"{how}: loggers ['CSVLogger'] -> ['TensorBoardLogger']" for how in ("installed", "imported")]


def test_nothing_is_imported_that_isnt_declared():
    """Where the tests run, more is installed: by other packages, and for the tests."""
    declared = {"numpy", "PIL", "tensorboard", "torch", "pytorch_lightning", "typing_extensions", "tomli"}
    declared.add("google")  # protobuf, in which tensorboard's events are written
    extras = {"fit": {"lightning"}, "demo": {"sklearn"}, "pytest_plugin.py": {"pytest"}, "testing": {"pytest"}}
    extras["tab"] = {"werkzeug"}  # of which TensorBoard's server is made, and what it hands to its plugins
    found = {}
    for file in (ROOT / "lightning_gradwatch").rglob("*.py"):
        place = file.relative_to(ROOT / "lightning_gradwatch").parts[0]
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            # Python 3.10 has no `tomllib` yet, and a module that asks for the version.
            own = sys.stdlib_module_names | {"lightning_gradwatch", "tomllib"}
            tops = {name.partition(".")[0] for name in names} - own
            for name in tops - declared - extras.get(place, set()):
                found.setdefault(name, []).append(str(file))
    assert found == {}
