"""The page of a rule, made from its docstring and its fields, so that the text can't drift from the code."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning_gradwatch.judge.rule import Rule


def explain_text(rule: type[Rule], *, width: int = 80) -> str:
    """Render the page that ``gradwatch explain`` prints: what the rule sees, why it matters, what to do, thresholds."""
    page, _, attributes = _docstring(rule).replace("``", "`").partition("\n\nAttributes:\n")
    blocks = [f"{rule.code} {rule.name}", *(_fill(paragraph, width) for paragraph in page.split("\n\n"))]
    defaults = {entry.name: entry.default for entry in dataclasses.fields(rule)}
    thresholds = [
        _fill(f"{name} ({defaults[name]!r}): {text}", width, "  ", "      ") for name, text in _attributes(attributes)
    ]
    use = (
        f"Set them:      GradWatch(rules=[{rule.__name__}(...)])",
        f'Leave it out:  GradWatch(ignore=("{rule.code}",))',
        f"Warning class: {rule.warning.__name__}",
    )
    return "\n\n".join([*blocks, "\n".join(["Thresholds, with their defaults:", *thresholds]), "\n".join(use)])


def rules_text(rules: Iterable[type[Rule]]) -> str:
    """Render one line a rule: code, name, and what it sees."""
    return "\n".join(f"{rule.code}  {rule.name:<20}  {_docstring(rule).partition(chr(10))[0]}" for rule in rules)


def _docstring(rule: type[Rule]) -> str:
    """Return a rule's page; `python -OO` throws docstrings away, and dataclasses put their own in their place."""
    if sys.flags.optimize < 2:
        return inspect.cleandoc(rule.__doc__ or "")
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(rule))).body[0]
    except (OSError, TypeError, SyntaxError):
        tree = None
    page = ast.get_docstring(tree) if isinstance(tree, ast.ClassDef) else None
    return page or "The pages of the rules are left out by python -OO; without it they are shown."


def _attributes(section: str) -> list[tuple[str, str]]:
    """Take a Google section apart: an entry starts four columns in, what is deeper continues it."""
    return [
        (name, " ".join(text.split()))
        for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section, flags=re.MULTILINE)
    ]


def _fill(text: str, width: int, first: str = "", rest: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()), width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )
