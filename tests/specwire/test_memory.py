"""Freed memory goes back to the system."""

from __future__ import annotations

import os
from pathlib import Path

from specwire.memory import give_back

SIZE = 1 << 16  # of an allocation from the heap, which the C library keeps when it is freed


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_what_was_freed_below_what_stays_is_given_back() -> None:
    before = resident()
    held = [bytes([1]) * SIZE for _ in range(1024)]
    last = bytes([1]) * SIZE
    assert resident() - before > 48 << 20
    held.clear()
    give_back()
    assert resident() - before < 24 << 20
    assert len(last) == SIZE
