"""The table of strategies: what is measured together and how, and that what no row knows is refused."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch.strategies as others
import pytest
import pytorch_lightning.strategies as lightnings

import lightning_gradwatch
from lightning_gradwatch.fit import strategies
from lightning_gradwatch.fit.strategies import STRATEGIES, DataPart, strategy_of
from lightning_gradwatch.measure.faults import Unsupported

PACKAGE = Path(lightning_gradwatch.__file__).parent
ABSTRACT = {"Strategy", "ParallelStrategy"}
MEASURED = {"SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy"}


def trainer_of(*kinds, processes=1, **attributes):
    """Return as much of a Trainer as is asked, with a strategy of such classes, the last one being the base of all."""
    kind = object
    for name in reversed(kinds):
        kind = type(name, (kind,), {})
    return SimpleNamespace(strategy=kind(), world_size=processes, **attributes)


@pytest.fixture
def joined(monkeypatch):
    """A process group of two."""
    monkeypatch.setattr(strategies.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(strategies.dist, "get_world_size", lambda: 2)


@pytest.mark.parametrize("package", [lightnings, others], ids=["pytorch_lightning", "lightning"])
def test_each_strategy_of_lightnings_has_a_row(package):
    known = {name for row in STRATEGIES for name in row.classes}
    assert set(package.__all__) - ABSTRACT <= known


def test_no_strategy_has_two_rows_and_a_refused_one_says_why_and_what_to_do():
    names = [name for row in STRATEGIES for name in row.classes]
    assert len(names) == len(set(names))
    assert {name for row in STRATEGIES if not row.why_not for name in row.classes} == MEASURED
    assert all(bool(row.why_not) == bool(row.instead) for row in STRATEGIES)


@pytest.mark.parametrize("name", sorted(MEASURED))
@pytest.mark.usefixtures("joined")
def test_what_is_measured_is_found_by_its_class_and_by_one_it_derives_from(name):
    for kinds in ((name,), ("Ours", name), ("Theirs", "Ours", name)):
        assert name in strategy_of(trainer_of(*kinds, processes=2)).classes


@pytest.mark.usefixtures("joined")
def test_a_strategy_that_no_row_knows_is_refused_with_several_processes():
    """Its processes may share the model in any way, and a wrong sum looks like any other."""
    with pytest.raises(Unsupported) as refused:
        strategy_of(trainer_of("Ours", "ParallelStrategy", "Strategy", processes=2))
    assert str(refused.value) == (
        "it isn't known how its processes share the model and the data, so their numbers can't be put together (strategy Ours). "
        "To have it measured, train with DDP or ModelParallelStrategy, or derive the strategy from DDPStrategy where each "
        "process holds the whole model and gradients are averaged over all of them before the optimizer steps"
    )


def test_alone_there_is_nothing_to_be_put_together():
    assert strategy_of(trainer_of("Ours", "Strategy")) is STRATEGIES[0]


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize(
    "kinds",
    [
        ("HPUDeepSpeedStrategy", "HPUParallelStrategy", "DDPStrategy"),
        ("Ours", "DDPStrategy", "FSDPStrategy"),
        ("MegatronStrategy", "DDPStrategy"),
        ("SingleDeviceXLAStrategy", "SingleDeviceStrategy"),
    ],
    ids=lambda kinds: kinds[0],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_what_derives_from_one_that_is_refused_is_refused(kinds, processes):
    with pytest.raises(Unsupported, match=rf"[(]strategy {kinds[0]}[)]. To have it measured, train with "):
        strategy_of(trainer_of(*kinds, processes=processes))


@pytest.mark.parametrize(
    ("told", "part"),
    [({"num_replicas": 2, "rank": 1}, DataPart(1, 2)), (None, DataPart(3, 4)), ({}, DataPart(3, 4))],
    ids=["of a sampler", "without one", "of one that is told nothing"],
)
def test_which_part_of_the_data_a_process_sees_is_what_the_sampler_is_told(told, part):
    trainer = trainer_of("DDPStrategy", processes=4, global_rank=3)
    trainer.strategy.distributed_sampler_kwargs = told
    assert strategies.STRATEGIES[1].data_part(trainer) == part


ASKS = re.compile(
    r"\.(strategy|world_size|is_global_zero|global_rank|root_device|distributed_sampler_kwargs)\b(?! *:)|torch\.distributed as"
)


def test_nobody_else_asks_a_trainer_for_its_strategy():
    """Who asks elsewhere would have to be found for the next strategy. What is written down already (a run's) is no asking."""
    asking = {
        str(path.relative_to(PACKAGE))
        for room in ("fit", "testing", "demo", "cli")
        for path in (PACKAGE / room).rglob("*.py")
        if ASKS.search(path.read_text(encoding="utf-8"))
    }
    assert asking == {"fit/strategies.py", "fit/ranks/exchange.py"}
