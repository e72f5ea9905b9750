"""A rule's verdict as data, and the warnings and the error that tell it. No torch, no rendering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any

from lightning_gradwatch.record.first_bad_step import FirstBadStep


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
      module, ``""`` for the root, or a single parameter; a parametrized weight is assigned, as ``layer.weight = …``
    - ``add_skip_connections(sites)``: each adds 1/n of what it puts out to its input, n being their number
    - ``add_normalization(sites, with="LayerNorm" | "BatchNorm")``, in front of each
    - ``set_learning_rate(layers, factor=<multiplies the present one>)``: no layers are all of them
    - ``clip_gradients(norm=<largest>)``
    - ``raise_clip(norm=<largest>)`` or ``raise_clip(value=<largest>)``: the Trainer's limit; ``where="code"``: the one in the user's code
    - ``scale_weight_decay(layers, factor=<multiplies the present one>)``: no layers are all of them
    - ``warm_up(steps=<number>)``: the learning rate rises in proportion over so many optimizer steps from the first on
    - ``normalize_inputs()``, ``normalize_targets()``: to mean 0 and variance 1
    - ``set_precision(to="bf16-mixed" | "32-true")``
    - ``use_gradient_scaler()``
    - ``reconnect_graph(layers)``: find what cuts it behind them
    - ``keep_gradient(layers)``: find what throws it away between the backward pass and the optimizer's step
    - ``replace_output(sites, with="Sigmoid" | "LogSoftmax")``: none are all; ``where=`` says which line takes the logarithm that goes with it
    - ``use_or_remove(layers)``
    - ``trace_gradient()``: nothing that a program could do
    - ``remove_output(sites)``: nothing in the place of the function; ``where=`` says which line calls it, if no module does
    - ``remove_normalization(modules)``
    - ``zero_gradients(optimizer=<its class>)``: before each backward pass whose gradients its next step is to use; ``where=`` says
      which line steps
    - ``register_parameters(attributes)``: hold what is in them in ``ModuleList``, ``ModuleDict`` or ``Parameter``; ``where=`` says
      which function makes the module
    - ``add_to_optimizer(layers)``
    - ``pack_sequences(layers)``: hand them sequences by ``pack_padded_sequence``
    - ``larger_batch(modules)``: as they take their statistics from one
    - ``set_training_mode(modules)``: ``train()``, each before the fit; ``""`` for the root

    `in_code` says which of them are the user's to write, and `where` in which line.
    """
    targets: tuple[str, ...] = ()
    """Names of the layers or sites to change."""
    arguments: tuple[tuple[str, Any], ...] = ()
    """Name and plain value, such as ``("with", "ReLU")``."""

    @property
    def in_code(self) -> bool:
        """Whether it is lines of the user's code that have to change, and no module, number or setting that a program could put in."""
        if self.kind in _OF_CALLS:
            return "where" in dict(self.arguments) or any(":" in target for target in self.targets)
        return self.kind in _IN_CODE

    @property
    def where(self) -> str:
        """The line to change, such as ``forward (model.py:31)``, or in whose body; empty where it isn't known."""
        return str(dict(self.arguments).get("where", ""))


_IN_CODE = frozenset(
    (
        "add_skip_connections",
        "add_normalization",
        "reconnect_graph",
        "keep_gradient",
        "use_or_remove",
        "zero_gradients",
        "register_parameters",
        "add_to_optimizer",
        "pack_sequences",
    )
)
_OF_CALLS = frozenset(("replace_activation", "replace_output", "remove_output", "remove_normalization"))


@dataclass(frozen=True)
class Remedy:
    """What to do, twice: as data that a program can apply, and as a sentence."""

    text: str
    actions: tuple[Action, ...] = ()

    def __str__(self) -> str:
        return self.text


