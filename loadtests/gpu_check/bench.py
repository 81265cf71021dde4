"""What all parts share: the device, its shapes and bars, and how long something takes on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from loadtests.gpu_check.findings import read
from loadtests.gpu_check.options import Options
from loadtests.gpu_check.reckoned import Rates, Reckoned
from loadtests.gpu_check.shapes import Shapes, shapes_of
from speckernels.device import pick_device
from specserve import logs

# Calls before those that are timed: the first ones allocate, compile and choose.
_WARM = 3


@dataclass(frozen=True, slots=True)
class Bench:
    """The device of a run, in a process of its own."""

    options: Options
    device: torch.device
    shapes: Shapes

    @classmethod
    def of(cls, options: Options) -> Bench:
        """Prepare this process for the device that is asked for.

        Raises:
            StartError: torch does not see it.
        """
        logs.configure("gpu-check", "info")
        device = pick_device(options.device)
        if device.type == "cuda":
            device = torch.device("cuda", device.index or 0)
            torch.cuda.set_device(device)
        else:
            from loadtests.gpu_check.stand_in import stand_in

            stand_in()
        return cls(options, device, shapes_of(options.size, device))

    @property
    def on_gpu(self) -> bool:
        """Whether times mean anything."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Of weights: what a GPU serves, and on a CPU what has no rounding to be told apart."""
        return torch.bfloat16 if self.on_gpu else torch.float32

    def reckoned(self) -> Reckoned:
        """The bars of the target, from what the first part measured."""
        facts = read(self.options.out / "versions.json")[1]
        return Reckoned(self.shapes.target, Rates(facts["memory_rate"], facts["product_rate"]))

    def milliseconds(self, work: Callable[[], object], repeats: int | None = None) -> float:
        """What the device takes for `work`, with what it waits for: the median of `repeats`."""
        for _ in range(_WARM if self.on_gpu else 1):
            work()
        return median(self._once(work) for _ in range(repeats or self.shapes.repeats))

    def _once(self, work: Callable[[], object]) -> float:
        if not self.on_gpu:
            began = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - began)
        event: Any = torch.cuda.Event
        begin, end = (event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize(self.device)
        took: float = begin.elapsed_time(end)
        return took

    def reserved(self) -> float:
        """MiB that torch has taken of the device, the free ones given back."""
        if not self.on_gpu:
            return 0.0
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(self.device) / (1 << 20)


def apart(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """How far rows [rows, ...] are from what they should be: the worst one's share of its size."""
    missed = got.float() - wanted.float()
    far, size = (rows.reshape(len(rows), -1).norm(dim=1) for rows in (missed, wanted.float()))
    return float((far / size.clamp(min=1e-30)).max())


def rounding(dtype: torch.dtype) -> float:
    """What rows may be `apart` that differ by rounding; in fp32 sums have some more of it."""
    return max(2 * float(torch.finfo(dtype).eps), 1e-5)
