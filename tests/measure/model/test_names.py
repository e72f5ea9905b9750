"""Naming sites takes as long again for as many sites again."""

import pytest
from lines import lines_run

from lightning_gradwatch.measure.model.call_site import CallSite
from lightning_gradwatch.measure.model.names import FreeNames
from lightning_gradwatch.measure.model.sites import Roles, Sites


class Counted(str):
    """A name that counts how often it is compared."""

    __slots__ = ()
    comparisons = 0

    def __eq__(self, other):
        Counted.comparisons += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


FUNCTIONAL = CallSite("net", False, None, None)
SHARED = CallSite(Counted("act"), True, None, None)


def settle(location, count):
    """Name so many sites, each at a place of its own."""
    sites = Sites()
    for place in range(count):
        sites.find(location._replace(place=(1, place)), "relu", None, 8)
    roles = Roles()
    roles._hidden = set()
    return sites, lambda: sites.settle(roles)


@pytest.mark.parametrize("location", [FUNCTIONAL, SHARED])
def test_the_work_is_in_proportion_to_the_sites(location):
    work = []
    for count in (500, 2000):
        sites, name = settle(location, count)
        Counted.comparisons = 0
        work.append((lines_run(name), Counted.comparisons))
        assert len({site.name for site in sites.ordered}) == count
    (few, compared), (many, compared_of_many) = work
    assert many <= 4.1 * few
    assert compared_of_many <= 4.1 * compared + 4


def test_ten_thousand_sites_at_once():
    sites, name = settle(FUNCTIONAL, 10_000)
    name()
    assert [site.name for site in sites.ordered[:2]] == ["net:relu", "net:relu#2"]
    assert sites.ordered[-1].name == "net:relu#10000"


def test_a_name_that_a_user_gave_is_stepped_over():
    names = FreeNames()
    assert [names.take(name) for name in ("act#2", "act", "act", "act")] == ["act#2", "act", "act#3", "act#4"]
