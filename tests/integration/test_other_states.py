"""A checkpoint whose state of the monitor is another release's, damaged or made to do harm: it begins anew, and says so."""

from __future__ import annotations

import copy
import math
import random
import warnings

import numpy as np
import pytest
import torch
from integration.nets import Classifier, batches, relu_net, seed, trainer, vanishing_net
from integration.situation import differences, end_of

from lightning_gradwatch import GradWatch, GradWatchWarning

pytestmark = pytest.mark.judges

STEPS = 28


def fit(folder, watch, *, net=vanishing_net, steps=STEPS, resume=None, **settings):
    """Return what a fit leaves, and what the monitor warned of, apart from findings."""
    seed()
    run = trainer(folder, *([watch] if watch else []), max_epochs=steps, **settings)
    module = Classifier(net())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(module, batches(1, 16), ckpt_path=resume, weights_only=False if resume else None)
    ours = [entry for entry in caught if issubclass(entry.category, GradWatchWarning)]
    return run, end_of(run, module), [str(entry.message) for entry in ours if entry.category is GradWatchWarning]


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A checkpoint of an ill net after half of its steps."""
    folder = tmp_path_factory.mktemp("half")
    run, _, told = fit(folder, GradWatch(every_n_steps=1), steps=STEPS // 2)
    assert told == []
    run.save_checkpoint(folder / "half.ckpt")
    return folder / "half.ckpt"


def resumed(half, folder, change):
    """Resume with a state that is changed in place, or replaced by what `change` returns."""
    saved = torch.load(half, weights_only=True)
    state = saved["callbacks"]["GradWatch"]
    replaced = change(state)
    saved["callbacks"]["GradWatch"] = state if replaced is None else replaced
    torch.save(saved, folder / "changed.ckpt")
    watch = GradWatch(every_n_steps=1)
    return watch, fit(folder, watch, resume=folder / "changed.ckpt")


@pytest.fixture(scope="module")
def afresh(half, tmp_path_factory):
    """The second half by itself, judged from its beginning."""
    return resumed(half, tmp_path_factory.mktemp("afresh"), lambda state: {})


def test_the_state_has_a_version(half):
    assert torch.load(half, weights_only=True)["callbacks"]["GradWatch"]["version"] == 1


def chunks(state):
    return state["windows"]["net.1"]["chunks"]


def put(path, value):
    """Return a change that puts a value at a path of keys."""

    def change(state):
        *way, last = path
        for key in way:
            state = state[key]
        state[last] = value

    return change


def drop(*path):
    def change(state):
        *way, last = path
        for key in way:
            state = state[key]
        del state[last]

    return change


CHUNK = ("windows", "net.1", "chunks", 0)
OTHERS = {
    "a newer release": (put(["version"], 2), "it has version 2; this release reads 1"),
    "newer rules": (put(["rules", "version"], 99), "the rules' state has version 99"),
    "rules without a version": (drop("rules", "version"), "version None"),
    "an unknown part": (put(["sharpness"], {}), "has an unknown 'sharpness'"),
    "a part less": (drop("schedule"), "has no 'schedule'"),
    "rules less": (drop("rules"), "has no 'rules'"),
    "no mapping": (lambda state: [1, 2], "no mapping"),
    "a text": (lambda state: "as it was", "no mapping"),
    "windows that are a list": (put(["windows"], [1]), "windows is [1], no mapping"),
    "windows by number": (put(["windows"], {0: {"chunks": []}}), "no mapping from names"),
    "a window without chunks": (put(["windows", "net.1"], {}), "the window of net.1 has no 'chunks'"),
    "a window of another form": (put(["windows", "net.1", "fill"], 0.5), "unknown 'fill'"),
    "an endless window": (
        lambda state: chunks(state).extend([chunks(state)[0]] * (1 << 16)),
        "no list of at most 65536",
    ),
    "counts as text": (put([*CHUNK, "inactive"], "many"), "not one a unit"),
    "counts of two dimensions": (put([*CHUNK, "inactive"], torch.zeros(2, 4, dtype=torch.int64)), "shape [2, 4]"),
    "counts with NaN": (put([*CHUNK, "saturated"], torch.full((8,), math.nan)), "type float32"),
    "counts below zero": (put([*CHUNK, "inactive"], torch.full((8,), -1)), "counts from -1"),
    "more inactive than observed": (put([*CHUNK, "inactive"], torch.full((8,), 1 << 40)), "observations"),
    "counts of other units": (put([*CHUNK, "inactive"], torch.zeros(7, dtype=torch.int64)), "different units"),
    "observations that aren't counted": (put([*CHUNK, "observations"], math.nan), "nan, no whole number"),
    "a schedule of text": (put(["schedule", "confirmed"], "3"), "confirmed of the schedule is '3'"),
    "a schedule that never ends": (put(["schedule", "watched"], -(1 << 60)), "watched of the schedule"),
    "a schedule with more": (put(["schedule", "patience"], 3), "unknown 'patience'"),
    "losses with NaN": (put(["rules", "losses", "losses"], [math.nan] * 14), "losses holds nan"),
    "losses of other steps": (put(["rules", "losses", "steps"], [1, 2]), "one a step"),
    "losses without end": (put(["rules", "losses", "losses"], [1.0] * 10_000), "no list of at most"),
    "a rule's state of another form": (drop("rules", "rules", "GW101", "judged"), "the state of GW101 has no 'judged'"),
    "a rule that is a list": (put(["rules", "rules", "GW101"], []), "the state of GW101 is [], no mapping"),
    "a memory of objects": (
        put(["rules", "rules", "GW101", "memory", "readings"], {"a": torch.ones(2)}),
        "no plain data",
    ),
    "a finding of another form": (
        put(["rules", "rules", "GW101", "findings", "signal", "finding"], {}),
        "a finding of GW101 can't be read",
    ),
    "a finding of another rule": (
        put(["rules", "rules", "GW101", "findings", "signal", "finding", "code"], "GW999"),
        "isn't one",
    ),
    "a finding with a number in words": (
        put(["rules", "rules", "GW101", "findings", "signal", "finding", "value"], "much"),
        "can't be read",
    ),
    "confirmations without end": (put(["rules", "rules", "GW101", "confirmations"], 1e9), "no whole number"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_it_begins_anew_says_why_once_and_trains_as_ever(case, half, afresh, tmp_path):
    change, reason = OTHERS[case]
    watch, (_, end, told) = resumed(half, tmp_path, change)
    assert len(told) == 1, told
    assert told[0].startswith("GradWatch begins anew: ")
    assert reason in told[0]
    assert "Training and measuring go on" in told[0]
    new, (_, expected, _) = afresh
    assert [record.step for record in watch.records] == list(range(STEPS // 2, STEPS))
    assert watch.findings == new.findings != ()
    assert watch.coverage == new.coverage
    assert list(differences(end, expected)) == []
    assert watch.state_dict()["schedule"] == new.state_dict()["schedule"]


MEMORIES = {
    "GW101": {"readings": [["a"]], "since": "yesterday", "streak": None},
    "GW104": {"streaks": {"net.0": [1.0, 2.0, 3.0]}},
    "GW301": {"rates": [1], "streaks": {"net.0": ["x", "y", "z", None]}},
    "GW103": {"past": {"a": 1}, "large": [], "loss_known": "no"},
}


@pytest.mark.parametrize("code", MEMORIES)
def test_a_rule_that_cant_read_its_memory_begins_anew_and_the_others_go_on(code, half, afresh, tmp_path):
    """What a rule remembers is its own affair; that it makes no sense shows when the rule reads it."""
    untouched, (_, _, nothing) = resumed(half, tmp_path, lambda state: None)
    assert nothing == []
    watch, (_, end, told) = resumed(
        half, tmp_path, put(["rules", "rules", code, "memory"], copy.deepcopy(MEMORIES[code]))
    )
    assert len(told) == 1
    assert f"the memory of {code} makes no sense" in told[0]
    assert list(differences(end, afresh[1][1])) == []
    assert len(watch.records) == STEPS // 2
    assert watch.coverage == untouched.coverage
    others = [finding for finding in untouched.findings if finding.code != code]
    assert [finding for finding in watch.findings if finding.code != code and not finding.consequence_of] == [
        finding for finding in others if not finding.consequence_of
    ]
    if code == "GW101":
        assert {finding.code: finding for finding in watch.findings}[code].first_step >= STEPS // 2


def test_a_state_of_the_first_release_which_had_no_version_is_taken_in(half, tmp_path):
    with_version, (_, _, told) = resumed(half, tmp_path, lambda state: None)
    without, (_, _, told_too) = resumed(half, tmp_path, drop("version"))
    assert told == told_too == []
    assert without.findings == with_version.findings
    assert with_version.findings[0].first_step < STEPS // 2
    for one, other in zip(with_version.records, without.records, strict=True):
        assert np.array_equal(one.window_fill, other.window_fill)


def test_a_state_of_other_rules_and_of_another_net_is_taken_in_as_far_as_it_goes(half, tmp_path):
    """Both are the user's to change: rules that weren't in force begin afresh, windows of sites that aren't there stay."""
    watch = GradWatch(every_n_steps=1, ignore=("GW1",))
    watch.load_state_dict(torch.load(half, weights_only=True)["callbacks"]["GradWatch"])
    _, _, told = fit(tmp_path, watch, net=relu_net)
    assert told == []
    assert len(watch.records) == STEPS
    assert not [finding for finding in watch.findings if finding.code.startswith("GW1")]
    # net.1 was a sigmoid of as many units: nothing of it counts for the ReLU that is there now.
    assert watch.records[0].window_fill[0] == pytest.approx(16 / 256)


