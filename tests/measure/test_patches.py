"""Functions in the place of an object's own: called while they stand, and gone whatever else was put there meanwhile."""

from __future__ import annotations

import gc
import weakref
from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.measure.patches import Patch, beneath


class Owner:
    def __init__(self):
        self.calls = []

    def step(self, value):
        self.calls.append("own")
        return value


def patch(owner, name):
    """One of ours, which says that it was called."""

    def around(original):
        def called(*args, **kwargs):
            owner.calls.append(name)
            return original(*args, **kwargs)

        return called

    return Patch(owner, "step", around)


class Others:
    """How everybody else does it: keep what is there, put it back."""

    def __init__(self, owner, name, *, deletes=False):
        self.owner, self.deletes = owner, deletes
        self.original = original = owner.step

        def called(*args, **kwargs):
            owner.calls.append(name)
            return original(*args, **kwargs)

        owner.step = called

    def remove(self):
        if self.deletes:
            self.owner.__dict__.pop("step", None)
        elif "step" in self.owner.__dict__:
            self.owner.step = self.original


def calls_of(owner):
    owner.calls.clear()
    assert owner.step(3) == 3
    assert owner.step(value=4) == 4
    assert owner.calls[: len(owner.calls) // 2] == owner.calls[len(owner.calls) // 2 :]
    return owner.calls[: len(owner.calls) // 2]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_ours_go_in_any_order(order):
    owner = Owner()
    placed = [patch(owner, name) for name in range(3)]
    assert calls_of(owner) == [2, 1, 0, "own"]
    left = [2, 1, 0]
    for name in order:
        placed[name].remove()
        left.remove(name)
        assert calls_of(owner) == [*left, "own"]
    assert vars(owner).keys() == {"calls"}
    assert all(each.remove() for each in placed)


@pytest.mark.parametrize("deletes", [True, False])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_ours_go_though_others_came_in_between(order, deletes):
    """Placed: ours, another's, ours. When the other has put back what he found, that is gone too with our next look."""
    owner = Owner()
    placed = [patch(owner, 0), Others(owner, 1, deletes=deletes), patch(owner, 2)]
    for name in order:
        placed[name].remove()
        assert calls_of(owner)[-1] == "own"
        assert {0, 2} & {*calls_of(owner)} <= {0, 2} - {*order[: order.index(name) + 1]}
    assert calls_of(owner) in (["own"], [1, "own"])  # who puts back what he found may put himself back
    if 1 not in calls_of(owner):
        assert placed[0].remove()
        assert placed[2].remove()
        assert vars(owner).keys() == {"calls"}


def test_what_others_put_over_one_of_ours_is_called_as_before_and_ours_no_more():
    owner = Owner()
    ours = patch(owner, "ours")
    theirs = Others(owner, "theirs")
    assert calls_of(owner) == ["theirs", "ours", "own"]
    assert not ours.remove()
    assert calls_of(owner) == ["theirs", "own"]
    theirs.remove()
    assert calls_of(owner) == ["own"]
    assert ours.remove()
    assert vars(owner).keys() == {"calls"}


def test_what_others_put_back_goes_with_the_next_one_of_ours():
    owner = Owner()
    first, theirs = patch(owner, "first"), Others(owner, "theirs")
    first.remove()
    theirs.remove()
    assert "step" in vars(owner)
    second = patch(owner, "second")
    assert second.earlier is None
    second.remove()
    assert vars(owner).keys() == {"calls"}


def test_an_objects_own_attribute_comes_back():
    owner = Owner()
    owner.step = mine = lambda value: value
    placed = [patch(owner, 0), patch(owner, 1)]
    assert beneath(owner.step) is mine
    for each in placed:
        each.remove()
    assert owner.step is mine


def test_one_that_is_removed_keeps_nothing_alive_though_another_stands_on_it():
    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)
    owner = Owner()
    placed = Patch(owner, "step", lambda original, held=held: lambda *args: (held, original(*args))[1])
    Others(owner, "theirs")
    placed.remove()
    del held
    gc.collect()
    assert gone() is None
    assert calls_of(owner) == ["theirs", "own"]


def test_one_that_cant_be_made_leaves_nothing():
    owner = Owner()
    with pytest.raises(ZeroDivisionError):
        Patch(owner, "step", lambda original: 1 / 0)
    assert vars(owner).keys() == {"calls"}


@given(
    kinds=st.lists(st.booleans(), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
    interleaved=st.lists(st.integers(0, 6), max_size=6),
)
def test_whatever_comes_and_goes_a_call_arrives_once_and_ours_are_called_while_they_stand(kinds, order, interleaved):
    """Ours and others', placed and removed in any order; each call arrives at the object's own function exactly once."""
    owner = Owner()
    placed, removed = [], set()
    todo = [("place", ours) for ours in kinds]
    for place in interleaved:
        todo.insert(min(place, len(todo)), ("remove", None))
    for action, ours in [*todo, *[("remove", None)] * len(kinds)]:
        if action == "place":
            name = len(placed)
            placed.append(patch(owner, name) if ours else Others(owner, name))
        elif standing := [name for name in range(len(placed)) if name not in removed]:
            name = order.choice(standing)
            placed[name].remove()
            removed.add(name)
        called = calls_of(owner)
        assert called.count("own") == 1
        assert not [name for name in called if name in removed and isinstance(placed[name], Patch)]
    if all(kinds):
        assert vars(owner).keys() == {"calls"}


@pytest.mark.parametrize("steps", list(product([True, False], repeat=3)))
def test_nothing_grows_over_many_rounds_beside_others(steps):
    """A measured batch places one of ours; others come over it now and then, and stay."""
    owner = Owner()
    for _ in range(50):
        ours = patch(owner, "ours")
        theirs = [Others(owner, "theirs") for step in steps if step]
        ours.remove()
        for each in reversed(theirs):
            each.remove()
    assert calls_of(owner) == ["own"]
    patch(owner, "last").remove()
    assert vars(owner).keys() == {"calls"}
