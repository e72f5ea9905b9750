"""The folders show the pipeline: what is flat, what an empty `__init__` costs, and where the test of a module is looked for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lightning_gradwatch
from lightning_gradwatch import rules

PACKAGE = Path(lightning_gradwatch.__file__).parent
TESTS = Path(__file__).parent
ROOMS = {"record", "measure", "judge", "page", "tell", "fit", "cli", "testing", "demo", "tab"}
NAMED_BY_OTHERS = {"pytest_plugin", "rules"}
OF_THE_WHOLE = {"integration", "theory", "galleries", "documentation"}
"""Folders of tests that are about no room alone."""


def folders(root):
    """Return the folders below one that hold programs, by their path from there."""
    return {str(path.parent.relative_to(root)) for path in root.rglob("*.py")} - {"."}


def test_beside_the_rooms_lies_what_other_programs_name():
    """A module that belongs to no room has no place in the pipeline: at most three, each with its reason."""
    flat = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__", "version"}
    assert flat == NAMED_BY_OTHERS
    assert {folder.split("/")[0] for folder in folders(PACKAGE)} == ROOMS


def test_each_folder_of_tests_is_a_folder_of_the_package():
    mirrored = {folder for folder in folders(TESTS) if folder.split("/")[0] not in OF_THE_WHOLE}
    assert mirrored
    assert mirrored <= folders(PACKAGE)
    assert {folder.split("/")[0] for folder in mirrored} == ROOMS


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/**/__init__.py")), ids=lambda path: path.parent.name)
def test_a_room_imports_nothing_of_itself(path):
    """Else importing one module would bring its neighbours, and what is light would be heavy with the next import there.

    But for the command line, whose entry point is its folder's, and the schemas, which are one module with its data.
    """
    if path.parent.name in ("cli", "schemas"):
        return
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert [type(node) for node in body] == [ast.Expr], "a docstring, and nothing else"


def test_what_programs_import_to_judge_is_what_the_rooms_have():
    """`lightning_gradwatch.rules` defines nothing itself."""
    assert all(hasattr(rules, name) for name in rules.__all__)
    defined = {getattr(getattr(rules, name), "__module__", None) for name in rules.__all__}
    assert rules.__name__ not in defined
