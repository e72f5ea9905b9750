"""Checks that what was read holds what its types say: a file can hold anything, and rules rely on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_gradwatch.record import LAYER_METRICS, LOOP_VECTORS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from lightning_gradwatch.record import RunInfo, StepRecord

_OF_LAYERS = frozenset((*LAYER_METRICS, "layer_state"))
_NUMBER = (int, float)
_NONE = type(None)
_RUN: Mapping[str, tuple[type, ...]] = {
    "precision": (str,),
    "accumulation": (int,),
    "clipping": (str,),
    "planned_steps": (int, _NONE),
    "every_n_steps": (int, _NONE),
    "world_size": (int,),
    "strategy": (str,),
    "rules": (dict,),
    "versions": (dict,),
    "schema_version": (int,),
}
_LAYER: Mapping[str, tuple[type, ...]] = {
    "name": (str,),
    "kind": (str,),
    "parameters": _NUMBER,
    "weight": (bool,),
    "used": (bool, _NONE),
    "feeds": (str,),
    "place": (int, _NONE),
}
_SITE: Mapping[str, tuple[type, ...]] = {
    "name": (str,),
    "function": (str,),
    "role": (str,),
    "units": _NUMBER,
    "place": (int, _NONE),
}
_OPTIMIZER: Mapping[str, tuple[type, ...]] = {"name": (str,), "settings": (dict,)}
_NOT_COVERED: Mapping[str, tuple[type, ...]] = {"name": (str,), "reason": (str,), "sites": (int,)}


def check_description(info: RunInfo) -> None:
    """Check a description that was read from a file.

    Raises:
        ValueError: a field holds something else than its type says.
    """
    _check("run", info, _RUN)
    for part, table in (("layers", _LAYER), ("sites", _SITE), ("optimizers", _OPTIMIZER), ("coverage", _NOT_COVERED)):
        for entry in getattr(info, part):
            _check(part, entry, table)
    for optimizer in info.optimizers:
        _check_names("optimizers", optimizer.layers)
    for site in info.sites:
        _check_names("sites", (*site.predecessors, *site.past_unseen))
    for code, settings in info.rules.items():
        if not isinstance(settings, dict):
            raise ValueError(f"its description is damaged: rules.{code} is {type(settings).__name__}")  # noqa: TRY004 - damage is a ValueError everywhere in reading


def check_lengths(record: StepRecord, info: RunInfo) -> None:
    """Check that every vector of a record has as many entries as the layout has columns.

    Raises:
        ValueError: one hasn't.
    """
    of_layers, of_sites = (len(info.layers),), (len(info.sites),)
    vectors: dict[str, npt.NDArray[Any]] = {
        "layer_state": record.layer_state,
        "window_fill": record.window_fill,
        "forward_rms": record.forward_rms,
        **{name: vector for name in LOOP_VECTORS if len(vector := getattr(record, name))},
        **record.metrics,
    }
    for name, vector in vectors.items():
        shape = of_layers if name in _OF_LAYERS else of_sites
        if vector.shape != shape:
            raise ValueError(
                f"step {record.step}: {name} has shape {vector.shape} where the layout has {shape[0]} columns"
            )


def _check(part: str, entry: Any, table: Mapping[str, tuple[type, ...]]) -> None:
    for name, kinds in table.items():
        value = getattr(entry, name)
        if not isinstance(value, kinds):
            raise ValueError(f"its description is damaged: {name} of {part} is {type(value).__name__}")  # noqa: TRY004 - as above


def _check_names(part: str, names: Any) -> None:
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"its description is damaged: a name in {part} is no text")
