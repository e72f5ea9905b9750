"""What a check meets in the wild, each with its exit code and what it says: several files, damage, other programs' files."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from written import make_info, make_record, write_run

from lightning_gradwatch.cli import command
from lightning_gradwatch.judge.run import RunError, read_run
from lightning_gradwatch.record.events.file import EventFile
from lightning_gradwatch.record.events.lightning_curves import describe_curves
from lightning_gradwatch.record.events.step_events import step_event


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Check a folder; return the exit code and what was said, as one line."""
    monkeypatch.chdir(tmp_path)

    def check(*arguments):
        code = command.main(["check", "--no-config", *map(str, arguments)])
        said = capsys.readouterr()
        assert "internal error" not in said.err
        return code, " ".join((said.out + said.err).split())

    return check


def foreign(folder, scalars, *, as_tensor=False):
    """Write a file of another program: a mapping from tag to values."""
    with EventFile(folder) as file:
        for tag, values in scalars.items():
            for step, number in enumerate(values):
                value = summary_pb2.Summary.Value(tag=tag, simple_value=number)
                if as_tensor:
                    tensor = tensor_pb2.TensorProto(
                        dtype=types_pb2.DT_FLOAT, tensor_shape=tensor_shape_pb2.TensorShapeProto(), float_val=[number]
                    )
                    value = summary_pb2.Summary.Value(tag=tag, tensor=tensor)
                file.write(event_pb2.Event(wall_time=1.0, step=step, summary=summary_pb2.Summary(value=[value])))
    return file.path


def test_several_files_are_one_run_and_the_last_write_wins(tmp_path, check):
    write_run(tmp_path / "run", steps=range(0, 30, 3), attenuation=1e-9)
    assert check("run")[0] == 1
    write_run(tmp_path / "run", steps=range(0, 60, 3))
    code, said = check("run")
    assert code == 0
    assert "20 measured steps (0 to 57)" in said


def test_two_layer_lists_in_one_folder_are_each_judged_by_their_own(tmp_path, check):
    write_run(tmp_path / "run", make_info(4), steps=range(0, 30, 3))
    write_run(tmp_path / "run", make_info(7), steps=range(30, 60, 3), attenuation=1e-9)
    code, said = check("run")
    assert code == 1
    assert "7 layers, 6 activation sites" in said
    assert set(read_run(tmp_path / "run").names("grad_norm")) == {f"net.{place}" for place in range(0, 14, 2)}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_break_nothing(tmp_path, check, value):
    names = ("signal_norm", "grad_norm", "update_ratio", "dead_fraction", "saturated_fraction")
    write_run(tmp_path / "run", **dict.fromkeys(names, value), loss=value, global_grad_norm=value)
    write_run(tmp_path / "good")
    for name in ("text", "json", "junit", "github", "sarif", "markdown"):
        assert check("run", "--format", name, "--baseline", "good")[0] in {0, 1}
        assert check("good", "--format", name, "--baseline", "run")[0] in {0, 1}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-7], "the last record is cut off, or still being written"),
        (lambda data: data + bytes(4096), "damaged from byte"),
        (lambda data: data + b"\xa5" * 4096, "damaged from byte"),
        (lambda data: data[: (at := data.rindex(b'"loss":') + 8)] + b"\xff" + data[at + 1 :], "checksum is wrong"),
    ],
    ids=["truncated", "zeros", "garbage", "bit flip"],
)
def test_damage_is_said_and_the_rest_is_judged(tmp_path, check, damage, said):
    _, path = write_run(tmp_path / "run")
    path.write_bytes(damage(path.read_bytes()))
    code, told = check("run")
    assert code == 0
    assert said in told


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"GIF89a" * 50], ids=["empty", "zeros", "another format"])
def test_a_file_without_a_record_is_exit_2(tmp_path, check, content):
    (tmp_path / "events.out.tfevents.1.x").write_bytes(content)
    assert check("events.out.tfevents.1.x")[0] == 2
    assert check(".")[0] == 2


def test_an_empty_file_beside_a_good_one_costs_nothing(tmp_path, check):
    write_run(tmp_path / "run")
    (tmp_path / "run" / "events.out.tfevents.9.x").touch()
    code, said = check("run")
    assert code == 0
    assert "note:" not in said


def test_a_file_that_is_still_being_written_is_read_up_to_its_end(tmp_path, check):
    """A writer appends while readers read: each sees whole records only, more and more of them."""
    info = make_info()
    with EventFile(tmp_path / "run") as file:
        file.write(step_event(make_record(info, 0), info, describe=True))

        def write():
            for step in range(1, 200):
                file.write(step_event(make_record(info, step), info, describe=False))

        writer = threading.Thread(target=write)
        writer.start()
        seen = []
        while writer.is_alive():
            run = read_run(tmp_path / "run")
            seen.append(len(run.records))
            assert all("still being written" in problem for problem in run.problems)
        writer.join()
    assert seen == sorted(seen)
    assert len(read_run(tmp_path / "run").records) == 200


