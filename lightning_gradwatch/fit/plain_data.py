"""Values of a closed set of types as bytes and back, bit for bit: what one process hands to another. Data alone.

One JSON text, and behind it the bytes of every array. What JSON has no word for is an object with one key, the name of
its kind. Reading makes numbers, texts, containers, arrays and the dataclasses it was given, and calls nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import struct
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_MAGIC = b"gradwatch data 1"
_HEADER = struct.Struct("<16sQ")
_ARRAY_KINDS = "biuf"
_ARRAY_KIND = re.compile(f"[<>|=]?[{_ARRAY_KINDS}][0-9]{{1,2}}")
"""One kind of number; numpy reads whole expressions in other texts."""
"""numpy's kinds of dtype that are numbers, each of so many bytes."""


def encode(value: Any, classes: Sequence[type]) -> bytes:
    """Return a value as bytes.

    Args:
        value: None, numbers, texts, paths, tuples, lists, mappings, arrays of numbers, and `classes` that hold such.
        classes: Dataclasses and enumerations, by whose names they are told apart.

    Raises:
        TypeError: it holds something else.
    """
    writer = _Writer(classes)
    text = json.dumps(writer.plain(value), separators=(",", ":"), allow_nan=False).encode()
    return b"".join((_HEADER.pack(_MAGIC, len(text)), text, *writer.arrays))


def decode(data: bytes, classes: Sequence[type]) -> Any:
    """Return the value that `encode` was given.

    Raises:
        ValueError: the bytes aren't what `encode` makes of these classes.
    """
    try:
        magic, length = _HEADER.unpack_from(data)
        text, arrays = data[_HEADER.size :][:length], data[_HEADER.size + length :]
        return _Reader(classes, arrays).value(json.loads(text.decode() if magic == _MAGIC else ""))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, struct.error) as error:
        raise ValueError(f"it is damaged: {type(error).__name__}: {error}") from error


class _Writer:
    def __init__(self, classes: Sequence[type]) -> None:
        self.arrays: list[bytes] = []
        self._classes = frozenset(classes)
        self._size = 0
        self._plain: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
            (np.ndarray, lambda value: {"array": self._array(value)}),
            (np.generic, lambda value: {"number": self._array(np.asarray(value))}),
            (float, lambda value: value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}),
            (str, _plain_text),
            ((bool, int, type(None)), lambda value: value),
            (tuple, self._entries),
            (list, lambda value: {"list": self._entries(value)}),
            (Mapping, lambda value: {"mapping": [self._entries(pair) for pair in value.items()]}),
            (Path, lambda value: {"path": str(value)}),
        )

    def plain(self, value: Any) -> Any:
        """Return what JSON can hold."""
        if type(value) in self._classes:
            return {type(value).__name__: self._content(value)}
        for kinds, plain in self._plain:
            if isinstance(value, kinds):
                return plain(value)
        raise TypeError(f"{type(value).__name__} is no plain data")

    def _content(self, value: Any) -> Any:
        if isinstance(value, Enum):
            return value.value
        return {entry.name: self.plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}

    def _entries(self, values: Iterable[Any]) -> list[Any]:
        return [self.plain(entry) for entry in values]

    def _array(self, array: np.ndarray[Any, Any]) -> list[Any]:
        if array.dtype.kind not in _ARRAY_KINDS:
            raise TypeError(f"an array of {array.dtype} is no plain data")
        raw, start = array.tobytes(), self._size
        self.arrays.append(raw)
        self._size += len(raw)
        return [array.dtype.str, list(array.shape), start]


def _plain_text(text: str) -> Any:
    try:
        text.encode()
    except UnicodeEncodeError:  # halves of characters: JSON would make one of two that stand side by side
        return {"text": text.encode("utf-8", "surrogatepass").hex()}
    return text


class _Reader:
    def __init__(self, classes: Sequence[type], arrays: bytes) -> None:
        self._arrays = arrays
        self._kinds: dict[str, Callable[[Any], Any]] = {
            "array": self._array,
            "number": lambda entry: self._array(entry)[()],
            "float": lambda text: struct.unpack(">d", bytes.fromhex(text))[0],
            "text": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
            "list": lambda entries: [self.value(entry) for entry in entries],
            "mapping": lambda pairs: {self.value(key): self.value(entry) for key, entry in pairs},
            "path": Path,
        }
        self._classes = {each.__name__: each for each in classes}

    def value(self, data: Any) -> Any:
        """Return the value that a piece of JSON stands for."""
        if isinstance(data, list):
            return tuple(self.value(entry) for entry in data)
        if not isinstance(data, dict):
            return data
        ((kind, content),) = data.items()
        if kind in self._kinds:
            return self._kinds[kind](content)
        chosen = self._classes[kind]
        if issubclass(chosen, Enum):
            return chosen(content)
        return chosen(**{name: self.value(entry) for name, entry in content.items()})

    def _array(self, entry: Any) -> np.ndarray[Any, Any]:
        name, shape, start = entry
        if not _ARRAY_KIND.fullmatch(str(name)):
            raise ValueError(f"it holds no array of {name!r}")
        dtype = np.dtype(str(name))
        if dtype.kind not in _ARRAY_KINDS or start < 0 or any(size < 0 for size in shape):
            raise ValueError("it holds no such array")
        found = np.frombuffer(self._arrays, dtype, count=math.prod(shape), offset=start)
        return found.reshape(shape).copy()  # what is read from bytes can't be written to
