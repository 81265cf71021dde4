"""The device that a service runs on: whose turn it is, and what memory it has."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import speckernels as kernels
from specserve.settings import Compile, CpuLevel, StartError

# Names a running kernel, and so its host: containers have it too, and names of their own.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def prepare(device: torch.device, compile: Compile, level: CpuLevel) -> None:
    """Prepare the kernels of a CPU, where that is the device: a GPU uses none of them.

    Raises:
        StartError: see `speckernels.load_kernels`.
    """
    if device.type == "cpu":
        kernels.load_kernels(compile, level)


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


def device_name(device: torch.device) -> str:
    """Name a device so that no other has the name: a GPU, or all cores of a host."""
    if device.type == "cuda":
        return f"cuda:{torch.cuda.get_device_properties(device).uuid}"
    try:
        host = _BOOT_ID.read_text().strip()
    except OSError:
        host = socket.gethostname()
    return f"{device.type}:{host}"


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


def is_async(device: torch.device) -> bool:
    """Whether operators are queued there, so that to look at a value waits for all before it."""
    return device.type != "cpu"
