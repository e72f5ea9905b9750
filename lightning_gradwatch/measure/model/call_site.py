"""Where in the user's program an activation function is called, told from the call stack.

No hook is put on any module: hooks on a compiled module cost a recompilation or never fire, and a module that is called
through ``forward`` directly has none. Only `nn.Module._call_impl`'s own locals are looked at, as reading the locals of a
user's frame would keep its tensors alive.
"""

from __future__ import annotations

import os
import re
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointFunction

from lightning_gradwatch.record.activations import registered_classes

if TYPE_CHECKING:
    from types import CodeType, FrameType

Place: TypeAlias = tuple[int, int]
"""The `id` of a code object and the offset of an instruction in it: two calls on one line are two places."""

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def qualified_name(name: str) -> str:
    """Strip the prefixes that wrappers put into fully qualified names.

    >>> qualified_name("_orig_mod.net.0._orig_mod.weight")
    'net.0.weight'
    """
    return _WRAPPERS.sub("", name)


_REENTRANT_CHECKPOINT = CheckpointFunction.forward.__code__
_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]  # torch leaves it untyped
_DEEPEST = 200


def _folder(path: str | None) -> str:
    return str(Path(path or "").resolve().parent) + os.sep


_OURS = _folder(str(Path(__file__).parents[1]))
_STANDARD = _folder(os.__file__)
_INTERNAL_FOLDERS = (_folder(torch.__file__), _OURS)
_LIGHTNING = (
    f"{os.sep}lightning{os.sep}pytorch{os.sep}",
    f"{os.sep}lightning{os.sep}fabric{os.sep}",
    f"{os.sep}pytorch_lightning{os.sep}",
    f"{os.sep}lightning_fabric{os.sep}",
)
_AUTOMATIC = os.path.join("loops", "optimization", "automatic.py")  # noqa: PTH118 - the end of a path
_OF_USER, _PASSED, _CALLS_MODULE, _ENDS = range(1, 5)
"""What a frame is to `locate`: the user's own line; torch's, Lightning's or ours; the call of a module; where to stop."""
_kinds: dict[int, int] = {}
"""By the `id` of a code object."""
_codes: dict[int, CodeType] = {}
"""Those, kept so that each `id` stays its own: hashing a code object reads all of its instructions."""


class ModuleNames:
    """Fully qualified names of the modules of a model, told apart by identity, and learnt anew when one comes that isn't known.

    An `id` is that of another module as soon as the first is gone, so a name is worth as much as the module it was given for.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names: dict[int, tuple[weakref.ref[nn.Module], str]] = {}
        self._fresh = False
        """Whether they were learnt in this step, in which what isn't there is no module of the model."""

    def begin_step(self) -> None:
        """Begin a step, in which the model may have other modules than before."""
        self._fresh = False

    def of(self, module: nn.Module) -> str | None:
        """Return the name of a module; None for one that isn't the model's."""
        known = self._names.get(id(module))
        if known is not None and known[0]() is module:
            return known[1]
        if self._fresh:
            return None
        self._fresh = True
        self._names = {
            id(each): (weakref.ref(each), qualified_name(f"{name}.")[:-1]) for name, each in self._model.named_modules()
        }
        return self.of(module)


class CallSite(NamedTuple):
    """Where an activation function is called."""

    module: str
    """Fully qualified name of the innermost module whose forward is running; ``""`` for the root."""
    leaf: bool
    """Whether that module is nothing but an activation function (no children, no parameters of a layer)."""
    place: Place | None
    """The user's own line: of the call, or, for a leaf, of the call of the module; None where that is torch's own."""
    inner: Place | None
    """For a leaf that the user wrote: the line inside it."""


def locate(names: ModuleNames, *, above: int = 1) -> CallSite:
    """Find the innermost known module and the nearest line that isn't torch's, Lightning's or ours.

    Args:
        names: Those of the model's modules.
        above: How many frames to leave out, counted from the caller.
    """
    frame = sys._getframe(above + 1)  # noqa: SLF001 - the documented way to look at the caller's stack
    module: str | None = None
    leaf = False
    place: Place | None = None
    inner: Place | None = None
    for _ in range(_DEEPEST):
        code = frame.f_code
        kind = _kinds.get(id(code)) or _look(code)
        if kind is not _PASSED:
            if kind is _CALLS_MODULE:
                if module is not None:
                    break  # its caller is torch's (a Sequential): whoever calls that one makes no other place of it
                owner = frame.f_locals["self"]
                module = names.of(owner)
                if module is not None and is_leaf(owner):
                    leaf, inner, place = True, place, None
            elif kind is _OF_USER and place is None:
                place = (id(code), frame.f_lasti)
            elif kind is _ENDS:
                break
            if module is not None and (place is not None or not leaf):
                break
        outer = frame.f_back
        if outer is None:
            break
        frame = outer
    return CallSite(module or "", leaf, place, inner)


