"""The kernels of a piece of work, by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

# Calls that are recorded.
_CALLS = 3


def profile(work: Callable[[], object], device: torch.device, path: Path | None = None) -> float:
    """How many kernels a call starts, on a CPU operators; the slowest go to `path` by their time.

    Copies and fills of memory count as kernels: they take their turn like any.
    """
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if gpu else [ProfilerActivity.CPU]
    work()
    # The first recording of a process misses what it starts with.
    for _ in range(2):
        with profiler(activities=activities) as made:
            for _ in range(_CALLS):
                work()
            if gpu:
                torch.cuda.synchronize(device)
    found: Any = made.events()
    kind = DeviceType.CUDA if gpu else DeviceType.CPU
    count: int = sum(event.device_type == kind and event.cpu_parent is None for event in found)
    if path is not None:
        key = "self_device_time_total" if gpu else "self_cpu_time_total"
        table = made.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=90)
        path.write_text(f"{_CALLS} calls\n{table}\n", encoding="utf-8")
    return count / _CALLS
