"""`gradwatch report` on real event files: what it writes, what it says of it, and when it can't."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from written import make_info, write_run

from lightning_gradwatch.cli import command
from lightning_gradwatch.cli.check import judge
from lightning_gradwatch.cli.settings import Settings
from lightning_gradwatch.judge import run as run_module


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    write_run("logs/good")
    write_run("logs/ill", attenuation=1e-4)
    (tmp_path / ".git").mkdir()
    return tmp_path


def report(arguments):
    return command.main(["report", *arguments.split()])


def shown(path="report.html"):
    text = Path(path).read_text(encoding="utf-8")
    (data,) = re.findall(r'<script id="gradwatch-data"[^>]*>(.*?)</script>', text, flags=re.DOTALL)
    return json.loads(data)


def test_it_writes_one_file_and_says_what_that_gives_away(capsys):
    assert report("logs/good logs/ill") == 0
    model = shown()
    assert [(run["name"], run["outcome"]) for run in model["runs"]] == [("good", "healthy"), ("ill", "ill")]
    assert model["runs"][1]["findings"][0]["code"] == "GW101"
    said = capsys.readouterr().out
    assert re.match(r"report\.html: \d\.\d MB, 2 runs\n", said)
    assert "it gives away paths: logs/good, logs/ill\n" in said
    assert "it gives away settings: SGD's lr" in said
    assert said.endswith("--redact leaves these out\n")


def test_redacted_it_gives_nothing_away(runs, capsys):
    assert report("logs/ill -o page.html --redact") == 0
    assert "gives away" not in capsys.readouterr().out
    text = (runs / "page.html").read_text(encoding="utf-8")
    assert "logs/ill" not in text
    assert str(runs) not in text
    assert shown("page.html")["runs"][0]["name"] == "run 1"


def test_a_folder_of_runs_means_each_of_them():
    assert report("logs") == 0
    assert len(shown()["runs"]) == 2


def test_it_judges_as_a_check_does():
    assert report("logs/ill --set GW101.ratio=1e-5") == 0
    assert shown()["runs"][0]["outcome"] == "healthy"
    Path("gradwatch.toml").write_text('ignore = ["GW1"]\nformat = "json"\n', encoding="utf-8")
    assert report("logs/ill") == 0
    assert shown()["runs"][0]["outcome"] == "healthy"


@pytest.mark.parametrize("wrong", ["logs/none", "empty", "damaged", "foreign"])
def test_what_cant_be_read_is_said_and_is_exit_2(runs, capsys, wrong):
    (runs / "empty").mkdir()
    for name, data in (("damaged", b"\x00\x01garbage" * 50), ("foreign", b"")):
        (runs / name).mkdir()
        (runs / name / "events.out.tfevents.1.x.1.0").write_bytes(data)
    assert report(wrong) == 2
    said = capsys.readouterr()
    assert wrong.split("/")[-1] in said.err
    assert said.err.startswith("gradwatch: ")
    assert said.out == ""
    assert not Path("report.html").exists()


def test_of_several_runs_those_that_can_be_read_are_shown(capsys):
    assert report("logs/ill logs/none") == 2
    assert [run["outcome"] for run in shown()["runs"]] == ["ill", "unknown"]
    assert "no such run: logs/none" in capsys.readouterr().err


def test_a_file_that_cant_be_written_is_exit_2(capsys):
    assert report("logs/good -o no/such/folder.html") == 2
    assert "no/such/folder.html: No such file or directory" in capsys.readouterr().err


def test_a_damaged_run_is_shown_as_far_as_it_can_be_read(runs, capsys):
    (file,) = (runs / "logs" / "ill").glob("*tfevents*")
    file.write_bytes(file.read_bytes()[:-7])
    assert report("logs/ill") == 0
    (run,) = shown()["runs"]
    assert run["problems"]
    assert run["measured"] > 0
    assert not capsys.readouterr().err


def test_more_runs_than_a_page_shows_are_refused(capsys):
    for place in range(65):
        write_run(f"many/run-{place}", make_info(2), steps=(0,))
    assert report("many") == 2
    assert "65 runs" in capsys.readouterr().err


def test_a_check_writes_the_page_too_with_its_baseline_first():
    assert command.main(["check", "logs/ill", "--baseline", "logs/good", "--format", "html", "--output", "c.html"]) == 1
    model = shown("c.html")
    assert [run["name"] for run in model["runs"]] == ["good (baseline)", "ill"]
    assert model["comparisons"][0]["worse"]


@pytest.mark.parametrize(
    "command_line", ["report logs/good logs/ill", "check logs/good logs/ill --format html --output c.html"]
)
def test_a_run_is_read_once_so_that_the_page_shows_what_was_judged(monkeypatch, command_line):
    """A run that goes on would else be judged by fewer steps than its page shows."""
    read = []
    reader = run_module._read
    monkeypatch.setattr(run_module, "_read", lambda path: read.append(path.name) or reader(path))
    command.main(command_line.split())
    assert read == ["good", "ill"]


def test_a_report_without_numbers_holds_no_run():
    settings = Settings()
    assert judge("logs/ill", settings).run is None
    assert judge("logs/ill", settings, keep_run=True).run.path == Path("logs/ill")
