"""Memory of large pages, for what is read whole in every step."""

from __future__ import annotations

import mmap
import threading
from math import prod

import torch

# Of a large page on most machines: what is smaller shares one with others.
_PAGE = 2 << 20
# Small tensors are cut from regions of so many bytes, at multiples of so many.
_REGION, _LINE = 32 << 20, 128

_lock = threading.Lock()
_region = torch.empty(0, dtype=torch.uint8)


def huge_page_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros on the CPU, in large pages where the system has them for those who ask.

    A core reads ahead within a page only, and has to look each one up. A page is taken as it is
    first written.
    """
    size = prod(shape) * dtype.itemsize
    if not size or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype)
    return _take(size).view(dtype).view(shape)


def _take(size: int) -> torch.Tensor:
    """So many zero bytes that nobody else has."""
    global _region
    if size >= _PAGE:
        return _map(size)
    with _lock:
        if len(_region) < size:
            _region = _map(_REGION)
        taken = _region[:size]
        _region = _region[-(-size // _LINE) * _LINE :]
    return taken


def _map(size: int) -> torch.Tensor:
    """Zero bytes that begin with a large page."""
    memory = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    return whole[-whole.data_ptr() % _PAGE :][:size]
