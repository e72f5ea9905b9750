"""What a file says of a run is checked for range, not only for type: rules rely on it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from written import make_info, make_record

from lightning_gradwatch import evaluate
from lightning_gradwatch.judge.run import RunError, read_run
from lightning_gradwatch.record.events.file import EventFile
from lightning_gradwatch.record.events.step_events import _seal, decode_event, findings_event, step_event
from lightning_gradwatch.record.finding import Action, Finding, Remedy, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import NotCovered, OptimizerInfo
from lightning_gradwatch.record.validation import (
    MAX_COLUMNS,
    MAX_NAME,
    MAX_SENTENCES,
    check_description,
    check_finding,
    check_record,
)

HUGE = 10**400
INFO = replace(make_info(3), coverage=(NotCovered("attention", "fused", 1),))


def of_layer(**changes):
    return replace(INFO, layers=(replace(INFO.layers[0], **changes), *INFO.layers[1:]))


def of_site(**changes):
    return replace(INFO, sites=(replace(INFO.sites[0], **changes), *INFO.sites[1:]))


def of_optimizer(**changes):
    return replace(INFO, optimizers=(replace(INFO.optimizers[0], **changes),))


WRONG = {
    "a huge size": (of_layer(shapes=((HUGE, 4),)), "shapes of layers"),
    "a negative size": (of_layer(shapes=((4, -1),)), "shapes of layers"),
    "sizes whose product is huge": (of_layer(shapes=((2**60,) * 20,)), "shapes of layers"),
    "too many dimensions": (of_layer(shapes=((1,) * 100,)), "shapes of layers"),
    "too many parameters in a layer": (of_layer(shapes=((),) * 20_000), "shapes of layers"),
    "a huge number of entries": (of_layer(parameters=HUGE), "parameters of layers is a number of 1,329 bits"),
    "a negative number of entries": (of_layer(parameters=-1), "parameters of layers is -1"),
    "part of an entry": (of_layer(parameters=1.5), "parameters of layers is float"),
    "a flag for a number": (of_layer(parameters=True), "parameters of layers is bool"),
    "a number for a flag": (of_layer(weight=1), "weight of layers"),
    "a long name": (of_layer(name="n" * 5000), "name of layers is a text of 5,000 characters"),
    "no text for a name": (of_layer(kind=3), "kind of layers is 3"),
    "fewer than no units": (of_site(units=-1), "units of sites is -1"),
    "a huge number of units": (of_site(units=HUGE), "units of sites"),
    "a name in the predecessors that is no text": (of_site(predecessors=("a", 3)), "predecessors of sites"),
    "a long name in the predecessors": (of_site(predecessors=("a" * 5000,)), "predecessors of sites"),
    "settings of a huge number": (of_optimizer(settings={"lr": HUGE}), "settings of optimizers"),
    "settings of many": (of_optimizer(settings={str(n): 0 for n in range(2000)}), "settings of optimizers"),
    "settings nested deeply": (of_optimizer(settings={"a": [[[[[[]]]]]]}), "settings of optimizers"),
    "a huge rate": (of_optimizer(rates=(HUGE,)), "rates of optimizers"),
    "a rate that is no number": (of_optimizer(rates=("x",)), "rates of optimizers"),
    "a huge plan": (replace(INFO, planned_steps=HUGE), "planned_steps of run"),
    "a negative plan": (replace(INFO, planned_steps=-5), "planned_steps of run is -5"),
    "a negative world": (replace(INFO, world_size=-1), "world_size of run"),
    "a schema that is no number": (replace(INFO, schema_version=math.nan), "schema_version of run"),
    "a threshold that is huge": (replace(INFO, rules={"GW101": {"ratio": HUGE}}), "rules of run"),
    "rules that are none": (replace(INFO, rules={"GW101": 3}), "rules of run"),
    "many versions": (replace(INFO, versions={str(n): "1" for n in range(2000)}), "versions of run"),
    "a version that is no text": (replace(INFO, versions={"torch": 2}), "versions of run"),
    "a long reason": (replace(INFO, coverage=(NotCovered("x", "r" * (MAX_SENTENCES + 1)),)), "reason of coverage"),
    "fewer than no sites": (replace(INFO, coverage=(NotCovered("x", "r", -1),)), "sites of coverage"),
    "too many layers": (replace(INFO, layers=INFO.layers[:1] * (MAX_COLUMNS + 1)), "100,001 layers; at most 100,000"),
    "too many sites": (replace(INFO, sites=INFO.sites[:1] * (MAX_COLUMNS + 1)), "100,001 sites"),
    "too many optimizers": (
        RunInfo(layers=INFO.layers[:1] * 5000, optimizers=(OptimizerInfo("SGD", {}),) * 1000),
        "1,000 optimizers of 5,000 layers",
    ),
}


def test_what_a_writer_of_ours_writes_is_right():
    check_description(INFO)
    check_record(make_record(INFO, 0))
    check_finding(finding())


@pytest.mark.parametrize(("info", "said"), WRONG.values(), ids=WRONG)
def test_a_description_that_no_run_has_is_refused(info, said):
    with pytest.raises(ValueError, match="its description is damaged: ") as caught:
        check_description(info)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("info", "said"), WRONG.values(), ids=WRONG)
def test_a_run_with_such_a_description_cannot_be_read_and_says_why(tmp_path, info, said):
    if len(info.layers) > 10:
        pytest.skip("takes long to write")
    with EventFile(tmp_path) as file:
        for step in range(3):
            file.write(step_event(make_record(info, step), info, describe=step == 0, max_curves=0))
    with pytest.raises(RunError, match="its description is damaged"):
        read_run(tmp_path)


LARGEST = {
    "a long name": of_layer(name="n" * MAX_NAME),
    "a large matrix": of_layer(shapes=((2**40, 2**40, 2**40), (2**40,)), parameters=2**63),
    "many units": of_site(units=2**63),
    "settings of all kinds": of_optimizer(
        settings={"lr": 1e300, "betas": [0.9, 0.999], "foreach": None, "maximize": False}
    ),
}


@pytest.mark.parametrize("info", LARGEST.values(), ids=LARGEST)
def test_the_largest_that_is_read_can_be_judged(tmp_path, info):
    with EventFile(tmp_path) as file:
        for step in range(12):
            record = make_record(info, step, layer_state=np.full(3, 5 if step == 7 else 3, np.uint8))
            file.write(step_event(record, info, describe=step == 0, max_curves=0))
    run = read_run(tmp_path)
    assert run.problems == ()
    assert json.dumps(run.info.to_dict()) == json.dumps(info.to_dict())
    assert {finding.code for finding in evaluate(run)} == {"GW103", "GW104"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step": -1}, "step is -1"),
        ({"step": 2**63}, "step is 9223372036854775808"),
        ({"batch_idx": HUGE}, "batch_idx is a number of 1,329 bits"),
        ({"world_size": -1}, "world_size is -1"),
        ({"layout": "x" * 5000}, "layout is a text of 5,000 characters"),
        ({"optimizers": (0, -1)}, "no index"),
        ({"optimizers": (0.5,)}, "no index"),
        ({"optimizers": (0,) * 20_000}, "no index"),
        ({"learning_rates": (HUGE,)}, "no learning rate"),
        ({"learning_rates": ("x",)}, "no learning rate"),
        ({"learning_rates": (0.1,) * 20_000}, "no learning rate"),
    ],
)
def test_a_record_of_numbers_that_count_nothing_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        check_record(replace(make_record(INFO, 0), **changes))


@pytest.mark.parametrize("rates", [(HUGE,), (10**400, 0.1)])
def test_a_huge_whole_number_in_a_record_costs_that_record(tmp_path, rates):
    with EventFile(tmp_path) as file:
        for step in range(4):
            record = make_record(INFO, step, learning_rates=rates if step == 2 else (0.1,))
            file.write(step_event(record, INFO, describe=step == 0))
    run = read_run(tmp_path)
    assert [record.step for record in run.records] == [0, 1, 3]
    assert "learning_rates" in run.problems[0]


def finding(**changes):
    remedy = Remedy("r", (Action("initialize", ("net.0",), (("method", "kaiming_normal_"),)),))
    return replace(Finding("GW101", "x", Severity.ERROR, ("net.0",), 1, 2, 0.5, 1e-3, "c", remedy, "m"), **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"first_step": -1},
        {"last_step": HUGE},
        {"layers": ("x" * 5000,)},
        {"message": "m" * (MAX_SENTENCES + 1)},
        {"remedy": Remedy("r" * (MAX_SENTENCES + 1))},
        {"remedy": Remedy("r", (Action("k" * 5000),))},
        {"remedy": Remedy("r", (Action("k", (3,)),))},
        {"remedy": Remedy("r", (Action("k", (), (("a", [[[[[[]]]]]]),)),))},
        {"remedy": Remedy("r", (Action("k", (), (("a", HUGE),)),))},
    ],
)
def test_findings_that_no_rule_gives_are_refused(changes):
    with pytest.raises(ValueError, match="a finding of it is damaged"):
        check_finding(finding(**changes))
    with pytest.raises(ValueError, match=r"\S"):
        decode_event(findings_event([finding(**changes)], step=3).SerializeToString())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 60_000, "nested too deeply"),
        ("[" * 100_000, "that would take 6 MB of memory"),
        ('{"findings":[' + "[]," * 1_000_000 + "[]]}", "that would take 64 MB of memory"),
        ('{"findings":[' + "{}," * 1_000_000 + "{}]}", "that would take 208 MB of memory"),
        ('{"findings":' + "1" * 5000 + "}", "digits"),
        ('{"findings":[[],]}', "Expecting value|trailing comma"),
        ('{"findings":[3]}', "it holds what GradWatch doesn't write"),
        ('{"findings":[{}]}', "it lacks 'remedy'"),
        ("3", "it holds what GradWatch doesn't write"),
    ],
)
def test_a_text_that_is_none_of_ours_is_refused_with_a_sentence(text, said):
    event = findings_event([], step=0)
    envelope = event.summary.value[0].tensor.string_val
    envelope[0] = text.encode()
    envelope[1] = _seal(envelope[0], {})
    with pytest.raises(ValueError, match=said):
        decode_event(event.SerializeToString())


def test_a_net_of_many_vectors_is_no_text_that_takes_too_much():
    """A list of parameters of eight entries each: of what nets can be, what takes most memory by its text."""
    layers = tuple(replace(INFO.layers[0], name=str(place), shapes=((8,),) * 100) for place in range(500))
    info = replace(INFO, layers=layers)
    event = step_event(make_record(info, 0), info, describe=True, max_curves=0)
    assert len(event.SerializeToString()) > 200_000
    assert decode_event(event.SerializeToString()).info == info
