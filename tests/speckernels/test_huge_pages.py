"""Memory of large pages."""

from __future__ import annotations

import gc
import mmap
import threading
from pathlib import Path

import pytest
import torch

from speckernels import huge_pages


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize("shape", [(3,), (7, 5), (64, 18, 16, 16, 2), (1 << 20, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_zeros_of_any_size(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    made = huge_pages.huge_page_zeros(shape, dtype)
    assert (tuple(made.shape), made.dtype) == (shape, dtype)
    assert made.is_contiguous()
    assert not made.any()
    assert made.data_ptr() % 64 == 0, "kernels read whole lines"


def test_nothing() -> None:
    assert huge_pages.huge_page_zeros((0, 4), torch.bfloat16).shape == (0, 4)


def test_nobody_writes_into_what_another_has() -> None:
    made: list[tuple[int, torch.Tensor]] = []

    def take(number: int) -> None:
        sizes = (1, 63, 1000, 40_000, 700_000, 1 << 20)
        made.extend(
            (number, huge_pages.huge_page_zeros((n,), torch.float32).fill_(number)) for n in sizes
        )

    threads = [threading.Thread(target=take, args=[number]) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8 * 6
    assert all(bool((own == number).all()) for number, own in made)


def test_what_nobody_has_any_more_is_given_back() -> None:
    gc.collect()
    before = resident()
    made = huge_pages.huge_page_zeros((64 << 20,), torch.float32).fill_(1)
    assert resident() - before > 250 << 20
    del made
    gc.collect()
    assert resident() - before < 50 << 20


def test_pages_are_large_where_the_system_has_them() -> None:
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or "[never]" in enabled.read_text():
        pytest.skip("this system has none")
    made = huge_pages.huge_page_zeros((16 << 20,), torch.float32).fill_(1)
    assert made.data_ptr() % (2 << 20) == 0
    maps = Path("/proc/self/smaps").read_text().split("VmFlags")
    sizes = [
        int(line.split()[1])
        for part in maps
        for line in part.splitlines()
        if line.startswith("AnonHugePages")
    ]
    assert sum(sizes) << 10 >= made.nbytes // 2
