"""GW202: hidden units that are saturated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lightning_gradwatch.findings import Action, Finding, Remedy, SaturatedUnitsWarning, Severity
from lightning_gradwatch.rules.functions import look_up
from lightning_gradwatch.rules.protocol import Rule, State, Verdict
from lightning_gradwatch.rules.readings import count_hit, measured_sites, weight_layers, why_no_fraction
from lightning_gradwatch.rules.wording import counted, listed, percent

if TYPE_CHECKING:
    from lightning_gradwatch.record import RunInfo, SiteInfo, StepRecord


@dataclass(frozen=True, kw_only=True)
class SaturatedUnits(Rule):
    """Hidden units sit on the flat outer side of their activation function.

    What: a unit is saturated where at least 95 % of the observations of a full window lie beyond the point where the
    derivative has fallen to 7 % of its maximum: Sigmoid beyond |z| = 4, Tanh beyond |z| = 2. The rule fires where
    ``fraction`` of a hidden site's units are, in ``patience`` measured steps in a row, after ``warm_up_steps``. Output
    layers and gates are left out: there, saturation is success.

    Why: a saturated unit passes back next to nothing, whatever its weights, and learns its way out slowly or never. Typical
    causes are inputs that aren't scaled, weights that start too large, and a learning rate that throws them there.

    What to do: scale the inputs to mean 0 and variance 1; initialise with ``xavier_normal_``; put a normalisation layer
    before the function; or use ReLU with ``kaiming_normal_``.

    Attributes:
        fraction: share of a hidden site's units that is a warning.
        warm_up_steps: steps that aren't judged.
        patience: measured steps in a row that must agree.
    """

    code: ClassVar[str] = "GW202"
    name: ClassVar[str] = "saturated-units"
    warning: ClassVar[type[SaturatedUnitsWarning]] = SaturatedUnitsWarning

    fraction: float = 0.5
    warm_up_steps: int = 10
    patience: int = 3

    def __post_init__(self) -> None:
        self._require_between(0, 1, "fraction")
        self._require_count(0, "warm_up_steps")
        self._require_count(1, "patience")

    def judge(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Judge the saturated fraction of each hidden site whose window is full."""
        measured = measured_sites(record, info, "saturated_fraction")
        if not measured:
            return Verdict(unjudged=why_no_fraction(record, info, "saturated"))
        if record.step < self.warm_up_steps:
            return Verdict(unjudged=f"not yet: the first {self.warm_up_steps} steps are warm-up")
        streaks = state.setdefault("streaks", {})
        hits = []
        for site, fraction in measured:
            if fraction < self.fraction:
                streaks.pop(site.name, None)
            elif count_hit(streaks, site.name, record.step) >= self.patience:
                hits.append((site, fraction))
        if hits:
            state["reported"] = True
        pending = not state.get("reported", False) and any(site.name in streaks for site, _ in measured)
        return Verdict(
            findings={"saturated": self._finding(record, info, streaks, hits)} if hits else {},
            confirming=pending,
            unjudged=f"not yet: {counted(self.patience, 'measured step')} in a row must agree" if pending else "",
        )

    def _finding(
        self, record: StepRecord, info: RunInfo, streaks: State, hits: list[tuple[SiteInfo, float]]
    ) -> Finding:
        names = tuple(site.name for site, _ in hits)
        worst, value = max(hits, key=lambda hit: hit[1])
        functions = " and ".join(dict.fromkeys(look_up(site.function).module for site, _ in hits))
        elsewhere = f" At or above the threshold: {listed(names, 'site')}." if len(names) > 1 else ""
        return Finding(
            code=self.code,
            name=self.name,
            severity=Severity.WARNING,
            layers=names,
            first_step=min(streaks[name]["since"] for name in names),
            last_step=int(record.step),
            value=value,
            threshold=self.fraction,
            cause=(
                f"The inputs of these {functions} units lie far outside, where the function is flat: inputs or weights are too "
                "large, or a high learning rate threw them there."
            ),
            remedy=_remedy(info, names),
            message=(
                f"{percent(value)} of the units of {worst.name} are saturated: on a flat outer side in at least 95 % of the "
                f"observations. Reported from {percent(self.fraction)} of a hidden site's units.{elsewhere}"
            ),
        )


def _remedy(info: RunInfo, names: tuple[str, ...]) -> Remedy:
    layers = tuple(weight_layers(info))
    return Remedy(
        text=(
            f"Scale the inputs to mean 0 and variance 1, and initialise the weights of {listed(layers)} with xavier_normal_; "
            f"a normalisation layer before {listed(names, 'site')} keeps them in range. Or use ReLU with kaiming_normal_."
        ),
        actions=(
            Action("normalize_inputs"),
            Action("initialize", layers, (("method", "xavier_normal_"),)),
            Action("add_normalization", names),
        ),
    )
