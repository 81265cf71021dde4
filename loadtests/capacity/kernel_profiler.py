"""What the kernels of a span of time took, by torch's profiler."""

from __future__ import annotations

from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile


class KernelProfile:
    """Records all kernels of a GPU's streams; without a GPU, the outermost operators."""

    def __init__(self) -> None:
        self._on_gpu = torch.cuda.is_available()
        activity = ProfilerActivity.CUDA if self._on_gpu else ProfilerActivity.CPU
        # Operators run on the engine's thread and on the drafter's.
        threads = _ExperimentalConfig(profile_all_threads=True)
        self._profile = profile(activities=[activity], experimental_config=threads)

    @classmethod
    def prepare(cls) -> None:
        """Begin and end a recording: the first one takes a second to begin."""
        first = cls()
        first.start()
        first.stop()

    def start(self) -> None:
        """Record from now on."""
        self._profile.start()

    def stop(self) -> None:
        """Record no more."""
        if self._on_gpu:
            torch.cuda.synchronize()
        self._profile.stop()

    @property
    def seconds(self) -> float:
        """The sum of what was recorded."""
        device = DeviceType.CUDA if self._on_gpu else DeviceType.CPU
        events: Any = self._profile.events()  # type: ignore[no-untyped-call]
        outermost = (e for e in events if e.device_type == device and e.cpu_parent is None)
        return sum(float(e.time_range.elapsed_us()) for e in outermost) * 1e-6
