"""The weights inside an ONNX file, read without the onnx package: devices do not have it.

An ONNX file is a protocol buffer: fields of a number, a wire type and a value. Four of its messages are
enough to get at the initializers (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_GRAPH, _INITIALIZER = 7, 5  # of ModelProto, of GraphProto
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9  # of TensorProto
_FLOAT = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Value = int | memoryview


def read_weights(graph: bytes) -> dict[str, NDArray[np.float32]]:
    """Every float32 initializer by its name, without a copy. Raises ValueError on what is no ONNX file."""
    weights = {}
    for number, body in _fields(memoryview(graph)):
        if number == _GRAPH and isinstance(body, memoryview):
            weights.update(_tensor(value) for field, value in _fields(body) if field == _INITIALIZER)
    return {name: array for name, array in weights.items() if array is not None}


def _tensor(message: Value) -> tuple[str, NDArray[np.float32] | None]:
    assert isinstance(message, memoryview)
    name, data, dims, data_type = "", memoryview(b""), [], 0
    for number, value in _fields(message):
        if number == _DIMS:
            dims += [value] if isinstance(value, int) else _packed(value)
        elif number == _DATA_TYPE and isinstance(value, int):
            data_type = value
        elif number == _NAME and isinstance(value, memoryview):
            name = bytes(value).decode()
        elif number == _RAW_DATA and isinstance(value, memoryview):
            data = value
    return name, np.frombuffer(data, "<f4").reshape(dims) if data_type == _FLOAT else None


def _fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire_type == _BYTES:
            size, at = _varint(message, at)
        elif wire_type in (_FIXED64, _FIXED32):
            size = 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"not an ONNX file: wire type {wire_type}")
        if at + size > len(message):
            raise ValueError("not an ONNX file: it ends in the middle of a field")
        yield number, message[at : at + size]
        at += size


def _packed(message: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(message):
        value, at = _varint(message, at)
        values.append(value)
    return values


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("not an ONNX file: a number does not end")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
