"""What programs read off the public names while they run: annotations. Hydra, jsonargparse and others build objects by them."""

from __future__ import annotations

import inspect
import typing

import pytest

import lightning_gradwatch

PUBLIC = [getattr(lightning_gradwatch, name) for name in lightning_gradwatch.__all__]
CLASSES = [each for each in PUBLIC if inspect.isclass(each)]
FUNCTIONS = [each for each in PUBLIC if inspect.isfunction(each)]


def methods_of(kind):
    """A class's public functions, its constructor among them, whatever they are wrapped in."""
    for home in kind.__mro__:
        if not home.__module__.startswith("lightning_gradwatch"):
            continue
        for name, value in vars(home).items():
            function = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
            if inspect.isfunction(function) and (name == "__init__" or not name.startswith("_")):
                yield pytest.param(function, id=f"{kind.__name__}.{name}")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_public_class_tells_the_types_of_its_fields(kind):
    assert typing.get_type_hints(kind) is not None


@pytest.mark.parametrize(
    "function",
    [*FUNCTIONS, *dict.fromkeys(each for kind in CLASSES for each in methods_of(kind))],
    ids=lambda each: each.__qualname__,
)
def test_a_public_function_tells_the_types_of_its_parameters(function):
    hints = typing.get_type_hints(function)
    annotated = {
        name for name, each in inspect.signature(function).parameters.items() if each.annotation is not each.empty
    }
    assert annotated <= hints.keys()


def test_there_is_something_to_ask():
    assert len(CLASSES) > 25
    assert len(FUNCTIONS) == 6
