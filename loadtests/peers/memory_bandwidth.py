"""What a device's memory gives to torch."""

from __future__ import annotations

import time

import torch

COLUMNS = 4096
PASSES = 10


@torch.inference_mode()
def bandwidth(device: torch.device, size: int = 512 << 20) -> float:
    """Bytes per second of the fastest of several passes over `size` bytes, with torch's threads.

    Half of them sum up in fp32 and half multiply with a vector: which of them reads as fast as the
    memory gives differs between kinds of machines. The size is far beyond a cache.
    """
    matrix = torch.ones(size // (4 * COLUMNS), COLUMNS, device=device)
    vector = torch.ones(COLUMNS, device=device)
    fastest = float("inf")
    for number in range(PASSES):
        began = time.perf_counter()
        read = matrix @ vector if number % 2 else matrix.sum()
        read.flatten()[-1].item()  # which waits for a GPU
        fastest = min(fastest, time.perf_counter() - began)
    return matrix.nbytes / fastest
