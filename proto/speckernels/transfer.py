"""Small numbers on their way to a device and back."""

from __future__ import annotations

from typing import Any

import torch


def to_device_async(
    values: Any, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """`torch.tensor` on a device that is not waited for."""
    if device.type != "cuda":
        return torch.tensor(values, device=device, dtype=dtype)
    # A copy out of memory that may be paged out would wait.
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


def to_host(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors, all of one device, on the CPU; a GPU is waited for once."""
    if tensors[0].device.type != "cuda":
        return list(tensors)
    fetched = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    synchronize(tensors[0].device)
    return fetched


def synchronize(device: torch.device) -> None:
    """Return once a device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
