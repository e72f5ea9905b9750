"""When findings are written again: each time costs sentences, and most of them say what the last ones did."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from written import make_info, make_record

from lightning_gradwatch.event_file import read_payloads
from lightning_gradwatch.events import decode_event
from lightning_gradwatch.sinks import Sinks
from lightning_gradwatch.wire import PLUGIN

NAMES = tuple(f"net.{place}" for place in range(40))


@dataclass
class Told:
    """An evaluator that has found what it is told."""

    outline: tuple = ()
    asked: list = field(default_factory=list)

    @property
    def findings(self):
        self.asked.append(self.outline)
        return ()


@pytest.mark.parametrize(
    ("before", "after", "again"),
    [
        ((), (("GW101", 1, 10, NAMES),), True),
        ((("GW101", 1, 10, NAMES),), (), True),
        ((("GW101", 1, 10, NAMES),), (("GW101", 2, 10, NAMES),), True),
        ((("GW101", 1, 10, NAMES),), (("GW101", 1, 4, NAMES),), True),
        ((("GW101", 1, 10, NAMES),), (("GW101", 1, 10, NAMES), ("GW201", 1, 10, NAMES)), True),
        ((("GW101", 1, 10, NAMES[:38]),), (("GW101", 1, 10, NAMES),), False),
        ((("GW101", 1, 10, NAMES[2:]),), (("GW101", 1, 10, NAMES[:-2]),), False),
        ((("GW101", 1, 10, NAMES[:20]),), (("GW101", 1, 10, NAMES),), True),
        ((("GW101", 1, 10, NAMES),), (("GW101", 1, 10, NAMES[20:]),), True),
        ((("GW301", 1, 10, ("net.0",)),), (("GW301", 1, 10, ("net.2",)),), True),
    ],
)
def test_findings_are_written_again_where_they_say_something_new(before, after, again, tmp_path):
    info, told = make_info(), Told()
    sinks = Sinks([], tmp_path, max_curves=None)
    records = []
    for step, told.outline in enumerate(((), before, before, after, after)):
        records.append(make_record(info, step))
        sinks.write(records, {info.layout: info}, told)
    sinks.close()
    (path,) = tmp_path.rglob("*tfevents*")
    events = [decode_event(payload) for _, payload in read_payloads(path, marker=PLUGIN.encode(), problem=pytest.fail)]
    written = [event.record.step for event in events if event.findings is not None]
    assert written == [1] * bool(before) + [3] * again
    assert len(told.asked) == len(written)
