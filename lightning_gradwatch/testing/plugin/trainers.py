"""Hooks into every Trainer that is fitted, for as long as a test runs, without importing Lightning.

Only ``Trainer.fit`` is wrapped, on the class, where subclasses' own `fit` arrives too; a package that the test is the
first to import is wrapped when its module has been executed. All is undone at the end.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

MODULES = ("pytorch_lightning.trainer.trainer", "lightning.pytorch.trainer.trainer")


@contextmanager
def hooked_trainers(around_fit: Callable[[Any, Callable[[], Any]], Any]) -> Iterator[None]:
    """Let each Trainer's `fit` run as ``around_fit(trainer, fit)`` in this context."""
    undo: list[Callable[[], None]] = []

    def hook(module: ModuleType) -> None:
        trainer = getattr(module, "Trainer", None)
        if trainer is None:  # in the middle of its own import
            return
        original = trainer.fit

        @wraps(original)
        def fit(self: Any, *args: Any, **kwargs: Any) -> Any:
            return around_fit(self, lambda: original(self, *args, **kwargs))

        trainer.fit = fit
        undo.append(lambda: setattr(trainer, "fit", original))

    finder = _HookOnImport(hook)
    for name in MODULES:
        if name in sys.modules:
            hook(sys.modules[name])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        while undo:
            undo.pop()()


class _HookOnImport(MetaPathFinder):
    """Finds nothing itself; has the others' loader call `hook` after it has executed a Trainer's module."""

    def __init__(self, hook: Callable[[ModuleType], None]) -> None:
        self._hook = hook

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in MODULES:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _HookingLoader(spec.loader, self._hook)
                return spec
        return None


class _HookingLoader(Loader):
    """Executes a module as its own loader does, then steps out of the way."""

    def __init__(self, loader: Loader, hook: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._hook = hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._hook(module)
