"""What a check says of runs on disk, held against what was reported live."""

from __future__ import annotations

from lightning_gradwatch import evaluate, read_run
from lightning_gradwatch.judge.run import RunError


def check_equals_live(root):
    """Judge every run below a folder again, from its event files alone; return how many had records."""
    judged = 0
    for folder in sorted({path.parent for path in root.rglob("events.out.tfevents.*")}):
        try:
            run = read_run(folder)
        except RunError:  # another logger's file, without ours in it
            continue
        assert evaluate(run) == run.findings, folder
        judged += 1
    return judged
