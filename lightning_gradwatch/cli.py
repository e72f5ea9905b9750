"""The command line. It imports neither torch nor Lightning, so that a check starts at once; `demo` does when it runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import textwrap
import traceback
from typing import TYPE_CHECKING

from lightning_gradwatch import __version__
from lightning_gradwatch.demo.catalogue import DEFAULT_NET, WHAT_TO_SEE
from lightning_gradwatch.findings import Severity
from lightning_gradwatch.report.escape import escape
from lightning_gradwatch.report.explain import explain_text, rules_text
from lightning_gradwatch.report.terminal import RunVerdict, verdict_text
from lightning_gradwatch.rules import RULE_BY_CODE, RULES, check_prefixes, replay, rules_from_settings
from lightning_gradwatch.rules.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.rules import Rule
    from lightning_gradwatch.run import Run

HEALTHY, FOUND, CANNOT_JUDGE = 0, 1, 2
_INTERRUPTED = 130  # as a shell reports a process that Ctrl-C ended
_EXIT_CODES = """exit codes:
  0  judged and healthy
  1  findings at or above --fail-on
  2  can't judge: no such run, no records, no selected rule could be judged, bad usage
Of several runs, 2 beats 1 beats 0."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code. Every failure is a line on stderr, never a traceback."""
    try:
        arguments = _parser().parse_args(argv)
        code: int = arguments.command(arguments)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse: help, version, bad usage
        return stop.code if isinstance(stop.code, int) else CANNOT_JUDGE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CANNOT_JUDGE
    except Exception as error:  # noqa: BLE001 - the last line of defence: a user gets a sentence
        place = traceback.extract_tb(error.__traceback__)[-1]
        _complain(
            f"internal error, please report it: {type(error).__name__}: {error} ({place.filename}:{place.lineno})"
        )
        return CANNOT_JUDGE
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gradwatch", description="Judge training runs that GradWatch measured.")
    parser.add_argument("--version", action="version", version=f"gradwatch {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    check = commands.add_parser(
        "check",
        help="judge stored runs",
        description="Judge stored runs from their event files alone, with the rules and thresholds stored in them.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("runs", nargs="+", metavar="RUN", help="run folder or event file")
    check.add_argument("--select", metavar="CODES", help="judge these rules only: codes or their beginnings, GW1,GW201")
    check.add_argument("--ignore", metavar="CODES", help="leave these rules out")
    check.add_argument(
        "--fail-on",
        choices=("warning", "error"),
        default="warning",
        help="lowest severity that makes the check fail (default: %(default)s)",
    )
    check.set_defaults(command=_check)

    explain = commands.add_parser("explain", help="print the page of a rule", description="Print the page of a rule.")
    explain.add_argument("code", metavar="CODE", help="such as GW101")
    explain.set_defaults(command=_explain)

    rules = commands.add_parser("rules", help="list the rules", description="List the rules, a line each.")
    rules.set_defaults(command=_rules)

    demo = commands.add_parser(
        "demo",
        help="train a net whose gradients vanish, and the mended one",
        description="Train an ill net on scikit-learn's digits, see the warning, then train the mended net.",
        epilog=_demo_nets(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument("--net", choices=tuple(WHAT_TO_SEE), metavar="NET", help=f"see below (default: {DEFAULT_NET})")
    demo.add_argument(
        "--logdir", default="gradwatch-demo", help="where the two runs are written (default: %(default)s)"
    )
    demo.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: %(default)s)")
    demo.add_argument("--steps", type=int, help="optimizer steps a net (default: the demo's own)")
    demo.set_defaults(command=_demo)
    return parser


def _demo_nets() -> str:
    """List the demo's nets, each with what to see."""
    width = max(map(len, WHAT_TO_SEE))
    lines = (
        textwrap.fill(sentence, _width(), initial_indent=f"  {net:<{width}}  ", subsequent_indent=" " * (width + 4))
        for net, sentence in WHAT_TO_SEE.items()
    )
    return "\n".join(("nets:", *lines))


def _check(arguments: argparse.Namespace) -> int:
    try:
        select = _codes(arguments.select, "--select")
        ignore = _codes(arguments.ignore, "--ignore")
    except ValueError as error:
        return _complain(str(error))
    fail_on = Severity[arguments.fail_on.upper()]
    worst = HEALTHY
    width = _width()
    for place, path in enumerate(arguments.runs):
        verdict = _judge(path, select, ignore, fail_on)
        if place:
            _say("")
        _say(verdict_text(verdict, width=width))
        worst = max(worst, verdict.exit_code)
    return worst


def _judge(path: str, select: tuple[str, ...] | None, ignore: tuple[str, ...] | None, fail_on: Severity) -> RunVerdict:
    from lightning_gradwatch.run import RunError, read_run  # noqa: PLC0415 - the other commands read no runs

    try:
        run = read_run(path)
        rules, unknown = _rules_for(run, select, ignore)
        evaluator = replay(run.records, run.infos, rules)
    except (RunError, OSError, ValueError) as error:
        return RunVerdict(path=path, unjudged={}, failure=str(error), exit_code=CANNOT_JUDGE)
    unjudged = {f"{code} {RULE_BY_CODE[code].name}": reason for code, reason in evaluator.unjudged.items()}
    unjudged |= dict.fromkeys(unknown, "this release doesn't know it")
    judged = len(rules) - len(evaluator.unjudged)
    failure = "" if judged else _why_nothing(run, rules)
    failed = any(finding.severity >= fail_on for finding in evaluator.findings)
    return RunVerdict(
        path=path,
        findings=evaluator.findings,
        unjudged=unjudged,
        judged=judged,
        measured=_measured(run),
        problems=tuple(str(problem) for problem in run.problems),
        failure=failure,
        exit_code=CANNOT_JUDGE if failure else FOUND if failed else HEALTHY,
    )


def _rules_for(
    run: Run, select: tuple[str, ...] | None, ignore: tuple[str, ...] | None
) -> tuple[tuple[Rule, ...], list[str]]:
    """Return the rules to judge a run by, and the codes of those that only a newer release knows."""
    stored = {rule.code: rule for rule in rules_from_settings(run.info.rules)}
    unknown = [code for code in run.info.rules if code not in RULE_BY_CODE]
    if select is None:
        chosen = stored
    else:
        # A rule that the run itself left out can still be asked for, with its defaults.
        chosen = {cls.code: stored.get(cls.code) or cls() for cls in RULES if cls.code.startswith(select)}
        unknown = [code for code in unknown if code.startswith(select)]
    if ignore is not None:
        chosen = {code: rule for code, rule in chosen.items() if not code.startswith(ignore)}
        unknown = [code for code in unknown if not code.startswith(ignore)]
    return tuple(chosen.values()), unknown


def _why_nothing(run: Run, rules: Sequence[Rule]) -> str:
    if not run.records:
        return "the run has no measured step"
    if rules:
        return "none of the selected rules could be judged"
    return "no rule is left to judge by; see --select, --ignore and the rules stored in the run"


def _measured(run: Run) -> str:
    steps = [record.step for record in run.records]
    span = f" ({min(steps)} to {max(steps)})" if steps else ""
    layers, sites = counted(len(run.info.layers), "layer"), counted(len(run.info.sites), "activation site")
    return f"{counted(len(steps), 'measured step')}{span}, {layers}, {sites}"


def _codes(text: str | None, option: str) -> tuple[str, ...] | None:
    if text is None:
        return None
    return check_prefixes(text.split(","), option)


def _explain(arguments: argparse.Namespace) -> int:
    rule = RULE_BY_CODE.get(arguments.code.strip().upper())
    if rule is None:
        return _complain(f"no rule has the code {arguments.code!r}; there are {', '.join(RULE_BY_CODE)}")
    _say(explain_text(rule, width=_width()))
    return HEALTHY


def _rules(_: argparse.Namespace) -> int:
    _say(rules_text(RULES))
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


def _width() -> int:
    """Return the terminal's width, up to what reads well."""
    return min(shutil.get_terminal_size().columns, 100)


def _say(text: str) -> None:
    """Print in whatever the terminal can spell: a name or an ellipsis must not end in an encoding error."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def _complain(text: str) -> int:
    sys.stderr.write(f"gradwatch: {escape(text)}\n".encode("ascii", "backslashreplace").decode())
    return CANNOT_JUDGE


if __name__ == "__main__":
    sys.exit(main())
