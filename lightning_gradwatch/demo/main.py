"""``gradwatch demo``: a failing net, its warning and its numbers; then the fixed one, in silence."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gradwatch.demo.catalogue import DEFAULT_NET, WHAT_TO_SEE
from lightning_gradwatch.demo.gallery import GALLERY, DemoRun
from lightning_gradwatch.demo.screen import Screen
from lightning_gradwatch.demo.table import layer_table, scales, signal_sentence
from lightning_gradwatch.demo.training import Outcome, train
from lightning_gradwatch.record.finding import Severity

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

_MOST_ROWS = 52
_FEW_ROWS = 12


def run(
    *,
    logdir: str | os.PathLike[str] = "gradwatch-demo",
    seed: int = 0,
    net: str = DEFAULT_NET,
    steps: int | None = None,
) -> int:
    """Train the failing and the fixed form of a net and print what GradWatch saw; return the exit code.

    Args:
        logdir: Where TensorBoard finds the runs. Where an earlier demo has left runs of the same names, ``-2`` or the
            next free number is appended: nothing is overwritten, and no run continues in another's curves.
        seed: Of weights and batches.
        net: A name of the catalogue.
        steps: Optimizer steps of each net; None: as many as it takes to see the point.

    Raises:
        ModuleNotFoundError: scikit-learn, which has the digits, isn't installed.
        KeyboardInterrupt: the user stopped it.
    """
    pair = GALLERY.get(net)
    if pair is None:
        return _complain(f"no demo net is called {net!r}; there are {', '.join(GALLERY)}")
    if steps is not None and steps < 1:
        return _complain(f"steps={steps} must be at least 1")
    demo_runs = [*pair.failing, pair.fixed]
    for demo_run in demo_runs:
        demo_run.data()  # what is missing is said before anything is written
    wanted = Path(logdir)
    folder = _free(wanted, [demo_run.run for demo_run in demo_runs])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return _complain(f"--logdir {folder} can't be used: {error.strerror}")
    screen = Screen(sys.stdout)
    screen.say(WHAT_TO_SEE[net], "bold")
    if folder != wanted:
        screen.say(f"{wanted} holds the runs of an earlier demo; these go to {folder}.")
    try:
        _show(screen, demo_runs, folder, seed=seed, steps=steps)
    except KeyboardInterrupt:
        screen.put()
        screen.say(f"Stopped. What was measured is in {folder}.")
        raise
    return 0


def _show(screen: Screen, demo_runs: Sequence[DemoRun], folder: Path, *, seed: int, steps: int | None) -> None:
    outcomes: list[Outcome] = []
    for demo_run in demo_runs:
        screen.put()
        screen.put(f"{screen.painted(demo_run.run, 'bold')}: {demo_run.title}")
        outcome = train(demo_run, folder=folder / demo_run.run, steps=steps or demo_run.steps, seed=seed, screen=screen)
        outcomes.append(outcome)
        last = demo_run is demo_runs[-1]
        table = layer_table(
            outcome,
            most=_FEW_ROWS if last else _MOST_ROWS,
            within=scales(outcomes),
            width=screen.width,
            colour=screen.colour,
            ascii_only=screen.ascii_only,
        )
        for line in table:
            screen.put(line)
        if sentence := signal_sentence(outcome):
            screen.say(sentence)
    screen.put()
    width = max(len(demo_run.run) for demo_run in demo_runs)
    for outcome in outcomes:
        name = screen.painted(outcome.demo_run.run, "bold") + " " * (width - len(outcome.demo_run.run))
        screen.put(f"{name}  {outcome.score},{_verdict(outcome, screen, indent=width + 2)}")
    screen.put()
    screen.say("Compare the runs in TensorBoard:")
    screen.put(f"  tensorboard --logdir {shlex.quote(str(folder))}")


def _verdict(outcome: Outcome, screen: Screen, *, indent: int) -> str:
    """Say what the rules found, root causes first; each in a line of its own where they are several."""
    told = [
        f"{finding.code} {finding.name} ({finding.severity.label} since step {finding.first_step}"
        f"{f', follows {finding.consequence_of}' if finding.consequence_of else ''})"
        for finding in outcome.findings
    ]
    warned = any(finding.severity >= Severity.WARNING for finding in outcome.findings)
    style = "red" if warned else "green"
    before = f"\n{' ' * indent}" if len(told) > 1 else " "
    between = f",\n{' ' * indent}"
    return before + between.join(screen.painted(each, style) for each in told or ("no findings",))


def _free(wanted: Path, runs: Sequence[str]) -> Path:
    """Return the folder itself, or the first numbered one beside it that has none of the runs yet."""
    folder, number = wanted, 1
    while any((folder / name).exists() for name in runs):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def _complain(text: str) -> int:
    sys.stderr.write(f"gradwatch demo: {text}\n")
    return 2
