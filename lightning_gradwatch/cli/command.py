"""The command line. It imports neither torch nor Lightning, so that a check starts at once; `demo` does when it runs."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gradwatch.cli.check import cannot_judge, find_runs, judge
from lightning_gradwatch.cli.config import load_settings
from lightning_gradwatch.cli.options import build_parser, terminal_width
from lightning_gradwatch.cli.settings import ConfigError, told
from lightning_gradwatch.judge.catalog import find_rule, known_rules
from lightning_gradwatch.judge.selection import code_of, nearest_rule
from lightning_gradwatch.judge.verdict import CANNOT_JUDGE, HEALTHY
from lightning_gradwatch.record.escape import escape
from lightning_gradwatch.record.reasons import CannotJudgeError
from lightning_gradwatch.record.wording import counted
from lightning_gradwatch.tell.cells import wants_colour, write
from lightning_gradwatch.tell.explain import explain_text, rules_text
from lightning_gradwatch.tell.formats import render, shows_runs
from lightning_gradwatch.tell.terminal import line_text, summary_text, verdict_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from lightning_gradwatch.cli.settings import Settings
    from lightning_gradwatch.judge.verdict import RunVerdict

_FEW_COLLECTIONS = 100_000
"""A run is many objects that stay and hardly any cycle: looking for cycles takes a twentieth of the time."""
_MOST_SHOWN = 64
"""Runs of a page."""
_INTERRUPTED = 130  # as a shell reports a process that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code. Every failure is a line on stderr, never a traceback."""
    with _closed_streams_filled():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    thresholds = gc.get_threshold()
    gc.set_threshold(_FEW_COLLECTIONS, *thresholds[1:])
    try:
        arguments = build_parser(_COMMANDS).parse_args(argv)
        code: int = arguments.command(arguments)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse: help, version, bad usage
        return stop.code if isinstance(stop.code, int) else CANNOT_JUDGE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has seen enough
        _give_up_output()
        return CANNOT_JUDGE
    except (ConfigError, OSError) as error:  # of a run that can't be read there is a verdict
        _give_up_output()
        code = _complain(
            f"{error.filename or 'the output'}: {error.strerror}" if isinstance(error, OSError) else str(error)
        )
    except Exception as error:  # noqa: BLE001 - the last line of defence: a user gets a sentence
        place = traceback.extract_tb(error.__traceback__)[-1]
        _complain(
            f"internal error, please report it: {type(error).__name__}: {error} ({place.filename}:{place.lineno})"
        )
        return CANNOT_JUDGE
    finally:
        gc.set_threshold(*thresholds)
    return code


@contextlib.contextmanager
def _closed_streams_filled() -> Iterator[None]:
    """Let go to nowhere what is told to a stream that a shell has closed (``>&-``): the exit code is what is asked for.

    Python has None in its place then, and the next file that is opened would have the stream's number.
    """
    with contextlib.ExitStack() as filled:
        for name in ("stdin", "stdout", "stderr"):
            if getattr(sys, name) is None:
                mode = "r" if name == "stdin" else "w"
                setattr(sys, name, filled.enter_context(Path(os.devnull).open(mode, encoding="utf-8")))
                filled.callback(setattr, sys, name, None)
        yield


def _give_up_output() -> None:
    """Have Python print nothing more at its end, where it would fail on what the output didn't take."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check(arguments: argparse.Namespace) -> int:
    return _judge_and_tell(arguments, _settings(arguments, "require", "baseline"), rules_needed=True)


def _compare(arguments: argparse.Namespace) -> int:
    settings = replace(_settings(arguments), baseline=arguments.base, require=())
    return _judge_and_tell(arguments, settings, rules_needed=False)


def _settings(arguments: argparse.Namespace, *more: str) -> Settings:
    keys = ("select", "ignore", "fail-on", "format", "ignore-layers", *more)
    given = {key: getattr(arguments, key.replace("-", "_")) for key in keys} | {"rules": arguments.set}
    return load_settings(
        given,
        environment=os.environ,
        folder=_here(),
        file="" if arguments.no_config else arguments.config,
    )


def _here() -> Path | None:
    """Return the current folder; None where it is gone."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


def _judge_and_tell(arguments: argparse.Namespace, settings: Settings, *, rules_needed: bool) -> int:
    if "" in arguments.runs:  # a variable that isn't set; as a path it would mean this folder
        raise ConfigError("RUN: is empty; give a run folder, an event file or a glob")
    runs: list[str] = []
    in_a_line: set[str] = set()
    """Runs below a folder, which nobody has named."""
    for argument in arguments.runs:
        try:
            found = find_runs(argument)
        except CannotJudgeError as error:
            raise ConfigError(str(error)) from error
        runs += found
        if len(found) > 1 and Path(argument).is_dir():
            in_a_line.update(found)
    to_terminal = settings.format == "text" or arguments.output is not None
    colour = wants_colour(sys.stdout)
    width = terminal_width()
    verdicts: list[RunVerdict] = []
    for place, run in enumerate(runs):
        verdict = judge(run, settings, rules_needed=rules_needed, keep_run=shows_runs(settings.format))
        told = (*settings.notes, *verdict.problems)
        verdicts.append(replace(verdict, settings_file=settings.file or "", problems=told))
        _complain_of_fault(verdicts[-1])
        if to_terminal:
            text = _told(
                verdicts,
                lambda those: (
                    line_text(those[-1], colour=colour)
                    if those[-1].path in in_a_line
                    else verdict_text(those[-1], width=width, colour=colour, brief=len(runs) > 1)
                ),
                settings,
            )
            _say(f"\n{text}" if place and not in_a_line.issuperset(runs[place - 1 : place + 1]) else text)
    if to_terminal and len(runs) > 1:
        listed = [verdict for verdict in verdicts if verdict.path not in in_a_line]
        _say("\n" + summary_text(verdicts, listed=listed, width=width, colour=colour))
    _report(verdicts, arguments, settings, to_terminal=to_terminal)
    return max(verdict.exit_code for verdict in verdicts)


