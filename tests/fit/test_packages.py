"""Importing GradWatch changes nothing for others, and its callback is one for the package that the user imports."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from global_state import differences

from lightning_gradwatch import GradWatch

pytestmark = pytest.mark.slow  # each starts a process that imports a package

PACKAGES = {"lightning.pytorch": "pytorch_lightning", "pytorch_lightning": "lightning.pytorch"}
HERE = Path(__file__).parents[1]
PRELUDE = """
import importlib, json, logging, pickle, sys
from global_state import differences, shared_state

def fits(package, callbacks):
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    pl = importlib.import_module(package)

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
        def training_step(self, batch, batch_idx):
            return self.net(batch[0]).square().mean()
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = pl.Trainer(callbacks=callbacks, max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, default_root_dir=sys.argv[1])
    trainer.fit(Net(), DataLoader(TensorDataset(torch.randn(12, 4)), 4))
    watch = next(each for each in trainer.callbacks if "GradWatch" in {kind.__name__ for kind in type(each).__mro__})
    assert isinstance(watch, pl.Callback)
    assert [record.step for record in watch.records] == [0, 1, 2]
"""


def run(program, folder):
    """Run a program by itself; return what it printed."""
    program = PRELUDE + textwrap.dedent(program)
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_behind_the_users_package_an_import_changes_nothing(package, tmp_path):
    """With both installed: the user's settings hold, his package logs where it did, and both packages' Trainers fit."""
    run(
        f"""
        package, other = {package!r}, {PACKAGES[package]!r}
        importlib.import_module(package)
        rank_zero = importlib.import_module(f"{{package}}.utilities.rank_zero")
        lines = []
        class Keeps(logging.Handler):
            def emit(self, record):
                lines.append((record.name, record.getMessage()))
        logger = logging.getLogger(f"{{package}}.utilities.rank_zero")
        logger.setLevel(logging.INFO)
        logger.addHandler(Keeps())
        logger.propagate = False
        before = shared_state()

        from lightning_gradwatch import GradWatch, check_training
        watch = GradWatch(every_n_steps=1)

        assert differences(before, shared_state()) == {{}}, differences(before, shared_state())
        assert other not in sys.modules
        rank_zero.rank_zero_info("to whom it may concern")
        assert lines == [(logger.name, "to whom it may concern")], lines
        fits(package, watch)
        fits(package, [watch])
        assert other not in sys.modules
        logger.setLevel(logging.ERROR)
        lines.clear()
        rank_zero.rank_zero_info("to nobody")
        assert lines == []

        # And then the other one, for callbacks that were there before and for new ones.
        assert issubclass(GradWatch, importlib.import_module(other).Callback)
        after = shared_state()
        fits(other, watch)
        fits(other, [watch])
        fits(other, GradWatch(every_n_steps=1))
        fits(package, watch)
        assert after["rank zero"] == shared_state()["rank zero"]
        """,
        tmp_path,
    )


OURS_FIRST = (
    "from lightning_gradwatch import GradWatch; Mine = type('Mine', (GradWatch,), {}); "
    "watch, mine = GradWatch(every_n_steps=1), Mine(every_n_steps=1)"
)


@pytest.mark.parametrize("package", PACKAGES)
def test_ahead_of_the_users_package_an_import_changes_nothing(package, tmp_path):
    """What the user sets between the two imports counts, as Lightning looks at it when it is imported."""
    told = [
        run(
            f"""
            import random, numpy, torch
            random.seed(0), numpy.random.seed(0), torch.manual_seed(0)
            {ours}
            logging.basicConfig(level=logging.WARNING)
            importlib.import_module({package!r})
            print(json.dumps(shared_state()))
            assert {PACKAGES[package]!r} not in sys.modules
            if {bool(ours)}:
                fits({package!r}, watch)
                fits({package!r}, [watch])
                fits({package!r}, mine)
            """,
            tmp_path,
        )
        for ours in ("", OURS_FIRST)
    ]
    without, with_us = (json.loads(each.splitlines()[0]) for each in told)
    assert differences(without, with_us) == {}


def test_a_callback_arrives_in_a_process_that_has_imported_nothing(tmp_path):
    """As in a process that a strategy spawns, or a job that a launcher sends off."""
    (tmp_path / "watch.pickle").write_bytes(pickle.dumps([GradWatch(every_n_steps=1)]))
    run(
        """
        with open(f"{sys.argv[1]}/watch.pickle", "rb") as file:
            (watch,) = pickle.load(file)
        assert not {"pytorch_lightning", "lightning"} & {*sys.modules}
        fits("pytorch_lightning", watch)
        fits("lightning.pytorch", watch)
        """,
        tmp_path,
    )


def test_an_import_that_nobody_saw_is_taken_in_with_the_next_callback(tmp_path):
    """Other tools' import hooks can stand in front of ours and find everything themselves."""
    run(
        """
        from lightning_gradwatch import GradWatch
        ours = [each for each in sys.meta_path if type(each).__module__.startswith("lightning_gradwatch")]
        for each in ours:
            sys.meta_path.remove(each)
        assert len(ours) == 1
        import pytorch_lightning
        fits("pytorch_lightning", GradWatch(every_n_steps=1))
        """,
        tmp_path,
    )


def test_a_users_class_that_cant_be_one_of_another_package_ends_no_import(tmp_path):
    """Its bases are in another order than ours: Python can't put them into one."""
    run(
        """
        from lightning_gradwatch import GradWatch
        from lightning_gradwatch.fit.packages import AnyCallback
        import lightning.pytorch, pytorch_lightning
        class Both(pytorch_lightning.Callback, lightning.pytorch.Callback): pass
        AnyCallback.__bases__ = (lightning.pytorch.Callback,)
        class Mine(GradWatch, Both): pass
        fits("lightning.pytorch", Mine(every_n_steps=1))
        fits("pytorch_lightning", Mine(every_n_steps=1))
        """,
        tmp_path,
    )
