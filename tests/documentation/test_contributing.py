"""CONTRIBUTING says where a change goes: what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+?) \| (.+) \|$", TEXT.partition("## What we hold")[0], flags=re.MULTILINE)
FIVE = re.findall(r"^\| (an? .+?) \| (one .+?) \| `(.+)` \|$", TEXT.partition("## Where else")[0], flags=re.MULTILINE)
PLACES = sorted({path for _, places in ROWS for path in re.findall(r"`([\w./]+(?:\.py|/))`", places)})


def test_it_says_where_a_good_many_changes_go():
    assert len(ROWS) > 20
    assert len(PLACES) > 30


@pytest.mark.parametrize("path", PLACES)
def test_a_place_that_is_named_is_there(path):
    assert (ROOT / path).exists() or (ROOT / "lightning_gradwatch" / path).exists()


def test_five_changes_have_a_place_each_and_a_test_that_shows_it():
    assert [change for change, _, _ in FIVE] == [
        "an activation function",
        "a metric of layers or sites",
        "a rule",
        "an output format of `gradwatch check`",
        "a strategy, or an engine",
    ]
    assert all((ROOT / test).is_file() for _, _, test in FIVE)


SINGLE = {
    r"^ROWS\b.*\bActivation\b": "record/activations.py",
    r"^METRICS\b": "record/metrics.py",
    r"^RULES\b": "judge/catalog.py",
    r"^FORMATS\b": "tell/formats.py",
    r"^STRATEGIES\b": "fit/strategies.py",
}
"""What stands at the table of each, by how its line begins."""


@pytest.mark.parametrize(("line", "place"), SINGLE.items(), ids=SINGLE.values())
def test_a_place_that_is_promised_is_single(line, place):
    """The table is there, in the place that is named, and nobody has another one."""
    package = ROOT / "lightning_gradwatch"
    having = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(line, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    assert having == [place]
    assert sum(f"`{place}`" in where for _, where, _ in FIVE) == 1


@pytest.mark.parametrize("room", re.findall(r"^([a-z]+/) ", TEXT, flags=re.MULTILINE))
def test_a_room_that_is_drawn_is_there_with_the_folders_that_it_names(room):
    line = next(line for line in TEXT.splitlines() if line.startswith(f"{room} "))
    for folder in re.findall(r"\b([a-z]+/)(?= )", line.removeprefix(room).partition("behind")[0]):
        inside = ROOT / "lightning_gradwatch" / room / folder
        assert inside.is_dir() or (ROOT / "lightning_gradwatch" / folder).is_dir(), folder
