"""Which of Lightning's two packages a callback is one for: each that the user has imported, and none that he hasn't.

An import of `pytorch_lightning` or `lightning.pytorch` changes what is shared by both: the logger and the warning class of
their messages, how warnings read, the filters. So ours imports neither, and a callback becomes one of a package's as soon
as that package has a class for it, whether it was imported before us, after us or when instances were there already.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import TypeAlias

    import lightning.pytorch as lightning
    import pytorch_lightning

    AnyTrainer: TypeAlias = lightning.Trainer | pytorch_lightning.Trainer
    AnyModule: TypeAlias = lightning.LightningModule | pytorch_lightning.LightningModule

    # A type checker that finds one of the packages only takes the other's class for Any, and so the callback for one of both.
    class AnyCallback(lightning.Callback, pytorch_lightning.Callback):  # type: ignore[misc]  # hooks of two Trainers
        """What a type checker sees: a callback of both packages."""

else:
    AnyTrainer = AnyModule = Any  # what reads annotations while a program runs needn't have either package

    class _Plain:
        """What it derives from until there is a package: classes that derive from nothing can't change that."""

    class AnyCallback(_Plain):
        """What a callback for any of the packages derives from: their Callback classes, as their Trainers ask for."""

        def __init__(self) -> None:
            take_in_packages()  # an import may have gone past us, where other tools find modules before we are asked
            super().__init__()


PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def take_in_packages() -> None:
    """Derive callbacks from the Callback class of each package that has been imported."""
    homes = (sys.modules.get(f"{package}.callbacks.callback") for package in PACKAGES)
    kinds = (getattr(home, "Callback", None) for home in homes)  # it may be in the middle of its import
    found = [kind for kind in kinds if isinstance(kind, type)]
    bases = (*found, *(kind for kind in _taken_in() if kind not in found))
    if bases and bases != AnyCallback.__bases__:
        try:
            AnyCallback.__bases__ = bases
        except TypeError:
            # A user's class derives from callbacks in another order than this one. He gets that told where he makes
            # such a class; it must not end the import of a package.
            return


def _taken_in() -> list[type]:
    return [kind for kind in AnyCallback.__bases__ if kind.__name__ == "Callback"]


def _installed(package: str) -> bool:
    """Whether a package could be imported, found out without importing any part of it."""
    parent, _, child = package.partition(".")
    try:
        spec = find_spec(parent)
        if spec is not None and child:
            spec = PathFinder.find_spec(package, spec.submodule_search_locations)
    except (ImportError, ValueError):
        return False
    return spec is not None


class _Onlooker(MetaPathFinder):
    """Finds no module; looks, as modules are imported, whether a package has got its Callback class meanwhile.

    It stays until all have: where imports are under way, nothing can be taken out of the list of finders.
    """

    def __init__(self, awaited: Sequence[str]) -> None:
        self._awaited = tuple(awaited)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find nothing."""
        del path, target
        if fullname.startswith(self._awaited):
            take_in_packages()
        return None


def _await_others() -> None:
    """Hear of the packages that are installed and may yet be imported.

    Raises:
        ImportError: there is no package.
    """
    taken_in = {kind.__module__ for kind in _taken_in()}
    awaited = [each for each in PACKAGES if f"{each}.callbacks.callback" not in taken_in and _installed(each)]
    if not taken_in and not awaited:
        raise ImportError("GradWatch needs PyTorch Lightning: pip install pytorch-lightning (or lightning)")
    if awaited:
        sys.meta_path.insert(0, _Onlooker(awaited))


take_in_packages()
_await_others()
