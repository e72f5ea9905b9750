"""A callback that a package has copied: what the copy sees shows on the user's own object."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import threading
import weakref

import pytest
import pytorch_lightning as pl
import torch
from integration.nets import Classifier, batches, relu_net, seed, trainer, vanishing_net

from lightning_gradwatch import GradWatch, GradWatchError, Severity
from lightning_gradwatch.fit.copies import Kin

WAYS = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda watch: pickle.loads(pickle.dumps(watch)),  # noqa: S301 - what was just made of it
    "with its settings": lambda watch: copy.deepcopy({"callbacks": [watch], "lr": 0.1})["callbacks"][0],
    "twice": lambda watch: copy.deepcopy(copy.copy(copy.deepcopy(watch))),
}
pytestmark = [pytest.mark.judges, pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")]


def slow(parameters):
    return torch.optim.SGD(parameters, lr=1e-2)


def fit(folder, watch, net=vanishing_net, *, steps=16, optimizer=slow, **settings):
    seed()
    run = trainer(folder, watch, max_steps=steps, **settings)
    run.fit(Classifier(net(), optimizer), batches(steps, 16))
    return run


def healthy():
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


@pytest.mark.parametrize("way", WAYS)
def test_what_a_copy_sees_shows_on_what_it_was_copied_from(way, tmp_path):
    watch = GradWatch(every_n_steps=1)
    copied = WAYS[way](watch)
    fit(tmp_path, copied)
    assert [finding.code for finding in copied.findings][:1] == ["GW101"]
    assert watch.findings == copied.findings
    assert watch.records == copied.records
    assert watch.info == copied.info
    assert watch.outcome.judged == copied.outcome.judged > 0
    note = watch.coverage[-1]
    assert watch.coverage[:-1] == copied.coverage
    assert note.reason.startswith("seen by copies of this callback, which watched 1 fit:")


@pytest.mark.parametrize("way", WAYS)
def test_and_is_there_when_the_copy_and_its_model_have_gone(way, tmp_path):
    watch = GradWatch(every_n_steps=1)
    copied = WAYS[way](watch)
    run = fit(tmp_path, copied)
    findings, count = copied.findings, len(copied.records)
    gone = weakref.ref(copied), weakref.ref(run.lightning_module)
    del copied, run
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert watch.findings == findings
    assert len(watch.records) == count


def test_it_shows_while_the_copy_trains(tmp_path):
    watch, seen = GradWatch(every_n_steps=1), []

    class Looks(pl.Callback):
        def on_train_batch_end(self, *_):
            seen.append((len(watch.records), [finding.code for finding in watch.findings]))

    copied = copy.deepcopy(watch)
    seed()
    trainer(tmp_path, copied, Looks(), max_steps=14).fit(Classifier(vanishing_net(), slow), batches(14, 16))
    assert [count for count, _ in seen] == list(range(1, 15))
    assert seen[0][1] == []
    assert "GW101" in seen[-1][1]


def test_a_copy_shows_nothing_of_what_it_was_copied_from_nor_of_its_siblings(tmp_path):
    watch = GradWatch(every_n_steps=1)
    first, second = copy.deepcopy(watch), copy.deepcopy(watch)
    fit(tmp_path, first)
    assert (second.records, second.findings, second.info, second.coverage) == ((), (), None, ())
    third = copy.deepcopy(watch)
    assert (third.records, third.findings) == ((), ())
    fit(tmp_path, watch)
    assert len(first.records) == 16
    assert not first.coverage


def test_findings_of_all_copies_show_and_the_records_of_the_last(tmp_path):
    """As in cross-validation: one ill fold of three is no healthy run."""
    watch = GradWatch(every_n_steps=1)
    folds = [copy.deepcopy(watch) for _ in range(3)]
    for each, net, steps in zip(folds, (healthy, vanishing_net, healthy), (5, 16, 7), strict=True):
        fit(tmp_path, each, net, steps=steps)
    assert folds[2].findings == ()
    assert watch.findings == folds[1].findings != ()
    assert watch.records == folds[2].records
    assert len(watch.records) == 7
    assert "watched 3 fits" in watch.coverage[-1].reason


def test_two_copies_in_two_fits_at_once(tmp_path):
    watch = GradWatch(every_n_steps=1)
    ill, well = copy.deepcopy(watch), copy.deepcopy(watch)
    meet = threading.Barrier(2, timeout=60)

    class Meets(pl.Callback):
        def on_train_batch_end(self, *_):
            meet.wait()

    def run(each, net):
        trainer(tmp_path, each, Meets(), max_steps=14).fit(Classifier(net(), slow), batches(14, 16))

    seen = []
    other = threading.Thread(target=lambda: seen.append(run(well, healthy)))
    other.start()
    run(ill, vanishing_net)
    other.join()
    assert seen == [None]
    assert {finding.code for finding in ill.findings} <= {finding.code for finding in watch.findings}
    assert len(watch.records) == 14


def test_a_fit_of_its_own_takes_the_place_of_what_copies_saw(tmp_path):
    watch = GradWatch(every_n_steps=1)
    fit(tmp_path, copy.deepcopy(watch))
    assert watch.findings
    fit(tmp_path, watch, healthy, steps=5)
    assert watch.findings == ()
    assert len(watch.records) == 5
    assert watch.coverage == ()


def test_a_copy_that_fits_again_shows_its_last_fit(tmp_path):
    watch = GradWatch(every_n_steps=1)
    copied = copy.deepcopy(watch)
    fit(tmp_path, copied, healthy, steps=5)
    fit(tmp_path, copied, healthy, steps=6)
    assert len(watch.records) == 6
    assert "watched 2 fits" in watch.coverage[-1].reason


def test_what_a_copy_saw_before_an_exception_shows(tmp_path):
    watch = GradWatch(every_n_steps=1, fail_on="error")
    copied = copy.deepcopy(watch)
    with pytest.raises(GradWatchError):
        fit(tmp_path, copied, steps=30)
    del copied
    gc.collect()
    assert "GW101" in {finding.code for finding in watch.findings if finding.severity is Severity.ERROR}


class Mine(GradWatch):
    """A user's, which says itself what is copied."""

    def __init__(self):
        super().__init__(every_n_steps=1)
        self.extra = [1]

    def __getstate__(self):
        return super().__getstate__() | {"extra": [*self.extra, 2]}


