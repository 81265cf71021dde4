"""The compiled kernels of this process, if they are wanted and there."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from speckernels.compile import KernelError, load_library
from speckernels.cpu_levels import fastest_first
from specserve import logs
from specserve.settings import Compile, CpuLevel, Level, StartError

_log = logs.get(__name__)

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_ARGUMENTS: dict[str, list[Any]] = {
    "hc_draw": [_INT, _POINTER, *[_LONG] * 3, *[_POINTER] * 7, _INT],
    "hc_shares": [_INT, _POINTER, *[_LONG] * 3, *[_POINTER] * 2],
    "hc_argmax": [*[_POINTER] * 4, *[_LONG] * 3, _FLOAT, _POINTER, _INT],
    "hc_attend": [
        _INT, _LONG, _POINTER, _LONG, _POINTER, _POINTER, _LONG, _POINTER,
        *[_LONG] * 4, _FLOAT, _LONG, _FLOAT, _POINTER, _POINTER, _INT,
    ],
    "hc_linear": [_INT, *[_POINTER] * 4, *[_LONG] * 3, _INT],
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
_level: Level | None = None


def load_kernels(compile: Compile, cpu_level: CpuLevel = "auto") -> None:
    """Compile the kernels, or load those that were; they serve the whole process from then on.

    `cpu_level` is that of the CPU's instructions, `auto` the fastest that it has.

    Raises:
        StartError: they are wanted `on` and cannot be had, or the CPU does not have that level.
    """
    global _library, _level
    _library = _level = None
    here = fastest_first()
    if cpu_level != "auto" and cpu_level not in here:
        raise StartError(
            f"--cpu-level: this CPU has no {cpu_level}, but {', '.join(reversed(here))}."
        )
    if compile == "off":
        return
    missed: dict[Level, str] = {}
    for each in here if cpu_level == "auto" else [cpu_level]:
        try:
            library = load_library(each)
            # A system may keep matrix tiles from its processes.
            if library.hc_start_tiles() == 0:
                break
            missed[each] = "the system gives no matrix tiles"
        except KernelError as error:
            missed[each] = str(error)
    else:
        reason = next(iter(missed.values()))
        if compile == "on":
            raise StartError(f"--compile: {reason}.")
        _log.warning("no compiled kernels; torch's operators are used", reason=reason)
        return
    for absent, reason in missed.items():
        _log.warning("kernels of a level cannot be had", cpu_level=absent, reason=reason)
    for name, arguments in _ARGUMENTS.items():
        getattr(library, name).argtypes = arguments
    _library, _level = library, each


def cpu_level() -> Level | None:
    """The level of the kernels that serve; None where torch's operators do."""
    return _level


def default_dtype(device: torch.device) -> torch.dtype:
    """The element type that is fastest on a device: bf16 wherever kernels, or the device, take it.

    `load_kernels` comes first.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    fast = _library is not None or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def kernels_for(*tensors: torch.Tensor) -> Any:
    """The kernels, or None if they cannot take tensors like these, all of one floating dtype."""
    first = tensors[0]
    if _library is None or first.dtype not in (torch.bfloat16, torch.float32):
        return None
    for tensor in tensors:
        if tensor.device.type != "cpu" or tensor.dtype != first.dtype or tensor.stride(-1) != 1:
            return None
    return _library


def num_threads() -> int:
    """Threads that a kernel may take: those that torch's operators would."""
    return torch.get_num_threads()
