"""The `Tensor` message: its size checked against its shape before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from specwire.errors import InvalidRequest
from specwire.v1 import tensor_pb2

MAX_ELEMENTS = 1 << 28
MAX_DIMENSIONS = 4

ITEM_SIZE: dict[int, int] = {
    tensor_pb2.D_TYPE_FLOAT32: 4,
    tensor_pb2.D_TYPE_BFLOAT16: 2,
    tensor_pb2.D_TYPE_FLOAT16: 2,
}


def check(message: tensor_pb2.Tensor, field: str) -> tuple[int, ...]:
    """Return the shape of `message`, after checking that its bytes fill it exactly.

    Raises:
        InvalidRequest: see `checked`.
    """
    return checked(message, field)[0]


def checked(message: tensor_pb2.Tensor, field: str) -> tuple[tuple[int, ...], bytes]:
    """Return shape and bytes of `message`, which fill it exactly. To look at them copies them.

    Raises:
        InvalidRequest: unknown dtype, too many dimensions or elements, or a byte count
            that does not match dtype and shape.
    """
    size = ITEM_SIZE.get(message.dtype)
    if size is None:
        raise InvalidRequest(f"{field}: unknown dtype {message.dtype}.")
    shape = tuple(message.shape)
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidRequest(f"{field}: {len(shape)} dimensions, at most {MAX_DIMENSIONS}.")
    count = math.prod(shape)
    # A shape without elements may still have a dimension that no array can have.
    if max(count, *shape, 0) > MAX_ELEMENTS:
        raise InvalidRequest(f"{field}: shape {list(shape)} has over {MAX_ELEMENTS} elements.")
    data = message.data
    if count * size != len(data):
        raise InvalidRequest(
            f"{field}: shape {list(shape)} takes {count * size} bytes, {len(data)} came."
        )
    return shape, data


def pack_floats(
    values: Sequence[float] | npt.NDArray[np.float32], shape: Sequence[int] | None = None
) -> tensor_pb2.Tensor:
    """Encode floats as an fp32 tensor of `shape`, by default of one dimension."""
    array = np.asarray(values, dtype="<f4")
    return tensor_pb2.Tensor(
        dtype=tensor_pb2.D_TYPE_FLOAT32,
        shape=list(array.shape if shape is None else shape),
        data=array.tobytes(),
    )


def unpack_floats(message: tensor_pb2.Tensor, field: str) -> npt.NDArray[np.float32]:
    """Decode an fp32 tensor to an array of its shape.

    Raises:
        InvalidRequest: as `check`, or another dtype than fp32.
    """
    shape, data = checked(message, field)
    if message.dtype != tensor_pb2.D_TYPE_FLOAT32:
        raise InvalidRequest(f"{field}: dtype must be float32.")
    return np.frombuffer(data, dtype="<f4").reshape(shape)
