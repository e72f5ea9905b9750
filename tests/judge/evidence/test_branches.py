"""Branches that start at next to nothing on purpose are no vanishing gradient; a trunk that takes the signal away is one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gradwatch import DEFAULT_RULES, Probe, Severity
from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.judge.evidence.branches import _skipped

pytestmark = pytest.mark.judges

WIDTH = 32


class Block(nn.Module):
    """A branch behind a factor, beside a connection that skips it; `keep` of both goes on."""

    def __init__(self, kind, keep=1.0):
        super().__init__()
        self.norm = nn.Identity() if kind in {"rezero", "plain"} else nn.LayerNorm(WIDTH)
        self.branch = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        start = {"layer scale": torch.full((WIDTH,), 1e-5), "rezero": torch.zeros(1)}
        self.factor = nn.Parameter(start.get(kind, torch.ones(1)))
        if kind == "fixup":
            nn.init.zeros_(self.branch[2].weight)
            nn.init.zeros_(self.branch[2].bias)
        if kind == "small start":
            nn.init.normal_(self.branch[2].weight, std=1e-6)
            nn.init.zeros_(self.branch[2].bias)
        self.keep = keep

    def forward(self, x):
        return self.keep * (x + self.factor * self.branch(self.norm(x)))


def findings(kind, *, keep=1.0, rate=0.05, steps=18):
    """Train a few steps on labels that mean nothing, in tiny batches, so that the loss stands."""
    torch.manual_seed(0)
    blocks = [Block(kind, keep) for _ in range(6)]
    norm = nn.Identity() if kind == "plain" else nn.LayerNorm(WIDTH)
    head = norm, nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 4)
    net = nn.Sequential(nn.Linear(20, WIDTH), *blocks, *head)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    evaluator, probe = Evaluator(DEFAULT_RULES), Probe(net, optimizer)
    for _ in range(steps):
        with probe:
            optimizer.zero_grad()
            F.cross_entropy(net(torch.randn(2, 20)), torch.randint(0, 4, (2,))).backward()
            optimizer.step()
        evaluator.feed(probe.record, probe.info)
    return evaluator.findings


@pytest.mark.parametrize("kind", ["layer scale", "rezero", "fixup", "small start"])
def test_branches_that_start_at_nearly_zero_are_information_at_most(kind):
    told = findings(kind)
    assert max((finding.severity for finding in told), default=Severity.INFO) is Severity.INFO
    for finding in told:
        assert finding.code == "GW301"
        assert "behind a factor near 0 (a layer scale" in finding.cause


def test_a_fault_elsewhere_leads_all_the_same():
    first = findings("layer scale", rate=300.0)[0]
    assert (first.code, first.consequence_of) == ("GW302", "")
    assert first.severity > Severity.INFO


@pytest.mark.parametrize(
    ("before", "skipped"),
    [
        ({"a": "", "b": "a", "c": "b", "d": "c"}, ""),  # a chain
        ({"a": "", "b": "a", "c": "ab", "d": "c"}, "abc"),  # one skip connection
        ({"a": "", "b": "a", "c": "b", "d": "c", "e": "bd", "f": "e"}, "bcde"),  # around two, as a gate's
        ({"a": "", "b": "", "c": "ab", "d": "c"}, ""),  # towers
        ({"a": "a", "b": "ab"}, ""),  # loops
    ],
)
def test_what_connections_skip(before, skipped):
    assert _skipped(tuple((name, tuple(those)) for name, those in before.items())) == frozenset(skipped)


def test_a_trunk_that_takes_the_signal_away_vanishes():
    told = {finding.code: finding.severity for finding in findings("plain", keep=0.2)}
    assert told["GW101"] >= Severity.WARNING
