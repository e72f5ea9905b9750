"""When findings are written again, as each time costs sentences and most of them say what the last ones did; and what
becomes of the places that records go to when they can't be written to any more.
"""

from __future__ import annotations

import errno
import shutil
import warnings
from dataclasses import dataclass, field

import pytest
from tensorboard.compat.proto import event_pb2
from written import make_info, make_record

from lightning_gradwatch import GradWatchWarning
from lightning_gradwatch.fit.writing.writer import Sinks
from lightning_gradwatch.record.events.encoding import PLUGIN
from lightning_gradwatch.record.events.file import EventFile, read_payloads
from lightning_gradwatch.record.events.step_events import decode_event
from lightning_gradwatch.record.finding import Finding, Remedy, Severity

NAMES = tuple(f"net.{place}" for place in range(40))


@dataclass
class Told:
    """An evaluator that has found what it is told."""

    outline: tuple = ()
    asked: list = field(default_factory=list)

    @property
    def findings(self):
        self.asked.append(self.outline)
        return ()


@pytest.mark.parametrize(
    ("before", "after", "again"),
    [
        ((), (("GW101", 1, 10, NAMES),), True),
        ((("GW101", 1, 10, NAMES),), (), True),
        ((("GW101", 1, 10, NAMES),), (("GW101", 2, 10, NAMES),), True),
        ((("GW101", 1, 10, NAMES),), (("GW101", 1, 4, NAMES),), True),
        ((("GW101", 1, 10, NAMES),), (("GW101", 1, 10, NAMES), ("GW201", 1, 10, NAMES)), True),
        ((("GW101", 1, 10, NAMES[:38]),), (("GW101", 1, 10, NAMES),), False),
        ((("GW101", 1, 10, NAMES[2:]),), (("GW101", 1, 10, NAMES[:-2]),), False),
        ((("GW101", 1, 10, NAMES[:20]),), (("GW101", 1, 10, NAMES),), True),
        ((("GW101", 1, 10, NAMES),), (("GW101", 1, 10, NAMES[20:]),), True),
        ((("GW301", 1, 10, ("net.0",)),), (("GW301", 1, 10, ("net.2",)),), True),
    ],
)
def test_findings_are_written_again_where_they_say_something_new(before, after, again, tmp_path):
    info, told = make_info(), Told()
    sinks = Sinks([], tmp_path, max_curves=None)
    records = []
    for step, told.outline in enumerate(((), before, before, after, after)):
        records.append(make_record(info, step))
        sinks.write(records, {info.layout: info}, told)
    sinks.close()
    (path,) = tmp_path.rglob("*tfevents*")
    events = [decode_event(payload) for _, payload in read_payloads(path, marker=PLUGIN.encode(), problem=pytest.fail)]
    written = [event.record.step for event in events if event.findings is not None]
    assert written == [1] * bool(before) + [3] * again
    assert len(told.asked) == len(written)


def test_what_the_end_adds_to_the_findings_stands_behind_the_last_step(tmp_path):
    """TensorBoard's fast loader drops the earlier of two events of one step, and with it the step's numbers."""
    info = make_info()
    sinks = Sinks([], tmp_path, max_curves=None)
    records = [make_record(info, step) for step in (0, 7)]
    for count in (1, 2):
        sinks.write(records[:count], {info.layout: info}, Told())
    found = Finding("GW101", "x", Severity.ERROR, ("net.0",), 0, 7, 0.5, 1e-3, "c", Remedy("r"), "m")
    sinks.finish(records, {info.layout: info}, (found,))
    sinks.close()
    (path,) = tmp_path.rglob("*tfevents*")
    payloads = [payload for _, payload in read_payloads(path, marker=PLUGIN.encode(), problem=pytest.fail)]
    assert [event_pb2.Event.FromString(payload).step for payload in payloads] == [0, 7, 8]
    assert decode_event(payloads[-1]).findings == (found,)


class Cloud:
    """A logger that takes numbers, until it fails."""

    def __init__(self, fails_at=None):
        self.fails_at = fails_at
        self.steps = []

    def log_metrics(self, metrics, step):
        if step == self.fails_at:
            raise ConnectionError("no route")
        self.steps.append(step)