class CauseKind(str, Enum):
    """What brought a finding about, for programs: the sentence beside it, `Finding.cause`, says it with its numbers.

    The names stay; further ones may come with a release.
    """

    UNKNOWN = "unknown"
    """Nothing that was measured shows it; or the release that stored the finding didn't say, or knew more than this one."""

    SMALL_WEIGHTS = "small-weights"
    """Weights are too small for their activation functions and this depth."""
    LARGE_WEIGHTS = "large-weights"
    """Weights are too large for their activation functions, or for the steps that they are given."""
    FAR_BIASES = "far-biases"
    """Biases keep the inputs of activations far from 0."""
    UNSUITED_START = "unsuited-start"
    """Weights, biases or unscaled inputs: it was so from the first full window on, and the numbers don't tell which it is."""

    SMALL_SLOPE = "small-slope"
    """An activation function's derivative is below 1 wherever its inputs lie, as Sigmoid's, which is at most 1/4."""
    FLAT_REGION = "flat-region"
    """An activation function is nearly flat where its inputs lie."""
    DEAD_UNITS = "dead-units"
    """Most units of an activation are dead, and pass nothing back."""
    DEAD_LAYER = "dead-layer"
    """All units of an activation are dead, or were inactive in the whole step: nothing passes back."""
    SATURATED_UNITS = "saturated-units"
    """Units sit on the flat outer side of their activation function."""
    UNROLLED_LOOP = "unrolled-loop"
    """What each call in a loop does to the signal is multiplied over all of its calls."""

    HIGH_LEARNING_RATE = "high-learning-rate"
    """Steps were too large: the learning rate is too high, or lacks a warm-up."""
    LOW_LEARNING_RATE = "low-learning-rate"
    """Steps are too small for these weights, gradients or this loss."""
    LIMITED_STEPS = "limited-steps"
    """The optimizer gives a layer smaller steps than its gradient asks for."""
    TIGHT_CLIPPING = "tight-clipping"
    """The gradient is clipped far below its usual norm."""
    STRONG_DECAY = "strong-decay"
    """Weight decay moves the weights more than the loss does."""
    MISSING_WARM_UP = "missing-warm-up"
    """The first steps were too large, at a learning rate that may suit the later ones."""
    WEAK_GRADIENT = "weak-gradient"
    """A layer's gradient is far weaker than that of the others."""
    SMALL_FACTOR = "small-factor"
    """What a branch puts out is multiplied by a factor near 0."""
    EXPLOSION = "explosion"
    """The loss or the gradient had grown from step to step."""
    UNUSUAL_BATCH = "unusual-batch"
    """A batch is unlike those before it."""

    UNSCALED_INPUTS = "unscaled-inputs"
    """Inputs that aren't scaled drive the first activations to where they are flat."""
    UNSCALED_TARGETS = "unscaled-targets"
    """Targets that aren't scaled, or a loss that is added up where others take the mean, make the loss huge."""
    BROKEN_FROM_START = "broken-from-start"
    """Inputs, targets or weights weren't finite in the first measured step."""
    UNDEFINED_OPERATION = "undefined-operation"
    """An operation is undefined where the net has come to, such as log(0)."""
    UNDERFLOW = "underflow"
    """A signal that fades has reached the smallest number of its format."""
    NUMBER_FORMAT = "number-format"
    """The range or the precision of the number format doesn't suffice."""

    OUTPUT_APPLIED_TWICE = "output-applied-twice"
    """The loss applies softmax or sigmoid itself, and is given what one has put out."""
    LOG_OF_OUTPUT = "log-of-output"
    """The logarithm is taken of what a softmax or sigmoid has put out, and not of its argument."""
    STALE_GRADIENT = "stale-gradient"
    """Gradients aren't emptied before the next ones are added to them."""
    UNREGISTERED_PARAMETERS = "unregistered-parameters"
    """A plain attribute holds parameters, so they are none of the model's."""
    NO_OPTIMIZER = "no-optimizer"
    """No optimizer holds parameters that get a gradient."""
    SINGLE_SAMPLE = "single-sample"
    """A batch normalisation takes its statistics from a single sample."""
    EVALUATION_MODE = "evaluation-mode"
    """A module is trained that was left in evaluation mode."""

    STARVED_PART = "starved-part"
    """What a part is trained by hardly depends on it any more, as where the net that it is trained against has won."""

    UNUSED_LAYER = "unused-layer"
    """The forward pass doesn't use the layer."""
    LEFT_OUT_OF_LOSS = "left-out-of-loss"
    """The layer is used, and no loss depends on what it puts out."""
    ZERO_INPUT = "zero-input"
    """All that the layer is given is exactly 0, or padding."""
    GRAPH_CUT = "graph-cut"
    """The autograd graph is cut, as by ``detach()`` or ``torch.no_grad()``."""
    VALUES_TAKEN_OUT = "values-taken-out"
    """Values leave the autograd graph, as by ``item()``, and no loss depends on them otherwise."""
    DISCARDED_GRADIENT = "discarded-gradient"
    """A gradient arrives, and is thrown away before the optimizer steps."""
    SOFTMAX_OF_ONE = "softmax-of-one"
    """A softmax runs over a single entry."""
    CERTAIN_SOFTMAX = "certain-softmax"
    """A softmax puts everything on one entry, exactly."""
    NORM_OF_ONE = "norm-of-one"
    """A norm runs over a single value."""
    TIMES_ZERO = "times-zero"
    """An output is multiplied by the number 0."""
    ZERO_FACTOR = "zero-factor"
    """An output is multiplied by a tensor that is exactly 0 and doesn't learn."""
    ZERO_FACTORS = "zero-factors"
    """Parameters that are multiplied are all exactly 0, so that none of them has a gradient."""
    ZERO_WEIGHTS = "zero-weights"
    """An output goes through weights that are exactly 0 and stay so."""
    CLAMPED = "clamped"
    """All values lie outside the range of a clamp."""
    ROUNDED = "rounded"
    """An operation rounds, so its derivative is 0 everywhere."""
    DROPPED = "dropped"
    """Dropout lets nothing through."""
    MASKED = "masked"
    """A mask or a condition takes none of the values."""
    ZERO_DERIVATIVE = "zero-derivative"
    """An operation passes the gradient back as exactly 0."""

    def __str__(self) -> str:
        return self.value

    @classmethod
    def read(cls, name: Any) -> CauseKind:
        """Return the kind of that name; `UNKNOWN` for one that only another release knows.

        Raises:
            ValueError: it is no name.
        """
        if not isinstance(name, str):
            raise ValueError(f"a kind of cause is {name!r:.100}, no name")  # noqa: TRY004 - as all damage
        return cls(name) if name in _CAUSE_KINDS else cls.UNKNOWN