def _report(
    verdicts: list[RunVerdict], arguments: argparse.Namespace, settings: Settings, *, to_terminal: bool
) -> None:
    """Write the report where it is asked for."""
    if arguments.output is not None or not to_terminal:
        report = _told(verdicts, lambda those: render(those, settings.format), settings).rstrip("\n")
        if arguments.output is None:
            _say(report)
        else:
            Path(arguments.output).write_text(f"{report}\n", encoding="utf-8", errors="backslashreplace")
    if settings.format == "github" and os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(os.environ["GITHUB_STEP_SUMMARY"]).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(_told(verdicts, lambda those: render(those, "markdown"), settings))


def _complain_of_fault(verdict: RunVerdict) -> None:
    if verdict.fault:
        _complain(f"internal error, please report it: {verdict.fault}")


def _told(verdicts: list[RunVerdict], tell: Callable[[Sequence[RunVerdict]], str], settings: Settings) -> str:
    """Tell verdicts; in the place of one that can't be told stands why, and the others are told as they are."""
    try:
        return tell(verdicts)
    except Exception:  # noqa: BLE001 - what one run holds must not take away the report on the others
        for place, verdict in enumerate(verdicts):
            try:
                tell([verdict])
            except Exception as error:  # noqa: BLE001 - as above
                verdicts[place] = cannot_judge(verdict.path, error, settings)
                _complain_of_fault(verdicts[place])
        return tell(verdicts)


def _report_page(arguments: argparse.Namespace) -> int:
    """Write the page of some runs, and say what it gives away."""
    from lightning_gradwatch.tell.html_report import page_of  # noqa: PLC0415 - the other commands show no page

    given = {"select": arguments.select, "ignore": arguments.ignore, "ignore-layers": arguments.ignore_layers}
    settings = load_settings(
        given | {"rules": arguments.set},
        environment={name: value for name, value in os.environ.items() if name != "GRADWATCH_FORMAT"},
        folder=_here(),
        file="" if arguments.no_config else arguments.config,
    )
    if "" in arguments.runs:
        raise ConfigError("RUN: is empty; give a run folder, an event file or a glob")
    try:
        runs = [run for argument in arguments.runs for run in find_runs(argument)]
    except CannotJudgeError as error:
        raise ConfigError(str(error)) from error
    if len(runs) > _MOST_SHOWN:
        return _complain(f"there are {len(runs)} runs, and a page shows {_MOST_SHOWN} at most: name those to show")
    verdicts = [judge(run, replace(settings, baseline=None), rules_needed=False, keep_run=True) for run in runs]
    for verdict in verdicts:
        _complain_of_fault(verdict)
        if verdict.failure:
            _complain(verdict.failure)
    if all(verdict.failure for verdict in verdicts):
        return CANNOT_JUDGE
    page, gives_away = page_of(verdicts, redact=arguments.redact)
    Path(arguments.output).write_text(page, encoding="utf-8")
    size = len(page) / 1e6
    _say(f"{escape(arguments.output)}: {size:.1f} MB, {counted(len(runs), 'run')}")
    for each in gives_away:
        _say(f"  it gives away {escape(each)}")
    if gives_away:
        _say("  --redact leaves these out")
    return CANNOT_JUDGE if any(verdict.failure for verdict in verdicts) else HEALTHY


def _explain(arguments: argparse.Namespace) -> int:
    rule = find_rule(code_of(arguments.code))
    if rule is None:
        if not arguments.code.strip():
            return _complain("CODE is empty; give the code or the name of a rule, such as GW101 or vanishing-gradient")
        return _complain(f"no rule has the code or the name {told(arguments.code)}; {nearest_rule(arguments.code)}")
    _say(explain_text(rule, width=terminal_width()))
    return HEALTHY


def _rules(_: argparse.Namespace) -> int:
    _say(rules_text(known_rules().values()))
    return HEALTHY


def _demo(arguments: argparse.Namespace) -> int:
    given = {"net": arguments.net, "steps": arguments.steps}
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        from lightning_gradwatch.demo.main import run  # noqa: PLC0415 - torch, Lightning and scikit-learn

        return int(run(logdir=arguments.logdir, seed=arguments.seed, **chosen))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sklearn":
            raise
        return _complain("the demo's digits come from scikit-learn: pip install 'lightning-gradwatch[demo]'")


def _say(text: str) -> None:
    write(sys.stdout, f"{text}\n")


def _complain(text: str) -> int:
    with contextlib.suppress(OSError):  # nobody is left to be told; the exit code says it
        write(sys.stderr, f"gradwatch: {escape(text)}\n")
    return CANNOT_JUDGE


_COMMANDS = {
    "check": _check,
    "compare": _compare,
    "report": _report_page,
    "explain": _explain,
    "rules": _rules,
    "demo": _demo,
}


if __name__ == "__main__":
    sys.exit(main())
