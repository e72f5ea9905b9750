"""Who is told what a fit finds is handed to it."""

from __future__ import annotations

import logging
import warnings

import pytest
from integration.nets import Classifier, batches, relu_net, seed, trainer

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.judge.verdict import RunVerdict
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.tell.reporter import SILENT, Reporter, current, errors_only, reporting
from lightning_gradwatch.testing.watch import Watch


def fit(folder, watch):
    seed()
    trainer(folder, watch, max_steps=3).fit(Classifier(relu_net()), batches())


def listening(said):
    """Return a reporter that keeps what it is given, by what it is asked to do."""
    return Reporter(
        **{
            name: lambda *given, name=name: said.append((name, given))
            for name in ("warn", "note", "announce", "conclude")
        }
    )


def test_a_fit_reports_to_whom_it_was_started_under(tmp_path, caplog):
    said = []
    watch = GradWatch(every_n_steps=1)
    watch.load_state_dict({"version": 99})
    with reporting(listening(said)), caplog.at_level(logging.INFO, "lightning_gradwatch"):
        fit(tmp_path, watch)
    assert [name for name, _ in said] == ["note", "announce", "conclude"]
    (text,), (info, where), (verdict, path) = (given for _, given in said)
    assert "begins anew" in text
    assert isinstance(info, RunInfo)
    assert str(tmp_path) in where
    assert isinstance(verdict, RunVerdict)
    assert verdict.measured == "3 measured steps (0 to 2)"
    assert str(tmp_path) in path
    assert "GradWatch" not in caplog.text


def test_behind_the_block_it_is_as_before_also_after_an_exception():
    before = current()
    with pytest.raises(ZeroDivisionError), reporting(SILENT):
        raise ZeroDivisionError
    assert current() is before


def test_what_a_test_adds_says_nothing_whoever_listens(tmp_path):
    said = []
    with reporting(listening(said)):
        fit(tmp_path, Watch())
    assert said == []


def test_of_a_process_beside_the_one_that_reports_only_errors_come_out():
    """Each rank is to be ended at the same step by a filter that makes an error of a warning."""

    def warn(_finding, category, _led_to):
        warnings.warn("found", category, stacklevel=1)

    beside = errors_only(Reporter(warn=warn))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        beside.warn(None, GradWatchWarning, ())
        beside.note("text")
        beside.announce(None, "")
        beside.conclude(None, "")
    assert heard == []
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradWatchWarning)
        for report in (lambda: beside.warn(None, GradWatchWarning, ()), lambda: beside.note("text")):
            with pytest.raises(GradWatchWarning):
                report()
