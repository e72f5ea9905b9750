"""Our writing can't hurt the user's: with the monitor a fit ends as it does without, and his numbers are where they were.

Each fit has a process of its own. What it logs, how it ends and its weights are compared bit for bit with those of the same
fit without the monitor; what of ours is lost is told once, from the right step on.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import tempfile
import warnings
from functools import cache
from pathlib import Path

import pytest
from forked import in_child
from integration import write_faults
from integration.write_faults import AT, DISASTERS, LOGGERS, STEPS

HANDLES = 256


def can_mount():
    with tempfile.TemporaryDirectory() as folder:
        try:
            with write_faults.small_disk(folder, 4096):
                return True
        except OSError:
            return False


def can_freeze():
    with tempfile.TemporaryDirectory() as folder:
        try:
            write_faults.freeze(Path(folder))
        except Exception:  # noqa: BLE001 - no such program, no such right
            return False
        write_faults.thaw(Path(folder))
        return True


@cache
def possible():
    """Return the disasters that this user can bring about; of a full disk a limit on file sizes takes the place."""
    left_out = {"nothing"} | ({"full disk", "nearly full disk"} if not can_mount() else set())
    return [name for name in DISASTERS if name not in left_out | ({"read-only folder"} if not can_freeze() else set())]


_WITHOUT = {}


def both(kind, *, logs, **case):
    """Return what became of a fit without and with the monitor, in the same place."""
    key = (kind, logs, *sorted(case.items()))
    if key not in _WITHOUT:
        _WITHOUT[key] = one(kind, watched=False, logs=logs, **case)
    return _WITHOUT[key], one(kind, watched=True, logs=logs, **case)


def one(kind, *, watched, logs, disaster="nothing", fit=write_faults.fit, **case):
    with tempfile.TemporaryDirectory() as folder:
        small = "full disk" in disaster
        with write_faults.small_disk(folder, 1 << 20) if small else contextlib.nullcontext():
            if disaster == "no handles":
                case["handles"] = HANDLES
            answer = in_child(fit, Path(folder) / "run", kind, watched=watched, logs=logs, disaster=disaster, **case)
    return {key: value.replace(folder, "") if key == "end" else value for key, value in answer.items()}


def unhurt(without, watched):
    """Check that the fit is as without the monitor, and that nothing is lost without a word."""
    assert {key: watched[key] for key in ("end", "steps", "weights")} == {
        key: without[key] for key in ("end", "steps", "weights")
    }
    assert watched["logged"].keys() == without["logged"].keys()
    for name, numbers in without["logged"].items():
        assert watched["logged"][name][: len(numbers)] == numbers, name
    assert watched["measured"] == list(range(without["steps"]))
    assert watched["open"] == 0
    assert watched["others"] == []
    assert len(watched["warnings"]) <= 1
    assert len(watched["coverage"]) == len(watched["warnings"])
    for steps in watched["stored"].values():
        if isinstance(steps, list):
            assert steps == list(range(len(steps)))
            if len(steps) < len(watched["measured"]):
                assert f"all from step {len(steps)} on in" in watched["warnings"][0]
                assert "writing" in watched["coverage"][0]


@pytest.mark.parametrize("logs", [False, True], ids=["nothing logged", "loss logged"])
@pytest.mark.parametrize("kind", LOGGERS)
@pytest.mark.parametrize("disaster", possible())
@pytest.mark.slow
def test_a_fit_ends_as_without_the_monitor(disaster, kind, logs):
    without, watched = both(kind, logs=logs, disaster=disaster)
    unhurt(without, watched)
    gone = {"deleted folder", "deleted files", "replaced files", "moved folder"}
    if disaster in gone:
        assert len(watched["warnings"]) == 1
    elif disaster != "no handles":
        assert f"from step {AT} on" in watched["warnings"][0]


@pytest.mark.parametrize("logs", [False, True], ids=["nothing logged", "loss logged"])
@pytest.mark.parametrize("kind", ["tensorboard", "none"])
@pytest.mark.parametrize("disaster", [name for name in possible() if name in ("full disk", "deleted folder")] or [None])
def test_a_fit_ends_as_without_the_monitor_in_short(disaster, kind, logs):
    unhurt(*both(kind, logs=logs, **({"limit": 20_000} if disaster is None else {"disaster": disaster})))


@pytest.mark.parametrize("logs", [False, True], ids=["nothing logged", "loss logged"])
@pytest.mark.parametrize("kind", LOGGERS)
@pytest.mark.parametrize("limit", [600, 8_000, 20_000, 60_000])
@pytest.mark.slow
def test_a_limit_on_file_sizes_is_left_to_the_user(limit, kind, logs):
    without, watched = both(kind, logs=logs, limit=limit)
    unhurt(without, watched)
    assert watched["warnings"] or limit == 60_000


@pytest.mark.parametrize("at", range(0, STEPS, 5))
@pytest.mark.skipif("full disk" not in possible(), reason="only a user who may mount can fill a disk")
@pytest.mark.slow
def test_the_last_block_of_the_users_file_stays_the_users(at):
    """Without us a few short events fit in the file's last block when the disk is full; so they do with us."""
    unhurt(*both("tensorboard", logs=True, disaster="full disk", at=at))


