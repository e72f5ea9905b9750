"""What stays true over a run, and what follows from its column lists: each worked out once, as arrays where rules read it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.record.metrics import METRICS
from lightning_gradwatch.record.reasons import CannotJudgeError
from lightning_gradwatch.record.segments import segment_starts
from lightning_gradwatch.record.signal_paths import SitePaths
from lightning_gradwatch.record.step import (
    SCHEMA_VERSION,
    FloatVector,
    LayerInfo,
    LostGradient,
    NotCovered,
    OptimizerInfo,
    SiteInfo,
    Wiring,
)
from lightning_gradwatch.record.stored_function import StoredFunction

if TYPE_CHECKING:
    from lightning_gradwatch.record.step import StepRecord


_MOST_ABSENT = 16
"""Times as many places as values."""
_SMALL = 1_000_000

DEFAULT_VARIANCE = 1 / 3
"""Fan-in times the variance of the weights that PyTorch's default initialisation gives."""


@dataclass(frozen=True)
class RunInfo:
    """What stays true over a run: the columns of the metrics, and the settings that a verdict depends on."""

    layers: tuple[LayerInfo, ...] = ()
    sites: tuple[SiteInfo, ...] = ()
    optimizers: tuple[OptimizerInfo, ...] = ()
    precision: str = "32-true"
    accumulation: int = 1
    clipping: str = ""
    """Such as ``norm 1.0`` or ``value 0.5``; empty without clipping."""
    planned_steps: int | None = None
    every_n_steps: int | None = None
    world_size: int = 1
    """How many processes train the model together."""
    strategy: str = ""
    """How they do: the class of the Trainer's strategy; empty without a Trainer."""
    coverage: tuple[NotCovered, ...] = ()
    wiring: tuple[Wiring, ...] | None = ()
    """What is wired wrongly, or oddly, as far as the first measured steps showed it; None of a release that didn't look."""
    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Thresholds in force, by rule code and field; a rule that was ignored isn't there."""
    versions: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @cached_property
    def layout(self) -> str:
        """Twelve hexadecimal digits that tell one pair of column lists, and what is known of each, from another.

        What is known of the wiring counts too: a record is judged by what was known when it was measured.
        """
        columns = [[layer.told for layer in self.layers], [site.told for site in self.sites]]
        if self.wiring:
            columns.append([fact.told for fact in self.wiring])
        return hashlib.sha256(json.dumps(columns).encode()).hexdigest()[:12]

    def names(self, metric: str) -> tuple[str, ...]:
        """Return the column names of a metric.

        Raises:
            ValueError: no metric has that name.
        """
        if metric not in METRICS:
            raise ValueError(f"metric={metric!r} is not one of {', '.join(METRICS)}")
        return self.layer_names if METRICS[metric].over == "layers" else self.site_names

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunInfo:
        """Build from what `to_dict` gave; keys of a newer schema are left out.

        Raises:
            KeyError, TypeError, ValueError: the data isn't a run's description.
        """
        return cls(
            layers=tuple(
                LayerInfo(
                    **{
                        **_known(LayerInfo, layer),
                        "shapes": tuple(tuple(int(size) for size in shape) for shape in layer["shapes"]),
                        "lost": _read_lost(layer.get("lost")),
                        "inputs": _read_inputs(layer),
                    }
                )
                for layer in data["layers"]
            ),
            sites=tuple(
                SiteInfo(
                    **{
                        **_known(SiteInfo, site),
                        "predecessors": tuple(site.get("predecessors", ())),
                        "past_unseen": tuple(site.get("past_unseen", ())),
                        "own_function": StoredFunction.read(site.get("own_function")),
                    }
                )
                for site in data["sites"]
            ),
            optimizers=tuple(
                OptimizerInfo(
                    **{
                        **_known(OptimizerInfo, entry),
                        "layers": tuple(entry.get("layers", ())),
                        "rates": tuple(entry.get("rates", ())),
                        "decays": tuple(entry.get("decays", ())),
                    }
                )
                for entry in data.get("optimizers", ())
            ),
            coverage=tuple(NotCovered(**_known(NotCovered, entry)) for entry in data.get("coverage", ())),
            wiring=_read_wiring(data.get("wiring")),
            **{
                key: data[key]
                for key in (
                    "precision",
                    "accumulation",
                    "clipping",
                    "planned_steps",
                    "every_n_steps",
                    "world_size",
                    "strategy",
                    "rules",
                    "versions",
                    "schema_version",
                )
                if key in data
            },
        )

    @cached_property
    def weight_columns(self) -> tuple[int, ...]:
        """Columns of the weight layers."""
        return tuple(column for column, layer in enumerate(self.layers) if layer.weight)

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers, along the path."""
        return tuple(layer.name for layer in self.layers)

    @cached_property
    def site_names(self) -> tuple[str, ...]:
        """Names of the sites, along the path."""
        return tuple(site.name for site in self.sites)

    @cached_property
    def layer_places(self) -> tuple[int, ...]:
        """How many layers were known before each, by which its curves are numbered."""
        return tuple(column if layer.place is None else layer.place for column, layer in enumerate(self.layers))

    @cached_property
    def site_places(self) -> tuple[int, ...]:
        """How many sites were known before each, by which its curves are numbered."""
        return tuple(column if site.place is None else site.place for column, site in enumerate(self.sites))

    @cached_property
    def fan_in(self) -> FloatVector:
        """How many inputs a unit of each layer adds up, shape [L]; NaN for a layer that isn't a weight layer, or unknown."""
        return np.array([layer.fan_in if layer.weight else np.nan for layer in self.layers], dtype=np.float64)

    @cached_property
    def matrix_entries(self) -> FloatVector:
        """Number of entries of each layer's parameters of two or more dimensions, shape [L]."""
        return np.array(
            [sum(math.prod(shape) for shape in layer.shapes if len(shape) > 1) for layer in self.layers],
            dtype=np.float64,
        )

    @cached_property
    def vector_share(self) -> FloatVector:
        """Norm of each layer's vectors, were all entries alike, over that of its matrices, shape [L]; NaN without one."""
        entries = np.where(self.matrix_entries > 0, self.matrix_entries, np.nan)
        return np.sqrt(np.array([layer.parameters for layer in self.layers]) / entries - 1)

    @cached_property
    def default_rms(self) -> FloatVector:
        """The rms that PyTorch's default initialisation gives each weight layer, shape [L]; NaN for other layers."""
        return np.sqrt(DEFAULT_VARIANCE / self.fan_in)

    @cached_property
    def layer_rates(self) -> FloatVector:
        """Learning rate of each layer over its optimizer's largest one, shape [optimizers, L]; NaN where it isn't held."""
        column = {name: place for place, name in enumerate(self.layer_names)}
        rates = np.full((len(self.optimizers), len(self.layers)), np.nan)
        for row, optimizer in zip(rates, self.optimizers, strict=True):
            for name, rate in zip(optimizer.layers, optimizer.rates or (1.0,) * len(optimizer.layers), strict=False):
                if name in column:
                    row[column[name]] = rate
        return rates

    @cached_property
    def layer_decays(self) -> FloatVector:
        """Weight decay of each layer's matrices, shape [optimizers, L]; NaN where it isn't held."""
        column = {name: place for place, name in enumerate(self.layer_names)}
        decays = np.full((len(self.optimizers), len(self.layers)), np.nan)
        for row, optimizer in zip(decays, self.optimizers, strict=True):
            told = optimizer.settings.get("weight_decay", 0.0)
            usual = float(told) if isinstance(told, (int, float)) else 0.0
            each = optimizer.decays or (usual,) * len(optimizer.layers)
            for name, decay in zip(optimizer.layers, each, strict=False):
                if name in column:
                    row[column[name]] = decay
        return decays

    @cached_property
    def decays(self) -> bool:
        """Whether a weight layer has weight decay."""
        return bool(np.any(self.layer_decays[:, self.weight_mask] > 0))

    @cached_property
    def optimizer_columns(self) -> tuple[npt.NDArray[np.intp], ...]:
        """For each optimizer the columns of the layers that it holds."""
        places: dict[str, list[int]] = {}
        for place, name in enumerate(self.layer_names):
            places.setdefault(name, []).append(place)
        return tuple(
            np.array([place for name in set(optimizer.layers) for place in places.get(name, ())], np.intp)
            for optimizer in self.optimizers
        )

    @cached_property
    def rates_differ(self) -> bool:
        """Whether an optimizer has layers of different learning rates."""
        return any(optimizer.rates for optimizer in self.optimizers)

    @cached_property
    def weight_mask(self) -> npt.NDArray[np.bool_]:
        """Whether each layer is a weight layer, shape [L]."""
        return np.array([layer.weight for layer in self.layers], dtype=bool)

    @cached_property
    def weight_names(self) -> tuple[str, ...]:
        """Names of the weight layers, along the path."""
        return tuple(self.layers[column].name for column in self.weight_columns)

    @cached_property
    def hidden_mask(self) -> npt.NDArray[np.bool_]:
        """Whether each site is hidden, shape [S]."""
        return np.array([site.role == "hidden" for site in self.sites], dtype=bool)

    @cached_property
    def hidden_columns(self) -> tuple[int, ...]:
        """Columns of the hidden sites."""
        return tuple(column for column, site in enumerate(self.sites) if site.role == "hidden")

    @cached_property
    def segment_starts(self) -> tuple[int | None, ...]:
        """For each site the column at which the segment that its weight gain is of starts (see `segments.segment_starts`).

        None where there is none. It follows from the predecessors alone, those of all measured steps; what only the graph
        of a step shows (a site that the loss takes directly) leaves the weight gain of that step NaN.
        """
        entries, exits = set(), set(range(len(self.sites)))
        for place, feeding in enumerate(self.site_feeds):
            others = [each for each in feeding if each != place]
            if not others or not place:  # the first call of all is one
                entries.add(place)
            exits.difference_update(others)
        return segment_starts(self.site_feeds, entries, exits)

    @cached_property
    def site_feeds(self) -> list[list[int]]:
        """For each site the columns of those that feed it through no other site."""
        return self._columns_of([site.predecessors for site in self.sites])

    def _columns_of(self, names: Sequence[Sequence[str]]) -> list[list[int]]:
        column = {site.name: place for place, site in enumerate(self.sites)}
        return [[column[name] for name in dict.fromkeys(each) if name in column] for each in names]

    @cached_property
    def knows_feeds(self) -> bool:
        """Whether it is known which layers feed which sites; older runs don't tell."""
        return any(layer.feeds for layer in self.layers)

    @cached_property
    def site_paths(self) -> SitePaths:
        """The paths through the hidden sites; where no graph was seen, one through all in the order of their columns."""
        hidden = [site.role == "hidden" for site in self.sites]
        feeds = self._columns_of([(*site.predecessors, *site.past_unseen) for site in self.sites])
        if not (any(feeds) or self.knows_feeds):
            feeds = [[place - 1] if place else [] for place in range(len(self.sites))]
        return SitePaths(feeds, hidden)

    def layers_on(self, path: Sequence[int] | npt.NDArray[np.intp]) -> tuple[int, ...]:
        """Return the columns of the weight layers that feed the sites of a path, as far as that is known."""
        names = (self.sites[column].name for column in path)
        return tuple(sorted(column for name in names for column in self._weights_before.get(name, ())))

    @cached_property
    def _weights_before(self) -> dict[str, list[int]]:
        """The columns of the weight layers that feed each site, by its name."""
        found: dict[str, list[int]] = {}
        for column in self.weight_columns:
            found.setdefault(self.layers[column].feeds, []).append(column)
        return found

    @cached_property
    def feeds_itself(self) -> tuple[bool, ...]:
        """For each site whether it is among its own predecessors, as an unrolled loop is."""
        return tuple(site.name in site.predecessors for site in self.sites)

    @cached_property
    def hidden_functions(self) -> tuple[str, ...]:
        """The activation functions of the hidden sites, each once, along the path."""
        return tuple(dict.fromkeys(self.sites[column].function for column in self.hidden_columns))

    @cached_property
    def steps_follow_gradient(self) -> bool:
        """Whether each optimizer's step is proportional to the gradient; Adam's isn't, nor Rprop's and LBFGS's."""
        names = {optimizer.name for optimizer in self.optimizers}
        return bool(names) and names <= {"SGD", "ASGD"}

    @property
    def known_sites(self) -> int:
        """How many activation sites are known, those that aren't seen included."""
        return len(self.sites) + sum(entry.sites for entry in self.coverage)


