"""The threat model's table of attacks names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_each_attack_has_a_test_and_each_test_exists():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in text[text.index("## Each attack as a test") :].splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for row in rows:
        path, named = "", re.findall(r"`([^`]*\.py)?(?:::(\w+))?`", row)
        assert named, row
        for file, test in named:
            path = file or path
            assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), (path, test)
            assert (ROOT / path).is_file(), path


def test_the_page_is_linked_and_shipped():
    for name in ("README.md", "CONTRIBUTING.md"):
        assert "](SECURITY.md)" in (ROOT / name).read_text(encoding="utf-8"), name
    assert '"SECURITY.md"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
