"""The command line: reads runs, has them judged, tells what came out."""

from lightning_gradwatch.cli.command import main as main
