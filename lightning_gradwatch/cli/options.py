"""The command line's grammar and its help. What the commands do is in `command`."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from typing import TYPE_CHECKING, Any, NoReturn

from lightning_gradwatch.cli.settings import LEVELS
from lightning_gradwatch.demo.catalogue import DEFAULT_NET, WHAT_TO_SEE
from lightning_gradwatch.record.escape import escape
from lightning_gradwatch.tell.formats import FORMATS, in_short
from lightning_gradwatch.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Command = Callable[[argparse.Namespace], int]

_FORMATS = "{formats}"
_CHECK = """RUN is a run folder, an event file, a folder that runs are in, or a glob such as
'logs/version_*'; several may be given. Of several runs in a folder each is told
in a line.

exit codes:
  0  judged and healthy
  1  findings at or above --fail-on, or worse than the baseline
  2  can't judge: no such run, no records, no selected rule could be judged, a
     required one could not, the baseline is not comparable, bad usage
Of several runs, 2 beats 1 beats 0.

formats:
  {formats}

settings:
  The command line beats the environment, which beats the file. The file is
  gradwatch.toml, or [tool.gradwatch] in pyproject.toml, in this folder or the
  nearest one above it, up to the root of the repository and no further; the
  report names it. Its keys are the options' names: select, ignore,
  require, fail-on, format, baseline; thresholds are tables, [rules.GW101];
  layers to ignore are tables too, [[ignore-layers]] with rules, layers and a
  reason. The environment has GRADWATCH_SELECT, GRADWATCH_FAIL_ON and so on;
  GRADWATCH_SET and GRADWATCH_IGNORE_LAYERS hold several values, separated by
  spaces. What isn't set anywhere is as the run was watched."""

_COMPARE = """What is compared: medians over the steps that both runs have, layer by layer and
site by site, by name. Gradient norms are taken relative to the largest of
their step, signals relative to the last site's. Worse is what changed by more
than 3 times and by more than three times what the baseline's own steps stray;
a fraction of units, what rose by more than 0.1 and as much.

exit codes:
  0  no worse than the baseline, no new finding
  1  something got worse, or there is a finding that the baseline hasn't
  2  not comparable: no name in common, too few steps in common, no such run"""

_REPORT = """Of several runs the first is the one that the others are compared with. The file
is below 5 MB for 160 layers, and 24 MB at most.

exit codes:
  0  the page is written, whatever it shows; gradwatch check judges
  2  a run can't be read, or the file can't be written"""


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong with the arguments, among which may be names of files that a glob has found."""

    def error(self, message: str) -> NoReturn:
        super().error(escape(message))

    def format_help(self) -> str:
        # Only now, as each format is imported for what it says of itself.
        if self.epilog and _FORMATS in self.epilog:
            width = max(map(len, FORMATS))
            lines = [f"{name:{width}}  {text}" for name, text in in_short().items()]
            self.epilog = self.epilog.replace(_FORMATS, "\n  ".join(lines))
        return super().format_help()


def build_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Return the parser; `commands` has a function for each command."""
    parser = _Parser(
        prog="gradwatch",
        description="Judge training runs that GradWatch measured.",
        epilog="gradwatch COMMAND --help says more.",
    )
    parser.add_argument("--version", action="version", version=f"gradwatch {__version__}")
    adder: Any = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, add in _ADDERS.items():
        add(adder).set_defaults(command=commands[name])
    return parser


def terminal_width() -> int:
    """Return the terminal's width, up to what reads well."""
    return min(shutil.get_terminal_size().columns, 100)


