"""Runs made of numbers: what a net would have recorded, without a net."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

import numpy as np
import pytest

from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, LayerState, OptimizerInfo, SiteInfo, StepRecord


def stack(depth=6, function="sigmoid", optimizers=("SGD",), **settings):
    """A plain stack: Linear, function, …, Linear; `depth` hidden activations and one weight layer more."""
    layers = tuple(
        LayerInfo(f"net.{2 * place}", "Linear", ((8, 8), (8,)), 72, weight=True) for place in range(depth + 1)
    )
    return RunInfo(
        layers=layers,
        sites=tuple(
            SiteInfo(
                f"net.{2 * place + 1}", function, "hidden", 8, predecessors=(f"net.{2 * place - 1}",) if place else ()
            )
            for place in range(depth)
        ),
        optimizers=tuple(
            OptimizerInfo(name, {"lr": 0.1}, tuple(layer.name for layer in layers)) for name in optimizers
        ),
        **settings,
    )


def measure(
    info,
    step,
    *,
    states=None,
    fill=1.0,
    loss=2.3,
    rates=None,
    norm=float("nan"),
    skipped=False,
    outputs=1.0,
    answer=(),
    **metrics,
):
    """A record; a metric is a vector, a number for all columns, or a mapping from name to number (1 elsewhere).

    `norm` is the gradient norm of the whole net, `outputs` the rms of the sites' outputs, `answer` what a constant answer costs.
    """
    vectors = {}
    for metric, given in metrics.items():
        names = info.names(metric)
        numbers = [given.get(name, 1.0) for name in names] if isinstance(given, dict) else given
        vectors[metric] = np.broadcast_to(np.asarray(numbers, dtype=np.float64), (len(names),)).copy()
    codes = np.full(len(info.layers), LayerState.OK, dtype=np.uint8)
    for column, layer in enumerate(info.layers):
        codes[column] = (states or {}).get(layer.name, LayerState.OK)
    sites = len(info.sites)
    return StepRecord(
        step=step,
        layout=info.layout,
        metrics=vectors,
        layer_state=codes,
        window_fill=np.full(sites, float(fill)),
        forward_rms=np.broadcast_to(np.asarray(outputs, dtype=np.float64), (sites,)).copy(),
        loss=loss,
        global_grad_norm=norm,
        skipped=skipped,
        learning_rates=(0.1,) * len(info.optimizers) if rates is None else rates,
        constant_answer=answer,
    )


def fading(info, attenuation):
    """Signal norms that fall evenly from 1 at the last site to `attenuation` at the first."""
    return np.geomspace(attenuation, 1.0, len(info.sites)) if attenuation else np.linspace(0.0, 1.0, len(info.sites))


def gains(info, activation, weight):
    """Metrics of a chain whose sites and the weights between them pass back such shares: numbers, or one a site."""
    sites = len(info.sites)
    of_sites, of_weights = (
        np.broadcast_to(np.asarray(each, dtype=np.float64), (sites,)) for each in (activation, weight)
    )
    steps = of_sites[:-1] * of_weights[1:]
    return {
        "activation_gain": of_sites.copy(),
        "weight_gain": np.concatenate([[np.nan], of_weights[1:]]),
        "signal_norm": np.concatenate([np.cumprod(steps[::-1])[::-1], [1.0]]),
    }


@dataclass
class Fed:
    """What an evaluator said to each record."""

    evaluator: Evaluator
    told: list = field(default_factory=list)
    confirming: list = field(default_factory=list)

    @property
    def findings(self):
        return self.evaluator.findings

    @property
    def only(self):
        (finding,) = self.evaluator.findings
        return finding

    @property
    def said_again(self):
        """Numbers that the cause of the only finding repeats from its headline."""
        seen, cause = (set(re.findall(r"[0-9][0-9.,e-]*[0-9]", text)) for text in (self.only.headline, self.only.cause))
        return seen & cause


def feed(rules, records, info):
    """Feed records to fresh rules; each state on the way must be plain JSON data."""
    fed = Fed(Evaluator(rules if isinstance(rules, (tuple, list)) else (rules,)))
    for record in records:
        fed.told.append(fed.evaluator.feed(record, info))
        fed.confirming.append(fed.evaluator.confirming)
        state = fed.evaluator.state_dict()
        assert json.loads(json.dumps(state)) == state
    return fed


@pytest.fixture
def runs():
    """The builders above, as one namespace."""

    class Runs:
        pass

    for builder in (stack, measure, fading, gains, feed):
        setattr(Runs, builder.__name__, staticmethod(builder))
    return Runs
