"""Small numbers on their way to a device and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def put(
    values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """A tensor of `values` on `device`. To a GPU it travels without waiting for what runs there."""
    if device.type != "cuda":
        return torch.tensor(values, device=device, dtype=dtype)
    return torch.tensor(values, dtype=dtype).pin_memory().to(device, non_blocking=True)


def fetch(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors, all of one device, on the CPU; a GPU is waited for once."""
    if tensors[0].device.type != "cuda":
        return list(tensors)
    fetched = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return fetched
