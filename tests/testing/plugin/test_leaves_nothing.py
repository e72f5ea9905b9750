"""The plugin costs nothing unused, and a watched test leaves no trace in the user's classes, files and checkpoints."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

HEAVY = ("numpy", "torch", "lightning", "pytorch_lightning")


def imported_by_a_suite(pytester, body, *arguments):
    """Return which heavy packages a pytest session in a fresh interpreter holds at its end."""
    pytester.makepyfile(test_it=body)
    pytester.makeconftest(f"""
import sys

def pytest_unconfigure(config):
    assert config.pluginmanager.has_plugin("gradwatch")
    print("heavy:", [name for name in {HEAVY} if name in sys.modules])
""")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=pytester.path)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    return next(line for line in done.stdout.splitlines() if line.startswith("heavy:"))


@pytest.mark.parametrize("arguments", [(), ("--gradwatch",), ("--gradwatch", "--gradwatch-fail-on=error")])
def test_nothing_heavy_is_imported_where_no_trainer_is_fitted(pytester, arguments):
    line = imported_by_a_suite(pytester, "def test_it():\n    pass\n", *arguments)
    assert "torch" not in line
    assert "lightning" not in line
    if not arguments:
        assert line == "heavy: []"


def test_this_test_can_fail(pytester):
    assert "torch" in imported_by_a_suite(pytester, "def test_it():\n    import torch\n")


@pytest.mark.slow
def test_package_that_the_test_imports_first_is_watched(suite, pytester):
    """Lightning is there only once the test runs; its Trainer is watched all the same, and set free afterwards."""
    pytester.makepyfile(
        test_first="""
import pytest

@pytest.mark.gradwatch
def test_it():
    from nets import fit, lp
    fit(package=lp)

def test_after():
    import sys
    from nets import lp
    assert not hasattr(lp.Trainer.fit, "__wrapped__")
    assert type(lp.trainer.trainer.__loader__) is type(lp.__loader__)
    assert not any("gradwatch" in type(finder).__module__ for finder in sys.meta_path)
"""
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "test_first.py")
    result.assert_outcomes(passed=2)


@pytest.mark.judges
def test_classes_and_callbacks_are_as_before(suite):
    suite("""
before = pl.Trainer.fit, lp.Trainer.fit

@pytest.mark.gradwatch(rules=[ERROR])
@pytest.mark.parametrize("package", [pl, lp])
def test_it(package):
    assert package.Trainer.fit not in before
    trainer = fit(package=package)
    assert trainer.callbacks == []
    with pytest.raises(ZeroDivisionError):
        fit(Breaks())

class Breaks(pl.Callback):
    def on_train_batch_end(self, *_):
        1 / 0

def test_after():
    from lightning_gradwatch.tell.reporter import Reporter, current
    assert (pl.Trainer.fit, lp.Trainer.fit) == before
    assert current() == Reporter()
""").assert_outcomes(passed=1, failed=2)


def test_nothing_is_written_or_logged(suite, pytester):
    suite("""
from pytorch_lightning.loggers import CSVLogger

@pytest.mark.gradwatch(rules=[ERROR])
def test_it(tmp_path, caplog):
    logger = CSVLogger(tmp_path / "log")
    trainer = fit(logger=logger, log_every_n_steps=1, enable_checkpointing=True, default_root_dir=tmp_path)
    assert not any("GradWatch" in line for line in caplog.messages)
    assert not any("gradwatch" in str(path) for path in (tmp_path / "log").rglob("*"))
    assert not any("gradwatch" in key for row in logger.experiment.metrics for key in row)
    (saved,) = tmp_path.rglob("*.ckpt")
    assert not any("Watch" in key for key in torch.load(saved, weights_only=False)["callbacks"])
    print("as before")
""").stdout.fnmatch_lines(["as before"])
    assert sorted(path.name for path in pytester.path.iterdir() if "__" not in path.name) == ["nets.py", "test_it.py"]


def test_weights_are_those_of_an_unwatched_run(suite):
    suite("""
def weights():
    torch.manual_seed(0)
    return [each.clone() for each in fit(max_steps=6).lightning_module.parameters()]

plain = weights()

@pytest.mark.gradwatch
def test_it():
    assert all(torch.equal(one, other) for one, other in zip(weights(), plain))
""").assert_outcomes(passed=1)
