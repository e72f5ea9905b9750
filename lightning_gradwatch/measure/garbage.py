"""Python's search for garbage, put off while a step's numbers are put together."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def collecting_later() -> Iterator[None]:
    """Put the search for garbage off until the block ends, unless the user has switched it off.

    What a step's numbers are made of sets it off again and again, and each time it goes through the user's young objects,
    too. For blocks of a moment in which nothing of the user's runs: for him it comes that moment later.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