@dataclass
class Written:
    sinks: Sinks
    info: object = field(default_factory=make_info)
    records: list = field(default_factory=list)
    warnings: list = field(default_factory=list)

    def steps(self, *steps):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in steps:
                self.records.append(make_record(self.info, step))
                self.sinks.write(self.records, {self.info.layout: self.info}, Told())
        self.warnings += [str(each.message) for each in caught if each.category is GradWatchWarning]
        return self

    def stored(self, folder):
        found = []
        for path in sorted(folder.rglob("*tfevents*")):
            payloads = read_payloads(path, marker=PLUGIN.encode(), problem=pytest.fail)
            found += [decode_event(payload).record.step for _, payload in payloads]
        return found


def test_a_folder_that_is_deleted_is_told_once_and_not_made_again(tmp_path):
    written = Written(Sinks([], tmp_path, max_curves=64)).steps(0, 2)
    assert written.sinks.path == tmp_path / "gradwatch" / "version_0"
    shutil.rmtree(tmp_path / "gradwatch")
    written.steps(4, 8, 16).sinks.close()
    (told,) = written.warnings
    assert told.startswith("GradWatch switched its writing off: No such file or directory: ")
    assert "What is lost: all from step 4 on in" in told
    assert written.sinks.path is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_and_is_gone_before_the_first_record_is_not_made_again(tmp_path):
    root = tmp_path / "logs"
    root.mkdir()
    written = Written(Sinks([], root, max_curves=64))
    root.rmdir()
    assert len(written.steps(0, 1).warnings) == 1
    assert not root.exists()
    Written(Sinks([], tmp_path / "new" / "deep", max_curves=64)).steps(0).sinks.close()
    assert (tmp_path / "new" / "deep" / "gradwatch" / "version_0").is_dir()


def test_a_logger_that_fails_is_dropped_and_the_others_go_on(tmp_path):
    one, other = Cloud(fails_at=2), Cloud()
    written = Written(Sinks([one, other], tmp_path, max_curves=64)).steps(0, 1, 2, 4)
    assert (one.steps, other.steps) == ([0, 1], [0, 1, 2, 4])
    assert written.stored(tmp_path) == [0, 1, 2, 4]
    assert written.warnings == [
        (
            "GradWatch switched its writing to Cloud off: ConnectionError: no route. "
            "What is lost: all from step 2 on in Cloud. Training goes on."
        )
    ]
    written.sinks.close()


def test_what_is_short_is_short_for_all_that_is_written_here_and_told_once(tmp_path, monkeypatch):
    cloud = Cloud()
    cloud.save_dir = str(tmp_path)
    remote = Cloud()
    written = Written(Sinks([cloud, remote], tmp_path, max_curves=64)).steps(0)

    def full(self, event):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(EventFile, "write", full)
    written.steps(1, 2).sinks.close()
    (told,) = written.warnings
    assert "No space left on device" in told
    assert f"all from step 1 on in {tmp_path}" in told
    assert f"all from step 2 on in Cloud ({tmp_path})" in told
    assert cloud.steps == [0, 1]
    assert remote.steps == [0, 1, 2]


def test_a_file_that_cannot_be_made_leaves_no_empty_version(tmp_path, monkeypatch):
    def none_left(self, folder):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(EventFile, "__init__", none_left)
    written = Written(Sinks([], tmp_path, max_curves=64)).steps(0, 1)
    assert ["Too many open files" in told for told in written.warnings] == [True]
    assert list((tmp_path / "gradwatch").iterdir()) == []
    assert written.sinks.path is None


def test_an_error_that_a_network_disk_reports_at_the_end_is_told(tmp_path):
    written = Written(Sinks([], tmp_path, max_curves=64)).steps(0)
    own = written.sinks._own._file
    real = own._file

    class Late:
        def close(self):
            real.close()
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    own._file = Late()
    with pytest.warns(GradWatchWarning, match="Disk quota exceeded.*what the end of the fit adds"):
        written.sinks.close()


def test_the_handle_is_given_back_after_a_fault(tmp_path, monkeypatch):
    written = Written(Sinks([], tmp_path, max_curves=64)).steps(0)
    handle = written.sinks._own._file._file
    monkeypatch.setattr(EventFile, "write", lambda self, event: (_ for _ in ()).throw(OSError(28, "No space left")))
    written.steps(1)
    assert handle.closed
