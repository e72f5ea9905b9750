"""JSON schemas that ship with the package: of the JSON report, and of the settings in a file.

The settings' one follows the rules' thresholds: ``python -m lightning_gradwatch.cli.schemas`` writes it again.
"""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.cli.settings import LEVELS, MEASURED
from lightning_gradwatch.judge.catalog import RULES
from lightning_gradwatch.tell.formats import FORMATS

if TYPE_CHECKING:
    from lightning_gradwatch.judge.rule import Rule


def read_schema(name: str) -> dict[str, Any]:
    """Return a schema that ships with the package, ``config`` or ``report``."""
    data: dict[str, Any] = json.loads(resources.files(__name__).joinpath(f"{name}.schema.json").read_text("utf-8"))
    return data


def config_schema() -> dict[str, Any]:
    """Return the schema of the settings in a file, made from the rules as they are."""
    codes = {
        "type": "array",
        "items": {
            "type": "string",
            "pattern": f"^([Gg][Ww][0-9]{{0,3}}|[0-9]{{1,3}}|{'|'.join(rule.name for rule in RULES)})$",
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of gradwatch check: gradwatch.toml, or [tool.gradwatch] in pyproject.toml",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "select": {**codes, "description": "Judge these rules only: codes, their beginnings, or names."},
            "ignore": {**codes, "description": "Leave these rules out."},
            "require": {**codes, "description": "Rules that have to be able to judge."},
            "fail-on": {"enum": list(LEVELS), "description": "Lowest severity that makes the check fail."},
            "format": {"enum": list(FORMATS)},
            "baseline": {"type": "string", "description": "A known good run, relative to this file."},
            "ignore-layers": {
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["rules", "layers", "reason"],
                    "properties": {
                        "rules": {**codes, "minItems": 1},
                        "layers": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string"},
                            "description": "Patterns as in a shell; * is any text, dots included.",
                        },
                        "reason": {"type": "string", "minLength": 1},
                    },
                },
            },
            "rules": {
                "type": "object",
                "additionalProperties": False,
                "description": "Thresholds, by code and name; gradwatch explain CODE describes them.",
                "properties": {key: _thresholds(rule) for rule in RULES for key in (rule.code, rule.name)},
            },
        },
    }


def _thresholds(rule: type[Rule]) -> dict[str, Any]:
    properties = {}
    for entry in dataclasses.fields(rule):
        if entry.name in MEASURED.get(rule.code, ()):
            continue
        kind = str(entry.type)
        number = {"type": "integer" if kind.startswith("int") else "number"}
        allowed = {"anyOf": [number, {"const": "none"}]} if "None" in kind else number
        properties[entry.name] = {**allowed, "default": "none" if entry.default is None else entry.default}
    return {"type": "object", "title": rule.name, "additionalProperties": False, "properties": properties}


def config_schema_text() -> str:
    """Return the settings' schema as its file has it."""
    return json.dumps(config_schema(), indent=2) + "\n"
