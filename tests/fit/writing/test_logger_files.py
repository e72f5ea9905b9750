"""Our events in a TensorBoard logger's own file: beside the logger's writer where that is possible, and never at its cost."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils.tensorboard import SummaryWriter
from written import make_info, make_record

from lightning_gradwatch.fit.writing.destinations import NotWritten
from lightning_gradwatch.fit.writing.logger_files import AppendedFile, QueuedFile, appended_path
from lightning_gradwatch.judge.run import read_run
from lightning_gradwatch.record.events.step_events import step_event

INFO = make_info()


def event(step, *, describe=True):
    return step_event(make_record(INFO, step), INFO, describe=describe)


@pytest.fixture
def logger(tmp_path):
    writer = SummaryWriter(str(tmp_path / "tb"))
    yield SimpleNamespace(experiment=writer, folder=tmp_path / "tb")
    writer.close()


def file_of(logger):
    writer = logger.experiment._get_file_writer()
    return AppendedFile(logger, writer, appended_path(writer))


def scalars(folder):
    found = {}
    for path in sorted(folder.iterdir()):
        for each in EventFileLoader(str(path)).Load():
            for value in each.summary.value:
                if not value.tag.startswith("gradwatch"):
                    found.setdefault(value.tag, []).append(each.step)
    return found


def test_events_are_there_at_once_and_the_queue_is_the_users_alone(logger):
    file = file_of(logger)
    queue = logger.experiment._get_file_writer().event_writer._async_writer._byte_queue
    for step in range(50):
        file.send(event(step), {}, step)
        assert queue.empty()
    assert [record.step for record in read_run(logger.folder).records] == list(range(50))


def test_two_who_write_at_once_tear_no_record(logger):
    file, count = file_of(logger), 400

    def users_own():
        for step in range(count):
            logger.experiment.add_scalar("loss", step, step)

    thread = threading.Thread(target=users_own)
    thread.start()
    for step in range(count):
        file.send(event(step), {}, step)
    thread.join(60)
    logger.experiment.flush()
    run = read_run(logger.folder)
    assert run.problems == ()
    assert [record.step for record in run.records] == list(range(count))
    assert scalars(logger.folder) == {"loss": list(range(count))}


def test_a_writer_whose_function_another_program_has_replaced_is_used(logger, monkeypatch):
    """Programs that mirror TensorBoard's numbers elsewhere see ours too."""
    writer, seen, real = logger.experiment._get_file_writer(), [], EventFileWriter.add_event
    assert appended_path(writer) == next(logger.folder.iterdir())

    def mirrors(self, event):
        seen.append(event.step)
        return real(self, event)

    monkeypatch.setattr(EventFileWriter, "add_event", mirrors)
    assert appended_path(writer) is None
    file = QueuedFile(writer)
    assert [file.begins(), file.begins()] == [True, False]
    for step in range(3):
        file.send(event(step), {}, step)
    logger.experiment.flush()
    assert seen == [0, 1, 2]
    assert [record.step for record in read_run(logger.folder).records] == [0, 1, 2]
    monkeypatch.undo()
    monkeypatch.setattr(writer.event_writer, "add_event", lambda event: None)
    assert appended_path(writer) is None


@pytest.mark.parametrize("kind", [AppendedFile, QueuedFile])
@pytest.mark.parametrize("way", ["deleted", "replaced", "emptied"])
def test_nothing_is_written_to_a_file_that_is_another_now(kind, way, logger):
    file = file_of(logger) if kind is AppendedFile else QueuedFile(logger.experiment._get_file_writer())
    (path,) = logger.folder.iterdir()
    file.send(event(0), {}, 0)
    logger.experiment.flush()
    if way == "emptied":
        os.truncate(path, 0)
    else:
        path.rename(path.with_name("old"))
        if way == "replaced":
            path.write_bytes(b"another")
    if kind is QueuedFile and way == "emptied":
        return  # it is the same file, and its writer writes on
    with pytest.raises(NotWritten, match=r"No such file|another file has taken its place"):
        file.send(event(1), {}, 1)
    assert not path.exists() or path.read_bytes() in (b"", b"another")


@pytest.mark.parametrize("kind", [AppendedFile, QueuedFile])
def test_a_writer_whose_thread_has_failed_gets_nothing_more(kind, logger):
    file = file_of(logger) if kind is AppendedFile else QueuedFile(logger.experiment._get_file_writer())
    worker = logger.experiment._get_file_writer().event_writer._async_writer._worker
    worker.exception = OSError(28, "No space left on device")
    with pytest.raises(NotWritten, match="the logger's own writer has failed: No space left on device"):
        file.send(event(0), {}, 0)
    worker.exception = None


def test_a_closed_logger_is_written_on_in_its_file_and_in_the_next_once_there_is_one(logger):
    """As when SLURM asks for a requeue: Lightning closes the logger, and the training goes on for a while."""
    file = file_of(logger)
    assert file.begins()
    file.send(event(0), {}, 0)
    logger.experiment.close()
    assert not file.begins()
    file.send(event(1, describe=False), {}, 1)
    (first,) = logger.folder.iterdir()
    logger.experiment.add_scalar("loss", 1.0, 2)
    assert file.begins()
    file.send(event(2), {}, 2)
    logger.experiment.flush()
    (second,) = set(logger.folder.iterdir()) - {first}
    assert [record.step for record in read_run(first).records] == [0, 1]
    assert [record.step for record in read_run(second).records] == [2]


def test_a_file_that_is_nowhere_on_this_machine_goes_through_its_writer():
    sent = []

    class Remote:
        event_writer = SimpleNamespace(_file_name="s3://bucket/events")

        def add_event(self, event, walltime):
            sent.append(event.step)

        def get_logdir(self):
            return "s3://bucket"

    file = QueuedFile(Remote())
    assert (file.where, file.is_local) == ("s3://bucket", False)
    file.send(event(7), {}, 7)
    assert sent == [7]
