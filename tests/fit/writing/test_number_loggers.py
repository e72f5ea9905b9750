"""Loggers that take numbers: what they can't save any more of ours is taken back, and their own rows are left alone."""

from __future__ import annotations

import os
import shutil

import pytest
from pytorch_lightning.loggers import CSVLogger

from lightning_gradwatch.fit.writing.destinations import NotWritten
from lightning_gradwatch.fit.writing.number_loggers import OtherLogger

OURS = {"gradwatch/log10_grad_norm": 1.0}


@pytest.fixture
def logger(tmp_path):
    made = CSVLogger(tmp_path, name="", version="csv", flush_logs_every_n_steps=10)
    made.experiment  # noqa: B018 - it makes the folder, as Lightning asks for it before a fit
    return made


def rows(logger):
    return [(row["step"], sorted(row)) for row in logger.experiment.metrics]


def test_what_it_keeps_is_taken_back_when_it_cannot_be_saved(logger, tmp_path):
    other = OtherLogger(logger)
    for step in range(4):
        other.send(None, OURS, step)
        logger.log_metrics({"loss": 1.0}, step)
    shutil.rmtree(tmp_path / "csv")
    with pytest.raises(NotWritten, match="No such file") as raised:
        other.close()
    assert raised.value.since == 0
    assert rows(logger) == [(step, ["loss", "step"]) for step in range(4)]


def test_what_is_saved_stays(logger, tmp_path):
    other = OtherLogger(logger)
    other.send(None, OURS, 0)
    logger.save()
    other.send(None, OURS, 1)
    shutil.rmtree(tmp_path / "csv")
    with pytest.raises(NotWritten) as raised:
        other.send(None, OURS, 2)
    assert raised.value.since == 1
    assert rows(logger) == []


def test_a_save_that_fails_within_our_own_call_is_ours_to_bear(logger, monkeypatch):
    other = OtherLogger(logger)
    for step in range(9):
        other.send(None, OURS, step)

    def fails():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logger, "save", fails)
    logger.experiment.metrics.append({"loss": 1.0, "step": 9})
    with pytest.raises(NotWritten, match="No space left") as raised:
        other.send(None, OURS, 9)
    assert (raised.value.since, raised.value.shortage) == (0, True)
    assert rows(logger) == [(9, ["loss", "step"])]


def test_closing_leaves_what_can_be_saved(logger):
    other = OtherLogger(logger)
    other.send(None, OURS, 0)
    other.close()
    logger.finalize("success")
    with open(f"{logger.log_dir}/metrics.csv") as file:  # noqa: PTH123 - a string is what the logger has
        assert file.read().splitlines() == ["gradwatch/log10_grad_norm,step", "1.0,0"]


def test_a_file_where_the_folder_was_is_no_folder(logger, tmp_path):
    other = OtherLogger(logger)
    other.send(None, OURS, 0)
    shutil.rmtree(tmp_path / "csv")
    (tmp_path / "csv").write_text("")
    with pytest.raises(NotWritten, match="Not a directory"):
        other.close()
    assert rows(logger) == []


def test_a_table_that_may_not_be_written_to_gets_nothing(logger, monkeypatch):
    other = OtherLogger(logger)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(NotWritten, match="can't be written to any more"):
        other.send(None, OURS, 0)
    assert rows(logger) == []


def test_a_new_column_needs_room_for_the_whole_table(logger, monkeypatch):
    """The logger writes all of it anew: on a full disk, what was there would be lost."""
    asked = []
    monkeypatch.setattr(
        "lightning_gradwatch.fit.writing.number_loggers.check_disk", lambda folder, **sizes: asked.append(sizes)
    )
    other = OtherLogger(logger)
    logger.log_metrics({"note": "x" * 100_000}, 0)
    logger.save()
    other.send(None, OURS, 1)
    assert asked[0]["more"] > 100_000
