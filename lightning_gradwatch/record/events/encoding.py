"""The values of a TensorBoard event: arrays, texts and numbers into it, and out of it. No torch.

Each value is made where it stays, in the event: protobuf copies one that is handed over.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.record.step import FloatVector

PLUGIN = "gradwatch"
_DOUBLE: int = types_pb2.DT_DOUBLE
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_FLOAT64 = np.dtype("<f8")
_FLOAT32 = np.dtype("<f4")
_DTYPES: dict[int, np.dtype[Any]] = {
    types_pb2.DT_DOUBLE: _FLOAT64,
    types_pb2.DT_FLOAT: _FLOAT32,
    types_pb2.DT_HALF: np.dtype("<f2"),
    types_pb2.DT_UINT8: np.dtype("|u1"),
}


def _metadata(plugin: str, data_class: int, description: str = "") -> Any:
    return summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name=plugin),
        summary_description=description,
        data_class=data_class,
    )


OURS = _metadata(PLUGIN, summary_pb2.DATA_CLASS_TENSOR)
TEXT = _metadata("text", summary_pb2.DATA_CLASS_TENSOR)


@lru_cache(maxsize=32)
def _shape(*sizes: int) -> Any:
    return tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in sizes])


def add_bytes(values: Any, tag: str, vector: npt.NDArray[np.uint8]) -> None:
    """Add a tensor of uint8."""
    _add_tensor(values, tag, types_pb2.DT_UINT8, vector)


def add_vector(values: Any, tag: str, vector: FloatVector) -> None:
    """Add a tensor of float64."""
    _add_tensor(values, tag, types_pb2.DT_DOUBLE, vector)


def add_narrow(values: Any, tag: str, vector: FloatVector) -> None:
    """Add a tensor of the narrowest type that holds the same bits: a window's fill is a count over a power of two."""
    bits = np.ascontiguousarray(vector, dtype=_FLOAT64).tobytes()
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for dtype in (types_pb2.DT_HALF, types_pb2.DT_FLOAT):
            narrow = vector.astype(_DTYPES[dtype])
            if narrow.astype(_FLOAT64).tobytes() == bits:
                return _add_tensor(values, tag, dtype, narrow)
    return add_vector(values, tag, vector)


def _add_tensor(values: Any, tag: str, dtype: int, vector: npt.NDArray[Any]) -> None:
    raw = np.ascontiguousarray(vector, dtype=_DTYPES[dtype]).tobytes()
    tensor = tensor_pb2.TensorProto(dtype=dtype, tensor_shape=_shape(len(vector)), tensor_content=raw)
    values.add(tag=tag, tensor=tensor, metadata=OURS)


def add_strings(values: Any, tag: str, texts: Sequence[str | bytes], metadata: Any) -> None:
    """Add texts as one tensor."""
    # One text is a scalar: TensorBoard draws a vector of one as a table of one cell.
    shape = _shape(len(texts)) if len(texts) > 1 else _shape()
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=encoded)
    values.add(tag=tag, tensor=tensor, metadata=metadata)


def add_scalar(values: Any, tag: str, value: float, description: str, described: set[str] | None) -> None:
    """Add a scalar unless TensorBoard can't draw it: NaN, and what is infinite in the float32 of a scalar.

    Args:
        values: Where to add it.
        tag: Its series.
        value: The number.
        description: What the series is; goes in with its first value.
        described: The series that have theirs, added to here; None: all have.
    """
    if not abs(value) <= _FLOAT32_MAX:
        return
    if described is None or tag in described:
        values.add(tag=tag, simple_value=value)
    else:
        described.add(tag)
        metadata = _metadata("scalars", summary_pb2.DATA_CLASS_SCALAR, description)
        values.add(tag=tag, simple_value=value, metadata=metadata)


class Curves:
    """The scalars of series that have their descriptions, as the bytes that protobuf would make of them one by one.

    Args:
        tags: One a number.
    """

    def __init__(self, tags: Sequence[str]) -> None:
        # The last four bytes of a value are its float32, of which protobuf leaves out no part, not even of 0.
        values = [summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, simple_value=1)]) for tag in tags]
        self._heads = [value.SerializeToString()[: -_FLOAT32.itemsize] for value in values]
        pieces = [np.frombuffer(head + bytes(_FLOAT32.itemsize), np.uint8) for head in self._heads]
        self._all = np.concatenate(pieces) if pieces else np.empty(0, np.uint8)
        ends = np.cumsum([len(piece) for piece in pieces], dtype=np.intp)
        self._places = ends[:, None] - np.arange(_FLOAT32.itemsize, 0, -1)

    def of(self, numbers: FloatVector) -> bytes:
        """Return a serialized summary of those of the numbers, one a tag, that TensorBoard can draw."""
        drawn = np.abs(numbers) <= _FLOAT32_MAX  # not so of NaN
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            narrow = numbers.astype(_FLOAT32)
        if drawn.all():
            filled = self._all.copy()
            filled[self._places] = narrow.view(np.uint8).reshape(self._places.shape)
            return filled.tobytes()
        raw = narrow.tobytes()
        size = _FLOAT32.itemsize
        return b"".join(
            head + raw[column * size : (column + 1) * size] for column, head in enumerate(self._heads) if drawn[column]
        )


def content(tensor: Any) -> bytes:
    """Return the bytes of a tensor or its texts."""
    found: bytes = tensor.tensor_content or b"".join(tensor.string_val)
    return found


def type_of(array: npt.NDArray[Any]) -> int:
    """Return the type of the tensor that an array was made of.

    Raises:
        ValueError: none of ours has it.
    """
    for dtype, known in _DTYPES.items():
        if array.dtype == known:
            return dtype
    raise ValueError(f"it holds a tensor of type {array.dtype}")


def vector_of(dtype: int, raw: bytes) -> FloatVector:
    """Return as float64 the numbers in the bytes of a tensor, whatever shape it claims.

    Raises:
        ValueError: it is of a type that is none of ours, or the bytes end within a number.
    """
    if dtype == _DOUBLE:
        return np.frombuffer(raw, _FLOAT64)
    known = _DTYPES.get(dtype)
    if known is None:
        raise ValueError(f"it holds a tensor of type {dtype}")
    return np.frombuffer(raw, known).astype(np.float64)
