"""Tensors of torch as `Tensor` messages."""

from __future__ import annotations

import ctypes
import warnings

import torch

from speckernels.device import is_async
from specwire import tensor
from specwire.errors import InvalidRequest
from specwire.v1 import tensor_pb2

_TO_WIRE: dict[torch.dtype, tensor_pb2.DType.ValueType] = {
    torch.float32: tensor_pb2.D_TYPE_FLOAT32,
    torch.bfloat16: tensor_pb2.D_TYPE_BFLOAT16,
    torch.float16: tensor_pb2.D_TYPE_FLOAT16,
}
_FROM_WIRE: dict[tensor_pb2.DType.ValueType, torch.dtype] = {
    wire: dtype for dtype, wire in _TO_WIRE.items()
}
# torch takes bytes for memory that others read; those of a message are a copy of our own.
warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)


def pack(*values: torch.Tensor, into: tensor_pb2.Tensor | None = None) -> tensor_pb2.Tensor:
    """Encode a floating tensor of any device, dtype fp32, bf16 or fp16.

    Several of one dtype, which differ in their first dimension at most, are joined along it.
    `into` is an empty message that has its place already: to put one there would copy it.

    Raises:
        InvalidRequest: another dtype.
    """
    first = values[0]
    dtype = _TO_WIRE.get(first.dtype)
    if dtype is None:
        raise InvalidRequest(f"a tensor of {first.dtype} cannot travel.")
    shape = list(first.shape)
    if len(values) > 1:
        shape[0] = sum(map(len, values))
        if is_async(first.device):
            values = (torch.cat(values),)  # A device is waited for once.
    held = [value.cpu().contiguous() for value in values]
    message = tensor_pb2.Tensor() if into is None else into
    message.dtype = dtype
    message.shape.extend(shape)
    # By address: in a round each call of an operator would cost more than the rows do.
    message.data = b"".join([(ctypes.c_char * v.nbytes).from_address(v.data_ptr()) for v in held])
    return message


def unpack(message: tensor_pb2.Tensor, field: str) -> torch.Tensor:
    """Decode to a CPU tensor with memory of its own.

    Raises:
        InvalidRequest: see `specwire.tensor.check`.
    """
    shape, data = tensor.checked(message, field)
    dtype = _FROM_WIRE[message.dtype]
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)
