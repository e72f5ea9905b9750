"""How each strategy trains a model, and so how what its processes measure is put together: the one place that says it.

A row a strategy (`STRATEGIES`), found by the name of its class or of one that it derives from, as Lightning exists as two
packages with classes of their own. What no row knows is refused where it trains with several processes: a number that was
put together by a guess looks like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch.distributed as dist

from lightning_gradwatch.fit.ranks.exchange import Exchange
from lightning_gradwatch.fit.ranks.ranks import Ranks
from lightning_gradwatch.measure.faults import Unsupported
from lightning_gradwatch.measure.model.shards import Shards

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_gradwatch.measure.faults import Faults


class DataPart(NamedTuple):
    """The part of each batch that a process sees; processes that see the same one share the work on it."""

    place: int
    of: int


def _by_sampler(trainer: Any) -> DataPart:
    """Return what Lightning tells the sampler, which has a part for each process, or for several that share a model."""
    told = trainer.strategy.distributed_sampler_kwargs or {}
    return DataPart(told.get("rank", trainer.global_rank), told.get("num_replicas", trainer.world_size))


@dataclass(frozen=True)
class Strategy:
    """What is known of a strategy.

    Whose gradients: those an optimizer is about to use, once the processes have averaged them over the parts of the data;
    so the loss is the mean of the parts' losses, and δ of it a process's own divided by their number.
    """

    classes: tuple[str, ...]
    """The names of Lightning's classes, and of others."""
    trains: str
    """What it does with the model, for the documentation."""
    why_not: str = ""
    """Why nothing can be measured under it; empty where it can."""
    instead: str = ""
    """What to train with, to have it measured."""
    shards: Callable[[int], Shards] = Shards
    """Makes of the number of processes what says how they hold the parameters and gradients."""
    data_part: Callable[[Any], DataPart] = _by_sampler
    """Returns of a Trainer which part of the data this process sees."""


_SHARDED_INSTEAD = "ModelParallelStrategy (FSDP2) if the model needs sharding, and with DDP otherwise"
STRATEGIES = (
    Strategy(("SingleDeviceStrategy",), "One process holds the model and sees all of the data."),
    Strategy(
        ("DDPStrategy",),
        "Each process holds the whole model and sees a part of the data of its own.",
    ),
    Strategy(
        ("ModelParallelStrategy",),
        "FSDP2, tensor parallelism, or both: parameters and gradients are DTensors, which say what each process holds; the "
        "processes of one data-parallel place share the work on their part of the data.",
    ),
    Strategy(
        ("FSDPStrategy",),
        "FSDP's first version.",
        why_not="FSDP keeps parameters as flat parts without their shapes",
        instead=_SHARDED_INSTEAD,
    ),
    Strategy(
        ("DeepSpeedStrategy", "HPUDeepSpeedStrategy"),
        "DeepSpeed's engine, in all stages of ZeRO.",
        why_not="DeepSpeed keeps gradients and weights in flat buffers of its own",
        instead=_SHARDED_INSTEAD,
    ),
    Strategy(
        ("MegatronStrategy", "NLPDDPStrategy"),
        "Megatron's tensor and pipeline parallelism, as NeMo has it.",
        why_not="Megatron splits layers over processes in plain tensors that don't say which part is where, and its pipeline "
        "holds other layers in each",
        instead="ModelParallelStrategy, whose tensor parallelism is told by its tensors (DTensor), or with DDP",
    ),
    Strategy(
        ("XLAStrategy", "XLAFSDPStrategy", "SingleDeviceXLAStrategy"),
        "Any training on XLA's devices.",
        why_not="XLA runs a step when its results are asked for, long after it was written down",
        instead='DDP on another device (accelerator="cpu" for a few steps, say)',
    ),
)
"""Those that are measured, each with its processes' numbers put together, and those that are known not to be.

A strategy that derives from several is what the first of its classes is that has a row, and refused if any of them is.
"""

_UNKNOWN = Strategy(
    (),
    "Unknown, and with several processes.",
    why_not="it isn't known how its processes share the model and the data, so their numbers can't be put together",
    instead="DDP or ModelParallelStrategy, or derive the strategy from DDPStrategy where each process holds the whole model "
    "and gradients are averaged over all of them before the optimizer steps",
)


def strategy_of(trainer: Any) -> Strategy:
    """Return the row of a Trainer's strategy.

    Raises:
        Unsupported: nothing can be measured under it; the message names it, and says why and what to do.
    """
    names = [kind.__name__ for kind in type(trainer.strategy).__mro__]
    found = [row for name in names for row in STRATEGIES if name in row.classes]
    alone = trainer.world_size == 1
    found.sort(key=lambda row: not row.why_not)
    row = found[0] if found else STRATEGIES[0] if alone else _UNKNOWN
    if row.why_not:
        raise Unsupported(f"{row.why_not} (strategy {name_of(trainer)}). To have it measured, train with {row.instead}")
    if not alone and not (
        dist.is_available() and dist.is_initialized() and dist.get_world_size() == trainer.world_size
    ):
        raise Unsupported(
            f"the {trainer.world_size} processes of {name_of(trainer)} aren't those of a process group of "
            "torch.distributed, through which their numbers could be put together. To have them measured, train with DDP"
        )
    return row


class Joined(NamedTuple):
    """How the processes of a fit are measured as one."""

    shards: Shards
    """What this one holds of the model."""
    ranks: Ranks | None
    """Its part in the exchanges with the others; None where it trains alone."""


def join(trainer: Any, faults: Faults, *, automatic: bool) -> Joined:
    """Join the processes that train a model; called by all of them, at the same place.

    Args:
        trainer: The Trainer.
        faults: Of this process's monitor.
        automatic: Whether Lightning steps the optimizers, so that all processes know when one steps.

    Raises:
        Unsupported: this fit can't be measured.
    """
    row, processes = strategy_of(trainer), world_size(trainer)
    if processes == 1:
        return Joined(row.shards(1), None)
    try:
        exchange = Exchange()
    except (RuntimeError, ValueError) as error:
        raise Unsupported(
            f"no gloo process group can be made, through which the ranks exchange their numbers ({error})"
        ) from error
    part = row.data_part(trainer)
    # Between the end of a step and the next, a device has no time to hand the numbers over without being waited for. Under
    # manual optimization the ranks have to know at once whether a batch was a step.
    waits = trainer.strategy.root_device.type == "cpu" or not automatic
    ranks = Ranks(
        exchange,
        faults,
        optimizers=len(trainer.optimizers),
        replica=part.place,
        replicas=part.of,
        lag=0 if waits else 2,
    )
    return Joined(row.shards(processes), ranks)


# -- what is asked of any strategy, known or not


def leads(trainer: Any) -> bool:
    """Whether this process writes and warns, of those that train a model together."""
    return bool(trainer.is_global_zero)


def world_size(trainer: Any) -> int:
    """Return how many processes train the model together."""
    return int(trainer.world_size)


def name_of(trainer: Any) -> str:
    """Return the name of a strategy's class, by which a run's description tells it."""
    return type(trainer.strategy).__name__


def runs_training_step(trainer: Any) -> Any:
    """Return the object whose ``training_step`` is called for each batch."""
    return trainer.strategy
