"""What a device's memory gives to torch."""

from __future__ import annotations

import time

import torch

COLUMNS = 4096
PASSES = 10


@torch.inference_mode()
def bandwidth(device: torch.device, size: int = 512 << 20) -> float:
    """Bytes per second of the fastest of several passes over `size` bytes, with torch's threads.

    A product of a matrix and a vector in fp32 reads as fast as any operator of torch here, and
    reads as a forward of few rows does. The size is far beyond a cache.
    """
    matrix = torch.ones(size // (4 * COLUMNS), COLUMNS, device=device)
    vector = torch.ones(COLUMNS, device=device)
    fastest = float("inf")
    for _ in range(PASSES):
        began = time.perf_counter()
        product = matrix @ vector
        product[-1].item()  # which waits for a GPU
        fastest = min(fastest, time.perf_counter() - began)
    return matrix.nbytes / fastest
