"""`gradwatch check` in colour: on a terminal that wants it, and nowhere else."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest
from written import write_run

from lightning_gradwatch.cli import command as cli


@pytest.fixture(autouse=True)
def _an_ill_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run("logs/ill", attenuation=1e-4)
    (tmp_path / "gradwatch.toml").write_text("")  # the search for settings ends here


def on_a_terminal(**environment):
    """What `gradwatch check` writes to a terminal."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "lightning_gradwatch", "check", "logs/ill"]
    environment = {"TERM": "xterm", "PATH": os.environ["PATH"], "COLUMNS": "90", **environment}
    done = subprocess.run(command, stdout=follower, stderr=subprocess.PIPE, env=environment, check=False)
    os.write(follower, b"END")  # once the other end is closed, Linux may drop what wasn't read yet
    said = b""
    while not said.endswith(b"END"):
        said += os.read(leader, 1 << 16)
    os.close(follower)
    os.close(leader)
    assert done.returncode == 1, done.stderr
    return said.removesuffix(b"END")


def test_on_a_terminal():
    assert b"\x1b[" in on_a_terminal()


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_not_where_it_is_not_wanted(environment):
    assert b"\x1b" not in on_a_terminal(**environment)


def test_not_in_a_pipe(capsys):
    cli.main(["check", "logs/ill"])
    assert "\x1b" not in capsys.readouterr().out


def test_colour_changes_no_word():
    plain = on_a_terminal(NO_COLOR="1")
    assert re.sub(rb"\x1b\[[0-9;]*m", b"", on_a_terminal()) == plain
