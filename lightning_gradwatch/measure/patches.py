"""Functions that stand in the place of an object's own for a while, and go in whatever order they came.

Others replace functions on the same objects: a second monitor in the same Trainer, a profiler, a user. Whoever puts back what
he found brings back what was taken away before him. So one of ours that isn't needed any more lets every call through, and
goes as soon as nothing stands on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Function = Callable[..., Any]


class Patch:
    """A function in the place of an object's own, on this one object, until it is removed."""

    def __init__(self, owner: Any, name: str, around: Callable[[Function], Function]) -> None:
        """Put it in place.

        Args:
            owner: The object.
            name: The attribute that is called.
            around: Makes the function that is called instead, of the one that was there.
        """
        _clear(owner, name)
        self._owner = owner
        self._name = name
        self.original: Function = getattr(owner, name)
        """What a call went to before."""
        self.earlier: Function | None = owner.__dict__.get(name)
        """What was in place of the class's own function; None: nothing."""
        self._inside: Function | None = around(self.original)
        self._gone = False

        def patched(*args: Any, **kwargs: Any) -> Any:
            return (self._inside or self.original)(*args, **kwargs)

        patched.__dict__["patch"] = self
        # Past the owner's own `__setattr__`, which a compiled module hands on to the module inside.
        owner.__dict__[name] = patched

    def remove(self) -> bool:
        """Take it away; whether it has gone. Fine to call again.

        What others have put over it is called as before. When they have put back what they found, it goes with the next call
        of this, or where another one is placed.
        """
        self._inside = None
        _clear(self._owner, self._name)
        return self._gone or self._name not in self._owner.__dict__

    @property
    def removed(self) -> bool:
        """Whether it lets every call through."""
        return self._inside is None

    def put_back(self) -> None:
        """Put back what was there before."""
        self._gone = True
        if self.earlier is None:
            del self._owner.__dict__[self._name]
        else:
            self._owner.__dict__[self._name] = self.earlier


def beneath(function: Any) -> Any:
    """Return what is below all functions of ours."""
    while (patch := _patch_of(function)) is not None:
        function = patch.original
    return function


def _patch_of(function: Any) -> Patch | None:
    patch = getattr(function, "__dict__", {}).get("patch")
    return patch if isinstance(patch, Patch) else None


def _clear(owner: Any, name: str) -> None:
    """Take away those on top that have been removed."""
    while (patch := _patch_of(owner.__dict__.get(name))) is not None and patch.removed:
        patch.put_back()
