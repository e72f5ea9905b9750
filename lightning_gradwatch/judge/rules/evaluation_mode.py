"""GW506: modules that were left in evaluation mode are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lightning_gradwatch.judge.rule import Sentences
from lightning_gradwatch.judge.wiring_rule import WiringRule, named
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, EvaluationModeWarning, Remedy
from lightning_gradwatch.record.step import Wiring
from lightning_gradwatch.record.wording import listed


@dataclass(frozen=True, kw_only=True)
class EvaluationMode(WiringRule):
    """A module is trained that was left in evaluation mode.

    What: read off the first measured steps: a batch normalisation or a dropout runs in evaluation mode, as does the module
    around it, and most of that one's parameters are trained. Frozen parts are quiet, and so is a normalisation or dropout
    that was put in evaluation mode by itself, as is done on purpose. Information once the loss has come down to half.

    Why: in evaluation mode a batch normalisation uses its running statistics and doesn't update them: in a net that starts
    from scratch they are 0 and 1, so it normalises nothing. Dropout does nothing. Lightning trains a model in the mode it finds
    it in: one that ``eval()`` was called on, or that was loaded for inference (``from_pretrained`` does), stays so.

    What to do: call ``train()`` on the module before the fit begins, as at the end of ``__init__`` or in ``on_fit_start``.

    It has no threshold.
    """

    code: ClassVar[str] = "GW506"
    name: ClassVar[str] = "evaluation-mode"
    warning: ClassVar[type[EvaluationModeWarning]] = EvaluationModeWarning
    kinds: ClassVar[tuple[str, ...]] = ("evaluation-mode",)

    def write(self, fact: Wiring, urgency: str) -> Sentences:
        """Say which modules."""
        names = listed(named(fact.names), "module")
        does = (
            "the batch normalisations in it use running statistics that nothing updates"
            if fact.operation == "batch_norm"
            else "the dropouts in it do nothing"
        )
        return Sentences(
            cause=f"eval() was called on it, or it was loaded for inference, and nothing has called train() since: {does}.",
            remedy=Remedy(
                f"Call train() on {names} before the fit begins; freeze it where it isn't to be trained.",
                (Action("set_training_mode", fact.names),),
            ),
            headline=f"{'The' + names[3:] if names.startswith('the ') else names} is trained in evaluation mode",
            message=urgency,
            causes=(Cause(CauseKind.EVALUATION_MODE),),
        )
