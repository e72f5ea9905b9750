"""Writes the settings' schema again, after a rule or a threshold was added."""

from __future__ import annotations

from pathlib import Path

from lightning_gradwatch.cli.schemas import config_schema_text

Path(__file__).with_name("config.schema.json").write_text(config_schema_text(), encoding="utf-8")