@pytest.mark.filterwarnings("error::lightning_gradwatch.GradWatchWarning")
def test_the_users_filter_makes_an_error_of_it(tmp_path):
    watch = GradWatch()
    watch.load_state_dict({"version": 7})
    with pytest.raises(GradWatchWarning, match="begins anew"):
        trainer(tmp_path, watch, max_steps=2).fit(Classifier(), batches())


def mutated(state, random):
    """Return a copy with one entry somewhere replaced by something odd, or left out."""
    odd = [
        None,
        True,
        -1,
        1 << 70,
        math.nan,
        math.inf,
        -0.5,
        "",
        "x" * 1000,
        [],
        {},
        [[]],
        {"a": 1},
        torch.ones(3),
        (1,),
        b"x",
    ]
    state = copy.deepcopy(state)
    here = state
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        key = random.choice(keys)
        inside = here[key]
        if isinstance(inside, (dict, list)) and inside and random.random() < 0.8:
            here = inside
            continue
        if random.random() < 0.2:
            del here[key]
        else:
            here[key] = random.choice(odd)
        return state


@pytest.mark.slow
def test_whatever_is_in_it_training_and_measuring_go_on(half, afresh, tmp_path):
    """Hundreds of states with something odd somewhere: at most one warning, and each step is measured."""
    random_ = random.Random(3)
    state = torch.load(half, weights_only=True)["callbacks"]["GradWatch"]
    for case in range(120):
        watch = GradWatch(every_n_steps=1)
        watch.load_state_dict(mutated(state, random_))
        _, _, told = fit(tmp_path, watch, steps=4)
        assert len(watch.records) == 4, case
        assert len(told) <= 1, told
        assert all("begins anew" in text for text in told), told
        assert all(finding.code for finding in watch.findings)
