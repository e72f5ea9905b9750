"""A rule's verdict as data, and the warnings and the error that tell it. No torch, no rendering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Severity(IntEnum):
    """How bad a finding is. INFO never warns and never fails a check."""

    INFO = 0
    WARNING = 1
    ERROR = 2

    @property
    def label(self) -> str:
        """Lower-case name, as the command line spells it."""
        return self.name.lower()


@dataclass(frozen=True)
class Action:
    """One change that a program can make to the training code's objects."""

    kind: str
    """One of these, here with what they take:

    - ``replace_activation(sites, with=<class in torch.nn>)``
    - ``initialize(layers, method=<function in torch.nn.init>, gain=<factor, 1 if absent>, bias=<value, kept if absent>)``: each a
      module, ``""`` for the root, or a parameter of the root; a parametrized weight is assigned, as ``layer.weight = …``
    - ``add_skip_connections(sites)``: each adds 1/n of what it puts out to its input, n being their number
    - ``add_normalization(sites, with="LayerNorm" | "BatchNorm")``, in front of each
    - ``set_learning_rate(layers, factor=<multiplies the present one>)``: no layers are all of them
    - ``clip_gradients(norm=<largest>)``
    - ``normalize_inputs()``, ``normalize_targets()``: to mean 0 and variance 1
    - ``set_precision(to="bf16-mixed" | "32-true")``
    - ``use_gradient_scaler()``
    - ``reconnect_graph(layers)``: find what cuts it behind them
    - ``keep_gradient(layers)``: find what throws it away between the backward pass and the optimizer's step
    - ``replace_output(sites, with="Sigmoid" | "LogSoftmax")``: none are all; ``where=`` says which line takes the logarithm that goes with it
    - ``use_or_remove(layers)``
    - ``trace_gradient()``: nothing that a program could do
    - ``remove_output(sites)``: nothing in the place of the function
    - ``remove_normalization(modules)``
    - ``zero_gradients(optimizer=<its class>)``: before each backward pass whose gradients its next step is to use; the user's code
    - ``register_parameters(attributes)``: hold what is in them in ``ModuleList``, ``ModuleDict`` or ``Parameter``; the user's code
    - ``add_to_optimizer(layers)``
    - ``larger_batch(modules)``: as they take their statistics from one
    - ``set_training_mode(modules)``: ``train()``, each before the fit; ``""`` for the root
    """
    targets: tuple[str, ...] = ()
    """Names of the layers or sites to change."""
    arguments: tuple[tuple[str, Any], ...] = ()
    """Name and plain value, such as ``("with", "ReLU")``."""


@dataclass(frozen=True)
class Remedy:
    """What to do, twice: as data that a program can apply, and as a sentence."""

    text: str
    actions: tuple[Action, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Finding:
    """A rule's verdict about a run."""

    code: str
    name: str
    severity: Severity
    layers: tuple[str, ...]
    """Names of the layers or sites, along the path."""
    first_step: int
    last_step: int
    value: float
    threshold: float
    cause: str
    remedy: Remedy
    message: str
    consequence_of: str = ""
    """Code of the run's root cause that brought this about; empty where it is one itself."""
    healed_step: int | None = None
    """First measured step that showed it gone for good, from which on it is information; None while it holds."""

    @property
    def follows(self) -> str:
        """In words whose consequence it is; empty for a root cause."""
        return f"follows from {self.consequence_of}" if self.consequence_of else ""

    @property
    def seen(self) -> str:
        """The first sentence of the message, without its full stop: what there was to see."""
        return self.message.partition(". ")[0].removesuffix(".")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` reads it back."""
        return {
            "code": self.code,
            "name": self.name,
            "severity": self.severity.label,
            "layers": list(self.layers),
            "first_step": self.first_step,
            "last_step": self.last_step,
            "value": self.value,
            "threshold": self.threshold,
            "cause": self.cause,
            "remedy": {
                "text": self.remedy.text,
                "actions": [
                    {"kind": action.kind, "targets": list(action.targets), "arguments": dict(action.arguments)}
                    for action in self.remedy.actions
                ],
            },
            "message": self.message,
            "consequence_of": self.consequence_of,
            "healed_step": self.healed_step,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Finding:
        """Build from what `to_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: the data isn't a finding.
        """
        remedy = data["remedy"]
        return cls(
            code=str(data["code"]),
            name=str(data["name"]),
            severity=Severity[str(data["severity"]).upper()],
            layers=tuple(data["layers"]),
            first_step=int(data["first_step"]),
            last_step=int(data["last_step"]),
            value=float(data["value"]),
            threshold=float(data["threshold"]),
            cause=str(data["cause"]),
            remedy=Remedy(
                text=str(remedy["text"]),
                actions=tuple(
                    Action(
                        kind=str(action["kind"]),
                        targets=tuple(action["targets"]),
                        arguments=tuple(action["arguments"].items()),
                    )
                    for action in remedy["actions"]
                ),
            ),
            message=str(data["message"]),
            consequence_of=str(data.get("consequence_of", "")),
            healed_step=None if data.get("healed_step") is None else int(data["healed_step"]),
        )


class GradWatchError(RuntimeError):
    """Raised by ``fail_on`` before the next optimizer step; `findings` holds what made it fail."""

    def __init__(self, message: str, findings: Sequence[Finding] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.findings)


class GradWatchWarning(UserWarning):
    """Any warning of the monitor; filter this class to filter them all."""


class VanishingGradientWarning(GradWatchWarning):
    """GW101: the gradient shrinks on its way to the early layers."""


class UnreachedLayerWarning(VanishingGradientWarning):
    """GW104: no gradient, or one that is exactly zero, reaches a layer."""


class ExplodingGradientWarning(GradWatchWarning):
    """GW102: the gradient grows on its way to the early layers, or over the steps."""


class NonFiniteGradientWarning(GradWatchWarning):
    """GW103: NaN or infinity in the loss, the activations or the gradients."""


class DeadUnitsWarning(GradWatchWarning):
    """GW201: units that are inactive in every observation of the window."""


class SaturatedUnitsWarning(GradWatchWarning):
    """GW202: hidden units that sit on the flat outer side of their activation function."""


class StalledUpdateWarning(GradWatchWarning):
    """GW301: a weight layer hardly moves while others do."""


class OversizedUpdateWarning(GradWatchWarning):
    """GW302: a weight layer moves by a large part of itself at each step."""


class InitializationWarning(GradWatchWarning):
    """GW401: the weights at the start can't carry the signal through this depth."""


class OutputAppliedTwiceWarning(GradWatchWarning):
    """GW501: the loss applies softmax or sigmoid to what one of them has put out."""


class StaleGradientWarning(GradWatchWarning):
    """GW502: an optimizer steps by gradients that still hold those of its step before."""


class UntrainedParameterWarning(GradWatchWarning):
    """GW503: parameters get a gradient, and no optimizer holds them."""


class SingleValueNormalizationWarning(GradWatchWarning):
    """GW504: a normalisation takes its statistics from a single value or sample."""


class EvaluationModeWarning(GradWatchWarning):
    """GW506: a module is trained that was left in evaluation mode."""
