"""The help is complete, and docs/command-line.md shows it as it is."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from lightning_gradwatch.cli import command as cli
from lightning_gradwatch.cli.options import build_parser

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
COMMANDS = ["", "check", "compare", "report", "explain", "rules", "demo"]


def shown():
    """The page's help blocks, by command."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"```text\n\$ gradwatch ?(\w*) --help\n(.*?)```", text, flags=re.DOTALL)
    return dict(found)


def words(text):
    """Without what differs from one Python to the next: where argparse breaks a usage line, and whether `-o` repeats its FILE."""
    return re.sub(r"(-\w) ([A-Z]+), (--\S+ \2)", r"\1, \3", " ".join(text.split()))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_shows_the_help_as_it_is(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli.main([*filter(None, [command]), "--help"]) == 0
    assert words(shown()[command]) == words(capsys.readouterr().out)


def test_every_command_and_every_option_says_what_it_does():
    def check(parser):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                assert [choice.dest for choice in action._choices_actions] == COMMANDS[1:]
                assert all(choice.help for choice in action._choices_actions)
                for child in action.choices.values():
                    assert child.description
                    check(child)
            else:
                assert action.help, action

    check(build_parser(dict.fromkeys(COMMANDS[1:], lambda _: 0)))