def _add_check(adder: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = adder.add_parser(
        "check",
        help="judge stored runs",
        description="Judge stored runs from their event files alone, with the rules and thresholds stored in them.",
        epilog=_CHECK,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, event file, folder of runs or glob")
    _add_rule_options(parser)
    parser.add_argument("--require", metavar="CODES", help="rules that have to be able to judge, else exit 2")
    parser.add_argument(
        "--baseline", metavar="RUN", help="a known good run: what it shows too is known, what got worse fails"
    )
    _add_output_options(parser, "lowest severity that makes the check fail (default: warning)")
    return parser


def _add_compare(adder: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = adder.add_parser(
        "compare",
        help="say what got worse than in a known good run",
        description="Say what got worse than in a known good run, per layer and activation site.",
        epilog=_COMPARE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", metavar="BASE", help="the known good run")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, event file, folder of runs or glob")
    _add_rule_options(parser)
    _add_output_options(parser, "lowest severity of a new finding that counts (default: warning)")
    return parser


def _add_rule_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--select", metavar="CODES", help="judge these rules only: codes, their beginnings or names, GW1,dead-units"
    )
    parser.add_argument("--ignore", metavar="CODES", help="leave these rules out")
    parser.add_argument(
        "--ignore-layers",
        metavar="CODE:PATTERN",
        action="append",
        help="leave layers and sites out of a rule, such as 'GW201:head.*'; GW:PATTERN for every rule; repeatable",
    )
    parser.add_argument(
        "--set",
        metavar="CODE.NAME=NUMBER",
        action="append",
        help="judge by another threshold, such as GW101.ratio=1e-2; repeatable; gradwatch explain CODE lists them",
    )


def _add_output_options(parser: argparse.ArgumentParser, fail_on: str) -> None:
    parser.add_argument("--fail-on", choices=LEVELS, help=fail_on)
    parser.add_argument("--format", choices=FORMATS, help="what to write (default: text)")
    parser.add_argument("--output", metavar="FILE", help="write the format to a file, and text to the terminal")
    file = parser.add_mutually_exclusive_group()
    file.add_argument("--config", metavar="FILE", help="read this file instead of searching for one")
    file.add_argument("--no-config", action="store_true", help="read no file")


def _add_report(adder: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = adder.add_parser(
        "report",
        help="write one page that shows runs",
        description="Write one HTML file that shows which layer of a run fails, since when and why. It loads nothing.",
        epilog=_REPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, event file, folder of runs or glob")
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="report.html", help="what to write (default: %(default)s)"
    )
    parser.add_argument("--redact", action="store_true", help="leave out paths, host names and settings")
    _add_rule_options(parser)
    file = parser.add_mutually_exclusive_group()
    file.add_argument("--config", metavar="FILE", help="read this file instead of searching for one")
    file.add_argument("--no-config", action="store_true", help="read no file")
    return parser


def _add_explain(adder: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = adder.add_parser("explain", help="print the page of a rule", description="Print the page of a rule.")
    parser.add_argument("code", metavar="RULE", help="its code, number or name: GW101, 101, vanishing-gradient")
    return parser


def _add_rules(adder: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    return adder.add_parser("rules", help="list the rules", description="List the rules, a line each.")


def _add_demo(adder: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = adder.add_parser(
        "demo",
        help="train a net whose gradients vanish, and the fixed one",
        description="Train a failing net on scikit-learn's digits, see the warning, then train the fixed net.",
        epilog=_demo_nets(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--net", choices=tuple(WHAT_TO_SEE), metavar="NET", help=f"see below (default: {DEFAULT_NET})")
    parser.add_argument(
        "--logdir", default="gradwatch-demo", help="where the two runs are written (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="optimizer steps a net (default: the demo's own)")
    return parser


def _demo_nets() -> str:
    """List the demo's nets, each with what to see."""
    width = max(map(len, WHAT_TO_SEE))
    lines = (
        textwrap.fill(
            sentence, terminal_width(), initial_indent=f"  {net:<{width}}  ", subsequent_indent=" " * (width + 4)
        )
        for net, sentence in WHAT_TO_SEE.items()
    )
    return "\n".join(("nets:", *lines))


_ADDERS = {
    "check": _add_check,
    "compare": _add_compare,
    "report": _add_report,
    "explain": _add_explain,
    "rules": _add_rules,
    "demo": _add_demo,
}
