"""GW103: NaN or infinity in the loss, the activations or the gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from lightning_gradwatch.judge.evidence.gradient_scale import (
    HELD,
    SURELY,
    halvings,
    largest_output,
    note_scale,
    write_forward,
    write_near,
    write_sunk,
)
from lightning_gradwatch.judge.evidence.overflow import find_beginning, note_heading, write_beginning, write_skipped
from lightning_gradwatch.judge.readings import broken_layers, masking_sites
from lightning_gradwatch.judge.rule import HEALTHY, LazyFinding, Rule, Verdict
from lightning_gradwatch.judge.streaks import State
from lightning_gradwatch.record.finding import NonFiniteGradientWarning, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord


@dataclass(frozen=True, kw_only=True)
class NonFiniteGradient(Rule):
    """NaN or infinity in the loss, the activations or the gradients.

    What: the first measured step in which the loss, an activation function's output or an entry of a gradient isn't
    finite (a loss that is NaN while all gradients are finite, as of a batch without targets, does no harm and isn't one).
    There is no warm-up and no patience. A step that the gradient scaler left out is *skipped*, which belongs to training
    in half precision, unless ``skipped_steps`` measured steps in a row are, and the scale is down to 1: a scaler starts at
    2^16 and halves at each skip, so after 16 of them the gradients aren't scaled any more, and what still overflows isn't
    its doing. Three measured steps that are left out and whose loss isn't a number before there is a gradient are one at any scale,
    as none helps a forward pass; and so are three at a scale that has sunk below 1, where small gradients become 0. A scale that is
    halved three times within 64 steps while some outputs' rms is above 65504 / 16 is a warning: single entries leave float16's range.
    Log softmax is left out, whose output is infinite for a masked class.

    Why: a NaN in a gradient is in the weights after the step, and in everything after that. It comes in two ways: the net
    explodes, which shows in the measured steps before, or one operation is undefined where the net has come to.

    What to do: after an explosion, lower the learning rate, clip the gradient norm, change the initialisation. Out of
    nothing, look at where it began for log(0), a division by 0, the square root or the norm of 0, a softmax over a row that
    is masked as a whole, NaN in the data; ``torch.autograd.set_detect_anomaly(True)`` names the operation. In half
    precision, use bf16, or a gradient scaler.

    Attributes:
        skipped_steps: measured steps in a row left out by the gradient scaler that are a finding.
    """

    code: ClassVar[str] = "GW103"
    name: ClassVar[str] = "non-finite"
    warning: ClassVar[type[NonFiniteGradientWarning]] = NonFiniteGradientWarning
    tells_first_bad_step: ClassVar[bool] = True
    judges_skipped: ClassVar[bool] = True

    skipped_steps: int = 20

    def __post_init__(self) -> None:
        self._require_count(1, "skipped_steps")

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Look for what isn't finite; the first such record says where it began."""
        if not math.isnan(record.loss):
            state["loss_known"] = True
        scaled = self._judge_scaled(record, info, state)
        if scaled is not None:
            return scaled
        if record.skipped:
            return self._judge_skipped(record, info, state)
        state.pop("skips", None)
        layers = broken_layers(record)
        sites = np.isinf(record.forward_rms)
        if np.count_nonzero(sites):
            sites &= ~masking_sites(info)
        spread = bool(np.count_nonzero(layers))
        # NaN is also how a record says that the loss isn't known. One that is NaN in truth shows in the gradients; if it
        # doesn't (a batch without targets), the step does no harm.
        loss = math.isinf(record.loss) or (math.isnan(record.loss) and spread and state.get("loss_known", False))
        if not (loss or spread or np.count_nonzero(sites)):
            note_heading(state, record, info)
            return (
                HEALTHY if np.count_nonzero(record.layer_state) else Verdict(unjudged="not yet: no layer was measured")
            )
        if "first" not in state:
            state["first"] = find_beginning(record, info, state, loss=loss, sites=sites, layers=layers)
        # Later records show the ruins only: what is told stays what the first one showed.
        first = state["first"]
        value = max(1, first["layers"][0] + first["sites"][0])
        write = partial(write_beginning, first, info)
        found = LazyFinding(Severity.ERROR, (first["name"],), first["step"], int(record.step), value, 1, write)
        return Verdict({"non-finite": found})

    def _judge_scaled(self, record: StepRecord, info: RunInfo, state: State) -> Verdict | None:
        """Tell of forward passes that no gradient scale helps, and of a scale that has sunk too far; None: of neither."""
        note_scale(state, record, info)
        known = state.get("loss_known", False)
        halved = halvings(state)
        for key, write, others in (
            ("forward", write_forward, ("sunk", "skipped", "near")),
            ("sunk", write_sunk, ("skipped", "near")),
        ):
            facts = state.get(key)
            if facts is None or max(facts["steps"], halved) < SURELY or not (known or key == "sunk"):
                continue
            if key == "sunk" and record.skipped and (state.get("skips") or facts)["since"] < facts["since"]:
                continue  # no step at all is taken, since before that
            found = LazyFinding(
                severity=Severity.ERROR,
                layers=(facts["name"],),
                first_step=min(facts["since"], state.get("near", facts["since"])),  # when it was first told
                last_step=int(record.step),
                value=max(facts["steps"], halved),
                threshold=SURELY,
                write=partial(write, dict(facts), info),
            )
            return Verdict({key: found}, withdrawn=others)
        if halved < SURELY:
            return Verdict(healed={"near": HELD}) if state.pop("near", None) else None
        if record.skipped:
            return None
        near = largest_output(record, info)
        if near is None:  # what is left out isn't measured, so it is looked for
            return Verdict(
                confirming=True, unjudged="not yet: the gradient scale sinks, and no step that made it was measured"
            )
        since = state.setdefault("near", int(record.step))
        write = partial(write_near, halved, near, float(record.gradient_scale))
        found = LazyFinding(Severity.WARNING, (near[0],), since, int(record.step), halved, SURELY, write)
        return Verdict({"near": found}, confirming=True)

    def _judge_skipped(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        skips = state.setdefault("skips", {"since": int(record.step), "count": 0})
        skips["count"] += 1
        count = skips["count"]
        if count < self.skipped_steps or record.gradient_scale > 1:
            return Verdict(confirming=True, unjudged="not yet: the gradient scaler left the optimizer step out")
        layers = broken_layers(record)
        column = int(np.flatnonzero(layers)[-1]) if np.count_nonzero(layers) else -1
        write = partial(write_skipped, count, info.layer_names[column], info)
        found = LazyFinding(
            severity=Severity.ERROR,
            layers=(info.layer_names[column],),
            first_step=skips["since"],
            last_step=int(record.step),
            value=count,
            threshold=self.skipped_steps,
            write=write,
        )
        return Verdict({"skipped": found})
