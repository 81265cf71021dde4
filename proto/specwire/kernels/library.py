"""The compiled kernels of this process, if they are wanted and there."""

from __future__ import annotations

import ctypes
from typing import Any, Literal

import torch

from specwire import logs
from specwire.kernels.build import KernelError, load
from specwire.settings import StartError

#: Whether to compile: if it works, or fail if it does not, or not at all.
Compile = Literal["auto", "on", "off"]

_log = logs.get(__name__)

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_ARGUMENTS: dict[str, list[Any]] = {
    "hc_draw": [_INT, _POINTER, *[_LONG] * 3, *[_POINTER] * 6, _INT],
    "hc_shares": [_INT, _POINTER, *[_LONG] * 3, *[_POINTER] * 2],
    "hc_argmax": [*[_POINTER] * 4, *[_LONG] * 3, _FLOAT, _POINTER, _INT],
    "hc_attend": [
        _INT, _LONG, _POINTER, _LONG, _POINTER, _POINTER, _LONG, _POINTER,
        *[_LONG] * 4, _FLOAT, _POINTER, _INT,
    ],
    "hc_linear": [*[_POINTER] * 4, *[_LONG] * 3, _INT],
    "hc_start_tiles": [],
    "hc_decode": [_POINTER, _POINTER, _INT],
    "hc_entries": [_POINTER, _POINTER, _INT],
    "hc_chain": [_POINTER, _POINTER, _INT],
    "hc_join": [
        _INT, _POINTER, _POINTER, _POINTER, _LONG, _POINTER, _LONG, _LONG, _FLOAT, _POINTER,
    ],
    "hc_add_norm": [
        _INT, _POINTER, _LONG, _POINTER, _POINTER, _LONG, _LONG, _FLOAT, _POINTER, _POINTER,
    ],
    "hc_rotate": [_INT, _POINTER, _LONG, *[_POINTER] * 3, *[_LONG] * 3],
    "hc_gate": [_INT, _POINTER, _LONG, _LONG, _POINTER],
}  # fmt: skip

_library: ctypes.CDLL | None = None


def prepare(compile: Compile) -> None:
    """Compile the kernels, or load those that were; they serve the whole process from then on.

    Raises:
        StartError: they are wanted `on` and cannot be had.
    """
    global _library
    _library = None
    if compile == "off":
        return
    try:
        library = load()
    except KernelError as error:
        if compile == "on":
            raise StartError(f"--compile: {error}.") from None
        _log.warning("no compiled kernels; torch's operators are used", reason=str(error))
        return
    for name, arguments in _ARGUMENTS.items():
        getattr(library, name).argtypes = arguments
    _library = library


def level() -> str | None:
    """The level of the CPU's instructions that serves; None without compiled kernels."""
    return None if _library is None else "native"


def kernels_for(*tensors: torch.Tensor) -> Any:
    """The kernels, or None if they cannot take tensors like these, all of one floating dtype."""
    first = tensors[0]
    if _library is None or first.dtype not in (torch.bfloat16, torch.float32):
        return None
    for tensor in tensors:
        if tensor.device.type != "cpu" or tensor.dtype != first.dtype or tensor.stride(-1) != 1:
            return None
    return _library


def threads() -> int:
    """Threads that a kernel may take: those that torch's operators would."""
    return torch.get_num_threads()
