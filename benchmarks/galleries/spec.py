"""A case as data: what is learned, by which net, how it is trained, and which root cause a judge should name.

Nothing here is a torch object, so that a case can be listed, split and changed by a program before anything is built.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SEEDS = (0, 1, 2, 3, 4)
"""Fixed together with the list of cases, before any threshold was looked at."""

Half: TypeAlias = Literal["calibration", "report"]
HALVES: tuple[Half, Half] = ("calibration", "report")


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is learned, and how it is presented to the net."""

    task: str
    """A row of `data.TASKS`."""
    inputs: Literal["standard", "raw", "unguarded"] = "standard"
    """``raw``: in the units they come in. ``unguarded``: standardised with no guard against features that never vary."""
    targets: Literal["standard", "raw"] = "standard"
    scale: float = 1.0
    """What the inputs are multiplied by at last."""
    shuffled: bool = False
    """Whether targets belong to other inputs."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """How the weights start; where a net has none, PyTorch's default stays."""

    method: str
    """A function of ``torch.nn.init``."""
    arguments: Mapping[str, float] = field(default_factory=dict)
    gain: float = 1.0
    """What the weights are multiplied by after that."""
    bias: float = 0.0


HE = Start(method="kaiming_normal_")
XAVIER = Start(method="xavier_normal_")


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Blocks of a linear layer, a norm, an activation function; an output layer."""

    widths: tuple[int, ...]
    activation: str = "ReLU"
    start: Start | None = HE
    norm: Literal["", "BatchNorm", "LayerNorm", "SingleNorm"] = ""
    """``SingleNorm``: a group of its own for each channel, which of features is a norm over one value."""
    skip: float = 0.0
    """Weight of a block beside its skip connection; 0: no skip connections."""
    zero_branch: bool = False
    """Whether the blocks' norms start at 0, so that each block starts as its skip connection."""
    dropout: float = 0.0
    zero_head: bool = False
    output: str = ""
    """A module after the output layer, such as ``Sigmoid``."""
    outputs: int | None = None
    """Other than what the task asks for."""
    detached: int | None = None
    """Cut the graph behind so many blocks."""
    frozen: int = 0
    """So many first blocks don't train."""
    lora: int = 0
    """Rank of an adapter beside each frozen block, whose second factor starts at 0."""
    listed: int = 0
    """So many first blocks are held by a Python list, which makes them no part of the net."""


@dataclass(frozen=True, kw_only=True)
class Conv(Dense):
    """The same of 3x3 convolutions; `widths` are channels. The mean over all positions goes to the output layer."""

    pooled: tuple[int, ...] = ()
    """Blocks that are followed by a max-pooling."""


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """A recurrent cell written as a loop: h = f(W x + U h)."""

    width: int
    activation: str = "Tanh"
    start: Start | None = None
    """Of U; W keeps PyTorch's default."""
    skip: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Recurrent:
    """One of torch's recurrent modules and an output layer at its last position."""

    cell: Literal["RNN", "LSTM", "GRU"]
    width: int


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """Torch's encoder layers and an output layer behind the mean over positions."""

    depth: int
    width: int = 32
    norm_first: bool = True
    activation: str = "gelu"
    zero_head: bool = False
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Towers:
    """Two nets, each for one half of the features; their outputs are added."""

    tower: Dense
    detached: bool = False
    """Whether the second one's output is cut off from the graph."""


@dataclass(frozen=True, kw_only=True)
class Gan:
    """A generator and a discriminator, each with an optimizer of its own."""

    generator: Dense
    discriminator: Dense
    loss: Literal["bce", "squares", "saturating"] = "bce"
    """``saturating``: the generator minimises log(1 - D(G(z)))."""
    critic_steps: int = 1
    """Discriminator steps to one of the generator."""
    rates: tuple[float, float] | None = None
    """Learning rates of generator and discriminator; None: both have the training's."""
    alternating: bool = False
    """Whether they take turns by batch, and not within one."""


@dataclass(frozen=True, kw_only=True)
class Variational:
    """An autoencoder of a normal distribution for each example, whose distance from the standard one is added to the loss."""

    encoder: Dense
    decoder: Dense
    latent: int = 8
    weight: float = 1e-3
    """Of the prior's term, in nats an example."""


Net: TypeAlias = Dense | Unrolled | Recurrent | Transformer | Towers | Gan | Variational


@dataclass(frozen=True, kw_only=True)
class Training:
    """Optimizer and loop."""

    optimizer: str = "SGD"
    rate: float = 0.1
    options: Mapping[str, float] = field(default_factory=dict)
    """Further arguments of the optimizer."""
    steps: int = 300
    """Optimizer steps."""
    batch: int = 64
    loss: str = ""
    """A row of `losses.LOSSES`; empty: the task's own."""
    loss_scale: float = 1.0
    schedule: Literal["", "warmup", "cosine", "cyclic", "restarts"] = ""
    accumulate: int = 1
    clip: float | None = None
    clip_by: Literal["norm", "value"] = "norm"
    precision: str = "32-true"
    scaler: bool = True
    """Whether float16 mixed precision has a gradient scaler."""
    pretrained: int = 0
    """Steps of plain training on the first half of the classes, before the run."""
    by_hand: int = 0
    """Under manual optimization, batches whose gradients are added up for a step; 0: automatic optimization."""
    empties: bool = True
    """Whether gradients are emptied before those of the next step are added."""
    evaluated: tuple[str, ...] = ()
    """Parts of the net that are left in evaluation mode; ``""`` is all of it."""
    held: str = ""
    """The part of the net whose parameters the optimizer is given; empty: all."""
    thawed: int | None = None
    """Step from which on all of the net trains."""
    penalty: float = 0.0
    """Weight of the squared norm of the loss's gradient by the inputs."""
    odd: tuple[int, float] | None = None
    """A step whose inputs are multiplied, and by what."""
    stopped: int | None = None
    """The step in which a callback ends the fit."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run to train: ill if it has root causes, else healthy. What it truly is, its outcome says."""

    name: str
    """Family and what is special, such as ``vanishing-activation/sigmoid-8-sgd``."""
    data: Data
    net: Net
    training: Training
    roots: tuple[str, ...] = ()
    """Codes of rules that name the root cause, any of which is right."""

    @property
    def family(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]

    @property
    def ill(self) -> bool:
        """Whether the case is meant not to learn."""
        return bool(self.roots)


def split(cases: Sequence[Case]) -> dict[str, Half]:
    """Return each case's half by name: within a family they alternate, in the order of the list.

    Thresholds may be chosen by the calibration half; what is reported of a finished rule set comes from the other.
    """
    seen: Counter[str] = Counter()
    halves: dict[str, Half] = {}
    for case in cases:
        halves[case.name] = HALVES[seen[case.family] % 2]
        seen[case.family] += 1
    return halves
