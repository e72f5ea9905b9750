"""Impossible arguments: the error names the argument, the value and what would do."""

from __future__ import annotations

import pytest

from lightning_gradwatch import DeadUnits, GradWatch, VanishingGradient


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"every_n_steps": 0}, ValueError, ["every_n_steps=0", "at least 1", "None", "log_every_n_steps"]),
        ({"every_n_steps": -3}, ValueError, ["every_n_steps=-3", "at least 1"]),
        ({"every_n_steps": 2.5}, TypeError, ["every_n_steps=2.5", "integer"]),
        ({"every_n_steps": True}, TypeError, ["every_n_steps=True", "integer"]),
        ({"every_n_steps": "10"}, TypeError, ["every_n_steps='10'", "integer"]),
        ({"max_curves": -1}, ValueError, ["max_curves=-1", "at least 0", "None"]),
        ({"max_curves": 1.0}, TypeError, ["max_curves=1.0", "integer"]),
        ({"fail_on": "info"}, ValueError, ["fail_on='info'", "'warning'", "'error'", "None"]),
        ({"fail_on": True}, ValueError, ["fail_on=True", "'warning'"]),
        ({"fail_on": ["error"]}, ValueError, ["fail_on=['error']", "'warning'"]),
        ({"compiled": "run"}, ValueError, ["compiled='run'", "'skip'", "'eager'"]),
        ({"compiled": None}, ValueError, ["compiled=None", "'skip'"]),
        ({"ignore": ("GW9",)}, ValueError, ["ignore", "'GW9'", "GW202"]),
        ({"ignore": "GW202"}, TypeError, ["ignore", "'GW202'"]),
        ({"ignore": (202,)}, TypeError, ["ignore", "202"]),
        ({"rules": VanishingGradient()}, TypeError, ["rules=", "VanishingGradient", "[VanishingGradient"]),
        ({"rules": [VanishingGradient]}, TypeError, ["rules[0]", "VanishingGradient()"]),
        ({"rules": ["GW101"]}, TypeError, ["rules[0]", "'GW101'", "VanishingGradient("]),
        ({"rules": [DeadUnits(), DeadUnits()]}, ValueError, ["rules[1]", "DeadUnits", "once"]),
        ({"rules": None}, TypeError, ["rules=None"]),
        ({"ignore": None}, TypeError, ["ignore"]),
        ({"ignore": ("",)}, ValueError, ["ignore", "''"]),
    ],
    ids=str,
)
def test_an_impossible_argument_is_named(arguments, error, says):
    with pytest.raises(error) as raised:
        GradWatch(**arguments)
    message = str(raised.value)
    assert [part for part in says if part not in message] == [], message


def test_arguments_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        GradWatch(50)


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="every_n_step"):
        GradWatch(every_n_step=50)


@pytest.mark.parametrize(
    "arguments", [{"every_n_steps": 1}, {"max_curves": 0}, {"max_curves": None}, {"ignore": ("GW1",)}]
)
def test_the_least_that_is_possible_is_taken(arguments):
    GradWatch(**arguments)
