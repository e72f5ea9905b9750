"""How an outcome gets from a process that trains to the one that started it: exactly, privately, as data, once."""

from __future__ import annotations

import copy
import dataclasses
import enum
import inspect
import multiprocessing
import os
import stat
import subprocess
import sys
import tempfile
import typing
from collections.abc import Mapping
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from fit.test_plain_data import FLOATS, Evil, exact
from hypothesis import given, settings
from hypothesis import strategies as st
from record.test_run_round_trip import INFOS, NAMES, bits, runs
from sent import sent

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.fit.results import _CLASSES, Outcome, SpawnResult
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Finding, Remedy, Severity
from lightning_gradwatch.record.first_bad_step import FirstBadStep
from lightning_gradwatch.record.step import NotCovered

ARGUMENTS = st.lists(st.tuples(NAMES, NAMES | FLOATS | st.integers() | st.booleans() | st.none()), max_size=2)
FINDINGS = st.builds(
    Finding,
    code=NAMES,
    name=NAMES,
    severity=st.sampled_from(Severity),
    layers=st.lists(NAMES, max_size=3).map(tuple),
    first_step=st.integers(0),
    last_step=st.integers(0),
    value=FLOATS | FLOATS.map(np.float64),
    threshold=FLOATS,
    cause=NAMES,
    remedy=st.builds(
        Remedy,
        NAMES,
        st.lists(
            st.builds(Action, NAMES, st.lists(NAMES, max_size=2).map(tuple), ARGUMENTS.map(tuple)), max_size=2
        ).map(tuple),
    ),
    message=NAMES,
    consequence_of=NAMES,
    cause_kind=st.sampled_from(CauseKind),
    causes=st.lists(
        st.builds(Cause, st.sampled_from(CauseKind), st.lists(NAMES, max_size=2).map(tuple)), max_size=2
    ).map(tuple),
    first_bad=st.none() | st.builds(FirstBadStep),
)
OUTCOMES = st.builds(
    Outcome,
    findings=st.lists(FINDINGS, max_size=2).map(tuple),
    records=runs().map(lambda run: tuple(record for _, record in run)),
    info=st.none() | INFOS,
    coverage=st.lists(st.builds(NotCovered, NAMES, NAMES, st.integers(0)), max_size=2).map(tuple),
    judged=st.integers(0),
    unjudged=st.dictionaries(NAMES, NAMES, max_size=2),
    path=st.none() | st.builds(Path, st.text(st.characters(exclude_characters="\x00"), min_size=1)),
)


@pytest.fixture
def shared(monkeypatch, tmp_path):  # whose own folder is made before temporary ones are made elsewhere
    """A temporary folder that others can write to, as /tmp; below one that others can enter."""
    with tempfile.TemporaryDirectory() as above:
        folder = Path(above) / "shared"
        folder.mkdir()
        folder.chmod(0o1777)
        folder.parent.chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        yield folder
        monkeypatch.undo()


def tree(thing):
    """Return everything a dataclass holds, down to its bits."""
    if hasattr(thing, "__dataclass_fields__"):
        return type(thing), {name: tree(getattr(thing, name)) for name in thing.__dataclass_fields__}
    if isinstance(thing, tuple):
        return tuple(map(tree, thing))
    return exact(thing)


@settings(deadline=None, max_examples=40)
@given(OUTCOMES)
def test_all_that_an_outcome_holds_comes_back_bit_for_bit(outcome):
    again = Outcome.from_bytes(outcome.to_bytes())
    assert tree(again) == tree(outcome)
    assert [bits(record) for record in again.records] == [bits(record) for record in outcome.records]


def test_every_class_that_an_outcome_can_hold_is_among_those_that_are_sent():
    seen, waiting = set(), [Outcome]
    while waiting:
        cls = waiting.pop()
        if cls in seen:
            continue
        seen.add(cls)
        for hint in (
            typing.get_type_hints(cls, localns={"Mapping": Mapping}).values() if dataclasses.is_dataclass(cls) else ()
        ):
            waiting += [each for each in _within(hint) if dataclasses.is_dataclass(each) or issubclass(each, enum.Enum)]
    assert seen == set(_CLASSES)


def _within(hint):
    """Yield the classes that a type hint is made of."""
    if inspect.isclass(hint) and not typing.get_args(hint):
        yield hint
    for each in typing.get_args(hint):
        yield from _within(each)


def test_what_is_no_outcome_is_refused():
    from lightning_gradwatch.fit.plain_data import encode  # noqa: PLC0415 - what another writer could have used

    with pytest.raises(ValueError, match="no outcome"):
        Outcome.from_bytes(encode(NotCovered("", ""), (NotCovered,)))


def test_it_is_left_in_a_private_folder_taken_once_and_nothing_stays(shared):
    handover = SpawnResult()
    assert handover.take() is None
    assert list(shared.iterdir()) == []
    handover.leave(Outcome(judged=1))
    (folder,) = shared.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    handover.leave(Outcome(judged=2), first_only=True)
    assert handover.take() == Outcome(judged=1)
    assert list(shared.iterdir()) == []
    assert handover.take() is None
    handover.leave(Outcome())
    handover.leave(Outcome(judged=3))
    assert len(list(shared.iterdir())) == 1
    del handover
    assert list(shared.iterdir()) == []


def test_the_mode_is_private_whatever_the_umask(shared):
    before = os.umask(0)
    try:
        SpawnResult().leave(Outcome())
    finally:
        os.umask(before)
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in shared.iterdir()] == []  # gone with its handover
    handover = SpawnResult()
    before = os.umask(0)
    try:
        handover.leave(Outcome())
    finally:
        os.umask(before)
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in shared.iterdir()] == [0o700]


