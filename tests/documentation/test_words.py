"""What a user reads is a practitioner's English: words of our own, and those of a sick-room, are out."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
from documentation.pages import DOCS, README

import lightning_gradwatch
from lightning_gradwatch.judge.catalog import RULES

PACKAGE = Path(lightning_gradwatch.__file__).parent
INSTEAD = {
    r"mend(s|ed|ing)?": "fix, change, help",
    r"ill|sick|cured?|patients?": "failing, unhealthy",
    r"(falls?|shrinks?) by e|falls? tenfold|depth scale": "shrinks by a factor of … per layer",
    r"the article": "what the rule or the theory is called",
    r"(a|the|this) telling|tellings": "a result, a report",
    r"spacious": "a module that isn't traced",
    r"audit(s|ed)?": "operations that aren't seen",
    r"hand-over|handover": "what a process hands back",
    r"no sample": "isn't a sample",
}
"""Words that are out, each with what is said instead."""
OUT = re.compile(rf"\b({'|'.join(INSTEAD)})\b", re.IGNORECASE)
QUOTED = re.compile(r"""(["'`])((?:(?!\1)[^\\\n]|\\.)*? (?:(?!\1)[^\\\n]|\\.)*?)\1""")


def sentences(source):
    """Yield the strings of a module that are more than one word, without its docstrings."""
    tree = ast.parse(source)
    kept = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    kept |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in kept
            and " " in node.value
        ):
            yield node.value


def read_by_users():
    """Return what a user reads, by where it stands."""
    found = {path.name: path.read_text(encoding="utf-8") for path in (README, *sorted(DOCS.glob("*.md")))}
    for path in sorted(PACKAGE.rglob("*.py")):
        found[path.relative_to(PACKAGE).as_posix()] = "\n".join(sentences(path.read_text(encoding="utf-8")))
    for path in sorted(PACKAGE.rglob("*.js")):
        told = [text for _, text in QUOTED.findall(path.read_text(encoding="utf-8"))]
        found[path.relative_to(PACKAGE).as_posix()] = "\n".join(told)
    found |= {rule.code: inspect.getdoc(rule) for rule in RULES}
    return found


READ = read_by_users()


@pytest.mark.parametrize("place", READ)
def test_words_that_are_out_are_out(place):
    assert [f"{match[0]}: say {instead(match[0])}" for match in OUT.finditer(READ[place])] == []


def instead(word):
    return next(better for out, better in INSTEAD.items() if re.fullmatch(out, word, re.IGNORECASE))


def test_the_words_are_looked_for_where_users_read_them():
    """Else the test above would hold of nothing."""
    assert OUT.search("an ill run") and not OUT.search("a filled window, illegal, recommended")  # noqa: PT018 - one thing
    assert list(sentences('"""Ill doc."""\nx = f"an ill {x} run"\ndef f():\n    """Ill."""\n    return "ill"')) == [
        "an ill ",
        " run",
    ]
    assert "The learning rate" in READ["judge/rules/oversized.py"]
    assert "nothing" in READ["page/static/views/verdict.js"] or READ["page/static/views/verdict.js"]
    assert all(READ[rule.code] for rule in RULES)
