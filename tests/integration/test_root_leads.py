"""The root is told whole and first, what follows from it in a line; nothing is told twice in a fit."""

from __future__ import annotations

import warnings

import pytest
from integration.nets import Classifier, batches, trainer
from judge.scripted import ERROR, WARNING, Fades, Stalls

from lightning_gradwatch import GradWatch, GradWatchError, GradWatchWarning, StalledUpdateWarning

IGNORED = ("GW102", "GW103", "GW104", "GW2", "GW302", "GW4")
RISING = ((2, WARNING), (3, WARNING), (5, ERROR), (6, ERROR))
LATER = ((4, WARNING), (6, ERROR), (7, ERROR))


def fit(folder, *, first=RISING, then=LATER, **settings):
    rules = [Fades(says=first), Stalls(says=then, layers=("net.2", "net.4"))]
    watch = GradWatch(every_n_steps=1, rules=rules, ignore=IGNORED, **settings)
    trainer(folder, watch, max_steps=9).fit(Classifier(), batches())
    return watch


def heard(folder, **given):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(folder, **given)
    return [entry for entry in told if issubclass(entry.category, GradWatchWarning)]


def test_each_warns_once_the_root_in_full_and_what_follows_in_a_line(tmp_path):
    root, effect = heard(tmp_path)
    assert "Do as GW101 says." in str(root.message)
    assert effect.category is StalledUpdateWarning
    assert str(effect.message) == (
        "GW301 stalled-update at net.2, net.4: Seen by GW301 at step 4. Reported always; follows from GW101 "
        "(stalled-update, warning since step 4)"
    )


def test_told_in_the_same_step_the_root_comes_first(tmp_path):
    told = heard(tmp_path, first=((4, WARNING),), then=((4, ERROR),))
    assert [entry.category.__name__ for entry in told] == ["VanishingGradientWarning", "StalledUpdateWarning"]


UNDER_WAY = ((2, ...), (3, ...), (4, ...), (5, ...))


def test_what_is_found_before_its_root_waits_for_it(tmp_path):
    told = heard(tmp_path, first=(*UNDER_WAY, (6, WARNING)), then=((4, WARNING), (5, WARNING)))
    assert [entry.category.__name__ for entry in told] == ["VanishingGradientWarning", "StalledUpdateWarning"]
    assert "; follows from GW101 (stalled-update, warning since step 4" in str(told[1].message)


def test_whose_root_never_comes_is_told_itself(tmp_path):
    (told,) = heard(tmp_path, first=UNDER_WAY, then=((4, WARNING),))
    assert "Do as GW301 says." in str(told.message)


def test_what_waits_when_the_run_is_over_is_told_at_its_end(tmp_path):
    (told,) = heard(tmp_path, first=((7, ...), (8, ...)), then=((8, WARNING),))
    assert "Do as GW301 says." in str(told.message)


def test_what_waits_when_training_fails_is_told_beside_the_failure(tmp_path):
    class Breaks(Classifier):
        def training_step(self, batch, batch_idx):
            if batch_idx == 6:
                raise KeyError("the user's own")
            return super().training_step(batch, batch_idx)

    rules = [Fades(says=tuple((step, ...) for step in range(9))), Stalls(says=((4, ERROR),))]
    watch = GradWatch(every_n_steps=1, rules=rules, ignore=IGNORED, fail_on="error")
    with pytest.warns(StalledUpdateWarning, match="Do as GW301"), pytest.raises(KeyError, match="the user's own"):
        trainer(tmp_path, watch, max_steps=9).fit(Breaks(), batches())


@pytest.mark.parametrize(
    ("first", "codes", "step"),
    [((*UNDER_WAY, (6, WARNING)), ["GW101", "GW301"], 6), (((7, ...), (8, ...)), ["GW301"], 8)],
)
def test_fail_on_waits_for_the_root_as_long_as_that_is_on_its_way(tmp_path, first, codes, step):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradWatchWarning)
        with pytest.raises(GradWatchError) as raised:
            fit(tmp_path, first=first, then=((4, ERROR), (8, ERROR)) if step == 6 else ((8, ERROR),), fail_on="error")
    assert [finding.code for finding in raised.value.findings] == codes
    assert raised.value.findings[0].last_step == step


@pytest.mark.parametrize(("level", "codes", "step"), [("warning", ["GW101"], 2), ("error", ["GW101", "GW301"], 4)])
def test_fail_on_says_the_root_also_where_only_its_consequence_reaches_the_level(tmp_path, level, codes, step):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradWatchWarning)
        with pytest.raises(GradWatchError) as raised:
            fit(tmp_path, first=((2, WARNING), (3, WARNING)), then=((4, ERROR),), fail_on=level)
    assert [finding.code for finding in raised.value.findings] == codes
    first, root = str(raised.value).split("\n\n")
    assert first == f"GradWatch stops this run (fail_on={level!r}):"
    assert root.startswith("GW101 vanishing-gradient at net.")
    assert "  rule     vanishing-gradient, warning since step 2" in root
    assert "Do as GW101 says." in root
    assert ("  led to   GW301 stalled-update at net.2 and 1 more" in root) is (len(codes) == 2)
    assert max(finding.last_step for finding in raised.value.findings) == step


def test_fail_on_ends_the_run_where_what_has_warned_becomes_an_error(tmp_path):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(GradWatchError) as raised:
            fit(tmp_path, then=(), fail_on="error")
    assert [finding.last_step for finding in raised.value.findings] == [5]
    assert len([entry for entry in told if issubclass(entry.category, GradWatchWarning)]) == 1
