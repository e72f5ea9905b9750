"""GW502: an optimizer steps by gradients to which those of its step before were added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lightning_gradwatch.judge.rule import Sentences
from lightning_gradwatch.judge.wiring_rule import WiringRule, at
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Remedy, StaleGradientWarning
from lightning_gradwatch.record.step import Wiring
from lightning_gradwatch.record.wording import listed, number


@dataclass(frozen=True, kw_only=True)
class StaleGradient(WiringRule):
    """An optimizer steps by gradients that still hold those of its step before.

    What: read off the first measured steps that follow each other. When a backward pass begins, the gradients that an
    optimizer has stepped by are still there, and nothing empties them before its next step: the new ones are added to
    them. Gradients that are added up over several passes of one step are meant, and so are those that another network's
    pass leaves, as in a GAN, if they are emptied before they are used. Information once the loss has come down to half.

    Why: each step goes by the sum of all gradients so far, with equal weight: what the net did wrong at the start pushes it
    on for ever, so the loss jumps about, and the steps grow with the number of them.

    What to do: call ``optimizer.zero_grad()`` before each backward pass whose gradients the next step is to use, or right
    after each step. Lightning does it by itself, unless the optimization is manual or ``optimizer_zero_grad`` is overridden.

    It has no threshold.
    """

    code: ClassVar[str] = "GW502"
    name: ClassVar[str] = "stale-gradient"
    warning: ClassVar[type[StaleGradientWarning]] = StaleGradientWarning
    kinds: ClassVar[tuple[str, ...]] = ("stale-gradient",)
    traced: ClassVar[bool] = False

    def write(self, fact: Wiring, urgency: str) -> Sentences:
        """Say what was left."""
        left = (
            "" if fact.value is None else f", which were {number(fact.value)} times as large as the new ones (L2 norm)"
        )
        return Sentences(
            cause="Nothing empties them in between, so each step goes by the sum of all gradients since the start: directions that "
            "are long out of date go on counting, and the steps grow.",
            remedy=Remedy(
                "Call optimizer.zero_grad() before each backward pass whose gradients the next step is to use, or after each step.",
                (
                    Action(
                        "zero_gradients",
                        (),
                        (("optimizer", fact.operation), *((("where", fact.line),) if fact.line else ())),
                    ),
                ),
            ),
            headline=(
                f"Gradients aren't set to 0 between steps: {fact.operation} changes {listed(fact.names)} by what still holds those of its "
                f"step before{left}{at(fact)}"
            ),
            message=urgency,
            causes=(Cause(CauseKind.STALE_GRADIENT),),
        )
