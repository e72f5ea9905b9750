"""Remedies whose parts agree: what to change in a net so that, with all of it done, it should learn.

Each part is said and listed as data at once, so that the two can't differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.judge.rates import rate_factor
from lightning_gradwatch.judge.readings import hidden_sites
from lightning_gradwatch.record.finding import Action, Remedy
from lightning_gradwatch.record.wording import either, listed, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.record.activations import Trouble
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import SiteInfo

DEEP_SITES = 12
"""Hidden sites from which the right start alone no longer trains a plain net (ReLU, ELU, GELU; digits, width 64, SGD)."""
_NAMED = 3
"""Layers that are named one by one, as `listed` does."""
_START_OF_THEIR_OWN = ("LSTM", "GRU", "RNN", "MultiheadAttention")

CLIP_GRADIENTS = Action("clip_gradients", (), (("norm", 1.0),))
"""To a norm of 1, the usual limit."""
SCALE_TARGETS = Remedy(
    "Scale the targets to mean 0 and variance 1, and take the mean of the loss.", (Action("normalize_targets"),)
)


class Prescription:
    """Collects the parts of a remedy, each a clause and an action."""

    def __init__(self, info: RunInfo) -> None:
        self._info = info
        self._clauses: list[str] = []
        self._actions: list[Action] = []
        self._replaced: set[str] = set()

    def replace(self, sites: Sequence[SiteInfo], trouble: Trouble) -> None:
        """Put another function in the place of some sites', which fades or dies; none where there are no sites."""
        alike: dict[tuple[str, ...], list[SiteInfo]] = {}
        for site in sites:
            alike.setdefault(site.activation.instead(trouble), []).append(site)
        for modules, own in alike.items():
            names = tuple(site.name for site in own)
            self._replaced.update(names)
            spelled = " and ".join(dict.fromkeys(site.activation.module for site in own))
            self._add(
                f"replace {spelled} at {listed(names, 'activation')} by {either(modules)}",
                Action("replace_activation", names, (("with", modules[0]),)),
            )

    def clip_gradients(self) -> None:
        """Bound what a step goes by."""
        self._add("clip the gradient norm to 1", CLIP_GRADIENTS)

    def initialize(self, only: Sequence[int] | None = None) -> None:
        """Start weight layers, None: all, as the functions ask for that the net has when the rest is done."""
        weights = [self._info.layers[column] for column in (self._info.weight_columns if only is None else only)]
        layers = tuple(
            dict.fromkeys(layer.holder for layer in weights if not layer.kind.startswith(_START_OF_THEIR_OWN))
        )
        if not layers:
            return
        method = self.method
        every = only is None and len(layers) == len(weights) > _NAMED
        which = f"all {len(layers)} layers" if every else listed([each or "the root" for each in layers])
        self._add(
            f"initialise the weights of {which} with {method} and the biases with 0",
            Action("initialize", layers, (("method", method), ("bias", 0.0))),
        )

    @property
    def method(self) -> str:
        """How the weights should start."""
        kept = [site.activation for _, site in hidden_sites(self._info) if site.name not in self._replaced]
        linear = bool(kept) and not self._replaced and all(function.linear for function in kept)
        return "xavier_normal_" if linear else "kaiming_normal_"

    def add_skip_connections(self) -> None:
        """Add skip connections, where the net is too deep to learn without."""
        names = tuple(site.name for _, site in hidden_sites(self._info))
        if len(names) >= DEEP_SITES:
            self._add(
                f"with {len(names)} hidden activations, add skip connections (x + layer(x) / {len(names)})",
                Action("add_skip_connections", names),
            )

    def normalize_inputs(self) -> None:
        """Scale what goes into the net."""
        self._add("scale the inputs to mean 0 and variance 1", Action("normalize_inputs"))

    def take_smaller_steps(self, update: float, *, unscaled: bool) -> None:
        """Scale the targets where they make the steps large, else lower the learning rate.

        Args:
            update: The largest update ratio seen.
            unscaled: Whether it is the targets.
        """
        if unscaled:
            self._add(SCALE_TARGETS.text[:1].lower() + SCALE_TARGETS.text[1:-1], *SCALE_TARGETS.actions)
        else:
            self.lower_learning_rate(update)

    def lower_learning_rate(self, update: float) -> None:
        """Lower the learning rate, by as much as the largest update ratio seen asks for."""
        factor = min(rate_factor(self._info, update), 0.1) if update > 0.1 else 0.1
        self._add(
            f"multiply the learning rate by {number(factor)}, or warm it up",
            Action("set_learning_rate", (), (("factor", factor),)),
        )

    def add(self, clause: str, action: Action) -> None:
        """Add a part of another kind."""
        self._add(clause, action)

    def remedy(self) -> Remedy:
        """Return the remedy."""
        text = "; ".join(self._clauses)
        return Remedy(f"{text[:1].upper()}{text[1:]}.", tuple(self._actions))

    def _add(self, clause: str, action: Action) -> None:
        self._clauses.append(clause)
        self._actions.append(action)