def spelled(place: Place | None) -> str:
    """Return a place as text that is the same in each process that runs the program."""
    if place is None:
        return ""
    code = _codes[place[0]]
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}:{code.co_name}+{place[1]}"


def line_of(place: Place | None) -> str:
    """Say in which function, file and line a place is."""
    if place is None:
        return ""
    code, offset = _codes[place[0]], place[1]
    lines = (line for start, end, line in code.co_lines() if start <= offset < end and line is not None)
    return _spelled_line(code, next(lines, code.co_firstlineno))


def line_of_function(function: Any) -> str:
    """Say in which file and line a function of the user's begins; empty for any other."""
    code = getattr(function, "__code__", None)
    if code is None or (_kinds.get(id(code)) or _look(code)) is not _OF_USER:
        return ""
    return _spelled_line(code, code.co_firstlineno)


def line_of_step() -> str:
    """Say in which function, file and line the user's code has an optimizer step; empty where Lightning's loop has it step."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as above
    for _ in range(_DEEPEST):
        if frame is None or frame.f_code.co_filename.endswith(_AUTOMATIC):
            break
        path = frame.f_code.co_filename
        decorates = path.startswith(_STANDARD) and "site-packages" not in path  # as torch's no_grad and contextlib do
        if not decorates and (_kinds.get(id(frame.f_code)) or _look(frame.f_code)) is _OF_USER:
            return _spelled_line(frame.f_code, frame.f_lineno)
        frame = frame.f_back
    return ""


def _spelled_line(code: CodeType, number: int) -> str:
    line = f"{Path(code.co_filename).name}:{number}"
    return line if code.co_name.startswith("<") else f"{code.co_name} ({line})"


def line_of_call(names: ModuleNames, *, above: int = 1) -> str:
    """Say in which function, file and line the innermost known module makes a call; empty where that isn't the user's code.

    Args:
        names: Those of the model's modules.
        above: How many frames to leave out, counted from the caller.
    """
    frame: FrameType | None = sys._getframe(above + 1)  # noqa: SLF001 - as above
    for _ in range(_DEEPEST):
        if frame is None:
            break
        code = frame.f_code
        kind = _kinds.get(id(code)) or _look(code)
        if kind is _ENDS or (kind is _CALLS_MODULE and names.of(frame.f_locals["self"]) is not None):
            break  # what a module runs here is torch's own; a line further out only calls it
        if kind is _OF_USER:
            return _spelled_line(code, frame.f_lineno)
        frame = frame.f_back
    return ""


def inside_function() -> Literal["", "checkpoint", "function"]:
    """Return which kind of autograd function runs this forward without gradients, as it has a backward of its own.

    That is a reentrant checkpoint, which runs it again in the backward pass, or a custom function; else ``""``.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as above
    for _ in range(_DEEPEST):
        if frame is None:
            break
        if frame.f_code is _REENTRANT_CHECKPOINT:
            return "checkpoint"
        if frame.f_code is _APPLY:
            return "function"
        frame = frame.f_back
    return ""


def mark_outermost(code: CodeType) -> None:
    """Name a function of ours above which there is nothing of the user's forward pass."""
    _know(code, _ENDS)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is an activation function by itself, so that its own name says all."""
    if not module._modules and (not module._parameters or isinstance(module, nn.PReLU)):  # noqa: SLF001 - no copies
        return True
    return isinstance(module, registered_classes())


def _look(code: CodeType) -> int:
    path = code.co_filename
    internal = path.startswith((*_INTERNAL_FOLDERS, "<frozen")) or any(part in path for part in _LIGHTNING)
    return _know(code, _PASSED if internal else _OF_USER)


def _know(code: CodeType, kind: int) -> int:
    _codes[id(code)] = code
    _kinds[id(code)] = kind
    return kind


_know(nn.Module._call_impl.__code__, _CALLS_MODULE)  # noqa: SLF001 - the frame that knows which module is being called
