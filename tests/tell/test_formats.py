"""A format is one file: where it lies the command line offers it, says what it is, takes it from settings and writes it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lightning_gradwatch.tell.formats import FORMATS, in_short

LINES = """
IN_SHORT = "a line a run"


def lines_report(verdicts):
    return "\\n".join(f"{verdict.path} is {verdict.outcome}" for verdict in verdicts)
"""
COMMAND = """
import json, sys
import lightning_gradwatch.tell
lightning_gradwatch.tell.__path__.append(sys.argv[1])
from lightning_gradwatch.cli.command import main
from lightning_gradwatch.cli.schemas import config_schema
print("lines" in config_schema()["properties"]["format"]["enum"])
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def command_line(tmp_path):
    """Run the command line with one format more."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "lines_report.py").write_text(LINES)

    def run(*arguments):
        command = [sys.executable, "-c", COMMAND, str(tmp_path / "more"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def test_a_file_more_is_a_format_more(command_line, tmp_path):
    done = command_line("check", "nowhere", "--format", "lines")
    assert (done.stdout, done.returncode) == ("True\nnowhere is cannot-judge\n", 2)
    (tmp_path / "gradwatch.toml").write_text('format = "lines"\n')
    assert command_line("check", "nowhere").stdout == "True\nnowhere is cannot-judge\n"
    told = command_line("check", "--help").stdout
    assert "  lines     a line a run\n" in told
    assert "{text,github,html,json,junit,lines,markdown,sarif}" in told.replace("\n", "")


def test_text_is_the_first_and_each_says_what_it_is():
    assert FORMATS == ("text", "github", "html", "json", "junit", "markdown", "sarif")
    assert all(in_short().values())