@pytest.mark.parametrize("at", [-1, 0, 1])
@pytest.mark.parametrize("kind", ["none", "tensorboard", "csv"])
@pytest.mark.slow
def test_without_handles_everything_is_measured_and_nothing_hurt(kind, at):
    """From before the fit's first step on: no file can be opened, and whatever is imported late can't be read."""
    without, watched = both(kind, logs=False, disaster="no handles", at=at)
    unhurt(without, watched)
    if (kind, at) != ("tensorboard", -1):  # where Lightning itself can't write down the settings
        assert len(watched["measured"]) == STEPS


def test_the_users_filter_makes_an_error_of_the_warning(tmp_path):
    answer = in_child(raised_by_filter, tmp_path)
    assert answer["end"].startswith("GradWatchWarning: GradWatch switched its writing off: No such file or directory")
    assert answer["open"] == 0


def raised_by_filter(folder):
    with warnings.catch_warnings():
        return write_faults.fit(
            folder / "run", "none", watched=True, logs=False, disaster="deleted folder", way="error"
        )


# -- a logger that fails by itself


class Unreachable(write_faults.Cloud):
    """Fails from some step on, as a network does."""

    def log_metrics(self, metrics, step=None):
        if any(name.startswith("gradwatch") for name in metrics) and step >= AT:
            raise ConnectionError("no route to host")
        super().log_metrics(metrics, step)


class Unopened(write_faults.Cloud):
    """Can't even be asked where it writes."""

    asked = 0

    @property
    def experiment(self):
        self.asked += 1
        if self.asked > 2:  # Lightning itself asks first, twice
            raise OSError(24, "Too many open files")


@pytest.mark.parametrize(("logger", "since"), [(Unreachable, AT), (Unopened, 0)])
def test_a_logger_that_fails_costs_what_it_would_have_got_and_nothing_else(logger, since):
    without, watched = both("cloud", logs=True, logger=logger)
    assert {key: watched[key] for key in ("end", "weights", "logged")} == {
        key: without[key] for key in ("end", "weights", "logged")
    }
    assert watched["stored"]["version_0"] == list(range(STEPS))
    (told,) = watched["warnings"]
    assert re.match(rf"GradWatch switched its writing to {logger.__name__}.* off: .*(no route|open files)", told)
    assert f"all from step {since} on in {logger.__name__}" in told


# -- signals


@pytest.mark.parametrize("logs", [False, True], ids=["nothing logged", "loss logged"])
@pytest.mark.parametrize("kind", LOGGERS)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1], ids=lambda signum: signum.name)
@pytest.mark.slow
def test_what_was_measured_is_written_when_a_signal_comes_in_mid_step(signum, kind, logs):
    """SIGTERM ends the fit behind the step; SIGUSR1 is SLURM's requeue, for which Lightning closes the loggers at once."""
    without, watched = both(kind, logs=logs, signum=signum, inside=None)
    unhurt(without, watched)
    assert watched["warnings"] == []
    assert len(watched["measured"]) == (AT + 1 if signum == signal.SIGTERM else STEPS)
    (stored,) = watched["stored"].values()
    assert stored == watched["measured"]


@pytest.mark.parametrize("kind", ["none", "tensorboard"])
@pytest.mark.parametrize(
    "where", ["record.events.file.append", "fit.writing.logger_files.append", "fit.writing.writer.step_event"]
)
@pytest.mark.slow
def test_a_requeue_that_comes_while_we_write_neither_hangs_nor_tears_a_record(where, kind):
    watched = one(kind, watched=True, logs=True, signum=signal.SIGUSR1, inside=f"lightning_gradwatch.{where}")
    assert watched["end"] == "ended"
    (stored,) = watched["stored"].values()
    assert stored == list(range(STEPS))
    assert watched["warnings"] == []


def test_the_number_of_looks_is_small(tmp_path, monkeypatch):
    """A few system calls a measured step, whatever the run has become."""
    from lightning_gradwatch.record import disk_space  # noqa: PLC0415 - only here they are looked into
    from lightning_gradwatch.record.events import file as event_file  # noqa: PLC0415 - only here they are looked into
    from lightning_gradwatch.record.events.file import EventFile  # noqa: PLC0415 - as above
    from lightning_gradwatch.record.events.step_events import findings_event  # noqa: PLC0415 - as above

    with EventFile(tmp_path) as file:
        calls = []
        for name in ("stat", "statvfs", "fstat", "access", "open"):
            real = getattr(os, name)
            monkeypatch.setattr(os, name, lambda *args, real=real, name=name: calls.append(name) or real(*args))
        file.write(findings_event([], step=0))
        monkeypatch.undo()
    assert event_file.os is disk_space.os is os
    assert calls == ["stat", "statvfs"]
