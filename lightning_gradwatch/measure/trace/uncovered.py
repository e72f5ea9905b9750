"""What the passes of a run ran into that isn't measured: noted once a place, told once, in the run's coverage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_gradwatch.measure.model.shards import placed
from lightning_gradwatch.measure.unobserved import is_opaque

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping

    from lightning_gradwatch.measure.model.call_site import CallSite
    from lightning_gradwatch.measure.model.path import Site
    from lightning_gradwatch.measure.units.site_stats import SiteStatistics

FUSED: Mapping[str, str] = {
    "lstm": "the gates inside torch's fused LSTM aren't seen; its parameters are",
    "gru": "the gates inside torch's fused GRU aren't seen; its parameters are",
    "rnn_tanh": "the tanh inside torch's fused RNN isn't seen; its parameters are",
    "rnn_relu": "the ReLU inside torch's fused RNN isn't seen; its parameters are",
    "lstm_cell": "the gates inside torch's LSTM cell aren't seen; its parameters are",
    "gru_cell": "the gates inside torch's GRU cell aren't seen; its parameters are",
    "rnn_tanh_cell": "the tanh inside torch's RNN cell isn't seen; its parameters are",
    "rnn_relu_cell": "the ReLU inside torch's RNN cell isn't seen; its parameters are",
    "scaled_dot_product_attention": "scaled_dot_product_attention is fused: its softmax isn't seen",
    "multi_head_attention_forward": "multi_head_attention_forward is one call: its softmax isn't seen",
}
"""Torch calls that hold activation functions which can't be looked into, by name."""

OUTSIDE = "outside"
"""Key of the note about what no torch call made."""
UNTRAINED = "nothing before it is trained: there is no signal"
_ALONE = {
    "checkpoint": "inside a reentrant checkpoint: its signal isn't measured; pass use_reentrant=False",
    "function": "inside a custom autograd function: its signal isn't measured",
}
_ENTANGLED = "its signal can't be told from others in the autograd graph"
BY_HAND = "an activation function by hand that isn't counted: which one it is isn't known"
_SCATTERED = "its units lie where they can't be told from positions any more: they aren't counted"
_IN_PIECES = (
    "each of its calls takes other units of the layer before it, as one for each head does: they aren't counted"
)
_UNMASKED = "all of its positions count: its shape isn't the mask's"
BY_GRAD = (
    "gradients are taken by torch.autograd.grad, so neither the loss nor a signal is measured; call loss.backward()"
)
NO_STEP = (
    "parameters change and no optimizer was seen to step, so gradients, weights and updates aren't measured; call the optimizer's "
    "step() inside the measured step"
)
NO_TENSOR = "it returns something else than one tensor: it isn't measured"
NOT_PASSED = "no backward pass goes through it"


class Note(NamedTuple):
    """One thing that isn't measured."""

    name: str
    reason: str
    sites: int
    """Known activation sites that it stands for."""
    location: CallSite | None = None


def out_of_reach(z: Tensor) -> str:
    """Say why the units of an activation function's argument can't be counted; ``""`` where they can."""
    if torch._C._functorch.is_functorch_wrapped_tensor(z):  # noqa: SLF001 - it has no public name
        return "inside vmap or another function transform: it isn't seen"
    ordinary = type(z) is Tensor and z.layout is torch.strided and not (z.is_nested or z.is_complex())
    return "" if ordinary else _of_class(z)


def _of_class(z: Tensor) -> str:
    """Say why a tensor that isn't quite one of torch's own can't be counted, if it can't."""
    if placed(z) is not None:
        return "its argument is a DTensor, whose parts on other ranks aren't seen: it isn't measured"
    if z.is_nested:
        return "its argument is a nested tensor: it isn't measured"
    if is_opaque(z):
        return f"its argument is a {type(z).__name__}, whose values only its class knows: it isn't measured"
    if z.layout is not torch.strided:
        return "its argument is a sparse tensor: it isn't measured"
    return "its argument is complex: it isn't measured" if z.is_complex() else ""


class Uncovered:
    """The notes of a run."""

    def __init__(self) -> None:
        self._notes: dict[Hashable, Note] = {}
        self._passed: set[Site] = set()
        """Sites that had a signal once."""
        self.stepped = False
        """Whether an optimizer was ever seen to step."""
        self.alone: dict[Site, Literal["checkpoint", "function"]] = {}
        """Sites inside an autograd function that has a backward of its own."""
        self.unmasked: set[Site] = set()
        """Sites whose shape isn't that of the mask."""
        self.scattered: set[Site] = set()
        """Sites whose units can't be told apart."""
        self.changes = 0
        """How often something was added or taken back, for whoever has described the run already."""

    def __iter__(self) -> Iterator[Note]:
        return iter(self._notes.values())

    @property
    def outside(self) -> Note | None:
        """The note about what no torch call made."""
        return self._notes.get(OUTSIDE)

    def note(self, key: Hashable, note: Note) -> None:
        """Add a note, once a key."""
        if key not in self._notes:
            self._notes[key] = note
            self.changes += 1

    def knows(self, location: CallSite, function: str) -> bool:
        """Whether a call was noted."""
        return (location, function) in self._notes

    def take_steps(self, *, stepped: bool, changed: bool) -> None:
        """Note that parameters have changed and no optimizer stepped, until one does."""
        if stepped and not self.stepped:
            self.stepped = True
            self.changes += self._notes.pop(NO_STEP, None) is not None
        elif changed and not self.stepped:
            self.note(NO_STEP, Note("", NO_STEP, 0))

    def call(self, location: CallSite, function: str, reason: str) -> None:
        """Note an activation function, or a torch call that holds one, at its place."""
        inside = location.place is None or location.leaf
        name = location.module if inside and location.module else f"{location.module}:{function}"
        self.note((location, function), Note(name, reason, 1, location))

    def take_units(self) -> None:
        """Note the sites whose units can't be told apart, and those that the mask doesn't fit."""
        for site in self.scattered:
            if site.name and not site.part:
                self.note((site, "units"), Note(site.name, _IN_PIECES if site.in_pieces else _SCATTERED, 0))
        for site in self.unmasked:
            if site.name and not site.part:
                self.note((site, "mask"), Note(site.name, _UNMASKED, 0))

    def take_unreadable(self, layers: Mapping[str, str]) -> None:
        """Note the layers whose parameters can't be measured, with the reason."""
        for name, reason in layers.items():
            self.note((name, reason), Note(name, reason, 0))

    def take_signals(self, measured: Iterable[SiteStatistics]) -> None:
        """Note the sites without a signal in a step that had a backward pass, until they have one."""
        for sums in measured:
            site = sums.site
            if site in self._passed or not site.name:
                continue
            if sums.signal and sums.signal_complete:
                self._passed.add(site)
                if self._notes.pop(site, None) is not None:
                    self.changes += 1
            elif site in self.alone:
                self.note(site, Note(site.name, _ALONE[self.alone[site]], 0))
            else:
                reason = NOT_PASSED if sums.signal_complete else _ENTANGLED
                self.note(site, Note(site.name, reason, 0))
