"""Runs the command line as ``python -m lightning_gradwatch``."""

from __future__ import annotations

import sys

from lightning_gradwatch.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
