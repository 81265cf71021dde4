"""How long a matrix product takes by the kernels that serve, its weights out of memory."""

from __future__ import annotations

import time
from statistics import median

import torch
from torch.nn import functional as F

from speckernels.packed_linear import PackedLinear, packable

PASSES = 7
# Bytes that are read in between, as a forward reads other layers: far beyond a cache.
BETWEEN = 256 << 20


class TimedProduct:
    """The product of rows with one weight [out, in], packed as a service packs it."""

    def __init__(self, weight: torch.Tensor, between: int = BETWEEN) -> None:
        self._weight = weight.detach()
        self._packed = PackedLinear(self._weight) if packable(self._weight) else None
        self._between = torch.ones(between // 4, device=weight.device)

    @torch.inference_mode()
    def seconds(self, rows: int) -> float:
        """The median of several products with so many rows."""
        inputs = self._weight.new_ones(rows, self._weight.shape[1])
        found = []
        for _ in range(PASSES):
            self._between.sum().item()
            began = time.perf_counter()
            self._multiply(inputs)[0, 0].item()  # which waits for a GPU
            found.append(time.perf_counter() - began)
        return median(found)

    def _multiply(self, inputs: torch.Tensor) -> torch.Tensor:
        if self._packed is None:
            return F.linear(inputs, self._weight)
        packed: torch.Tensor = self._packed(inputs)
        return packed
