"""Verdicts to render: one of each kind, and names that try to break out."""

from __future__ import annotations

import unicodedata

from lightning_gradwatch.judge.verdict import Change, Comparison, IgnoredLayers, RunVerdict
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Finding, Remedy, Severity
from lightning_gradwatch.record.first_bad_step import FirstBadStep

HOSTILE = [
    "\x1b[2J\x1b]0;title\x07",
    "a\n::error::pwned",
    "a\r\n::set-output name=x::y",
    "]]><script>",
    "<b>&amp;\"'</b>",
    "|x|`y`|[z](javascript:1)",
    "\x00\x01\x7f\x85\x9b31m",
    "\u2028\u2029\u202e",
    "\ud800",
    "\ufffe\uffff",
    "%0A::error::x",
    "::error::x",
    "{0} {name} %s",
]


BEGUN = FirstBadStep(
    layer="net.2",
    metric="update_ratio",
    before=1e-3,
    after=None,
    step=16,
    batch=4,
    last_good_step=None,
    last_good_batch=None,
    learning_rate=0.1,
)


def make_finding(code="GW101", severity=Severity.ERROR, layers=("net.0", "net.2"), **changes):
    values = {
        "code": code,
        "name": {"GW101": "vanishing-gradient", "GW201": "dead-units"}[code],
        "severity": severity,
        "layers": tuple(layers),
        "first_step": 16,
        "last_step": 18,
        "value": 2.3456e-26,
        "threshold": 0.003,
        "cause": "All sites are Sigmoid.",
        "remedy": Remedy("Replace them.", (Action("replace_activation", ("net.1",), (("with", "ReLU"),)),)),
        "message": "The signal vanishes at net.0. It does so at each step.",
        "headline": "The signal vanishes at net.0",
        "evidence": "It does so at each step.",
        "cause_kind": CauseKind.SMALL_SLOPE,
        "causes": (Cause(CauseKind.SMALL_SLOPE, ("net.1",)), Cause(CauseKind.SMALL_WEIGHTS)),
        "first_bad": BEGUN,
    }
    return Finding(**{**values, **changes})


ERROR, INFO = make_finding(), make_finding("GW201", Severity.INFO, ("net.1",))
CHANGE = Change(metric="grad_norm", name="net.0", base=0.5, run=0.0005, noise=1.25, steps=9)
HEALTHY = RunVerdict(
    path="logs/good",
    unjudged={},
    judged=1,
    measured="3 measured steps (0 to 2), 2 layers, 1 activation site",
    rules={"GW101": {"ratio": None, "gain": 0.75}},
    counts={"steps": 3, "first_step": 0, "last_step": 2, "layers": 2, "sites": 1},
)
FAILED = RunVerdict(
    path="logs/ill",
    findings=(INFO, ERROR),
    unjudged={"GW202": "not yet: the first 10 steps are warm-up"},
    judged=2,
    measured="3 measured steps (0 to 2), 2 layers, 1 activation site",
    problems=("events: the last record is cut off",),
    exit_code=1,
    rules={"GW101": {"ratio": 0.01}, "GW201": {"warn": 0.9}},
    counts={"steps": 3, "first_step": 0, "last_step": 2, "layers": 2, "sites": 1},
    ignored=(IgnoredLayers(rule="GW2", pattern="head.*", reason="a small head", names=("head.1",)),),
)
MISSING = RunVerdict(path="logs/none", unjudged={}, failure="no such run: logs/none", exit_code=2)
COMPARED = RunVerdict(
    path="logs/new",
    findings=(ERROR, INFO),
    unjudged={},
    judged=2,
    exit_code=1,
    rules=FAILED.rules,
    counts=FAILED.counts,
    comparison=Comparison(
        baseline="logs/good",
        compared="steps 0 to 2",
        changes=(CHANGE, Change(metric="loss", name="", base=0.0, run=2.0, noise=1.0, steps=9)),
        known=(ERROR,),
        gone=(make_finding(layers=("gone",)),),
        only_baseline=("old",),
        only_run=("new",),
    ),
)
ALL = (HEALTHY, FAILED, MISSING, COMPARED)


def hostile(name):
    """A verdict that has the name wherever a name can be."""
    finding = make_finding(
        layers=(name,), message=name, headline=name, evidence=name, cause=name, remedy=Remedy(name), value=float("nan")
    )
    return RunVerdict(
        path=name,
        findings=(finding, make_finding("GW201", Severity.INFO, (name,), threshold=float("inf"))),
        unjudged={name: name},
        judged=1,
        measured=name,
        problems=(name,),
        failure=name,
        exit_code=2,
        rules={"GW101": {"ratio": float("-inf")}, "GW201": {name: name}},
        ignored=(IgnoredLayers(rule="GW", pattern=name, reason=name, names=(name,)),),
        comparison=Comparison(
            baseline=name,
            compared=name,
            changes=(Change(metric="grad_norm", name=name, base=1.0, run=0.0, noise=1.0, steps=3),),
            known=(),
            gone=(finding,),
            only_baseline=(name,),
            only_run=(name,),
        ),
        settings_file=name,
    )


def steers(text):
    """Whether a terminal would do something else than print it; line breaks of ours aside."""
    return any(unicodedata.category(sign) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for sign in text.replace("\n", ""))
