"""What both ends share of torch: devices, codec, fingerprint, noise, packed linears."""

from __future__ import annotations

import ctypes
import hashlib
import socket
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from specwire import kernels, tensor
from specwire.errors import InvalidRequest
from specwire.noise import token_words
from specwire.settings import StartError
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
# Names a running kernel, and so its host: containers have it too, and names of their own.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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
        if deferred(first.device):
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


def target_fingerprint(model: torch.nn.Module) -> str:
    """Name a target by a sample of its weights: the first row of every parameter, in bf16.

    The same weights loaded in fp32 or bf16 give the same fingerprint, on every device.
    """
    return fingerprint_of_rows(
        (name, parameter.shape, (parameter[:1] if parameter.dim() else parameter).detach())
        for name, parameter in model.named_parameters()
    )


def fingerprint_of_rows(parameters: Iterable[tuple[str, Sequence[int], torch.Tensor]]) -> str:
    """`target_fingerprint` from the name, shape and first row [1, ...] of each parameter."""
    digest = hashlib.sha256()
    for name, shape, row in sorted(parameters, key=lambda parameter: parameter[0]):
        digest.update(f"{name}{list(shape)}".encode())
        digest.update(row.to("cpu", torch.bfloat16).flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def device_name(device: torch.device) -> str:
    """Name a device so that no other has the name: a GPU, or all cores of a host."""
    if device.type == "cuda":
        return f"cuda:{torch.cuda.get_device_properties(device).uuid}"
    try:
        host = _BOOT_ID.read_text().strip()
    except OSError:
        host = socket.gethostname()
    return f"{device.type}:{host}"


def exponentials(
    seed: int | torch.Tensor,
    position: int | torch.Tensor,
    token_ids: torch.Tensor,
    choice: int | torch.Tensor,
) -> torch.Tensor:
    """The exponential noise of tokens: E = -log1p(-v), v = (n + 1/2) * 2**-32.

    Tensors are int64 and broadcast against each other; `seed` holds the bits of the unsigned
    seed. Returns float64 of the broadcast shape, in (0, 22.9).
    """
    words = token_words(seed, position, token_ids >> 2, choice)
    lane = token_ids & 3
    word = torch.where(
        lane < 2,
        torch.where(lane == 0, words[0], words[1]),
        torch.where(lane == 2, words[2], words[3]),
    )
    return _exponential(word)


def vocabulary_exponentials(
    seed: int, position: int, choice: int, like: torch.Tensor
) -> torch.Tensor:
    """`exponentials` of the tokens 0, 1, 2, ... of `like` [vocab], on its device."""
    blocks = torch.arange(-(-len(like) // 4), device=like.device)
    words = torch.stack(token_words(seed, position, blocks, choice), -1)
    return _exponential(words.flatten()[: len(like)])


def _exponential(word: torch.Tensor) -> torch.Tensor:
    return -torch.log1p(-(word.double() + 0.5) * 2.0**-32)


def pick_device(name: str, *, last: bool = False) -> torch.device:
    """The device of that name; `auto` is a GPU that is there, or else the CPU.

    Of several it is the first, or the `last`, so that two services do not share one.

    Raises:
        StartError: torch sees no such GPU.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        if last and count > 1:
            return torch.device("cuda", count - 1)
        return torch.device("cuda" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise StartError(f"--device: {name} was asked for, and torch sees {count or 'no'} GPUs.")
    return device


def deferred(device: torch.device) -> bool:
    """Whether operators are queued there, so that to look at a value waits for all before it."""
    return device.type != "cpu"


def packable(weight: torch.Tensor) -> bool:
    """Whether a product with this weight is faster once packed: bf16 on a CPU, ours or oneDNN's."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return False
    return kernels.tileable(weight) or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(torch.nn.Module):
    """A linear layer of bf16 weights [out, in] on a CPU, laid out as its kernel reads them.

    That is our own where it applies, and else oneDNN's, for which torch's linear lays them out
    anew in every call: that costs small batches half as much again as the product itself.
    """

    # Rows for which oneDNN chooses the layout; others work with it.
    _ROWS = 8

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        tiled = kernels.tiled(weight)
        self._bias = None if bias is None else bias.detach()
        # For our own kernel, or None.
        self.product: kernels.Product | None = None
        if tiled is not None:
            self.product = kernels.Product(tiled, None if bias is None else bias.detach().float())
            return
        self._packed = torch.ops.mkldnn._reorder_linear_weight(
            weight.detach().contiguous(), self._ROWS
        )
        self._onednn = torch.ops.mkldnn._linear_pointwise.default

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map [..., in] to [..., out]."""
        if self.product is not None:
            return kernels.linear(rows, self.product)
        product: torch.Tensor = self._onednn(rows, self._packed, self._bias, "none", [], "")
        return product


def pack_linears(module: torch.nn.Module) -> None:
    """Replace the linear layers inside `module` by packed ones, where that is faster."""
    for name, child in list(module.named_children()):
        if isinstance(child, torch.nn.Linear) and packable(child.weight):
            setattr(module, name, PackedLinear(child.weight, child.bias))
        else:
            pack_linears(child)