def _read_inputs(layer: Mapping[str, Any]) -> tuple[int, ...]:
    inputs = tuple(int(each) for each in layer.get("inputs", ()))
    if len(inputs) not in (0, len(layer["shapes"])):
        raise ValueError(f"inputs={list(inputs)!r} are not one for each of {len(layer['shapes'])} shapes")
    return inputs


def _read_lost(data: Mapping[str, Any] | None) -> LostGradient | None:
    if data is None:
        return None
    return LostGradient(
        **{
            **_known(LostGradient, data),
            "lines": tuple(data.get("lines", ())),
            "factors": tuple(data.get("factors", ())),
        }
    )


def _read_wiring(data: Sequence[Mapping[str, Any]] | None) -> tuple[Wiring, ...] | None:
    if data is None:
        return None
    return tuple(Wiring(**{**_known(Wiring, fact), "names": tuple(fact["names"])}) for fact in data)


def _known(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    fields = {entry.name for entry in dataclasses.fields(cls)}
    return {key: value for key, value in data.items() if key in fields}


def series(
    records: Sequence[StepRecord], infos: Mapping[str, RunInfo], metric: str, names: Sequence[str]
) -> tuple[npt.NDArray[np.int64], FloatVector]:
    """Return steps, int64[R], and a metric's values, float64[R, N], with columns matched by name; NaN where absent.

    Raises:
        CannotJudgeError: nearly all would be absent, so that the array would be far larger than what is known.
    """
    known = sum(len(infos[record.layout].names(metric)) for record in records)
    if len(records) * len(names) > _MOST_ABSENT * (known + len(names)) + _SMALL:
        raise CannotJudgeError(
            f"{len(records):,} steps with {known:,} values of {metric} in all have {len(names):,} columns"
        )
    column = {name: index for index, name in enumerate(names)}
    values = np.full((len(records), len(names)), np.nan)
    for row, record in enumerate(records):
        vector = record.metrics.get(metric)
        if vector is None:
            continue
        for name, value in zip(infos[record.layout].names(metric), vector, strict=False):
            if name in column:
                values[row, column[name]] = value
    return np.array([record.step for record in records], dtype=np.int64), values