_CAUSE_KINDS = frozenset(kind.value for kind in CauseKind)


@dataclass(frozen=True)
class Cause:
    """One thing that brought a finding about."""

    kind: CauseKind
    sites: tuple[str, ...] = ()
    """The activations that are to blame; none where it isn't theirs."""


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
    cause_kind: CauseKind = CauseKind.UNKNOWN
    """What brought it about, as `cause` says in a sentence; of several things the one that is said first."""
    causes: tuple[Cause, ...] = ()
    """All that did, `cause_kind` first, with the activations that are to blame."""
    first_bad: FirstBadStep | None = None
    """Where a jump or a NaN that it tells of began; None where it tells of none, or that doesn't show."""
    headline: str = ""
    """What is wrong, where and by which number, in one sentence without a full stop: the first of the message; empty where the
    rule, or the release that stored the finding, gave none."""
    evidence: str = ""
    """What the message says beside its headline."""

    @property
    def follows(self) -> str:
        """In words whose consequence it is; empty for a root cause."""
        return f"follows from {self.consequence_of}" if self.consequence_of else ""

    @property
    def seen(self) -> str:
        """What there was to see: the headline; all of the message where there is none."""
        return self.headline or self.message.removesuffix(".")

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
                    {
                        "kind": action.kind,
                        "targets": list(action.targets),
                        "arguments": dict(action.arguments),
                        "in_code": action.in_code,
                    }
                    for action in self.remedy.actions
                ],
            },
            "message": self.message,
            "consequence_of": self.consequence_of,
            "healed_step": self.healed_step,
            "cause_kind": self.cause_kind.value,
            "causes": [{"kind": cause.kind.value, "sites": list(cause.sites)} for cause in self.causes],
            "first_bad": None if self.first_bad is None else self.first_bad.to_dict(),
            "headline": self.headline,
            "evidence": self.evidence,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Finding:
        """Build from what `to_dict` gave, in this release or in another one.

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
            cause_kind=CauseKind.read(data.get("cause_kind", CauseKind.UNKNOWN.value)),
            causes=tuple(
                Cause(kind=CauseKind.read(cause["kind"]), sites=tuple(cause["sites"]))
                for cause in data.get("causes", ())
            ),
            first_bad=None if data.get("first_bad") is None else FirstBadStep.from_dict(data["first_bad"]),
            headline=str(data.get("headline", "")),
            evidence=str(data.get("evidence", "")),
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


class LossSpikeWarning(GradWatchWarning):
    """GW105: the loss jumps, and comes back."""


class StarvedPartWarning(GradWatchWarning):
    """GW106: a part of the net gets next to no gradient any more, or can't get any."""


class DeadUnitsWarning(GradWatchWarning):
    """GW201: units that are inactive in every observation of the window."""


class SaturatedUnitsWarning(GradWatchWarning):
    """GW202: hidden units that sit on the flat outer side of their activation function."""


class StalledUpdateWarning(GradWatchWarning):
    """GW301: a weight layer hardly moves while others do."""


class OversizedUpdateWarning(GradWatchWarning):
    """GW302: a weight layer moves by a large part of itself at each step."""


class ClippedAwayWarning(GradWatchWarning):
    """GW303: clipping takes nearly all of each step away."""


class DecayDominatesWarning(GradWatchWarning):
    """GW304: weight decay, and not the loss, moves the weights."""


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


class StartFarOffWarning(GradWatchWarning):
    """GW505: the loss starts far above what one constant answer gives, and stays there."""


class EvaluationModeWarning(GradWatchWarning):
    """GW506: a module is trained that was left in evaluation mode."""


class NoProgressWarning(GradWatchWarning):
    """GW601: half of the planned steps are spent, and the loss isn't below what one constant answer gives."""