def test_links_to_folders_and_files_are_followed(tmp_path, check):
    _, path = write_run(tmp_path / "run")
    (tmp_path / "folder").symlink_to(tmp_path / "run")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / path.name).symlink_to(path)
    (tmp_path / "linked" / "events.out.tfevents.2.gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.tfevents").symlink_to(tmp_path / "loop.tfevents")
    assert check("folder")[0] == check("linked")[0] == check(f"linked/{path.name}")[0] == 0
    assert check("loop.tfevents")[0] == 2


def test_a_file_that_may_not_be_read_is_said(tmp_path, check, monkeypatch):
    _, path = write_run(tmp_path / "run")
    write_run(tmp_path / "run", steps=range(60, 90, 3))
    real = type(path).open

    def refuse(self, *arguments, **options):
        if self.name == path.name:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(type(path), "open", refuse)
    code, said = check("run")
    assert code == 0
    assert f"{path.name} can't be read: Permission denied" in said
    code, said = check(path)
    assert code == 2
    assert "Permission denied" in said


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_said(tmp_path, check):
    write_run(tmp_path / "run")
    (tmp_path / "run").chmod(0)
    code, said = check("run")
    (tmp_path / "run").chmod(0o700)
    assert code == 2
    assert "can't be read: Permission denied" in said


class TestOtherPrograms:
    def test_a_run_without_us_is_told_how_to_add_us(self, tmp_path, check):
        foreign(tmp_path / "run", {"loss": [1.0, 0.5]})
        code, said = check("run")
        assert code == 2
        assert said == "run can't judge: no GradWatch records in run: add GradWatch() to the Trainer's callbacks"

    @pytest.mark.parametrize("as_tensor", [False, True])
    def test_lightnings_own_norms_are_read_for_what_they_can_tell(self, tmp_path, check, as_tensor):
        curves = {
            "grad_2.0_norm/net.0.weight": [1e-9, 3e-9, 2e-9],
            "grad_2.0_norm/net.2.weight": [1e-4] * 3,
            "grad_2.0_norm/net.4.weight": [0.5] * 3,
            "grad_2.0_norm_total": [0.5] * 3,
        }
        foreign(tmp_path / "run", curves, as_tensor=as_tensor)
        code, said = check("run")
        assert code == 2
        assert "add GradWatch() to the Trainer's callbacks. Lightning's own grad_*_norm curves of 3 parameters" in said
        assert "smallest norm is 2e-09 at net.0.weight, the largest 0.5 at net.4.weight: a ratio of 4e-09" in said

    @pytest.mark.parametrize(
        ("curves", "said"),
        [
            ({"a": [0.0, 0.0, 1.0], "b": [1.0]}, "no gradient reaches a"),
            ({name: [0.0] for name in "abcde"}, "no gradient reaches a, b, c and 2 more"),
            ({"a": [float("nan")], "b": [1.0]}, "the gradient of a isn't finite"),
        ],
    )
    def test_what_the_norms_show(self, curves, said):
        assert said in describe_curves(curves)

    def test_that_is_how_lightning_names_them(self):
        import torch  # noqa: PLC0415 - the other tests need none
        from lightning.pytorch.utilities import grad_norm  # noqa: PLC0415

        net = torch.nn.Linear(2, 1)
        net(torch.ones(1, 2)).sum().backward()
        assert set(grad_norm(net, norm_type=2)) == {
            "grad_2.0_norm/weight",
            "grad_2.0_norm/bias",
            "grad_2.0_norm_total",
        }

    def test_megabytes_of_others_around_ours_are_stepped_over(self, tmp_path, check):
        info = make_info()
        picture = summary_pb2.Summary.Value(
            tag="picture", image=summary_pb2.Summary.Image(encoded_image_string=os.urandom(1 << 20))
        )
        other = event_pb2.Event(wall_time=1.0, summary=summary_pb2.Summary(value=[picture]))
        with EventFile(tmp_path / "run") as file:
            for place, step in enumerate(range(0, 60, 12)):
                if place < 2:
                    file.write(other)
                file.write(step_event(make_record(info, step), info, describe=place == 0))
        code, said = check("run")
        assert code == 0
        assert "5 measured steps (0 to 48)" in said

    def test_a_folder_of_runs_names_them(self, tmp_path):
        write_run(tmp_path / "logs" / "version_0")
        with pytest.raises(RunError, match=r"did you mean .*logs.version_0\?"):
            read_run(tmp_path / "logs")
        with pytest.raises(RunError, match=r"no such run: .*version_1; did you mean .*version_0\?"):
            read_run(tmp_path / "logs" / "version_1")
        write_run(tmp_path / "logs" / "version_1")
        with pytest.raises(
            RunError, match=r"did you mean one of the 2 below .*logs, such as .*version_0, .*version_1\?"
        ):
            read_run(tmp_path / "logs")
