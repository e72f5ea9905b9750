"""Event files as bytes: what is written, and that importing the readers is light."""

import multiprocessing
import subprocess
import sys
import types
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto import event_pb2
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as stock_crc

from lightning_gradwatch.record.events.file import EventFile, masked_crc32c, next_version_folder, write_to
from lightning_gradwatch.record.events.step_events import findings_event


@pytest.mark.parametrize(
    "data", [b"", b"a", bytes(range(256)) * 3, bytes(range(256)) * 8, bytes(range(251)) * 9 + b"a"]
)
def test_the_checksum_is_tensorboards(data):
    assert masked_crc32c(data) == stock_crc(data)


def test_the_next_version_is_one_above_the_highest_and_is_made(tmp_path):
    assert next_version_folder(tmp_path) == tmp_path / "gradwatch" / "version_0"
    assert list((tmp_path / "gradwatch" / "version_0").iterdir()) == []
    for name in ("version_2", "version_10", "version_x", "other"):
        (tmp_path / "gradwatch" / name).mkdir(parents=True)
    assert next_version_folder(str(tmp_path)).name == "version_11"
    (tmp_path / "gradwatch" / "version_12").symlink_to("nowhere")
    (tmp_path / "gradwatch" / "version_13").write_text("a file")
    assert next_version_folder(tmp_path).name == "version_14"


def test_a_version_that_another_process_takes_in_between_is_left_to_it(tmp_path, monkeypatch):
    real = Path.mkdir

    def mkdir(self, *args, **kwargs):
        if self.name in ("version_0", "version_1") and not self.exists():
            real(self)  # just now, by somebody else
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert next_version_folder(tmp_path).name == "version_2"


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "gradwatch").write_text("a file")
    with pytest.raises(FileExistsError):
        next_version_folder(tmp_path)


def take_version(root, barrier, taken):
    barrier.wait(60)
    with EventFile(next_version_folder(root)) as file:
        taken.put(file.path.parent.name)


def test_twenty_processes_at_once_have_a_version_each(tmp_path):
    """Five times, as each time but some meet at the same number."""
    context = multiprocessing.get_context("fork")
    for root in map(str, range(5)):
        barrier, taken = context.Barrier(20), context.Queue()
        processes = [context.Process(target=take_version, args=(tmp_path / root, barrier, taken)) for _ in range(20)]
        for process in processes:
            process.start()
        names = [taken.get(timeout=60) for _ in processes]
        for process in processes:
            process.join(60)
        assert sorted(names, key=lambda name: int(name[8:])) == [f"version_{number}" for number in range(20)]


def test_two_files_in_one_folder_have_different_names(tmp_path):
    with EventFile(tmp_path) as first, EventFile(tmp_path) as second:
        assert first.path != second.path
    first.close()
    with pytest.raises(ValueError, match="is closed"):
        first.write(event_pb2.Event())


def test_a_full_disk_is_an_error_and_leaves_whole_records(tmp_path):
    file = EventFile(tmp_path)
    size = file.path.stat().st_size
    real = file._file

    class Full:
        truncate, seek, close = real.truncate, real.seek, real.close

        def write(self, data):
            if len(data) <= 20:
                raise OSError(28, "No space left on device")
            return real.write(data[: len(data) - 20])

    file._file = Full()
    with pytest.raises(OSError, match="No space"):
        file.write(event_pb2.Event(wall_time=1.0, file_version="x" * 100))
    assert file.path.stat().st_size == size
    file._file = real
    file.write(event_pb2.Event(wall_time=1.0, step=9))
    file.close()
    assert [event.step for event in EventFileLoader(str(file.path)).Load()] == [0, 9]


def test_an_event_reaches_a_writer_that_has_its_own_event_class(monkeypatch):
    class Event:
        def __init__(self, data):
            self.data = data

        @classmethod
        def FromString(cls, data):
            return cls(data)

    class FileWriter:
        def add_event(self, event, step=None, walltime=None):
            assert isinstance(event, Event)
            self.written = event.data, walltime

    module = types.ModuleType("other_writer")
    module.event_pb2 = types.SimpleNamespace(Event=Event)
    monkeypatch.setitem(sys.modules, "other_writer", module)
    monkeypatch.setattr(FileWriter, "__module__", "other_writer")
    event = findings_event([], step=3)
    writer = FileWriter()
    write_to(writer, event)
    assert writer.written == (event.SerializeToString(), event.wall_time)


def test_an_event_reaches_torchs_own_file(tmp_path):
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - the other tests need no torch

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("loss", 0.5, 1)
        write_to(writer._get_file_writer(), findings_event([], step=6))
    stock = EventAccumulator(str(tmp_path)).Reload()
    assert [point.step for point in stock.Tensors("gradwatch/findings")] == [6]
    assert [point.step for point in stock.Scalars("loss")] == [1]


def test_importing_is_light():
    program = "import sys, lightning_gradwatch.judge.run; print({m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "'tensorboard'" in loaded
    for heavy in ("torch", "lightning", "pytorch_lightning", "PIL", "tensorflow", "pandas"):
        assert f"'{heavy}'" not in loaded
