"""GW504: a normalisation over a single value, or a batch normalisation over a single sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lightning_gradwatch.judge.rule import Sentences
from lightning_gradwatch.judge.wiring_rule import WiringRule
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Remedy, SingleValueNormalizationWarning
from lightning_gradwatch.record.step import Wiring
from lightning_gradwatch.record.wording import listed


@dataclass(frozen=True, kw_only=True)
class SingleValueNormalization(WiringRule):
    """A normalisation takes its statistics from a single value, or from a single sample.

    What: read off the first measured steps: a layer or group normalisation over one value, or a batch normalisation whose
    batch is one sample, so that it takes mean and variance over that sample's positions. A warning where the loss doesn't
    fall, in ``patience`` measured steps in a row and for ``warm_up_steps``; information as long as it does, as one sample a
    batch is usual in image translation.

    Why: a value less its own mean is 0, whatever it was: nothing of the input gets through, and no gradient gets back. A
    sample that is normalised by itself loses its own level and scale, by which it may differ from others; and in evaluation
    the running statistics of many samples take the place of its own, so that the net then does something else.

    What to do: take larger batches for a batch normalisation, or a normalisation that doesn't look across samples (group or
    layer normalisation over many values). Remove one over a single value.

    Attributes:
        warm_up_steps: steps for which the loss must stand; until then it is information.
        patience: measured steps in a row in which the loss must stand for it to be a warning.
    """

    code: ClassVar[str] = "GW504"
    name: ClassVar[str] = "single-value-normalization"
    warning: ClassVar[type[SingleValueNormalizationWarning]] = SingleValueNormalizationWarning
    kinds: ClassVar[tuple[str, ...]] = ("norm-of-one", "norm-of-sample")
    waiting: ClassVar[tuple[str, ...]] = kinds

    warm_up_steps: int = 50
    patience: int = 3

    def __post_init__(self) -> None:
        self._require_count(0, "warm_up_steps")
        self._require_count(1, "patience")

    def write(self, fact: Wiring, urgency: str) -> Sentences:
        """Say over what is normalised."""
        names = listed(fact.names, "module")
        if fact.kind == "norm-of-one":
            return Sentences(
                cause="A value less its own mean is 0, whatever it was, and no gradient gets back.",
                remedy=Remedy(
                    f"Remove the normalisation at {names}, or let it take many values.",
                    (Action("remove_normalization", fact.names),),
                ),
                headline=f"{names} normalises over a single value ({fact.operation}), so what comes out is its bias alone",
                message=urgency,
                causes=(Cause(CauseKind.NORM_OF_ONE),),
            )
        positions = "its" if fact.value is None else f"its {fact.value:,.0f}"
        return Sentences(
            cause="The batch is one sample, so each is normalised by itself and loses its own level and scale, by which it may differ "
            "from others; in evaluation, running statistics of many samples take their place.",
            remedy=Remedy(
                f"Train with larger batches, or put group or layer normalisation in the place of {names}.",
                (Action("larger_batch", fact.names),),
            ),
            headline=f"Batch normalisation at {names} takes mean and variance from a single sample, over {positions} positions",
            message=urgency,
            causes=(Cause(CauseKind.SINGLE_SAMPLE),),
        )