@pytest.mark.parametrize("way", WAYS)
def test_a_users_class_is_copied_as_it_says(way, tmp_path):
    watch = Mine()
    copied = WAYS[way](watch)
    assert copied.extra[:2] == [1, 2]
    fit(tmp_path, copied, steps=14)
    assert watch.findings == copied.findings != ()


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["the copy first", "the original first"])
def test_a_copy_whose_fit_ran_in_other_processes(asked, tmp_path):
    watch = GradWatch(every_n_steps=1)
    copied = copy.deepcopy(watch)
    run = trainer(tmp_path, copied, strategy="ddp_fork", devices=1, max_steps=14)
    run.fit(Classifier(vanishing_net(), slow), batches(14, 16))
    for each in (copied, watch) if asked == "the copy first" else (watch, copied):
        assert [finding.code for finding in each.findings][:1] == ["GW101"]
        assert len(each.records) == 14


# -- none that watched


@pytest.fixture
def log(caplog):
    logger = logging.getLogger("lightning_gradwatch")
    before = logger.propagate
    logger.propagate = True
    caplog.set_level(logging.WARNING, logger="lightning_gradwatch")
    yield lambda: [record.getMessage() for record in caplog.records if record.name == "lightning_gradwatch"]
    logger.propagate = before


def test_findings_of_a_callback_that_watched_nothing_are_no_good_news_and_it_says_so_once(log, tmp_path):
    """As where a package builds another one from its settings: that can't be seen, but this can."""
    watch = GradWatch()
    fit(tmp_path, GradWatch(every_n_steps=5), healthy, steps=3)
    assert log() == []
    assert watch.records == ()
    assert watch.info is None
    assert watch.outcome.judged == 0
    assert log() == []
    assert [watch.findings for _ in range(3)] == [()] * 3
    assert len(log()) == 1
    assert "this callback has watched no fit" in log()[0]


@pytest.mark.filterwarnings("error")
def test_looking_at_it_raises_nothing(log):
    assert GradWatch().findings == ()


def test_nothing_is_said_of_one_that_watched_or_whose_copy_did(log, tmp_path):
    watch = GradWatch()
    fit(tmp_path, watch, relu_net, steps=2)
    assert watch.findings == ()
    other = GradWatch()
    fit(tmp_path, copy.deepcopy(other), relu_net, steps=2)
    assert other.findings == ()
    assert log() == []


# -- what it costs


def test_many_copies_leave_no_more_than_the_last():
    watch = GradWatch()
    for _ in range(200):
        copied = copy.deepcopy(watch)
        copied._kin.begin(copied)
        copied._leave_outcome()
    del copied
    gc.collect()
    assert watch._kin.copies == []
    assert watch._kin._watching == {}
    assert watch._kin.fits == 200


def test_copies_of_copies_know_only_those_that_are_still_there():
    watch = GradWatch()
    latest = watch
    for _ in range(100):
        latest = copy.deepcopy(latest)
    gc.collect()
    assert list(latest._kin.ancestors()) == [watch._kin]


def test_a_pickle_from_another_process_has_no_ancestors():
    data = pickle.dumps(Kin())
    gc.collect()
    assert list(pickle.loads(data).ancestors()) == []  # noqa: S301 - as above