def test_a_name_that_could_be_seen_is_never_looked_at_again(shared):
    handover = SpawnResult()
    handover.leave(Outcome(judged=1))
    (seen,) = shared.iterdir()
    assert handover.take() == Outcome(judged=1)
    seen.mkdir(mode=0o700)  # even this user's own
    (seen / "outcome").write_bytes(Outcome(judged=2).to_bytes())
    assert handover.take() is None


def test_two_fits_of_one_callback_leave_an_outcome_each(shared):
    handover = SpawnResult()
    for judged in (1, 2):
        handover.leave(Outcome(judged=judged))
        assert handover.take() == Outcome(judged=judged)


def test_what_a_rank_leaves_too_late_is_not_taken_and_does_not_stay(shared):
    handover = SpawnResult()
    late = sent(handover)
    handover.leave(Outcome(judged=1))
    assert handover.take() == Outcome(judged=1)
    late.leave(Outcome(judged=2), first_only=True)
    assert handover.take() is None
    assert len(list(shared.iterdir())) == 1
    del handover
    assert list(shared.iterdir()) == []


def test_this_process_and_strangers_want_none():
    handover = SpawnResult()
    assert not handover.wanted
    stranger = sent(handover)
    stranger._maker = os.getppid()
    assert not stranger.wanted
    assert stranger.take() is None
    assert copy.deepcopy(handover)._path != handover._path


# What others may put in the place of a hand-over:


def pickled(tmp_path):
    return bytes(ForkingPickler.dumps(Evil(str(tmp_path / "ran"))))


def file(path, data):
    path.write_bytes(data)


def folder_of_everybody(path, data):
    path.mkdir()
    path.chmod(0o777)
    (path / "outcome").write_bytes(data)


def readable_folder(path, data):
    path.mkdir()
    path.chmod(0o755)
    (path / "outcome").write_bytes(data)


def link_to_a_folder(path, data):
    elsewhere = path.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "outcome").write_bytes(data)
    path.symlink_to(elsewhere)


def folder_of_another_user(path, data):
    path.mkdir(mode=0o700)
    (path / "outcome").write_bytes(data)
    os.chown(path, 65534, 65534)


def file_of_another_user_inside(path, data):
    path.mkdir(mode=0o700)
    (path / "outcome").write_bytes(data)
    os.chown(path / "outcome", 65534, 65534)


def link_inside(path, data):
    path.mkdir(mode=0o700)
    target = path.with_name("target")
    target.write_bytes(data)
    (path / "outcome").symlink_to(target)


PLANTED = [file, folder_of_everybody, readable_folder, link_to_a_folder, link_inside]
PLANTED += [folder_of_another_user, file_of_another_user_inside] if os.geteuid() == 0 else []


@pytest.mark.parametrize("plant", PLANTED)
@pytest.mark.parametrize("content", ["code", "data"])
def test_what_others_put_there_is_neither_run_nor_believed(plant, content, shared, tmp_path):
    watch = GradWatch()
    path = watch._handover._path
    plant(path, pickled(tmp_path) if content == "code" else Outcome(judged=7).to_bytes())
    with pytest.warns(GradWatchWarning, match="can't be taken over") as caught:
        assert watch.findings == ()
    assert len(caught) == 1
    assert watch.outcome.judged == 0
    assert any("can't be taken over" in each.reason for each in watch.coverage)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("plant", [each for each in PLANTED if each not in (link_inside, file_of_another_user_inside)])
def test_nothing_is_left_where_others_could_read_or_change_it(plant, shared):
    handover = SpawnResult()
    plant(handover._path, b"")
    with pytest.raises(PermissionError, match="isn't a private folder of this user"):
        handover.leave(Outcome())
    del handover
    assert list(shared.iterdir()) != []  # what isn't ours isn't ours to remove


def test_damaged_data_of_ones_own_is_told(shared):
    watch = GradWatch()
    watch._handover.leave(Outcome())
    (folder,) = shared.iterdir()
    (folder / "outcome").write_bytes(b"gradwatch data 1" + bytes(8))
    with pytest.warns(GradWatchWarning, match="it is damaged"):
        assert watch.records == ()
    assert list(shared.iterdir()) == []


def trains(handover):
    assert handover.wanted
    handover.leave(Outcome(judged=9))


def test_another_user_who_sees_the_name_gets_nothing_run(shared, tmp_path):
    """As on a shared machine: the name shows in /tmp, and something is put there once it is free again."""
    handover = SpawnResult()
    worker = multiprocessing.get_context("fork").Process(target=trains, args=(handover,))
    worker.start()
    worker.join(30)
    (seen,) = shared.iterdir()
    other = f"import os; {'os.setgid(65534); os.setuid(65534);' if os.geteuid() == 0 else ''}"
    if os.geteuid() == 0:
        program = other + f"os.listdir({str(seen)!r})"
        assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode
    assert handover.take() == Outcome(judged=9)
    program = other + f"open({str(seen)!r}, 'wb').write(bytes.fromhex({pickled(tmp_path).hex()!r}))"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert seen.exists()
    assert handover.take() is None
    assert not (tmp_path / "ran").exists()


def test_no_module_of_the_package_reads_pickles():
    """Neither itself nor by what reads them for it."""
    for path in (Path(__file__).parents[2] / "lightning_gradwatch").rglob("*.py"):
        text = path.read_text()
        for word in ("pickle", "shelve", "marshal", "torch.load", "torch.save", "joblib", "dill", "np.load"):
            assert word not in text, path
