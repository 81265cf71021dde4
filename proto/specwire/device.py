"""The device that a service runs on: whose turn it is, and what memory it has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from specwire import kernels
from specwire.settings import Compile, CpuLevel, StartError


def prepare(device: torch.device, compile: Compile, level: CpuLevel) -> None:
    """Prepare the kernels of a CPU, where that is the device: a GPU uses none of them.

    Raises:
        StartError: see `specwire.kernels.prepare`.
    """
    if device.type == "cpu":
        kernels.prepare(compile, level)


def use(device: torch.device) -> None:
    """Make a GPU the calling thread's own: streams and pinned memory are those of one that is."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def free_memory(device: torch.device) -> int | None:
    """Bytes that a GPU has left; None of other devices, which take memory as it is written."""
    if device.type != "cuda":
        return None
    # What was freed is kept for the next, and would count as taken.
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


@contextmanager
def taking(flag: str, size: int, device: torch.device) -> Iterator[None]:
    """Around what takes `size` bytes of a device, as the setting `flag` says.

    Raises:
        StartError: a GPU does not have as much.
    """
    free = free_memory(device)
    sentence = (
        f"{flag}: {size >> 20} MiB were asked for on {device}, where {(free or 0) >> 20} MiB are "
        "free; give less."
    )
    if free is not None and size > free:
        raise StartError(sentence)
    try:
        yield
    except torch.OutOfMemoryError:
        raise StartError(sentence) from None
