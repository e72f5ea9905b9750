"""Checks that what was read holds what its types say, in the range that they mean: a file can hold anything, and rules rely on it."""

from __future__ import annotations

import dataclasses
import math
from itertools import chain
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.record.metrics import RECORD_VECTORS, is_over_layers
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import (
    NOT_TOLD,
    LayerInfo,
    NotCovered,
    OptimizerInfo,
    SiteInfo,
    Wiring,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from lightning_gradwatch.record.finding import Finding
    from lightning_gradwatch.record.run_end import RunEnd
    from lightning_gradwatch.record.step import StepRecord

MAX_NAME = 4096
"""Characters of a name: of a layer, a site, a class, an optimizer."""
MAX_SENTENCES = 1 << 18
"""Characters of a text: a cause, a remedy, a reason."""
MAX_COLUMNS = 100_000
"""Layers, and sites."""
MAX_COUNT = 2**63
"""Whole numbers of a file are counts of something; what is larger than a float can count is none."""

_MOST_ENTRIES = 2.0**1000  # of a parameter; a float holds sums of them
_MOST_DIMENSIONS = 64
_MOST_SHAPES = 10_000
_MOST_OPTIMIZERS = 10_000
_MOST_RATES = 1_000_000
_MOST_FINDINGS = 10_000
_DEEPEST = 4
_MOST_SETTINGS = 1000


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_SENTENCES


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT


def _is_count_or_none(value: Any) -> bool:
    return value is None or _is_count(value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_flag_or_none(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and -MAX_COUNT <= value <= MAX_COUNT)


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_shapes(value: Any) -> bool:
    return len(value) <= _MOST_SHAPES and all(
        len(shape) <= _MOST_DIMENSIONS and all(map(_is_count, shape)) and math.prod(shape) <= _MOST_ENTRIES
        for shape in value
    )


def _is_inputs(value: Any) -> bool:
    return len(value) <= _MOST_SHAPES and all(each == NOT_TOLD or _is_count(each) for each in value)


def _is_names(value: Any) -> bool:
    return all(map(_is_name, value))


def _is_numbers(value: Any) -> bool:
    return all(map(_is_number, value))


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Tell whether a value is a setting: a number, a text, a flag, nothing, or a few of them."""
    if isinstance(value, (dict, list)):
        held = value.values() if isinstance(value, dict) else value
        names = value if isinstance(value, dict) else ()
        few = depth < _DEEPEST and len(value) <= _MOST_SETTINGS
        return few and _is_names(names) and all(_is_plain(each, depth + 1) for each in held)
    return value is None or isinstance(value, bool) or _is_text(value) or _is_number(value)


def _is_settings(value: Any) -> bool:
    return isinstance(value, dict) and _is_plain(value)


def _is_rules(value: Any) -> bool:
    return _is_settings(value) and all(map(_is_settings, value.values()))


def _is_versions(value: Any) -> bool:
    return _is_settings(value) and _is_names(value.values())


_RUN: Mapping[str, Callable[[Any], bool]] = {
    "precision": _is_name,
    "accumulation": _is_count,
    "clipping": _is_name,
    "planned_steps": _is_count_or_none,
    "every_n_steps": _is_count_or_none,
    "world_size": _is_count,
    "strategy": _is_name,
    "rules": _is_rules,
    "versions": _is_versions,
    "schema_version": _is_count,
}
_LAYER: Mapping[str, Callable[[Any], bool]] = {
    "name": _is_name,
    "kind": _is_name,
    "shapes": _is_shapes,
    "parameters": _is_count,
    "weight": _is_flag,
    "used": _is_flag_or_none,
}
_LAYER_LATER: Mapping[str, Callable[[Any], bool]] = {
    "feeds": _is_name,
    "place": _is_count_or_none,
    "inputs": _is_inputs,
}
_SITE: Mapping[str, Callable[[Any], bool]] = {
    "name": _is_name,
    "function": _is_name,
    "role": _is_name,
    "units": _is_count,
    "predecessors": _is_names,
}
_SITE_LATER: Mapping[str, Callable[[Any], bool]] = {"past_unseen": _is_names, "place": _is_count_or_none}
_LOST: Mapping[str, Callable[[Any], bool]] = {
    "kind": _is_name,
    "operation": _is_name,
    "module": _is_name,
    "lines": _is_names,
    "factors": _is_names,
}
_OPTIMIZER: Mapping[str, Callable[[Any], bool]] = {
    "name": _is_name,
    "settings": _is_settings,
    "layers": _is_names,
    "rates": _is_numbers,
}
_OPTIMIZER_LATER: Mapping[str, Callable[[Any], bool]] = {"decays": _is_numbers}
_NOT_COVERED: Mapping[str, Callable[[Any], bool]] = {"name": _is_name, "reason": _is_text, "sites": _is_count}
_WIRING: Mapping[str, Callable[[Any], bool]] = {
    "kind": _is_name,
    "names": _is_names,
    "operation": _is_name,
    "line": _is_name,
    "value": _is_number_or_none,
    "origin": _is_name,
}
# What every release wrote; a field that came later is checked where it is there.
_PARTS: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "layers": _LAYER,
    "sites": _SITE,
    "optimizers": _OPTIMIZER,
    "coverage": _NOT_COVERED,
}
_LATER: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "layers": _LAYER_LATER,
    "sites": _SITE_LATER,
    "optimizers": _OPTIMIZER_LATER,
    "wiring": _WIRING,
}
_KNOWN_OF_RUN = frozenset(entry.name for entry in dataclasses.fields(RunInfo))
_KNOWN = {
    part: frozenset(entry.name for entry in dataclasses.fields(cls))
    for part, cls in (
        ("layers", LayerInfo),
        ("sites", SiteInfo),
        ("optimizers", OptimizerInfo),
        ("coverage", NotCovered),
        ("wiring", Wiring),
    )
}
_FINDING: Mapping[str, Callable[[Any], bool]] = {
    "code": _is_name,
    "name": _is_name,
    "layers": _is_names,
    "first_step": _is_count,
    "last_step": _is_count,
    "value": _is_number,
    "threshold": _is_number,
    "cause": _is_text,
    "message": _is_text,
    "headline": _is_text,
    "evidence": _is_text,
    "consequence_of": _is_name,
}
_ACTION: Mapping[str, Callable[[Any], bool]] = {
    "kind": _is_name,
    "targets": _is_names,
    "arguments": lambda value: all(_is_name(name) and _is_plain(each) for name, each in value),
}
_CAUSE: Mapping[str, Callable[[Any], bool]] = {"sites": _is_names}
_FIRST_BAD: Mapping[str, Callable[[Any], bool]] = {
    "layer": _is_name,
    "metric": _is_name,
    "site": _is_name,
    "before": _is_number_or_none,
    "after": _is_number_or_none,
    "step": _is_count,
    "batch": _is_count,
    "last_good_step": _is_count_or_none,
    "last_good_batch": _is_count_or_none,
    "learning_rate": _is_number_or_none,
    "learning_rate_before": _is_number_or_none,
}
_END: Mapping[str, Callable[[Any], bool]] = {
    "how": _is_name,
    "steps": _is_count,
    "planned_steps": _is_count_or_none,
    "error": _is_name,
}
_MOST_CAUSES = 100
_RECORD_COUNTS = ("step", "batch_idx", "world_size")


def missing_key(data: Mapping[str, Any]) -> str | None:
    """Return a key that a description lacks; every release wrote all of these, so one that isn't there was changed."""
    whole = ((key, data, key) for key in (*_RUN, *_PARTS))
    parts = ((key, entry, f"{part}.{key}") for part, table in _PARTS.items() for entry in data[part] for key in table)
    return next((name for key, entry, name in chain(whole, parts) if key not in entry), None)


def unknown_keys(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of a description that this release doesn't know, each once."""
    whole = (key for key in data if key not in _KNOWN_OF_RUN)
    parts = (
        f"{part}.{key}"
        for part, known in _KNOWN.items()
        for entry in data.get(part) or ()
        for key in entry
        if key not in known
    )
    return tuple(dict.fromkeys(chain(whole, parts)))


def check_description(info: RunInfo) -> None:
    """Check a description that was read from a file.

    Raises:
        ValueError: a field holds something else than its type says, or what no run could have.
    """
    for part in ("layers", "sites", "coverage", "wiring"):
        count = len(getattr(info, part) or ())
        if count > MAX_COLUMNS:
            raise ValueError(f"its description is damaged: {count:,} {part}; at most {MAX_COLUMNS:,} are read")
    if len(info.optimizers) > _MOST_OPTIMIZERS or len(info.optimizers) * len(info.layers) > _MOST_RATES:
        raise ValueError(
            f"its description is damaged: {len(info.optimizers):,} optimizers of {len(info.layers):,} layers"
        )
    _check("run", info, _RUN)
    for part, table in (*_PARTS.items(), *_LATER.items()):
        for entry in getattr(info, part) or ():
            _check(part, entry, table)
    for layer in info.layers:
        if layer.lost is not None:
            _check("layers", layer.lost, _LOST)


def check_finding(finding: Finding) -> None:
    """Check a finding that was read from a file.

    Raises:
        ValueError: a field holds what no finding could have.
    """
    _check("a finding", finding, _FINDING, whole="a finding of it")
    if not _is_text(finding.remedy.text):
        raise ValueError(f"a finding of it is damaged: remedy is {_told(finding.remedy.text)}")
    for action in finding.remedy.actions:
        _check("an action", action, _ACTION, whole="a finding of it")
    if len(finding.causes) > _MOST_CAUSES:
        raise ValueError(f"a finding of it is damaged: it has {len(finding.causes):,} causes")
    for cause in finding.causes:
        _check("a cause", cause, _CAUSE, whole="a finding of it")
    if finding.first_bad is not None:
        _check("a first bad step", finding.first_bad, _FIRST_BAD, whole="a finding of it")


def check_end(end: RunEnd) -> None:
    """Check a run's end that was read from a file.

    Raises:
        ValueError: a field holds what no end could have.
    """
    _check("the end", end, _END, whole="its end")


def check_record(record: StepRecord) -> None:
    """Check the numbers of a record that was read from a file, but for its vectors: any float may stand in these.

    Raises:
        ValueError: one is out of the range of what it counts.
    """
    for name in _RECORD_COUNTS:
        value = getattr(record, name)
        if not 0 <= value < MAX_COUNT:
            raise ValueError(f"{name} is {_told(value)}")
    if len(record.layout) > MAX_NAME:
        raise ValueError(f"layout is {_told(record.layout)}")
    if len(record.optimizers) > _MOST_OPTIMIZERS or not all(map(_is_count, record.optimizers)):
        raise ValueError("optimizers holds what is no index of an optimizer")
    if len(record.learning_rates) > _MOST_OPTIMIZERS or not _is_numbers(record.learning_rates):
        raise ValueError("learning_rates holds what is no learning rate of an optimizer")
    if len(record.constant_answer) not in {0, 4} or not _is_numbers(record.constant_answer):
        raise ValueError("constant_answer holds what is no loss of one")
    if len(record.optimizer_losses) > _MOST_OPTIMIZERS or not _is_numbers(record.optimizer_losses):
        raise ValueError("optimizer_losses holds what is no loss of an optimizer")


def check_lengths(record: StepRecord, info: RunInfo) -> None:
    """Check that every vector of a record has as many entries as the layout has columns.

    Raises:
        ValueError: one hasn't.
    """
    of_layers, of_sites = (len(info.layers),), (len(info.sites),)
    vectors: dict[str, npt.NDArray[Any]] = {
        name: getattr(record, name)
        for name, kind in RECORD_VECTORS.items()
        if not kind.is_optional or len(getattr(record, name))
    }
    for name, vector in {**vectors, **record.metrics}.items():
        shape = of_layers if is_over_layers(name) else of_sites
        if vector.shape != shape:
            raise ValueError(
                f"step {record.step}: {name} has shape {vector.shape} where the layout has {shape[0]} columns"
            )


def _check(
    part: str, entry: Any, table: Mapping[str, Callable[[Any], bool]], *, whole: str = "its description"
) -> None:
    for name, holds in table.items():
        value = getattr(entry, name)
        if not holds(value):
            raise ValueError(f"{whole} is damaged: {name} of {part} is {_told(value)}")


def _told(value: Any) -> str:
    """Say what a value is, in a few words whatever it is."""
    if isinstance(value, str):
        return f"a text of {len(value):,} characters"
    if type(value) is int:
        return f"{value}" if abs(value) <= MAX_COUNT else f"a number of {value.bit_length():,} bits"
    return type(value).__name__
