"""GW106: one part of a net gets next to no gradient any more, or can't get any, while others go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_gradwatch.judge.evidence.parts import Contest, note_parts, told_parts, why_starved
from lightning_gradwatch.judge.rule import Sentences, Sighting, Verdict, cant_judge
from lightning_gradwatch.judge.streaks import State, has_gone
from lightning_gradwatch.judge.wiring_rule import WiringRule, at
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Remedy, Severity, StarvedPartWarning
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord, Wiring
from lightning_gradwatch.record.wording import counted, listed

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOT_RECORDED = cant_judge("the release that recorded the run didn't tell the losses of its optimizers apart")
_NOT_APART = cant_judge("the losses of several optimizers are propagated back before one of them steps")


@dataclass(frozen=True, kw_only=True)
class StarvedPart(WiringRule):
    """One part of a net gets next to no gradient any more, or can't get any, while others go on.

    What: of a run with several optimizers, the L2 norm of the gradient of what one of them trains is at most ``ratio`` of
    its own highest so far (medians of three measured steps), in ``patience`` readings in a row, although the loss that it
    steps for is worse than in its first steps, and another optimizer's part isn't so. A part that has converged is silent,
    as its loss isn't worse; so are frozen parts, those that no longer step, and those without a weight layer, such as a
    temperature. Beside that, of any run: parameters that are multiplied with each other and are all exactly 0, in a layer
    that gets a gradient for others of its parameters (where it gets none, GW104 says so); information once the loss has come
    down to half.

    Why: of two nets that are trained against each other, as in a GAN, the one that has won is certain of every answer, and
    where it is certain it is flat: nothing passes back to the other one, which can't catch up. Of two factors that are both
    0, each one's gradient has the other's zero as a factor, so neither ever leaves it.

    What to do: hold the other one back by its learning rate, so that neither steps much further than the other, and give the
    part a loss that doesn't saturate where it fails (a generator: ``-log D(G(z))`` in place of ``log(1 - D(G(z)))``). Fewer
    steps, noise on what the other one is given and a gradient penalty hold it back as well. Of factors that are 0, initialise all but one at random.

    Attributes:
        ratio: gradient norm of a part over its own highest, at or below which it counts as starved.
        patience: readings in a row.
    """

    code: ClassVar[str] = "GW106"
    name: ClassVar[str] = "starved-part"
    warning: ClassVar[type[StarvedPartWarning]] = StarvedPartWarning
    kinds: ClassVar[tuple[str, ...]] = ("zero-factors",)

    ratio: float = 1e-2
    patience: int = 3

    def __post_init__(self) -> None:
        self._require_between(0, 1, "ratio")
        self._require_count(1, "patience")

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Tell of factors that are 0, and of parts whose gradient has sunk."""
        wired = super().look(record, info, state)
        if len(info.optimizers) < 2 or info.wiring is None or not info.layers:
            return wired
        parts = self._parts(record, info, state.setdefault("parts", {}))
        return Verdict(
            {**wired.findings, **parts.findings},
            healed={**wired.healed, **parts.healed},
            confirming=parts.confirming,
            unjudged=parts.unjudged or wired.unjudged,
        )

    def _parts(self, record: StepRecord, info: RunInfo, memory: dict[str, Any]) -> Verdict:
        """Compare each optimizer's gradient with its own past."""
        if not record.optimizer_losses:
            return _NOT_RECORDED
        contest = note_parts(record, info, memory, self.ratio)
        findings: dict[str, Sighting] = {}
        healed: dict[str, str] = {}
        for index in contest.read:
            part, key = memory[str(index)], f"part {index}"
            hit = index in contest.starved
            part["count"] = min(part.get("count", 0) + 1, self.patience) if hit else 0
            if not hit:
                part.pop("since", None)
            elif "since" not in part:
                part["since"] = int(record.step)
            lasting = part["count"] == self.patience
            if has_gone(part, key, holds=hit, patience=self.patience):
                healed[key] = "its gradient is back, or its loss is no worse than at the start"
            if lasting:
                findings[key] = self._sighting(record, info, contest, index, part)
        # Of optimizers that take turns by batch, the next record is mostly none of the one that is asked about.
        confirming = any(0 < part.get("count", 0) < self.patience for part in memory.values())
        waiting = f"not yet: {counted(self.patience, 'measured step')} in a row must agree" if confirming else ""
        unjudged = waiting or ("" if contest.known else _NOT_APART.unjudged)
        return Verdict(findings, healed=healed, confirming=confirming, unjudged=unjudged)

    def _sighting(
        self, record: StepRecord, info: RunInfo, contest: Contest, index: int, part: Mapping[str, Any]
    ) -> Sighting:
        told = told_parts(info, contest, index)
        layers = contest.layers(info, index)

        def write() -> Sentences:
            return Sentences(
                *why_starved(info, contest, index), told.evidence, (Cause(CauseKind.STARVED_PART),), told.headline
            )

        return Sighting(
            severity=Severity.WARNING,
            layers=layers,
            first_step=int(part["since"]),
            last_step=int(record.step),
            value=told.sunk,
            threshold=self.ratio,
            write=write,
        )

    def write(self, fact: Wiring, urgency: str) -> Sentences:
        """Say which factors are 0, and which to initialise."""
        drawn = listed(fact.names, "parameter")
        return Sentences(
            cause="Each one's gradient has the other's zeros as a factor, so none of them ever leaves 0.",
            remedy=Remedy(
                f"Initialise {drawn} at random (Xavier) and leave what they are multiplied with at 0: the net then starts as it does "
                "now, and all of them learn.",
                (Action("initialize", fact.names, (("method", "xavier_uniform_"),)),),
            ),
            headline=f"{drawn} can't learn: exactly 0, and multiplied ({fact.operation}(){at(fact)}) with what is exactly 0 as well",
            message=urgency,
            causes=(Cause(CauseKind.ZERO_FACTORS),),
        )
